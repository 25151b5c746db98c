"""How fast fastbn is to be, and whether it is: a row for each case, hit or missed.

    python bench/targets.py [--only planes fusions] [--runs 3] [--rounds 9] [--store FOLDER]
    python bench/targets.py --tell FOLDER        what was stored

    planes     ResNet-50's shapes at batch 32, 8 and 1: time over floor
    orders     channels-last, (N, C) matrices, slices of a larger buffer: time over floor
    halves     float16 and bfloat16: time over that of float32
    fusions    activations: time over the same pass without
    residuals  a residual and relu: time over floor, its streams counted
    fresh      without out=: time over that with it
    parts      less than a pass: statistics alone, need_dx=False, training=False: time over floor, with no target of
               its own
    calls      small arrays: microseconds; and time over PyTorch's, where it is installed

Float32 where nothing else is said. The floor is a copy (backward: triad) everywhere: a channels-last array that is
larger than the last-level cache must be read twice in training, and comes to 1.5 and 1.67 at best.

Every run measures the build of the kernels that is in use, with one thread and with all, and the baseline build, each
group in a process of its own. What is printed are medians over the runs of medians over rounds; a ratio is taken within
a round. Status 1 where a target is missed. The targets are those of the best build with one thread; with all threads
0.4 is granted on top for arrays above 10 MB, and smaller ones have none. At any size they must be no slower than one.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np

import fastbn
from fastbn import cli
from fastbn.bench import machine, race
from fastbn.bench.cases import MATRICES, NETWORKS, PASSES, SMALL, Case, half_types, matrix, small_calls
from fastbn.bench.floor import seconds
from fastbn.bench.measure import Prepared
from fastbn.bench.scaling import one_round

Found = dict[str, dict[str, float]]  # figures by their names, of each case

MB = 1e6
LARGE = 10 * MB  # of x
THREADS_MORE = 0.4  # granted to all threads, for large arrays
SLOWER = 1.05  # times the time of one thread: what is less is noise
MEANS = {"training": 1.30, "backward": 1.35}  # geometric, of large arrays with planes of 28x28 and more
LAST = {"training": 1.8, "inference": 1.15, "backward": 2.2}  # channels-last above 5 MB
MATRIX = {"training": 2.5, "inference": 1.6, "backward": 2.6}  # of 256 KiB and more
HALF, ACTIVATION, RESIDUAL, FRESH = 0.75, 1.10, 1.5, 1.5
CALLS = {"inference": 2.5, "training": 4.0, "backward": 4.0}  # microseconds for (2, 8, 4, 4), without out=
LAYER_ADDS = 1.0  # microseconds

RESNET = NETWORKS["ResNet-50"]
SOME = [(256, 56), (512, 28), (256, 14), (2048, 7)]


@dataclass(frozen=True)
class Row:
    """A case, how long it may take, and in times of what: of the floor, or of another case."""

    case: Case
    must: float | None
    over: Case | None = None


def must(case: Case) -> float:
    """The target of planes with one thread, in times the floor."""
    if case.what == "inference":
        limits = {False: 1.10, True: 1.40} if case.array_bytes > 5 * MB else {False: 1.40, True: 1.80}
        return limits[case.height == 7]
    training = case.what == "training"
    if is_long(case):
        return 1.40 if training else 1.45
    if case.height <= 14 and case.array_bytes > 5 * MB:
        if case.height == 7:
            return 3.0 if training else 2.6
        return 2.2 if case.channels == 256 else 1.8
    if case.height == 7:
        return 3.4 if training else 3.0
    return 2.6 if training else 2.4


def is_long(case: Case) -> bool:
    """Whether it is large and has long rows: the cases of the geometric means, whose forward beats np.copyto."""
    return case.height >= 28 and case.array_bytes > LARGE


# ---- the groups


def planes() -> list[Row]:
    """ResNet-50."""
    found = [Case(n, *shape, what) for n in (32, 8, 1) for what in PASSES for shape in RESNET]
    return [Row(case, must(case)) for case in found]


def orders() -> list[Row]:
    """Channels-last, matrices, and slices, which are to be as fast as whole planes."""
    last = [Case(n, *shape, what, order="NHWC") for n in (32, 8) for what in PASSES for shape in RESNET]
    rows = [Row(case, LAST[case.what]) for case in last if case.array_bytes > 5 * MB]
    matrices = [matrix(*shape, what) for what in PASSES for shape in MATRICES]
    rows += [Row(case, MATRIX[case.what] if case.array_bytes >= 256 << 10 else None) for case in matrices]
    slices = [Case(32, *shape, what, order="slice") for what in PASSES for shape in NETWORKS["DenseNet-121"][:3]]
    return rows + [Row(case, must(case)) for case in slices]


def halves() -> list[Row]:
    """Of float32's time, where its array is above 10 MB."""
    whole = [Case(32, *shape, what) for what in PASSES for shape in RESNET]
    whole += [Case(32, *shape, what, order="NHWC") for what in PASSES for shape in SOME]
    large = [case for case in whole if case.array_bytes > LARGE]
    return [Row(replace(case, dtype=dtype), HALF, over=case) for dtype in half_types() for case in large]


def fusions() -> list[Row]:
    """relu on every shape; relu6, other numbers in the same loop, and leaky_relu, a loop of its own, on some."""
    rows = []
    for what in PASSES:
        for activation, shapes in {"relu": RESNET, "relu6": SOME, "leaky_relu": SOME}.items():
            plain = [Case(32, *shape, what) for shape in shapes]
            rows += [Row(replace(case, activation=activation), ACTIVATION, over=case) for case in plain]
    undone = [Case(32, *shape, "from-y") for shape in SOME]
    return rows + [Row(replace(case, activation="leaky_relu"), ACTIVATION, over=case) for case in undone]


def residuals() -> list[Row]:
    """With relu behind them."""
    cases = [Case(32, *shape, what, activation="relu", residual=True) for what in PASSES for shape in RESNET]
    return [Row(case, RESIDUAL) for case in cases]


def fresh() -> list[Row]:
    """Page faults and all."""
    large = [case for what in PASSES for shape in RESNET if (case := Case(32, *shape, what)).array_bytes > LARGE]
    return [Row(replace(case, out=False), FRESH, over=case) for case in large]


def parts() -> list[Row]:
    """Only what is asked for."""
    return [
        Row(Case(32, *shape, what), None) for what in ("statistics", "params", "frozen", "frozen-dx") for shape in SOME
    ]


GROUPS: dict[str, Callable[[], list[Row]]] = {
    "planes": planes,
    "orders": orders,
    "halves": halves,
    "fusions": fusions,
    "residuals": residuals,
    "fresh": fresh,
    "parts": parts,
}


# ---- measuring, in a process for each group and build


def measured(row: Row, rounds: int, threads: int) -> dict[str, float]:
    """Ratios: over the floor or another case; over np.copyto; all threads' over their floor and over one thread's."""
    p, other = Prepared(row.case), Prepared(row.over) if row.over else None
    for prepared in filter(None, (p, other)):
        prepared.verify()
    found: dict[str, list[float]] = {"ratio": [], "over floor": [], "over copyto": [], "threads": [], "over one": []}
    for _ in range(rounds):
        with fastbn.num_threads(1):
            took, floor = p.round(p.once)
            found["over floor"].append(took / floor)
            found["ratio"].append(took / (other.seconds(other.once) if other else floor))
            if row.over is None and row.case.what == "training" and not row.case.kind and is_long(row.case):
                found["over copyto"].append(took / p.seconds(partial(np.copyto, p.buffers[0].out, p.buffers[0].x)))
        if threads > 1:
            all_took, all_floor = one_round(p, threads)
            found["over one"].append(all_took / took)
            if other is None:
                found["threads"].append(all_took / all_floor)
    return {name: median(values) for name, values in found.items() if values}


class SmallCalls:
    """Calls on (2, 8, 4, 4), where the arrays take no time, as functions and as layers."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        x, dy = rng.standard_normal((2, 2, 8, 4, 4), np.float32)
        gamma, beta = rng.standard_normal((2, 8), np.float32)
        y, stats = fastbn.batch_norm(x, gamma, beta)
        np.testing.assert_allclose(y, fastbn.reference.batch_norm(x, gamma, beta)[0], atol=1e-5)
        mean, var = (v.astype(np.float32) for v in (stats.mean, stats.var))
        training, inference = fastbn.BatchNorm2d(8), fastbn.BatchNorm2d(8).eval()
        self.pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "training": (lambda: fastbn.batch_norm(x, gamma, beta), lambda: training(x)),
            "inference": (lambda: fastbn.normalize(x, mean, var, gamma, beta), lambda: inference(x)),
            "backward": (lambda: fastbn.batch_norm_backward(dy, x, stats, gamma, beta), lambda: training.backward(dy)),
        }

    def round(self) -> dict[str, float]:
        """Microseconds of each function, and what a layer adds to them."""
        found: dict[str, float] = {}
        for what, pair in self.pairs.items():
            function, layer = (1e6 * seconds(call, 200) for call in pair)
            found |= {what: function, f"layer adds, {what}": layer - function}
        return found


def calls(rounds: int) -> Found:
    """Microseconds of small calls; and times of PyTorch's, each in a process of its own."""
    small = SmallCalls()
    found = medians([{"calls": small.round()} for _ in range(10 * rounds)])
    cases = small_calls(SMALL)
    if len(names := race.installed(["fastbn", "PyTorch"])) > 1:
        ran = race.race(cases, rounds, names)
        found["over PyTorch"] = {str(r.case): r.seconds["fastbn"] / r.seconds["PyTorch"] for r in ran}
    return found


def one_run(group: str, rounds: int, threads: int) -> Found:
    """All of a group that is measured in one process."""
    if group == "calls":
        return {"build": {fastbn.isa: 1.0}} | calls(rounds)
    rows = GROUPS[group]()
    return {"build": {fastbn.isa: 1.0}} | {str(row.case): measured(row, rounds, threads) for row in rows}


def in_a_process(group: str, rounds: int, threads: int, **environment: str) -> Found:
    """One run, in a process of its own."""
    options = ["--one-run", group, "--rounds", str(rounds), "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *options],
        check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    return json.loads(done.stdout)


def medians(runs: Sequence[Found]) -> Found:
    """Of what the runs found."""
    return {key: {name: median(run[key][name] for run in runs) for name in runs[0][key]} for key in runs[0]}


# ---- telling


class Verdicts:
    """Prints hit or missed, and counts."""

    def __init__(self) -> None:
        self.hit = self.missed = 0

    def of(self, value: float | None, limit: float | None) -> str:
        """A cell: the value, and whether it is within the limit."""
        if value is None or limit is None:
            return f"{'-' if value is None else format(value, '.2f'):>5}{'':7}"
        self.hit += value <= limit
        self.missed += value > limit
        return f"{value:5.2f} {'hit' if value <= limit else 'missed':6}"


def table(group: str, ours: Found, baseline: Found, verdicts: Verdicts) -> None:
    """A row for each target."""
    rows = GROUPS[group]()
    best, other = (next(iter(run["build"])) for run in (ours, baseline))
    width = max(len(row.case.label) for row in rows)
    title = "over another case" if rows[0].over else "time over floor"
    head = f"{title:{width + 11}}  must  {best:12}  {other:12}  {'all threads':12}  {'over 1 thread':13}  "
    print(f"\n{group}\n{head}{'over floor' if rows[0].over else 'over np.copyto'}")
    for row in rows:
        case, limit, found, there = row.case, row.must, ours[str(row.case)], baseline[str(row.case)]
        more = limit + THREADS_MORE if limit is not None and case.array_bytes > LARGE and not row.over else None
        cells = [
            f"{case.what:9}  {case.label:{width}}  {f'{limit:.2f}' if limit is not None else '':4}",
            verdicts.of(found["ratio"], limit),
            Verdicts().of(there["ratio"], limit),
            verdicts.of(found.get("threads"), more),
            f"{verdicts.of(found.get('over one'), SLOWER):13}",
            f"{found['over floor']:5.2f}" if row.over else verdicts.of(found.get("over copyto"), 1.0),
        ]
        print("  ".join(cells).rstrip())
    for what, limit in MEANS.items() if group == "planes" else ():
        long = [str(row.case) for row in rows if row.case.what == what and is_long(row.case)]
        means = [geometric_mean([run[key]["ratio"] for key in long]) for run in (ours, baseline)]
        print(f"{what:9}  {'geometric mean':{width}}  {limit:.2f}  {verdicts.of(means[0], limit)}  {means[1]:5.2f}")


def table_of_calls(ours: Found, baseline: Found, verdicts: Verdicts) -> None:
    """Microseconds, and times of PyTorch's."""
    best, other = (next(iter(run["build"])) for run in (ours, baseline))
    print(f"\n{'(2, 8, 4, 4), microseconds':40}  must  {best:12}  {other}")
    for name, took in ours["calls"].items():
        limit = CALLS.get(name, LAYER_ADDS)
        print(f"{name:40}  {limit:4.1f}  {verdicts.of(took, limit)}  {baseline['calls'][name]:5.2f}")
    if "over PyTorch" in ours:
        print("times of PyTorch's time")
    for name, ratio in ours.get("over PyTorch", {}).items():
        print(f"{name:40}  {1:4.1f}  {verdicts.of(ratio, 1.0)}  {baseline['over PyTorch'][name]:5.2f}")


def stored(folder: Path, group: str) -> tuple[list[Found], list[Found]]:
    """The runs of a group: of the best build, of the baseline build."""
    runs, baselines = ([json.loads(p.read_text()) for p in sorted(folder.glob(f"{k}-*-{group}.json"))] for k in BUILDS)
    return runs, baselines


BUILDS = ("best", "baseline")


def tell(found: dict[str, tuple[list[Found], list[Found]]], title: str) -> int:
    """Print everything; the exit status."""
    print(title)
    verdicts = Verdicts()
    for group, (runs, baselines) in found.items():
        if group == "calls":
            table_of_calls(medians(runs), medians(baselines), verdicts)
        else:
            table(group, medians(runs), medians(baselines), verdicts)
    print(f"\n{verdicts.hit} hit, {verdicts.missed} missed (the baseline build does not count)")
    return 1 if verdicts.missed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a target is missed."""
    groups = [*GROUPS, "calls"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, metavar="GROUP", help="(all)")
    parser.add_argument("--runs", type=cli.count, default=3, help="(%(default)s)")
    parser.add_argument("--rounds", type=cli.count, default=9, help="of each case in a run (%(default)s)")
    parser.add_argument("--threads", type=cli.threads, default=fastbn.get_num_threads(), help="all (%(default)s)")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep what each run found")
    parser.add_argument("--tell", type=Path, metavar="FOLDER", help="measure nothing: print what was stored")
    parser.add_argument("--one-run", metavar="GROUP", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one_run:
        print(json.dumps(one_run(args.one_run, args.rounds, args.threads)))
        return 0
    if args.tell:
        found = {group: both for group in args.only if all(both := stored(args.tell, group))}
        if not found:
            parser.error(f"--tell: expected a folder with stored runs, got {args.tell}")
        return tell(found, f"{machine.name()}; medians of runs")
    found = {group: ([], []) for group in args.only}
    for turn in range(args.runs):
        for group, (runs, baselines) in found.items():
            runs.append(in_a_process(group, args.rounds, args.threads))
            baselines.append(in_a_process(group, args.rounds, 1, FASTBN_ISA="baseline"))
            for build, run in zip(BUILDS, (runs[-1], baselines[-1]), strict=True):
                if args.store:
                    args.store.mkdir(parents=True, exist_ok=True)
                    (args.store / f"{build}-{turn}-{group}.json").write_text(json.dumps(run))
    said = f"{machine.name()}; medians of {args.runs} runs of {args.rounds} rounds; {args.threads} threads are all"
    return tell(found, said)


if __name__ == "__main__":
    sys.exit(main())
