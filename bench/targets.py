"""How fast fastbn is to be, and whether it is: time over floor on ResNet-50's shapes, float32, with out=.

    python bench/targets.py [--runs 3] [--rounds 9] [--batch 32 8 1]

Every run measures the build of the kernels that is in use, with one thread and with all, and the baseline build, each
in a process of its own. What is printed are medians over the runs of medians over rounds; a ratio is taken within a
round. Status 1 where a target is missed. The targets are those of the best build with one thread; with all threads
0.4 is granted on top for arrays above 10 MB, and below nothing but to be no slower than one thread.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np

import fastbn
from fastbn.bench import machine
from fastbn.bench.cases import NETWORKS, PASSES, Case
from fastbn.bench.floor import seconds
from fastbn.bench.measure import Prepared
from fastbn.bench.scaling import one_round

Found = dict[str, dict[str, float]]  # figures by their names, of each case

MB = 1e6
LARGE = 10 * MB  # of x
THREADS_MORE = 0.4  # granted to all threads, for large arrays
SLOWER = 1.05  # times the time of one thread: what is less is noise
MEANS = {"training": 1.30, "backward": 1.35}  # geometric, of large arrays with planes of 28x28 and more
CALLS = {"inference": 2.5, "training": 4.0, "backward": 4.0}  # microseconds for (2, 8, 4, 4), without out=
LAYER_ADDS = 1.0  # microseconds


def must(case: Case) -> float:
    """The target of a case with one thread, in times the floor."""
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


def cases(batches: Iterable[int]) -> list[Case]:
    """With one thread."""
    return [Case(n, *shape, what) for n in batches for what in PASSES for shape in NETWORKS["ResNet-50"]]


# ---- measuring, in a process for each build


def measured(case: Case, rounds: int, threads: int) -> dict[str, float]:
    """Ratios: time over floor; np.copyto's time; all threads' time over their floor and over one thread's."""
    p = Prepared(case)
    p.verify()
    found: dict[str, list[float]] = {"ratio": [], "over copyto": [], "threads": [], "over one thread": []}
    for _ in range(rounds):
        with fastbn.num_threads(1):
            took, floor = p.round(p.once)
            found["ratio"].append(took / floor)
            if case.what == "training" and is_long(case):
                found["over copyto"].append(took / p.seconds(partial(np.copyto, p.buffers[0].out, p.buffers[0].x)))
        if threads > 1:
            all_took, all_floor = one_round(p, threads)
            found["threads"].append(all_took / all_floor)
            found["over one thread"].append(all_took / took)
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


def one_run(batches: Sequence[int], rounds: int, threads: int) -> Found:
    """All that is measured in one process; small calls between the cases, so that one moment's clock is not all."""
    small, calls = SmallCalls(), []
    found: Found = {"build": {fastbn.isa: 1.0}}
    for case in cases(batches):
        found[str(case)] = measured(case, rounds, threads)
        calls.append({"calls": small.round()})
    return found | medians(calls)


def in_a_process(arguments: Sequence[str], **environment: str) -> Found:
    """One run, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one-run", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
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


def table(ours: Found, baseline: Found, batches: Sequence[int]) -> Verdicts:
    """A row for each target."""
    verdicts = Verdicts()
    best, other = (next(iter(run["build"])) for run in (ours, baseline))
    print(
        f"{'time over floor':25}  must  {best:12}  {other:12}  {'all threads':12}  {'over 1 thread':13}  over np.copyto"
    )
    for case in cases(batches):
        limit, found = must(case), ours[str(case)]
        large = case.array_bytes > LARGE
        cells = [
            f"{case.what:9}  {case.shape_name:14}  {limit:.2f}",
            verdicts.of(found["ratio"], limit),
            Verdicts().of(baseline[str(case)]["ratio"], limit),
            verdicts.of(found.get("threads"), limit + THREADS_MORE if large else None),
            f"{verdicts.of(found.get('over one thread'), SLOWER):13}",
            verdicts.of(found.get("over copyto"), 1.0),
        ]
        print("  ".join(cells).rstrip())
    for what, limit in MEANS.items():
        long = [str(case) for case in cases(batches) if case.what == what and is_long(case)]
        if long:
            means = [geometric_mean([run[key]["ratio"] for key in long]) for run in (ours, baseline)]
            print(f"{what:9}  {'geometric mean':14}  {limit:.2f}  {verdicts.of(means[0], limit)}  {means[1]:5.2f}")
    print(f"\n{'(2, 8, 4, 4), microseconds':25}  must  {best:12}  {other}")
    for name, took in ours["calls"].items():
        limit = CALLS.get(name, LAYER_ADDS)
        print(f"{name:25}  {limit:4.1f}  {verdicts.of(took, limit)}  {baseline['calls'][name]:5.2f}")
    return verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of each case in a run (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 8, 1], help="(32 8 1)")
    parser.add_argument("--threads", type=int, default=fastbn.get_num_threads(), help="all (%(default)s)")
    parser.add_argument("--one-run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one_run:
        print(json.dumps(one_run(args.batch, args.rounds, args.threads)))
        return 0
    arguments = ["--rounds", str(args.rounds), "--batch", *map(str, args.batch), "--threads"]
    runs, baselines = [], []
    for _ in range(args.runs):
        runs.append(in_a_process([*arguments, str(args.threads)]))
        baselines.append(in_a_process([*arguments, "1"], FASTBN_ISA="baseline"))
    print(f"{machine.name()}; medians of {args.runs} runs of {args.rounds} rounds; {args.threads} threads are all\n")
    verdicts = table(medians(runs), medians(baselines), args.batch)
    print(f"\n{verdicts.hit} hit, {verdicts.missed} missed (the baseline build does not count)")
    return 1 if verdicts.missed else 0


if __name__ == "__main__":
    sys.exit(main())
