"""The benchmarks refuse what is wrong before they time it, tell what has become slower, and show what they found."""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from dataclasses import replace
from pathlib import Path

import compare
import instructions
import numpy as np
import pytest
import steps
import targets

import fastbn
from fastbn import cli, commands
from fastbn.bench import command, contenders, floor, machine, measure, memory, race, report, scaling, sizes, worker
from fastbn.bench.cases import NETWORKS, ORDERS, PASSES, STREAMS, Case, cases, dtype_of, half_types, matrix

BENCH = Path(compare.__file__).parent
CASE = Case(8, 64, 28, "training")
SMALL = Case(2, 6, 14, "training")


def test_a_wrong_kernel_is_refused_before_it_is_timed(monkeypatch):
    right = fastbn.batch_norm

    def wrong(x, *args, **kwargs):
        y, stats = right(x, *args, **kwargs)
        y[0, 0, 0, 0] += 1e-3
        return y, stats

    def timed(*_):
        raise RuntimeError("timed")

    monkeypatch.setattr(fastbn, "batch_norm", wrong)
    monkeypatch.setattr(measure, "seconds", timed)
    with pytest.raises(measure.WrongResultError, match=f"{CASE}: a wrong result"):
        measure.measure(CASE)
    monkeypatch.setattr(fastbn, "batch_norm", right)
    with pytest.raises(RuntimeError, match="timed"):
        measure.measure(CASE)


@pytest.mark.parametrize("what", PASSES)
def test_verification_is_of_the_pass_that_is_timed(what, monkeypatch):
    prepared = measure.Prepared(Case(4, 8, 14, what))
    prepared.verify()
    call = prepared.call
    monkeypatch.setattr(prepared, "call", lambda b: call(b) * np.float32(1.0001))
    with pytest.raises(measure.WrongResultError, match="a wrong result"):
        prepared.verify()


def test_a_slowed_kernel_fails_the_comparison(monkeypatch):
    """A second sweep for the statistics: some 1.3 to 1.9 times the time."""
    old = {str(CASE): measure.measure(CASE, 41).ratio}
    right = fastbn.batch_norm

    def slowed(x, *args, **kwargs):
        fastbn.batch_stats(x)
        fastbn.batch_stats(x)
        return right(x, *args, **kwargs)

    monkeypatch.setattr(fastbn, "batch_norm", slowed)
    table, slower = compare.compare(old, {str(CASE): measure.measure(CASE, 41).ratio})
    assert slower == [str(CASE)]
    assert "SLOWER" in table


def test_comparison_tolerates_ten_percent_and_no_more(tmp_path, capsys):
    def stored(name, ratio):
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": [{"name": "a", "extra_info": {"ratio": ratio, "threads": 1}}]}))
        return str(path)

    old, near, far = stored("old", 2.0), stored("near", 2.19), stored("far", 2.21)
    assert compare.main([old, near]) == 0
    assert compare.main([old, far]) == 1
    assert "1 of 1 cases are more than 10 % slower" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no case in common"):
        compare.compare({"a": 1.0}, {"b": 1.0})


def test_comparison_trusts_no_missing_ratio(tmp_path, capsys):
    """NaN is no pass, a case that is gone is told, and what cannot be compared ends with another status than slower."""
    table, slower = compare.compare({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": float("nan")})
    assert slower == ["b"]
    assert "not in the new run: c" in table
    (tmp_path / "empty").write_text('{"benchmarks": []}')
    for arguments in (["nowhere.json", "nowhere.json"], [str(tmp_path / "empty")] * 2, ["--revision", "no-such-one"]):
        with pytest.raises(SystemExit) as stopped:
            compare.main(arguments)
        assert stopped.value.code == 2
    assert "no case in common" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"training": 1.0}', '{"benchmarks": [{"name": "a"}]}'])
def test_a_file_that_is_no_run_is_named(text, tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(path), str(path)])
    assert stopped.value.code == 2
    assert f"{path}: expected a stored run of the suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (compare.main, ["--keep", "nowhere.json", "kept.json"]),
        (compare.main, ["--revision", "HEAD", "--rounds", "0"]),
        (steps.main, ["--rounds", "0"]),
    ],
)
def test_what_cannot_be_done_ends_without_a_traceback(main, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(r"nowhere.json|--rounds: .*0", capsys.readouterr().err)


def test_a_kept_run_compares_and_names_no_host(tmp_path):
    run = {
        "machine_info": {"node": "some-host"},
        "benchmarks": [{"name": "a", "extra_info": {"ratio": 2.0}, "stats": {}}],
    }
    (tmp_path / "run").write_text(json.dumps(run))
    assert compare.main(["--keep", str(tmp_path / "run"), str(tmp_path / "kept")]) == 0
    assert compare.ratios(tmp_path / "kept") == {"a": 2.0}
    assert "some-host" not in (tmp_path / "kept").read_text()


def test_a_revision_and_this_tree_are_run_in_turn(monkeypatch, capsys):
    """Medians of three runs: 2 and 4. Of a revision not every case need pass."""
    ran, found = [], {"revision": iter([1.0, 9.0, 2.0]), "tree": iter([3.0, 30.0, 4.0])}

    def run_suite(package, options, all_must_pass):
        ran.append((package.name, options, all_must_pass))
        return {"a": next(found[package.name])}

    monkeypatch.setattr(compare.subprocess, "run", lambda *_, **__: None)  # git
    monkeypatch.setattr(compare, "old_build", lambda *_: Path("revision"))
    monkeypatch.setattr(compare, "build", lambda *_: Path("tree"))
    monkeypatch.setattr(compare, "run_suite", run_suite)
    assert compare.main(["--revision", "HEAD~1", "--pytest=-k 14x14"]) == 1
    assert ran == [("revision", ["-k", "14x14"], False), ("tree", ["-k", "14x14"], True)] * 3
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "2.00", "4.00", "2.00", "SLOWER"]


def test_a_revision_is_measured_as_this_tree_is(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "build", lambda source, folder: (folder / "fastbn/bench").mkdir(parents=True))
    folder = compare.old_build(tmp_path / "source", tmp_path / "old")
    for name in ("bench/measure.py", "commands.py"):
        assert (folder / "fastbn" / name).read_text() == (compare.ROOT / "fastbn" / name).read_text()


def test_the_suite_of_a_build_imports_that_build(monkeypatch, tmp_path):
    def run(command, env, **_):
        assert env["PYTHONPATH"] == str(tmp_path)
        (report,) = (word.partition("=")[2] for word in command if word.startswith("--benchmark-json="))
        Path(report).write_text('{"benchmarks": [{"name": "a", "extra_info": {"ratio": 2.0}}]}')

    monkeypatch.setattr(compare.subprocess, "run", run)
    assert compare.run_suite(tmp_path, [], True) == {"a": 2.0}


def test_the_suite_runs_and_stores_what_it_measured(tmp_path):
    report = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "-q", str(BENCH), "-k", "8x256x14x14-float64", "--benchmark-disable-gc"]
    subprocess.run([*command, f"--benchmark-json={report}"], check=True, cwd=tmp_path, capture_output=True)
    cases = json.loads(report.read_text())["benchmarks"]
    assert len(cases) == 3
    for case in cases:
        info = case["extra_info"]
        streams = 3 if "backward" in case["name"] else 2
        assert info["bytes"] == streams * 8 * 256 * 14 * 14 * 8
        assert info["ratio"] > 0
        assert info["threads"] == 1
        assert info["kernels"] in ("baseline", "x86_64_v3")
        assert info["machine"]


def test_the_committed_reference_run_has_the_short_list():
    names = {f"test_speed[{case}]" for case in cases(False) if case.threads == 1}
    assert names <= set(compare.ratios(BENCH / "reference.json"))


def test_the_full_list_has_every_network_batch_and_option():
    full = cases(True)
    assert len(set(full)) == len(set(map(str, full))) == len(full)
    planes = [c for c in full if c.order == "NCHW"]
    for name in ("out", "cold", "residual"):
        assert {getattr(c, name) for c in planes} == {True, False}
    assert {c.batch for c in planes} == {1, 8, 32}
    assert {c.what for c in planes} == set(STREAMS)
    assert {(c.channels, c.height) for c in planes} == {shape for net in NETWORKS.values() for shape in net}
    assert {c.activation for c in full} == {None, "relu", "relu6", "leaky_relu"}
    dtypes = {"float32", "float64", *half_types()}
    assert {(c.order, c.dtype, c.what) for c in full} >= {
        (o, t, what) for o in ORDERS for t in dtypes for what in PASSES
    }
    assert {(c.out, c.cold) for c in planes} == {(True, False), (False, False), (True, True)}
    assert {c.threads for c in full} == {1, fastbn.get_num_threads()}


def test_the_short_list_touches_every_kind():
    short = cases(False)
    assert len(set(map(str, short))) == len(short)
    assert {c.order for c in short} == set(ORDERS)
    assert {c.what for c in short} == set(STREAMS)
    assert {(c.dtype, c.what) for c in short} >= {
        (t, what) for t in ("float32", "float64", *half_types()) for what in PASSES
    }
    assert {(c.out, c.cold) for c in short} == {(True, False), (False, False), (True, True)}
    assert {(c.batch, c.what) for c in short if c.order == "NCHW"} >= {(n, w) for n in (1, 8, 32) for w in PASSES}
    assert {c.threads for c in short} == {1, fastbn.get_num_threads()}
    assert {(c.activation, c.residual) for c in short} == {(None, False), ("relu", False), ("relu", True)}


def test_both_half_types_are_timed_where_there_is_ml_dtypes():
    pytest.importorskip("ml_dtypes")
    assert half_types() == ("float16", "bfloat16")


# ---- kinds: orders, types, fusions

KINDS = [
    *[Case(3, 6, 14, what, order=order) for order in ORDERS if order != "NC" for what in PASSES],
    *[matrix(70, 33, what, dtype) for dtype in ("float32", "float64", *half_types()) for what in PASSES],
    *[Case(3, 6, 14, what, dtype) for dtype in half_types() for what in PASSES],
    *[Case(3, 6, 14, what, dtype, order="NHWC") for dtype in half_types() for what in PASSES],
    *[
        Case(3, 6, 14, what, activation=activation, residual=residual)
        for activation in (None, "relu", "relu6", "leaky_relu")
        for residual in (False, True)
        for what in PASSES
    ],
    *[Case(3, 6, 14, what) for what in STREAMS],
    Case(3, 6, 14, "from-y", activation="leaky_relu"),
]


def test_orders_lie_in_memory_as_they_are_called():
    places = {o: Case(2, 3, 4, "training", order=o) for o in ORDERS}
    x = {order: measure.Prepared(case).buffers[0].x for order, case in places.items() if order != "NC"}
    assert x["NHWC"].shape == (2, 4, 4, 3)
    assert {a.shape for order, a in x.items() if order != "NHWC"} == {(2, 3, 4, 4)}
    in_values = {order: tuple(s // 4 for s in a.strides) for order, a in x.items()}
    assert in_values == {
        "NCHW": (48, 16, 4, 1),
        "NHWC": (48, 12, 3, 1),
        "channels_last": (48, 1, 12, 3),
        "slice": (96, 16, 4, 1),
    }
    assert measure.Prepared(matrix(5, 3, "training")).buffers[0].x.shape == (5, 3)


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_every_kind_is_verified(case):
    """A result with one value off is refused; and so is one without what was to be fused with it."""
    prepared = measure.Prepared(case)
    prepared.verify()
    right = prepared.call(prepared.buffers[0])
    for where in (0, right.size // 2, right.size - 1):
        wrong = right.copy()
        spot = np.unravel_index(where, wrong.shape)
        wrong[spot] += right.dtype.type(0.25 * max(1, np.abs(right.astype(float)).max()))
        prepared.call = lambda b, wrong=wrong: wrong
        with pytest.raises(measure.WrongResultError, match=f"{case}: a wrong result"):
            prepared.verify()
    if case.activation:
        plain = measure.Prepared(replace(case, activation=None))
        prepared.call = plain.call
        with pytest.raises(measure.WrongResultError, match="a wrong result"):
            prepared.verify()


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_the_floor_moves_as_many_arrays_as_the_case(case):
    prepared = measure.Prepared(case)
    size = 2 * case.array_bytes if case.order == "slice" else case.array_bytes
    moved = 0
    for arrays in prepared.to_move[0]:
        for a in arrays:
            if a is not None:
                assert case.array_bytes - 4 < a.nbytes <= case.array_bytes
                moved += a.nbytes
    assert moved * prepared.share == pytest.approx(case.bytes, rel=0.01)
    assert case.bytes == case.streams * case.array_bytes
    assert prepared.memory[0].x.nbytes == size


@pytest.mark.parametrize(
    ("case", "moved", "share"),
    [
        (SMALL, ["x out"], 1),
        (replace(SMALL, residual=True), ["x residual out"], 1),
        (replace(SMALL, what="backward"), ["x dy out"], 1),
        (replace(SMALL, what="backward", residual=True), ["x out", "dy dresidual"], 1),
        (replace(SMALL, what="backward", activation="relu", residual=True), ["x dy out", "y dresidual"], 1),
        (replace(SMALL, what="statistics"), ["x out"], 1 / 2),
        (replace(SMALL, what="params"), ["x dy out"], 2 / 3),
        (replace(SMALL, what="frozen-dx"), ["x out"], 1),
    ],
    ids=str,
)
def test_the_floor_moves_each_array_once(case, moved, share, monkeypatch):
    prepared = measure.Prepared(case)
    names = {a.ctypes.data: name for name, a in prepared.memory[0]._asdict().items() if a is not None}
    told = []
    monkeypatch.setattr(measure, "move", lambda *arrays: told.append(arrays[:3]))
    prepared.move(stream=True)
    assert [" ".join(names[a.ctypes.data] for a in arrays if a is not None) for arrays in told] == moved
    assert prepared.share == share


@pytest.mark.parametrize("fast", [True, False])
def test_the_floor_is_the_faster_of_both_kinds_of_stores(fast, monkeypatch):
    """2 s with these and 3 s with the others; statistics, which only read, have half of a copy."""
    tried = []
    monkeypatch.setattr(measure, "move", lambda x, dy, out, stream: tried.append(stream))

    def seconds(work, repeat):
        work()
        return 2.0 if tried[-1] == fast else 3.0

    monkeypatch.setattr(measure, "seconds", seconds)
    assert measure.Prepared(replace(SMALL, what="statistics")).floor() == 1
    assert set(tried) == {True, False}


@pytest.mark.parametrize("stream", [True, False])
def test_the_floor_has_the_stores_that_are_asked_for(stream, monkeypatch):
    asked = []
    monkeypatch.setattr(floor, "_core", types.SimpleNamespace(floor=lambda *given: asked.append(given)))
    floor.move("x", "dy", "out", stream)
    assert asked == [("x", "dy", "out", stream)]


def test_streams_are_counted():
    """By hand: what a pass reads, and what it writes."""
    counted = {
        Case(1, 1, 1, "training"): 2,
        Case(1, 1, 1, "training", activation="relu", residual=True): 3,
        Case(1, 1, 1, "backward", activation="relu"): 3,
        Case(1, 1, 1, "backward", residual=True): 4,
        Case(1, 1, 1, "backward", activation="relu", residual=True): 5,
        Case(1, 1, 1, "params"): 2,
        Case(1, 1, 1, "statistics"): 1,
        Case(1, 1, 1, "from-y"): 3,  # dy, y; dx
        Case(1, 1, 1, "frozen"): 3,
        Case(1, 1, 1, "frozen-dx"): 2,  # x is not needed
    }
    assert {case: case.streams for case in counted} == counted
    in_steps = {
        Case(1, 1, 1, "training"): 2,
        Case(1, 1, 1, "training", activation="relu"): 4,
        Case(1, 1, 1, "inference", activation="relu", residual=True): 7,
        Case(1, 1, 1, "backward"): 3,
        Case(1, 1, 1, "backward", residual=True): 5,  # and a copy of dy
        Case(1, 1, 1, "backward", activation="relu"): 6,
        Case(1, 1, 1, "backward", activation="relu", residual=True): 6,
    }
    assert {case: case.streams_in_steps for case in in_steps} == in_steps


@pytest.mark.parametrize("dtype", half_types())
def test_the_floor_of_half_types_copies_their_bytes(dtype):
    x, y = (floor.aligned(4096, dtype_of(dtype)) for _ in range(2))
    x[...] = np.arange(4096) % 100
    floor.move(floor.as_moved(x, 4096), None, floor.as_moved(y, 4096), stream=True)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", race.installed())
def test_contenders_answer_right_in_every_kind(name):
    for case in KINDS:
        entry = worker.Entry(name, case)
        assert entry.wrong is None
        if name in ("fastbn", "NumPy formula", "PyTorch") and case.what in PASSES:
            assert entry.call is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the count is of Linux")
def test_memory_of_a_call_is_its_peak():
    x = np.ones(8 << 20, np.float32)
    assert memory.peak_of(lambda: np.add(x, 1, out=x)) < 1 << 20
    assert memory.peak_of(lambda: x + 1) == pytest.approx(x.nbytes, rel=0.1)
    assert memory.peak_of(lambda: (x + 1) * (x + 2)) == pytest.approx(2 * x.nbytes, rel=0.1)
    rows = x.reshape(-1, 64)
    for _ in range(2):  # the second time fastbn would have memory for its result
        assert memory.peak_of(lambda: fastbn.batch_norm(rows)) == pytest.approx(x.nbytes, rel=0.1)


# ---- the floor


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_the_floor_copies_and_adds(dtype, threads, stream):
    x, w, y = (floor.aligned(4100 * 16, np.dtype(dtype)) for _ in range(3))
    x[...] = np.arange(x.size)
    w[...] = 2
    with fastbn.num_threads(threads):
        floor.move(x, None, y, stream)
        np.testing.assert_array_equal(y, x)
        floor.move(x, w, y, stream)
        np.testing.assert_array_equal(y, x + 2)


def test_the_floor_takes_whole_lines_only():
    x = floor.aligned(64, np.dtype("float32"))
    with pytest.raises(ValueError, match="multiples of 64 bytes"):
        floor.move(x[1:], None, x[:-1], True)
    for y in (x.astype("float64"), x[:-16]):
        with pytest.raises(ValueError, match="one size and dtype"):
            floor.move(x, None, y, True)
    for dtype in ("float16", "int32", "int8"):
        with pytest.raises(ValueError, match="float32 or float64"):
            floor.move(x.astype(dtype), None, x.astype(dtype), True)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        floor.move(x, None, x, True)


# ---- measuring


def test_a_ratio_is_taken_within_each_round():
    timing = measure.Timing(CASE, np.array([1.0, 20, 9]), np.array([1.0, 10, 1]))  # 1, 2, 9: the clock slowed once
    assert timing.ratio == 2
    assert timing.gb_per_s == pytest.approx(2 * 8 * 64 * 28 * 28 * 4 / 9 / 1e9)
    assert timing.floor_gb_per_s == pytest.approx(9 * timing.gb_per_s)


def test_seconds_are_those_of_one_call(monkeypatch):
    monkeypatch.setattr(floor, "perf_counter", iter([10.0, 16.0]).__next__)
    assert floor.seconds(lambda: None, 3) == 2


def test_short_calls_are_timed_together():
    """So many that some 2 MB are moved: 106 of 2*(2*6*14*14)*4 bytes."""
    assert measure.Prepared(SMALL).repeat == 106
    assert measure.Prepared(CASE).repeat == 1


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("out", [False, True])
def test_results_go_where_the_case_says(what, residual, out):
    prepared = measure.Prepared(replace(SMALL, what=what, residual=residual, out=out))
    assert np.shares_memory(prepared.call(prepared.buffers[0]), prepared.buffers[0].out) == out


def test_parts_of_a_backward_compute_no_more(monkeypatch):
    right, found = fastbn.batch_norm_backward, []

    def kept(*args, **kwargs):
        found.append(right(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(fastbn, "batch_norm_backward", kept)
    for what in ("params", "frozen", "frozen-dx"):
        prepared = measure.Prepared(replace(SMALL, what=what))
        prepared.call(prepared.buffers[0])
    assert [(g.dx is None, g.dgamma is None) for g in found] == [(True, False), (False, False), (False, True)]


def test_inputs_are_random_numbers():
    """Each of its own: a kernel that reads another, or in another place, is found wrong."""
    b = measure.Prepared(replace(SMALL, residual=True)).buffers[0]
    values = np.concatenate([b.x, b.dy, b.residual], axis=None)
    assert len(np.unique(values)) > 0.99 * values.size


def test_parameters_have_the_type_of_the_case():
    found = {t: measure.Prepared(replace(SMALL, dtype=t)).gamma.dtype for t in ("float16", "float32", "float64")}
    assert found == {"float16": "float32", "float32": "float32", "float64": "float64"}


def test_a_case_is_checked_and_timed_with_its_threads(monkeypatch):
    right, used = fastbn.normalize, []

    def watched(*args, **kwargs):
        used.append(fastbn.get_num_threads())
        return right(*args, **kwargs)

    monkeypatch.setattr(fastbn, "normalize", watched)
    monkeypatch.setattr(measure, "move", lambda *_: used.append(fastbn.get_num_threads()))
    measure.measure(replace(SMALL, what="inference", threads=3), rounds=1)
    assert set(used) == {3 if fastbn._core.openmp() else 1}


def test_cold_cases_cycle_over_more_than_the_caches_hold(monkeypatch):
    monkeypatch.setattr(measure, "CACHE", 1 << 20)
    prepared = measure.Prepared(Case(1, 4, 28, "inference", cold=True))
    sets = len(prepared.buffers)
    assert sets * prepared.case.bytes > 2 << 20
    called, moved = set(), set()
    prepared.call = lambda b: called.add(b.x.ctypes.data)
    monkeypatch.setattr(measure, "move", lambda x, *_: moved.add(x.ctypes.data))
    for _ in range(sets):
        prepared.once()
    for _ in range(sets):
        prepared.move(stream=True)
    assert len(called) == len(moved) == sets
    assert len(measure.Prepared(Case(1, 4, 28, "inference")).buffers) == 1


@pytest.mark.parametrize(("cold", "cache", "calls"), [(False, 1 << 20, 11), (True, 1 << 20, 10), (False, 1 << 10, 10)])
def test_what_may_be_in_the_caches_is_timed_there(cold, cache, calls, monkeypatch):
    """The floor's streaming stores drive arrays out: the first call after them does not count."""
    monkeypatch.setattr(measure, "CACHE", cache)
    prepared = measure.Prepared(Case(1, 4, 28, "inference", cold=cold))
    monkeypatch.setattr(measure.Prepared, "repeat", 10)
    done = []
    prepared.seconds(lambda: done.append(1))
    assert len(done) == calls


@pytest.mark.parametrize("bad", [np.nan, 1e-3])
def test_verification_sees_every_value(bad):
    prepared = measure.Prepared(Case(3, 401, 28, "backward"))  # in several blocks of channels
    right = prepared.call(prepared.buffers[0])
    prepared.check(right, measure.TOLERANCE["float32"])
    for place in [(0, 0, 0, 0), (1, 200, 14, 3), (2, 400, 27, 27)]:
        wrong = right.copy()
        wrong[place] += bad
        with pytest.raises(measure.WrongResultError):
            prepared.check(wrong, 1e-4)


def test_verification_sees_every_channel(monkeypatch):
    monkeypatch.setattr(measure, "AT_ONCE", 2 * (2 * 14 * 14))  # two channels at a time
    prepared = measure.Prepared(SMALL)
    right = prepared.call(prepared.buffers[0])
    for channel in range(6):
        wrong = right.copy()
        wrong[0, channel, 0, 0] += 1e-3
        with pytest.raises(measure.WrongResultError):
            prepared.check(wrong, 1e-4)


# Type, pass, and how far off one value is, of itself: 4 units in the last place of half types, some more of others.
LAST_DIGITS = [
    ("float32", "training", 5e-6),
    ("float64", "training", 1e-12),
    ("float16", "training", 2.0**-8),
    ("bfloat16", "training", 2.0**-5),
    ("float32", "statistics", 2e-5),
    ("float32", "params", 2e-5),
]


@pytest.mark.parametrize(("dtype", "what", "off"), LAST_DIGITS)
def test_verification_sees_the_last_digits(dtype, what, off):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    prepared = measure.Prepared(replace(SMALL, what=what, dtype=dtype))
    prepared.verify()
    wrong = np.array(prepared.call(prepared.buffers[0]))
    largest = np.unravel_index(np.abs(wrong.astype(float)).argmax(), wrong.shape)
    wrong[largest] *= 1 + off
    prepared.call = lambda b: wrong
    with pytest.raises(measure.WrongResultError):
        prepared.verify()


@pytest.mark.parametrize(("activation", "kink"), [("relu", 0), ("leaky_relu", 0), ("relu6", 0), ("relu6", 6)])
def test_the_side_of_a_kink_is_forgiven_in_gradients_alone(activation, kink):
    """Others add in another order, and z may come out on the other side of it; a y is the same on both."""
    for what, where, forgiven in [("backward", 9e-4, True), ("backward", 2e-3, False), ("training", 9e-4, False)]:
        prepared = measure.Prepared(Case(2, 6, 14, what, activation=activation))
        z = prepared.expected(slice(None))[1]
        prepared.beta += np.float32(kink + where - z[0, :, 0, 0])  # z of the first value of each channel
        got = prepared.call(prepared.buffers[0]).copy()
        got[0, :, 0, 0] += 1
        if forgiven:
            prepared.check(got, 1e-4)
        else:
            with pytest.raises(measure.WrongResultError):
                prepared.check(got, 1e-4)


def test_free_memory_is_the_least_that_anyone_grants(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert machine.free_memory(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.max").write_text("3000\n")
    assert machine.free_memory(meminfo, tmp_path) == 2000


def test_free_memory_of_other_systems(monkeypatch, tmp_path):
    """Free pages where the system counts them, else 4 GiB; no more than version 1 of cgroups grants."""
    missing = tmp_path / "meminfo"
    monkeypatch.setattr(os, "sysconf_names", {"SC_AVPHYS_PAGES": 86}, raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.get, raising=False)
    assert machine.free_memory(missing, tmp_path) == 40960
    monkeypatch.setattr(os, "sysconf_names", {})
    assert machine.free_memory(missing, tmp_path) == 4 << 30
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("5000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("2000\n")
    assert machine.free_memory(missing, tmp_path) == 3000


def test_sizes_are_what_they_say():
    for size in command.FULL.sizes:
        assert 0.7 <= sizes.case_of(size, "training").array_bytes / size <= 1.3
    assert [sizes.case_of(size, "training").shape for size in (8 << 10, 1 << 20, 1 << 30)] == [
        (4, 8, 8, 8), (16, 21, 28, 28), (32, 10700, 28, 28)
    ]  # fmt: skip
    assert command.FULL.sizes[0] == 1 << 10
    assert command.FULL.sizes[-1] == 1 << 30


def test_sizes_beyond_memory_are_left_out_and_named(monkeypatch, capsys):
    monkeypatch.setattr(machine, "free_memory", lambda: 3 * 2 * 4096)
    timings = command.time_sizes(report.Report(), [1024, 4096, 6144], 1)
    assert {t.case.array_bytes for t in timings} == {1024, 4096}
    assert "not measured, for want of memory: 6 KB\n" in capsys.readouterr().out


def test_threads_grow_to_all():
    assert [scaling.steps(n) for n in (1, 2, 7)] == [[1], [1, 2], [1, 2, 3, 4, 6, 7]]
    assert scaling.steps(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert scaling.steps(1024)[-4:] == [384, 512, 768, 1024]


def test_speed_up_is_taken_within_each_round():
    took = np.array([[1.0, 0.5], [8, 2], [3, 1]])
    assert scaling.speedup(took, 0) == 1
    assert scaling.speedup(took, 1) == 3


def test_scaling_refuses_other_bits_with_more_threads(monkeypatch):
    right = fastbn.normalize

    def wrong(*args, **kwargs):
        y = right(*args, **kwargs)
        y[0, 0, 0, 0] = np.nextafter(y[0, 0, 0, 0], 9) if fastbn.get_num_threads() == 2 else y[0, 0, 0, 0]
        return y

    prepared = measure.Prepared(Case(2, 6, 14, "inference"))
    scaling.same_with_any(prepared, [1, 2])
    monkeypatch.setattr(fastbn, "normalize", wrong)
    with pytest.raises(measure.WrongResultError, match="-2t: a wrong result"):
        scaling.same_with_any(prepared, [1, 2])
    monkeypatch.setattr(scaling, "one_round", lambda *_: (1.0, 1.0))
    with pytest.raises(measure.WrongResultError, match=r"^inference-.*-2t: a wrong result"):
        list(scaling.scale((2, 6, 14), [1, 2], 1))


def test_scaling_refuses_a_wrong_result(monkeypatch):
    right = fastbn.batch_norm
    monkeypatch.setattr(fastbn, "batch_norm", lambda *args, **kwargs: (right(*args, **kwargs)[0] + 1, None))
    monkeypatch.setattr(scaling, "one_round", lambda *_: pytest.fail("timed"))
    with pytest.raises(measure.WrongResultError):
        next(scaling.scale((2, 6, 14), [1], 1))


def test_scaling_tells_the_ratio_and_both_speed_ups(monkeypatch):
    """8 s over 4 with one thread, 2 over 2 with four."""
    monkeypatch.setattr(scaling, "one_round", lambda _, threads: {1: (8.0, 4.0), 4: (2.0, 2.0)}[threads])
    found = [*scaling.scale((2, 6, 14), [1, 4], 3)]
    assert [(s.timing.case.what, s.timing.case.threads) for s in found] == [(w, n) for w in PASSES for n in (1, 4)]
    assert [(s.timing.ratio, s.speedup, s.floor_speedup) for s in found] == [(2, 1, 1), (1, 4, 2)] * len(PASSES)


def test_a_round_of_the_scaling_has_its_threads(monkeypatch):
    used = []
    prepared = measure.Prepared(SMALL)
    monkeypatch.setattr(prepared, "call", lambda _: used.append(fastbn.get_num_threads()))
    monkeypatch.setattr(measure, "move", lambda *_: used.append(fastbn.get_num_threads()))
    scaling.one_round(prepared, 3)
    assert set(used) == {3 if fastbn._core.openmp() else 1}


def test_rows_of_sizes_and_threads():
    """9408 bytes are read and as many written."""
    timing = measure.Timing(SMALL, np.array([3e-6]), np.array([1e-6]))
    assert report.sizes_row(timing).split() == ["training", "9.19", "KB", "2x6x14x14", "6.3", "18.8", "3.00"]
    assert report.threads_row(scaling.Scaled(timing, 4.0, 2.0)).split() == ["training", "1", "3.00", "4.00", "2.00"]


# ---- the race


@pytest.mark.parametrize("name", race.installed())
def test_contenders_answer_right_and_are_timed(name):
    entries = {what: worker.Entry(name, Case(2, 6, 14, what)) for what in PASSES}
    assert [what for what, entry in entries.items() if entry.wrong] == []
    ratios = {what: entry.round()["ratio"] for what, entry in entries.items()}
    absent = {"np.copyto": {"backward"}, "PyTorch, output reused": {"backward"}, "fastbn, in steps": set(PASSES)}
    absent["onnxruntime"] = {"training", "backward"}
    assert {what for what, ratio in ratios.items() if ratio is None} == absent.get(name, set())
    assert all(ratio > 0 for ratio in ratios.values() if ratio is not None)


def test_who_needs_no_other_package_is_there():
    assert race.installed()[:4] == ["fastbn", "fastbn, in steps", "np.copyto", "NumPy formula"]


@pytest.mark.parametrize(
    ("name", "dtype", "off"),
    [
        ("fastbn", "float32", 2e-5),
        ("fastbn", "float16", 1e-3),
        ("fastbn, in steps", "float32", 2e-5),
        ("np.copyto", "float32", 1e-6),
        ("NumPy formula", "float32", 2e-4),
        ("NumPy formula", "float16", 1e-2),
        ("PyTorch", "float32", 5e-3),
    ],
)
def test_a_wrong_answer_is_refused_and_not_timed(name, dtype, off, monkeypatch):
    right, case = contenders.CONTENDERS[name], replace(SMALL, dtype=dtype, activation="relu")
    if not right.installed:
        pytest.skip(f"no {name}")

    def prepare(p):
        call = right.prepare(p)
        return lambda: call() + off

    monkeypatch.setitem(contenders.CONTENDERS, name, replace(right, prepare=prepare))
    monkeypatch.setattr(measure.Prepared, "round", lambda *_: pytest.fail("timed"))
    answer = worker.Entry(name, case).round()
    assert answer["ratio"] is None
    assert answer["wrong"].startswith(f"{name}, {case}: ")


def test_a_round_is_of_the_contenders_own_call(monkeypatch):
    """6 s over a floor of 2; both have run once before."""
    entry, done = worker.Entry("NumPy formula", SMALL), []

    def timed(work):
        work()
        return 6.0, 2.0

    monkeypatch.setattr(entry.prepared, "move", lambda stream: done.append("floor"))
    monkeypatch.setattr(entry, "call", lambda: done.append("call"))
    monkeypatch.setattr(entry.prepared, "round", timed)
    answer = entry.round()
    assert (answer["ratio"], answer["seconds"], answer["wrong"]) == (3, 6, None)
    assert done == ["floor", "call", "call"]


def test_a_worker_has_one_thread_and_prepares_each_case_once(monkeypatch, capsys):
    prepared, threads = [], []

    class Entry:
        def __init__(self, name, case):
            prepared.append((name, case))
            self.case = case

        def round(self):
            return {"wrong": str(self.case)}

    asked = [SMALL, SMALL, CASE]
    monkeypatch.setattr(worker, "Entry", Entry)
    monkeypatch.setattr(worker, "set_num_threads", threads.append)
    monkeypatch.setattr(sys, "stdin", [json.dumps(vars(case)) + "\n" for case in asked])
    worker.work("fastbn")
    assert [json.loads(line)["wrong"] for line in capsys.readouterr().out.splitlines()] == [*map(str, asked)]
    assert prepared == [("fastbn", SMALL), ("fastbn", CASE)]
    assert threads == [1]


class FakeRacer(race.Racer):
    """Answers without a process: 1, 2, 3, in microseconds too, of which the first does not count; one is wrong."""

    wrong = "NumPy formula"

    def __init__(self, name):
        self.name, self.rounds = name, 0

    def __exit__(self, *_):
        pass

    def round(self, case):
        self.rounds += 1
        if self.name == self.wrong:
            return {"ratio": None, "wrong": f"{self.name}, {case}: off"}
        return {"ratio": float(self.rounds), "seconds": 1e-6 * self.rounds, "memory": case.array_bytes, "wrong": None}


def test_a_wrong_contender_has_no_ratio_and_is_named(monkeypatch):
    monkeypatch.setattr(race, "Racer", FakeRacer)
    (result,) = race.race([SMALL], 2, ["fastbn", "NumPy formula"])
    assert result.ratios == {"fastbn": 2.5}
    table = report.Race([SMALL], ["fastbn", "NumPy formula", "onnxruntime"])
    assert table.head.split() == ["pass", "x", "fastbn", "NumPy", "formula", "onnxruntime"]
    assert table.ratios(result).split() == ["training", SMALL.label, "2.50", "wrong", "-"]
    assert table.microseconds(result).split()[2:] == ["2.50", "wrong", "-"]
    assert table.memory(result).split()[2:] == ["1.00", "wrong", "-", "2", "2"]
    others = [
        race.Result(SMALL, {"fastbn": 10.0, "onnxruntime": 2.0}),
        race.Result(replace(SMALL, what="backward"), {"fastbn": 7.0}),
    ]
    foot = table.foot([result, *others])
    assert foot[0].split() == ["training", "geometric", "mean", "5.00", "-", "-"]
    assert foot[1].split() == ["backward", "geometric", "mean", "7.00", "-", "-"]
    assert foot[-1] == f"not timed: NumPy formula, {SMALL}: off"


def test_what_is_moved_stands_beside_the_memory():
    """x and the residual are read and y written; in steps x and y, y, the residual and y, y and y."""
    case = replace(SMALL, activation="relu", residual=True)
    table = report.Race([case], ["fastbn"])
    assert table.memory_head.split()[-4:] == ["fastbn", "moved", "in", "steps"]
    row = table.memory(race.Result(case, memory={"fastbn": 2 * case.array_bytes}))
    assert row.split()[-3:] == ["2.00", "3", "7"]


def test_fastbn_itself_wrong_ends_the_race(monkeypatch):
    monkeypatch.setattr(race, "Racer", FakeRacer)
    monkeypatch.setattr(FakeRacer, "wrong", "fastbn")
    with pytest.raises(commands.CannotRunError, match=f"fastbn, {SMALL}: off"):
        list(race.race([SMALL], 2, ["fastbn"]))


def test_a_contender_whose_process_ends_is_named(capfd):
    with race.Racer("nobody") as racer, pytest.raises(commands.CannotRunError) as stopped:
        racer.round(SMALL)
    assert str(stopped.value) == f"nobody: its process ended with status 1 before {SMALL} was timed"
    assert "KeyError: 'nobody'" in capfd.readouterr().err


def test_a_process_that_has_ended_between_cases_is_named():
    with race.Racer("fastbn") as racer:
        racer.process.kill()
        racer.process.wait()
        with pytest.raises(commands.CannotRunError, match=f"^fastbn: its process ended .* before {SMALL} was timed"):
            racer.round(SMALL)


def test_a_checkout_in_the_current_folder_is_not_raced(monkeypatch, tmp_path):
    (tmp_path / "fastbn").mkdir()
    (tmp_path / "fastbn/__init__.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    with race.Racer("fastbn") as racer:
        assert racer.round(SMALL)["ratio"] > 0


def test_the_memory_of_a_race_is_that_of_its_largest_case(monkeypatch):
    """Ten arrays in each of two processes."""
    need = 10 * 2 * CASE.array_bytes
    monkeypatch.setattr(machine, "free_memory", lambda: need)
    race.check_memory([SMALL, CASE], ["fastbn", "NumPy formula"])
    monkeypatch.setattr(machine, "free_memory", lambda: need - 1)
    with pytest.raises(commands.CannotRunError):
        race.check_memory([SMALL, CASE], ["fastbn", "NumPy formula"])


def test_a_race_larger_than_memory_does_not_start(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 10**6)
    with pytest.raises(commands.CannotRunError, match=r"takes .* GB and 0.0 GB are free: try a smaller --batch"):
        next(race.race([Case(32, 256, 56, "training")], 1, ["fastbn"]))


# ---- the command


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """`fastbn bench --quick`, once, smaller still: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    call = [sys.executable, "-m", "fastbn", "bench", "--quick", "--batch=1", "--rounds=1", "--threads=2"]
    done = subprocess.run(
        [*call, f"--out={folder}"], capture_output=True, text=True, timeout=120, check=True, cwd=tempfile.gettempdir()
    )
    return folder, done.stdout


@pytest.mark.parametrize("name", ["shapes.png", "sizes.png", "threads.png"])
def test_pictures(quick, name):
    image = pytest.importorskip("matplotlib.image")
    pixels = image.imread(quick[0] / name)
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    blue = (pixels[..., :3] * 255).round() == (0x00, 0x72, 0xB2)
    assert blue.all(axis=-1).sum() > 200  # fastbn's lines


def plan_cases():
    """Of the quick plan at batch 1, but for the shapes."""
    plan = command.QUICK
    found = command.kinds(1, *plan.kinds) + command.matrices(plan.matrices) + command.fusions(1, *plan.kinds)
    return found + [Case(*shape, what, out=False) for shape in plan.small for what in PASSES]


def test_tables_hold_what_was_measured(quick):
    folder, printed = quick
    text = (folder / "report.txt").read_text(encoding="utf-8")
    assert text in printed
    found = json.loads((folder / "bench.json").read_text())
    first, shapes, kinds, fused, memory, small, by_size, threads = text.split("\n\n")
    assert f"kernels {fastbn.isa}" in first

    names = race.installed(name for name in contenders.CONTENDERS if name != "fastbn, in steps")
    rows = [line.split() for line in shapes.splitlines()[3:] if "geometric" not in line]
    assert len(rows) == len(found["shapes"]) == len(PASSES) * len(command.QUICK.shapes)
    for row, (case, ratios) in zip(rows, found["shapes"].items(), strict=True):
        assert case.startswith("-".join(row[:2]) + "-float32-1t")
        assert row[2:] == [f"{ratios[name]:.2f}" if name in ratios else "-" for name in names]
        assert min(ratios.values()) > 0

    for table, key, figure in [
        (kinds, "kinds", lambda ratio, case: ratio),
        (fused, "fusions", lambda ratio, case: ratio),
        (memory, "memory", lambda taken, case: taken / case.array_bytes),
        (small, "small", lambda seconds, case: 1e6 * seconds),
    ]:
        asked = {str(case): case for case in plan_cases()}
        rows = table.splitlines()[3:]
        assert len(rows) == len(found[key]) >= len(PASSES)
        for row, (name, figures) in zip(rows, found[key].items(), strict=True):
            case = asked[name]
            assert row.startswith(f"{case.what:9}  {case.label} ")
            told = float(row[11 + len(case.label) :].split()[0])
            assert told == pytest.approx(figure(figures["fastbn"], case), abs=0.01)

    rows = [line.split() for line in by_size.splitlines()[3:]]
    assert len(rows) == len(found["sizes"]) == len(PASSES) * len(command.QUICK.sizes)
    for row, (case, (speed, floor_speed, ratio)) in zip(rows, found["sizes"].items(), strict=True):
        assert case.startswith(f"{row[0]}-{row[3]}-")
        assert row[4:] == [f"{speed:.1f}", f"{floor_speed:.1f}", f"{ratio:.2f}"]

    rows = [line.split() for line in threads.splitlines()[3:]]
    assert [row[:2] for row in rows] == [[what, n] for what in PASSES for n in "12"]
    for row, (case, figures) in zip(rows, found["threads"].items(), strict=True):
        assert case == f"{row[0]}-1x256x56x56-float32-{row[1]}t"
        assert row[2:] == [f"{figure:.2f}" for figure in figures]


def test_the_command_hands_on_its_options(monkeypatch):
    given = []
    monkeypatch.setattr(command, "run", lambda *args: given.append(args))
    assert cli.main(["bench", "--quick", "--out=here", "--batch=2", "--rounds=3", "--threads=4"]) == 0
    assert cli.main(["bench"]) == 0
    assert given == [("here", True, 2, 3, 4), ("fastbn-bench", False, None, None, None)]


@pytest.mark.parametrize("quick", [True, False])
def test_what_is_asked_for_comes_before_the_plan(quick, monkeypatch, tmp_path):
    asked = {}
    for name in ("shapes", "kinds", "fusions", "small", "sizes", "threads"):
        monkeypatch.setattr(command, f"time_{name}", lambda _, *rest, name=name: asked.update({name: rest}) or [])
    monkeypatch.setattr(command.pictures, "draw", lambda *_: [])
    plan = command.QUICK if quick else command.FULL

    def measured(**options):
        command.run(tmp_path, quick, **options)
        rounds = {rest[-1] for rest in asked.values()}
        batches = {case.batch for name in ("shapes", "fusions") for case in asked[name][0]}
        return rounds, batches, asked["threads"][0][0], asked["threads"][1]

    assert measured(batch=2, rounds=5, threads=3) == ({5}, {2}, 2, [1, 2, 3])
    assert measured() == ({plan.rounds}, {plan.batch}, plan.batch, scaling.steps(fastbn.get_num_threads()))
    assert asked["sizes"][0] == plan.sizes
    assert {case.out for case in asked["small"][0]} == {False}


def test_missing_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["bench", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message == 'fastbn bench: matplotlib missing; install the extra: pip install "fastbn[bench]"\n'
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["bench", "--out", str(tmp_path / "file")]) == 2
    assert "fastbn bench: cannot write to the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [*((option, value) for option in ("--batch", "--rounds", "--threads") for value in "0x"), ("--threads", "1025")],
)
def test_bad_counts(option, value, capsys, monkeypatch):
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", option, value])
    assert stopped.value.code == 2
    assert re.search(f"argument {option}: (expected|invalid)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("count", "text"), [(1024, "1 KB"), (12544, "12.2 KB"), (1 << 20, "1 MB"), (1 << 25, "32 MB"), (1 << 30, "1 GB")]
)
def test_sizes_are_told_as_people_say_them(count, text):
    assert report.size(count) == text


# ---- instructions


def test_instructions_a_value_of_every_stored_case(monkeypatch):
    """Where each call takes three for each of n*c*h*h values."""
    monkeypatch.setattr(instructions, "counted", lambda cases: [3 * n * c * h * h for _, (n, c, h), *_ in cases])
    found = instructions.counts()
    assert set(found.values()) == {3}
    assert set(found) == set(json.loads((BENCH / "instructions.json").read_text()))


@pytest.mark.parametrize(("new", "status"), [(2.19, 0), (2.21, 1)])
def test_more_instructions_are_told(new, status, monkeypatch, capsys, tmp_path):
    old, store = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text('{"a": 2.0}')
    monkeypatch.setattr(instructions, "counts", lambda: {"a": new})
    assert instructions.main([str(old), "--store", str(store)]) == status
    assert ("MORE" in capsys.readouterr().out) == bool(status)
    assert json.loads(store.read_text()) == {"a": new}


def test_counts_are_read_in_the_order_of_the_calls(monkeypatch):
    """out.10 comes after out.9; a call that was not counted, or a program that failed, has no counts."""

    def counted(counts, status, calls):
        def run(command, **_):
            (out,) = (word.partition("=")[2] for word in command if word.startswith("--callgrind-out-file="))
            for k, count in enumerate(counts, start=1):
                Path(f"{out}.{k}").write_text(f"events: Ir\ntotals: {count}\n")
            return types.SimpleNamespace(returncode=status, stderr="==1== valgrind\nfailed")

        monkeypatch.setattr(instructions.subprocess, "run", run)
        return instructions.counted([["training"]] * calls)

    monkeypatch.setattr(instructions.shutil, "which", lambda _: "/usr/bin/valgrind")
    assert counted(range(100, 111), 0, calls=11) == [*range(100, 111)]
    for counts, status in (([1, 2], 0), ([1, 2, 0], 0), ([1, 2, 3], 1)):
        with pytest.raises(RuntimeError, match=r"of 3 cases: failed$"):
            counted(counts, status, calls=3)
    monkeypatch.setattr(instructions.shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match=r"^valgrind: expected the program on the path"):
        counted([1], 0, calls=1)


# ---- the chain of ten layers


def test_in_place_saves_one_array_a_layer():
    shape = (8, 16, 112, 112)
    apart, in_place = (steps.chain_taken(way, shape, 1)[0] for way in ("y apart", "in place"))
    assert apart == pytest.approx(2 * steps.LAYERS + 1, abs=0.5)  # and the gradient
    assert apart - in_place == pytest.approx(steps.LAYERS - 1, abs=0.5)  # while the last works it has z and its dz


def test_the_chain_has_the_same_gradient_in_place():
    apart, in_place = (steps.chain((4, 6, 14, 14), way)() for way in (False, True))
    np.testing.assert_allclose(in_place, apart, atol=1e-3)
    assert np.abs(apart).max() > 0.1


def test_the_convolution_of_the_chain_has_its_gradients():
    """It is linear in x and in w: <dx, x> = <dw, w> = <dy, y>."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 6, 5, 5), np.float32)
    convolution = steps.Convolution(6, rng)
    y = convolution(x)
    np.testing.assert_allclose(y[1, :, 2, 3], convolution.w @ x[1, :, 2, 3], atol=1e-5)
    dx = convolution.backward(dy)
    for gradient, value in ((dx, x), (convolution.dw, convolution.w)):
        assert (gradient * value).sum() == pytest.approx((dy * y).sum(), abs=1e-3)


# ---- who reads y next


def test_what_is_read_next_is_normalised_whole():
    """With a few samples at a time too, of which the last are fewer."""
    step = steps.Step(6)
    for at_once in (6, 4):
        step.y[...] = -1
        step.normalize(at_once)
        expected = np.maximum(fastbn.reference.normalize(step.z, *step.stats[1:]), 0)
        np.testing.assert_allclose(step.y, expected, atol=1e-5)


def test_time_with_the_reader_and_without_it(monkeypatch):
    monkeypatch.setattr(steps, "perf_counter", iter([10.0, 12.0, 15.0]).__next__)
    assert steps.Step(1).time(lambda: None, 1) == (5, 2)


def test_streaming_is_told_over_ordinary_stores(monkeypatch, capsys):
    """2 over 8 alone, 6 over 12 with the sum and 9 over 12 with the convolution."""

    def time(step, read, at_once):
        whole = {step.sum: 6.0, step.convolve: 9.0}
        return (whole[read], 2.0) if at_once == 8 else (12.0, 8.0)

    monkeypatch.setattr(steps, "BATCHES", (8,))
    monkeypatch.setattr(steps.Step, "time", time)
    steps.tell_reader(2)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["6.4", "MB", "0.25", "0.50", "0.75"]


# ---- the targets

MUST = """
    64,112 64,56 256,56 128,28 512,28 256,14 1024,14 512,7 2048,7
32 training 1.40 1.40 1.40 1.40 1.40 2.2 1.8 3.4 3.0
32 inference 1.10 1.10 1.10 1.10 1.10 1.10 1.10 1.80 1.40
32 backward 1.45 1.45 1.45 1.45 1.45 2.2 1.8 3.0 2.6
8 training 1.40 2.6 1.40 2.6 1.40 2.6 1.8 3.4 3.4
8 inference 1.10 1.10 1.10 1.40 1.10 1.40 1.10 1.80 1.80
8 backward 1.45 2.4 1.45 2.4 1.45 2.4 1.8 3.0 3.0
1 training 2.6 2.6 2.6 2.6 2.6 2.6 2.6 3.4 3.4
1 inference 1.40 1.40 1.40 1.40 1.40 1.40 1.40 1.80 1.80
1 backward 2.4 2.4 2.4 2.4 2.4 2.4 2.4 3.0 3.0
"""


def test_every_shape_has_the_target_of_its_kind():
    head, *rows = MUST.strip().splitlines()
    shapes = [tuple(map(int, shape.split(","))) for shape in head.split()]
    assert shapes == NETWORKS["ResNet-50"]
    expected = {
        Case(int(batch), *shape, what): float(limit)
        for batch, what, *limits in map(str.split, rows)
        for shape, limit in zip(shapes, limits, strict=True)
    }
    assert {row.case: row.must for row in targets.planes()} == expected


def test_orders_types_and_fusions_have_their_targets():
    """performance.md, by hand: each limit, on how many rows, and over what."""

    def limits(group, wanted):
        return {(r.must, r.case.what) for r in targets.GROUPS[group]() if wanted(r.case)}

    each = dict.fromkeys(PASSES)
    assert limits("orders", lambda c: c.order == "NHWC") == {(1.8, "training"), (1.15, "inference"), (2.2, "backward")}
    large = {(2.5, "training"), (1.6, "inference"), (2.6, "backward")}
    assert limits("orders", lambda c: c.order == "NC" and c.batch > 60) == large
    assert limits("orders", lambda c: c.order == "NC" and c.batch == 60) == {(None, what) for what in each}
    assert min(r.case.array_bytes for r in targets.orders() if r.case.order == "NHWC") == 8 * 64 * 56 * 56 * 4
    assert limits("halves", lambda c: True) == {(0.75, what) for what in each}
    assert {(r.case.dtype, r.over.dtype) for r in targets.halves()} == {(name, "float32") for name in half_types()}
    assert min(r.over.array_bytes for r in targets.halves()) > 1e7
    assert limits("fusions", lambda c: not c.residual) == {(1.1, what) for what in (*each, "from-y")}
    assert {r.case.activation for r in targets.fusions()} == {"relu", "relu6", "leaky_relu"}
    assert limits("fusions", lambda c: c.residual) == {(1.5, what) for what in each}
    assert limits("fresh", lambda c: not c.out) == {(1.5, what) for what in each}
    for row in [*targets.fusions(), *targets.fresh()]:
        assert row.over == (None if row.case.residual else replace(row.case, activation=None, out=True))


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (1.2, 1)])
def test_targets_say_hit_or_missed(ratio, status, monkeypatch, capsys, tmp_path):
    """All ratios the same: at 1.2 it is inference above 5 MB that misses."""
    ran = []

    def run(group, rounds, threads, **environment):
        ran.append((group, rounds, threads, environment))
        build = {"build": {environment.get("FASTBN_ISA", "best"): 1.0}}
        if group == "calls":
            return build | {"calls": {"inference": 2.4}, "over PyTorch": {"a": 0.9}}
        figures = {"ratio": ratio, "over floor": 1.0, "threads": 1.0, "over one": 1.0}
        return build | {str(row.case): figures for row in targets.planes()}

    monkeypatch.setattr(targets, "in_a_process", run)
    asked = ["--runs", "2", "--only", "planes", "calls", "--threads", "3", "--store", str(tmp_path)]
    assert targets.main(asked) == status
    builds = [(3, {}), (1, {"FASTBN_ISA": "baseline"})]
    assert ran == 2 * [(group, 9, *build) for group in ("planes", "calls") for build in builds]
    text = capsys.readouterr().out
    rows = {tuple(line.split()[:2]): line.split() for line in text.splitlines() if line}
    assert rows["inference", "32x64x112x112"][2:5] == ["1.10", f"{ratio:.2f}", "missed" if status else "hit"]
    assert rows["training", "32x64x112x112"][2:5] == ["1.40", f"{ratio:.2f}", "hit"]
    assert rows["a", "1.0"][2:4] == ["0.90", "hit"]
    assert len([*tmp_path.iterdir()]) == 8
    assert targets.main(["--tell", str(tmp_path)]) == status
    assert capsys.readouterr().out.splitlines()[1:] == text.splitlines()[1:]


def test_a_target_is_hit_at_its_limit():
    verdicts = targets.Verdicts()
    told = [verdicts.of(value, limit).split() for value, limit in ((1.1, 1.1), (1.2, 1.1), (None, 1.1), (9.0, None))]
    assert told == [["1.10", "hit"], ["1.20", "missed"], ["-"], ["9.00"]]
    assert (verdicts.hit, verdicts.missed) == (1, 1)


@pytest.mark.parametrize(
    ("figure", "most"), [("ratio", 1.40), ("threads", 1.80), ("over one", 1.05), ("over copyto", 1.00)]
)
def test_a_large_array_has_four_targets(figure, most, monkeypatch, capsys):
    """Over the floor with one thread and with all, over one thread, over np.copyto; the baseline does not count."""
    row = targets.Row(Case(32, 64, 112, "training"), 1.40)
    monkeypatch.setitem(targets.GROUPS, "parts", lambda: [row])
    good = {"ratio": 1.2, "threads": 1.2, "over one": 0.5, "over copyto": 0.9}
    baseline = {"build": {"baseline": 1.0}, str(row.case): {"ratio": 9.0}}
    for value, missed in ((most - 0.01, 0), (most + 0.01, 1)):
        verdicts = targets.Verdicts()
        ours = {"build": {"best": 1.0}, str(row.case): good | {figure: value}}
        targets.table("parts", ours, baseline, verdicts)
        assert f"{value:.2f} {'missed' if missed else 'hit'}" in capsys.readouterr().out
        assert (verdicts.hit, verdicts.missed) == (4 - missed, missed)


def test_a_small_array_need_only_be_no_slower_with_all_threads(monkeypatch):
    row, verdicts = targets.Row(Case(1, 64, 56, "training"), 2.6), targets.Verdicts()
    monkeypatch.setitem(targets.GROUPS, "parts", lambda: [row])
    found = {"build": {"best": 1.0}, str(row.case): {"ratio": 2.5, "threads": 9.0, "over one": 1.0}}
    targets.table("parts", found, found, verdicts)
    assert (verdicts.hit, verdicts.missed) == (2, 0)


@pytest.mark.parametrize(("ratio", "missed"), [(1.29, 0), (1.31, 1), (1.36, 2)])
def test_geometric_means_have_targets(ratio, missed, monkeypatch):
    """Of training 1.30, of backward 1.35; what is small or has short rows is not among them."""
    long = [Case(32, 64, 112, what) for what in ("training", "backward")]
    rows = [*long, Case(1, 64, 112, "training"), Case(32, 256, 14, "training")]
    monkeypatch.setitem(targets.GROUPS, "planes", lambda: [targets.Row(case, None) for case in rows])
    found = {"build": {"best": 1.0}} | {str(case): {"ratio": ratio if case in long else 9.0} for case in rows}
    baseline = {"build": {"baseline": 1.0}} | {str(case): {"ratio": 9.0} for case in rows}
    verdicts = targets.Verdicts()
    targets.table("planes", found, baseline, verdicts)
    assert (verdicts.hit, verdicts.missed) == (2 - missed, missed)


@pytest.mark.parametrize(
    ("name", "most"), [("inference", 2.5), ("training", 4), ("backward", 4), ("layer adds, training", 1), (None, 1)]
)
def test_small_calls_have_targets(name, most):
    """In microseconds; and no more than PyTorch's time."""
    for value, missed in ((most - 0.01, 0), (most + 0.01, 1)):
        found = {"build": {"best": 1.0}, "calls": {name: value} if name else {}}
        found |= {} if name else {"over PyTorch": {"a": value}}
        verdicts = targets.Verdicts()
        targets.table_of_calls(found, found, verdicts)
        assert (verdicts.hit, verdicts.missed) == (1 - missed, missed)


def test_medians_are_taken_over_the_runs():
    assert targets.medians([{"a": {"ratio": ratio}} for ratio in (1.0, 9.0, 2.0)]) == {"a": {"ratio": 2.0}}


def test_a_group_is_measured_with_the_build_that_is_asked_for(monkeypatch):
    def run(command, env, **_):
        assert command[2:] == ["--one-run", "parts", "--rounds", "9", "--threads", "3"]
        return types.SimpleNamespace(stdout=json.dumps({"build": {env["FASTBN_ISA"]: 1.0}}))

    monkeypatch.setattr(targets.subprocess, "run", run)
    assert targets.in_a_process("parts", 9, 3, FASTBN_ISA="baseline") == {"build": {"baseline": 1.0}}


def test_figures_of_a_target_are_taken_within_each_round(monkeypatch):
    """Seconds are 1, 4, 9 where those of the floor are 1, 2, 1; 3 over 2 with all threads; 8 of what is compared."""

    def measured(over):
        times = iter([(1.0, 1.0), (4.0, 2.0), (9.0, 1.0)])
        monkeypatch.setattr(measure.Prepared, "round", lambda *_: next(times))
        return targets.measured(targets.Row(SMALL, 1.0, over), rounds=3, threads=5)

    other = replace(SMALL, what="inference")
    monkeypatch.setattr(measure.Prepared, "seconds", lambda p, _: 8.0 if p.case == other else 16.0)
    monkeypatch.setattr(targets, "one_round", lambda _, threads: (3.0, 2.0) if threads == 5 else None)
    assert measured(None) == {"ratio": 2, "over floor": 2, "threads": 1.5, "over one": 0.75}
    assert measured(other) == {"ratio": 0.5, "over floor": 2, "over one": 0.75}
    monkeypatch.setattr(targets, "is_long", lambda _: True)
    assert measured(None)["over copyto"] == 0.25


def test_a_wrong_result_has_no_figures(monkeypatch):
    """Neither where its time is compared with another case's, nor where that other one is wrong."""
    right = fastbn.batch_norm
    monkeypatch.setattr(fastbn, "batch_norm", lambda *args, **kwargs: (1.001 * right(*args, **kwargs)[0], None))
    inference = replace(SMALL, what="inference")
    for row in (targets.Row(SMALL, 1.0), targets.Row(SMALL, 1.0, inference), targets.Row(inference, 1.0, SMALL)):
        with pytest.raises(measure.WrongResultError):
            targets.measured(row, rounds=1, threads=1)


def test_microseconds_of_small_calls(monkeypatch):
    """A function takes 2, the layer 5."""
    took = itertools.cycle([2e-6, 5e-6])
    monkeypatch.setattr(targets, "seconds", lambda *_: next(took))
    for name, value in targets.SmallCalls().round().items():
        assert value == pytest.approx(3 if name.startswith("layer adds") else 2)


def test_small_calls_are_told_in_times_of_pytorch(monkeypatch):
    monkeypatch.setattr(targets.SmallCalls, "round", lambda _: {"training": 3.0})
    monkeypatch.setattr(race, "installed", lambda names: names)
    monkeypatch.setattr(race, "race", lambda *_: [race.Result(SMALL, seconds={"fastbn": 1.0, "PyTorch": 4.0})])
    assert targets.calls(1) == {"calls": {"training": 3.0}, "over PyTorch": {str(SMALL): 0.25}}


def test_nothing_stored_is_no_hit(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        targets.main(["--tell", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"--tell: expected a folder with stored runs, got {tmp_path}" in capsys.readouterr().err


def test_a_targets_run_measures_every_figure():
    case = Case(2, 6, 14, "training")
    found = targets.measured(targets.Row(case, 1.0), rounds=1, threads=2)
    assert set(found) == {"ratio", "over floor", "threads", "over one"}
    assert min(found.values()) > 0
    row = targets.Row(replace(case, activation="relu"), 1.0, over=case)
    assert set(targets.measured(row, rounds=1, threads=1)) == {"ratio", "over floor"}
    small = targets.SmallCalls().round()
    assert set(small) == {f"{kind}{what}" for kind in ("", "layer adds, ") for what in PASSES}
