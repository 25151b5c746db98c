"""The race against other libraries, and the command that shows what was found."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace

import pytest

import fastbn
from fastbn import cli, commands
from fastbn.bench import command, contenders, machine, measure, race, report, scaling, worker
from fastbn.bench.cases import PASSES, Case

CASE = Case(8, 64, 28, "training")
SMALL = Case(2, 6, 14, "training")


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


@pytest.mark.parametrize("name", race.installed())
def test_training_takes_the_statistics_in_the_call(name):
    """Of other values than there were when it was prepared."""
    case = replace(SMALL, activation="relu") if name == "fastbn, in steps" else SMALL  # steps: an activation behind it
    prepared, contender = measure.Prepared(case), contenders.CONTENDERS[name]
    call = contender.prepare(prepared)
    assert (call is None) == (name == "onnxruntime")  # inference alone
    prepared.buffers[0].x[...] = 2 * prepared.buffers[0].dy + 1
    if call is not None:
        contender.check(prepared, call())


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

        def wrong():
            found = call()
            return (found[0] + off, *found[1:]) if isinstance(found, tuple) else found + off

        return wrong

    monkeypatch.setitem(contenders.CONTENDERS, name, replace(right, prepare=prepare))
    monkeypatch.setattr(measure.Prepared, "round", lambda *_: pytest.fail("timed"))
    answer = worker.Entry(name, case).round()
    assert answer["ratio"] is None
    assert answer["wrong"].startswith(f"{name}, {case}: ")


def test_a_round_is_of_the_contenders_own_call(monkeypatch):
    """6 s over a floor of 2."""
    entry, done = worker.Entry("NumPy formula", SMALL), []

    def timed(work):
        work()
        return 6.0, 2.0

    monkeypatch.setattr(entry, "call", lambda: done.append("call"))
    monkeypatch.setattr(entry.prepared, "round", timed)
    answer = entry.round()
    assert (answer["ratio"], answer["seconds"], answer["wrong"]) == (3, 6, None)
    assert done == ["call"]


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
    means = table.means([result, *others])
    assert means[0].split() == ["training", "geometric", "mean", "5.00", "-", "-"]
    assert means[1].split() == ["backward", "geometric", "mean", "7.00", "-", "-"]
    assert report.wrong([result, *others]) == [f"not timed: NumPy formula, {SMALL}: off"]


@pytest.mark.parametrize("time", [command.time_shapes, command.time_kinds, command.time_fusions, command.time_small])
def test_every_race_of_the_command_names_who_was_wrong(time, monkeypatch):
    monkeypatch.setattr(race, "Racer", FakeRacer)
    said = report.Report()
    time(said, [SMALL], 2)
    assert said.lines.count(f"not timed: NumPy formula, {SMALL}: off") == 1


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
    ("count", "text"), [(1024, "1 KB"), (12544, "12.2 KB"), (1023693, "0.976 MB"), (1 << 20, "1 MB"), (1 << 30, "1 GB")]
)
def test_sizes_are_told_as_people_say_them(count, text):
    assert report.size(count) == text
