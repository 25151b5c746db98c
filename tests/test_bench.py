"""The benchmarks refuse what is wrong before they time it, tell what has become slower, and show what they found."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import compare
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


def test_a_kept_run_compares_and_names_no_host(tmp_path):
    run = {
        "machine_info": {"node": "some-host"},
        "benchmarks": [{"name": "a", "extra_info": {"ratio": 2.0}, "stats": {}}],
    }
    (tmp_path / "run").write_text(json.dumps(run))
    compare.keep(tmp_path / "run", tmp_path / "kept")
    assert compare.ratios(tmp_path / "kept") == {"a": 2.0}
    assert "some-host" not in (tmp_path / "kept").read_text()


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
    types = {"float32", "float64", *half_types()}
    assert {(c.order, c.dtype, c.what) for c in full} >= {
        (o, t, what) for o in ORDERS for t in types for what in PASSES
    }


def test_the_short_list_touches_every_kind():
    short = cases(False)
    assert len(set(map(str, short))) == len(short)
    assert {c.order for c in short} == set(ORDERS)
    assert {c.what for c in short} == set(STREAMS)
    assert {c.dtype for c in short} == {"float32", "float64", *half_types()}
    assert {(c.activation, c.residual) for c in short} == {(None, False), ("relu", False), ("relu", True)}


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
    }
    assert {case: case.streams for case in counted} == counted
    in_steps = {
        Case(1, 1, 1, "training"): 2,
        Case(1, 1, 1, "training", activation="relu"): 4,
        Case(1, 1, 1, "inference", activation="relu", residual=True): 7,
        Case(1, 1, 1, "backward"): 3,
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
    timing = measure.Timing(CASE, np.array([1.0, 20, 3]), np.array([1.0, 10, 1]))  # 1, 2, 3: the clock slowed once
    assert timing.ratio == 2
    assert timing.gb_per_s == pytest.approx(2 * 8 * 64 * 28 * 28 * 4 / 3 / 1e9)
    assert timing.floor_gb_per_s == pytest.approx(3 * timing.gb_per_s)


@pytest.mark.parametrize(("cold", "calls"), [(False, 11), (True, 10)])
def test_what_may_be_in_the_caches_is_timed_there(cold, calls, monkeypatch):
    """The floor's streaming stores drive arrays out: the first call after them does not count."""
    monkeypatch.setattr(measure, "CACHE", 1 << 20)
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


def test_free_memory_is_the_least_that_anyone_grants(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert machine.free_memory(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(meminfo, tmp_path) == 5000 << 10
    (tmp_path / "memory.max").write_text("3000\n")
    assert machine.free_memory(meminfo, tmp_path) == 2000


def test_sizes_are_what_they_say():
    for size in command.FULL.sizes:
        assert 0.7 <= sizes.case_of(size, "training").array_bytes / size <= 1.3
    assert command.FULL.sizes[0] == 1 << 10
    assert command.FULL.sizes[-1] == 1 << 30


def test_sizes_beyond_memory_are_left_out_and_named(monkeypatch, capsys):
    monkeypatch.setattr(machine, "free_memory", lambda: 3 * 2 * 4096)
    timings = command.time_sizes(report.Report(), [1024, 4096, 8192], 1)
    assert {t.case.array_bytes for t in timings} == {1024, 4096}
    assert "not measured, for want of memory: 8 KB\n" in capsys.readouterr().out


def test_threads_grow_to_all():
    assert [scaling.steps(n) for n in (1, 2, 7)] == [[1], [1, 2], [1, 2, 3, 4, 6, 7]]
    assert scaling.steps(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


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


@pytest.mark.parametrize("name", ["np.copyto", "NumPy formula"])
def test_a_wrong_answer_is_refused_and_not_timed(name, monkeypatch):
    right = contenders.CONTENDERS[name]

    def prepare(p):
        call = right.prepare(p)
        return lambda: call() + np.float32(2e-4)

    monkeypatch.setitem(contenders.CONTENDERS, name, contenders.Contender(prepare, copies=right.copies))
    monkeypatch.setattr(measure.Prepared, "round", lambda *_: pytest.fail("timed"))
    answer = worker.Entry(name, SMALL).round()
    assert answer["ratio"] is None
    assert answer["wrong"].startswith(f"{name}, {SMALL}: ")


class FakeRacer(race.Racer):
    """Answers without a process: 1, 2, 3, of which the first does not count; one contender is wrong."""

    wrong = "NumPy formula"

    def __init__(self, name):
        self.name, self.rounds = name, 0

    def __exit__(self, *_):
        pass

    def round(self, case):
        self.rounds += 1
        if self.name == self.wrong:
            return {"ratio": None, "wrong": f"{self.name}, {case}: off"}
        return {"ratio": float(self.rounds), "seconds": 2e-6, "memory": case.array_bytes, "wrong": None}


def test_a_wrong_contender_has_no_ratio_and_is_named(monkeypatch):
    monkeypatch.setattr(race, "Racer", FakeRacer)
    (result,) = race.race([SMALL], 2, ["fastbn", "NumPy formula"])
    assert result.ratios == {"fastbn": 2.5}
    table = report.Race([SMALL], ["fastbn", "NumPy formula", "onnxruntime"])
    assert table.head.split() == ["pass", "x", "fastbn", "NumPy", "formula", "onnxruntime"]
    assert table.ratios(result).split() == ["training", SMALL.label, "2.50", "wrong", "-"]
    assert table.microseconds(result).split()[2:] == ["2.00", "wrong", "-"]
    assert table.memory(result).split()[2:] == ["1.00", "wrong", "-", "2", "2"]
    foot = table.foot([result, race.Result(SMALL, {"fastbn": 10.0})])
    assert foot[0].split() == ["training", "geometric", "mean", "5.00", "-", "-"]
    assert foot[-1] == f"not timed: NumPy formula, {SMALL}: off"


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
def test_bad_counts(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", option, value])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(1024, "1 KB"), (12544, "12.2 KB"), (1 << 20, "1 MB"), (1 << 25, "32 MB"), (1 << 30, "1 GB")]
)
def test_sizes_are_told_as_people_say_them(count, text):
    assert report.size(count) == text


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
    assert min(r.case.array_bytes for r in targets.orders() if r.case.order == "NHWC") > 5e6
    assert limits("halves", lambda c: True) == {(0.75, what) for what in each}
    assert {(r.case.dtype, r.over.dtype) for r in targets.halves()} == {(name, "float32") for name in half_types()}
    assert min(r.over.array_bytes for r in targets.halves()) > 1e7
    assert limits("fusions", lambda c: not c.residual) == {(1.1, what) for what in (*each, "from-y")}
    assert {r.case.activation for r in targets.fusions()} == {"relu", "relu6", "leaky_relu"}
    assert limits("fusions", lambda c: c.residual) == {(1.5, what) for what in each}
    assert limits("fresh", lambda c: not c.out) == {(1.5, what) for what in each}
    for row in [*targets.fusions(), *targets.fresh()]:
        assert row.over in (None, replace(row.case, activation=None, out=True))


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (1.2, 1)])
def test_targets_say_hit_or_missed(ratio, status, monkeypatch, capsys, tmp_path):
    """All ratios the same: at 1.2 it is inference above 5 MB that misses."""

    def run(group, rounds, threads, **environment):
        build = {"build": {environment.get("FASTBN_ISA", "best"): 1.0}}
        if group == "calls":
            return build | {"calls": {"inference": 2.4}, "over PyTorch": {"a": 0.9}}
        figures = {"ratio": ratio, "over floor": 1.0, "threads": 1.0, "over one": 1.0}
        return build | {str(row.case): figures for row in targets.planes()}

    monkeypatch.setattr(targets, "in_a_process", run)
    assert targets.main(["--runs", "2", "--only", "planes", "calls", "--store", str(tmp_path)]) == status
    text = capsys.readouterr().out
    rows = {tuple(line.split()[:2]): line.split() for line in text.splitlines() if line}
    assert rows["inference", "32x64x112x112"][2:5] == ["1.10", f"{ratio:.2f}", "missed" if status else "hit"]
    assert rows["training", "32x64x112x112"][2:5] == ["1.40", f"{ratio:.2f}", "hit"]
    assert rows["a", "1.0"][2:4] == ["0.90", "hit"]
    assert len([*tmp_path.iterdir()]) == 8
    assert targets.main(["--tell", str(tmp_path)]) == status
    assert capsys.readouterr().out.splitlines()[1:] == text.splitlines()[1:]


def test_a_targets_run_measures_every_figure():
    case = Case(2, 6, 14, "training")
    found = targets.measured(targets.Row(case, 1.0), rounds=1, threads=2)
    assert set(found) == {"ratio", "over floor", "threads", "over one"}
    assert min(found.values()) > 0
    row = targets.Row(replace(case, activation="relu"), 1.0, over=case)
    assert set(targets.measured(row, rounds=1, threads=1)) == {"ratio", "over floor"}
    small = targets.SmallCalls().round()
    assert set(small) == {f"{kind}{what}" for kind in ("", "layer adds, ") for what in PASSES}
