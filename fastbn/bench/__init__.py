"""The command `fastbn bench`: how far fastbn, and what else is installed, are from the speed of memory here.

(a) Time over floor for ResNet-50's shapes: fastbn against the NumPy formula, and PyTorch and onnxruntime where these
are installed (PyTorch belongs to no extra). (b) GB/s over the size of the array, 1 KB to 1 GB. (c) Scaling over
threads. Every answer is checked against the float64 reference before it is timed.

    cases.py        what is timed           floor.py     what it is compared with
    measure.py      check, rounds, ratios   machine.py   its name, its free memory
    contenders.py   who is raced            race.py, worker.py   one process for each
    sizes.py, scaling.py   (b) and (c)      report.py, pictures.py   what comes out

The suite in the checkout's folder bench/ times the same cases with pytest-benchmark.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import fastbn
from fastbn.bench import pictures, report
from fastbn.bench.cases import NETWORKS, PASSES, Case
from fastbn.bench.measure import Timing
from fastbn.bench.race import Result, installed, race
from fastbn.bench.scaling import Scaled, scale, steps
from fastbn.bench.sizes import fitting, sweep
from fastbn.commands import CannotRunError, check_extra, writeable_folder

__all__ = ["FULL", "QUICK", "CannotRunError", "Plan", "Results", "run"]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shapes: Sequence[tuple[int, int]]  # channels, height
    batch: int
    rounds: int
    sizes: Sequence[int]  # bytes of x
    scaled: tuple[int, int]  # channels, height of the array for the scaling


FULL = Plan(NETWORKS["ResNet-50"], 32, 9, [1 << e for e in range(10, 31)], (256, 56))
QUICK = Plan([(64, 56), (256, 14), (512, 7)], 8, 3, [1 << e for e in range(10, 25, 2)], (256, 56))


@dataclass
class Results:
    """What was measured: the race, the sweep over sizes, the scaling over threads."""

    shapes: list[Result]
    sizes: list[Timing]
    scaling: list[Scaled]

    def as_dict(self) -> dict[str, object]:
        """For bench.json."""
        return {
            "shapes": {str(r.case): r.ratios for r in self.shapes},
            "sizes": {str(t.case): [t.gb_per_s, t.floor_gb_per_s, t.ratio] for t in self.sizes},
            "threads": {str(s.timing.case): [s.timing.ratio, s.speedup, s.floor_speedup] for s in self.scaling},
        }


def run(
    out: str | Path = "fastbn-bench",
    quick: bool = False,
    batch: int | None = None,
    rounds: int | None = None,
    threads: int | None = None,
) -> Results:
    """Measure, print the tables, write them (report.txt, bench.json) and the pictures to the folder `out`.

    Parameters
    ----------
    out : str or Path
        The folder; created if need be.
    quick : bool
        Few shapes, sizes and rounds: less than 30 seconds.
    batch, rounds : int, optional
        Samples of a shape in the race and the scaling, rounds of each case.
    threads : int, optional
        The most threads of the scaling; else as many as fastbn uses.

    Returns
    -------
    results : Results

    Raises
    ------
    CannotRunError
        matplotlib is not installed, nothing can be written to `out`, memory does not suffice, a contender's process
        ended, or a result of fastbn's is wrong.
    """
    check_extra("bench")
    folder = writeable_folder(out)
    start = perf_counter()
    plan = QUICK if quick else FULL
    batch, rounds, threads = batch or plan.batch, rounds or plan.rounds, threads or fastbn.get_num_threads()
    said = report.Report()
    said.say(*report.head())
    results = Results(
        shapes(said, [Case(batch, *shape, what) for what in PASSES for shape in plan.shapes], rounds),
        sizes(said, plan.sizes, rounds),
        scaling(said, (batch, *plan.scaled), steps(threads), rounds),
    )
    said.write(folder / "report.txt")
    (folder / "bench.json").write_text(json.dumps(results.as_dict(), indent=1) + "\n", encoding="utf-8")
    written = pictures.draw(results.shapes, results.sizes, results.scaling, folder)
    names = ", ".join(str(path) for path in [folder / "report.txt", folder / "bench.json", *written])
    print(f"\n{perf_counter() - start:.0f} s; written: {names}")
    return results


def shapes(said: report.Report, cases: Sequence[Case], rounds: int) -> list[Result]:
    """(a)."""
    names = installed()
    title = f"Time over floor, one thread, medians of {rounds} rounds"
    row = partial(report.shapes_row, names=names)
    results = said.table(title, report.shapes_head(names), race(cases, rounds), row)
    said.say(*report.shapes_foot(results, names))
    return results


def sizes(said: report.Report, wanted: Sequence[int], rounds: int) -> list[Timing]:
    """(b)."""
    title = f"Speed over the size of x, one thread, medians of {rounds} rounds"
    fit = fitting(wanted)
    timings = said.table(title, report.SIZES_HEAD, sweep(fit, rounds), report.sizes_row)
    if len(fit) < len(wanted):
        said.say(f"not measured, for want of memory: {', '.join(report.size(s) for s in wanted[len(fit) :])}")
    return timings


def scaling(said: report.Report, shape: tuple[int, int, int], threads: Sequence[int], rounds: int) -> list[Scaled]:
    """(c)."""
    title = f"Scaling over threads, {shape[0]}x{shape[1]}x{shape[2]}x{shape[2]}, medians of {rounds} rounds"
    return said.table(title, report.THREADS_HEAD, scale(shape, threads, rounds), report.threads_row)
