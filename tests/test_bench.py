"""The benchmarks refuse what is wrong before they time it, and say what they moved in what time."""

import itertools
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn.bench import command, floor, machine, measure, memory, race, report, scaling, sizes, worker
from fastbn.bench.cases import NETWORKS, ORDERS, PASSES, STREAMS, Case, cases, dtype_of, half_types, matrix

BENCH = Path(__file__).parents[1] / "bench"
CASE = Case(8, 64, 28, "training")
SMALL = Case(2, 6, 14, "training")


def with_other(returned, name, made_of):
    """What a call has returned, but for one result."""
    if isinstance(returned, np.ndarray):
        return made_of(returned)
    if isinstance(returned, fastbn.BatchStats | fastbn.Gradients):
        return returned._replace(**{name: made_of(getattr(returned, name))})
    y, stats = returned
    return (made_of(y), stats) if name == "y" else (y, with_other(stats, name, made_of))


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
    call = prepared.calls[0]
    for name in prepared.results(call()):
        monkeypatch.setattr(prepared, "calls", [lambda name=name: with_other(call(), name, lambda a: a * 1.0001)])
        with pytest.raises(measure.WrongResultError, match=f"a wrong result, {name} is off"):
            prepared.verify()


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
    returned = prepared.calls[0]()
    for name, right in prepared.results(returned).items():
        for where in (0, right.size // 2, right.size - 1):
            wrong = right.copy()
            spot = np.unravel_index(where, wrong.shape)
            wrong[spot] += right.dtype.type(0.25 * max(1, np.abs(right.astype(float)).max()))
            prepared.calls = [lambda name=name, wrong=wrong: with_other(returned, name, lambda a: wrong)]
            with pytest.raises(measure.WrongResultError, match=f"{case}: a wrong result, {name} is off"):
                prepared.verify()
    if case.activation:
        plain = measure.Prepared(replace(case, activation=None))
        prepared.calls = plain.calls
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
    found = prepared.results(prepared.calls[0]())
    assert np.shares_memory(found["dx" if what == "backward" else "y"], prepared.buffers[0].out) == out
    if "dresidual" in found:
        assert np.shares_memory(found["dresidual"], prepared.buffers[0].dresidual) == out


def test_parts_of_a_backward_compute_no_more(monkeypatch):
    right, found = fastbn.batch_norm_backward, []

    def kept(*args, **kwargs):
        found.append(right(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(fastbn, "batch_norm_backward", kept)
    for what in ("params", "frozen", "frozen-dx"):
        prepared = measure.Prepared(replace(SMALL, what=what))
        prepared.calls[0]()
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
    called, moved = set(), set()
    monkeypatch.setattr(fastbn, "normalize", lambda x, *_, **__: called.add(x.ctypes.data))
    prepared = measure.Prepared(Case(1, 4, 28, "inference", cold=True))
    sets = len(prepared.buffers)
    assert sets * prepared.case.bytes > 2 << 20
    monkeypatch.setattr(measure, "move", lambda x, *_: moved.add(x.ctypes.data))
    for _ in range(sets):
        prepared.once()
    for _ in range(sets):
        prepared.move(stream=True)
    assert len(called) == len(moved) == sets
    assert len(measure.Prepared(Case(1, 4, 28, "inference")).buffers) == 1


@pytest.mark.parametrize("cold", [False, True])
def test_what_others_left_in_the_caches_is_not_timed(cold, monkeypatch):
    """One call before the clock starts, by whichever the caches become its own; all others count."""
    monkeypatch.setattr(measure.Prepared, "repeat", 10)
    done, before = [], []

    def seconds(work, repeat):
        before.append(len(done))
        return floor.seconds(work, repeat)

    monkeypatch.setattr(measure, "seconds", seconds)
    prepared = measure.Prepared(Case(1, 4, 28, "inference", cold=cold))
    prepared.seconds(lambda: done.append(1))
    assert (before, len(done)) == ([1], 11)


@pytest.mark.parametrize("bad", [np.nan, 1e-3])
def test_verification_sees_every_value(bad):
    prepared = measure.Prepared(Case(3, 401, 28, "backward"))  # in several blocks of channels
    right = prepared.calls[0]().dx
    prepared.check({"dx": right}, measure.TOLERANCE["float32"], measure.NEAR)
    for place in [(0, 0, 0, 0), (1, 200, 14, 3), (2, 400, 27, 27)]:
        wrong = right.copy()
        wrong[place] += bad
        with pytest.raises(measure.WrongResultError):
            prepared.check({"dx": wrong}, 1e-4, measure.NEAR)


def test_verification_sees_every_channel(monkeypatch):
    monkeypatch.setattr(measure, "AT_ONCE", 2 * (2 * 14 * 14))  # two channels at a time
    prepared = measure.Prepared(SMALL)
    found = prepared.results(prepared.calls[0]())
    for name, channel in itertools.product(found, range(6)):
        wrong = found[name].copy()
        wrong[(0, channel, 0, 0) if wrong.ndim > 1 else channel] += 1e-3
        with pytest.raises(measure.WrongResultError):
            prepared.check({name: wrong}, 1e-4, measure.NEAR)


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
    returned = prepared.calls[0]()
    for name, right in prepared.results(returned).items():
        wrong = right.copy()
        largest = np.unravel_index(np.abs(wrong.astype(float)).argmax(), wrong.shape)
        wrong[largest] *= 1 + off if wrong.ndim > 1 else 1 + 2e-5
        prepared.calls = [lambda name=name, wrong=wrong: with_other(returned, name, lambda a: wrong)]
        with pytest.raises(measure.WrongResultError, match=f"{name} is off"):
            prepared.verify()


@pytest.mark.parametrize(("activation", "kink"), [("relu", 0), ("leaky_relu", 0), ("relu6", 0), ("relu6", 6)])
def test_the_side_of_a_kink_is_forgiven_in_gradients_alone(activation, kink):
    """Others add in another order, and z may come out on the other side of it; a y is the same on both."""
    for what, where, forgiven in [("backward", 9e-4, True), ("backward", 2e-3, False), ("training", 9e-4, False)]:
        prepared = measure.Prepared(Case(2, 6, 14, what, activation=activation))
        z = prepared.given_to_activation(slice(None))
        prepared.beta += np.float32(kink + where - z[0, :, 0, 0])  # z of the first value of each channel
        name = "dx" if what == "backward" else "y"
        got = prepared.results(prepared.calls[0]())[name].copy()
        got[0, :, 0, 0] += 1
        if forgiven:
            prepared.check({name: got}, 1e-4, 1e-3)
        else:
            with pytest.raises(measure.WrongResultError):
                prepared.check({name: got}, 1e-4, 1e-3)


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

    case = Case(2, 6, 14, "inference")
    scaling.same_with_any(measure.Prepared(case), [1, 2])
    monkeypatch.setattr(fastbn, "normalize", wrong)
    with pytest.raises(measure.WrongResultError, match="-2t: a wrong result"):
        scaling.same_with_any(measure.Prepared(case), [1, 2])
    monkeypatch.setattr(scaling, "one_round", lambda *_: (1.0, 1.0))
    with pytest.raises(measure.WrongResultError, match=r"^inference-.*-2t: a wrong result"):
        list(scaling.scale((2, 6, 14), [1, 2], 1))


def test_scaling_refuses_a_wrong_result(monkeypatch):
    right = fastbn.batch_norm
    monkeypatch.setattr(
        fastbn, "batch_norm", lambda *args, **kwargs: with_other(right(*args, **kwargs), "y", lambda y: y + 1)
    )
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
    monkeypatch.setattr(prepared, "calls", [lambda: used.append(fastbn.get_num_threads())])
    monkeypatch.setattr(measure, "move", lambda *_: used.append(fastbn.get_num_threads()))
    scaling.one_round(prepared, 3)
    assert set(used) == {3 if fastbn._core.openmp() else 1}


def test_rows_of_sizes_and_threads():
    """9408 bytes are read and as many written."""
    timing = measure.Timing(SMALL, np.array([3e-6]), np.array([1e-6]))
    assert report.sizes_row(timing).split() == ["training", "9.19", "KB", "2x6x14x14", "6.3", "18.8", "3.00"]
    assert report.threads_row(scaling.Scaled(timing, 4.0, 2.0)).split() == ["training", "1", "3.00", "4.00", "2.00"]
