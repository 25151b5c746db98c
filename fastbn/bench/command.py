"""The whole of `fastbn bench`: what is measured how often, in which order, and what is written where."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter

import fastbn
from fastbn.bench import pictures, race, report, scaling, sizes
from fastbn.bench.cases import MATRICES, NETWORKS, PASSES, SMALL, Case, half_types, matrix, small_calls
from fastbn.bench.contenders import CONTENDERS
from fastbn.bench.measure import Timing
from fastbn.commands import check_extra, writeable_folder


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shapes: Sequence[tuple[int, int]]  # channels, height
    batch: int
    rounds: int
    sizes: Sequence[int]  # bytes of x
    scaled: tuple[int, int]  # channels, height of the array for the scaling
    kinds: tuple[int, int]  # of those in other orders and types, and of those with fusions
    matrices: Sequence[tuple[int, int]]
    small: Sequence[tuple[int, int, int]]  # batch, channels, height


FULL = Plan(
    NETWORKS["ResNet-50"], 32, 9, [1 << e for e in range(10, 31)], (256, 56), (512, 28), MATRICES, SMALL,
)  # fmt: skip
QUICK = Plan(
    [(64, 56), (256, 14), (512, 7)], 8, 3, [1 << e for e in range(10, 25, 2)], (256, 56), (64, 28), MATRICES[:1],
    SMALL[:1],
)  # fmt: skip


@dataclass
class Results:
    """What was measured: the races, the sweep over sizes, the scaling over threads."""

    shapes: list[race.Result]
    kinds: list[race.Result]
    fusions: list[race.Result]
    small: list[race.Result]
    sizes: list[Timing]
    scaling: list[scaling.Scaled]

    def as_dict(self) -> dict[str, object]:
        """For bench.json."""
        return {
            "shapes": {str(r.case): r.ratios for r in self.shapes},
            "kinds": {str(r.case): r.ratios for r in self.kinds},
            "fusions": {str(r.case): r.ratios for r in self.fusions},
            "memory": {str(r.case): r.memory for r in self.fusions},
            "small": {str(r.case): r.seconds for r in self.small},
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
        time_shapes(said, [Case(batch, *shape, what) for what in PASSES for shape in plan.shapes], rounds),
        time_kinds(said, kinds(batch, *plan.kinds) + matrices(plan.matrices), rounds),
        time_fusions(said, fusions(batch, *plan.kinds), rounds),
        time_small(said, small_calls(plan.small), rounds),
        time_sizes(said, plan.sizes, rounds),
        time_threads(said, (batch, *plan.scaled), scaling.steps(threads), rounds),
    )
    said.write(folder / "report.txt")
    (folder / "bench.json").write_text(json.dumps(results.as_dict(), indent=1) + "\n", encoding="utf-8")
    written = pictures.draw(results.shapes, results.sizes, results.scaling, folder)
    names = ", ".join(str(path) for path in [folder / "report.txt", folder / "bench.json", *written])
    print(f"\n{perf_counter() - start:.0f} s; written: {names}")
    return results


def kinds(batch: int, channels: int, height: int) -> list[Case]:
    """One shape in other memory orders and dtypes."""
    options = [("float32", "NHWC"), ("float32", "slice"), *product(half_types(), ("NCHW", "NHWC"))]
    return [
        Case(batch, channels, height, what, dtype, order=order) for what in PASSES for dtype, order in options
    ]  # fmt: skip


def matrices(shapes: Sequence[tuple[int, int]]) -> list[Case]:
    """(N, C)."""
    return [matrix(*shape, what) for what in PASSES for shape in shapes]


def fusions(batch: int, channels: int, height: int) -> list[Case]:
    """One shape with activations, and with a residual."""
    options = [("relu", False), ("relu6", False), ("leaky_relu", False), ("relu", True)]
    return [
        Case(batch, channels, height, what, activation=activation, residual=residual)
        for what in PASSES
        for activation, residual in options
    ]


def time_shapes(said: report.Report, cases: Sequence[Case], rounds: int) -> list[race.Result]:
    """The race."""
    table = report.Race(cases, race.installed(name for name in CONTENDERS if name != "fastbn, in steps"))
    results = raced(said, "Time over floor", table, rounds, table.ratios)
    said.say(*table.means(results))
    return results


def time_kinds(said: report.Report, cases: Sequence[Case], rounds: int) -> list[race.Result]:
    """The race in other orders and types."""
    names = ["fastbn", "np.copyto", "NumPy formula", "PyTorch", "PyTorch, output reused"]
    table = report.Race(cases, race.installed(names))
    return raced(said, "Other memory orders and types: time over floor", table, rounds, table.ratios)


def time_fusions(said: report.Report, cases: Sequence[Case], rounds: int) -> list[race.Result]:
    """Fused against step by step, and what memory each takes."""
    table = report.Race(cases, race.installed(["fastbn", "fastbn, in steps", "NumPy formula", "PyTorch"]))
    results = raced(said, "Fusions: time over floor", table, rounds, table.ratios)
    title = (
        "Fusions: memory beyond the arguments, in arrays of the size of x; arrays read and written, fused and in steps"
    )
    said.table(title, table.memory_head, results, table.memory)
    return results


def time_small(said: report.Report, cases: Sequence[Case], rounds: int) -> list[race.Result]:
    """Calls on small arrays, without out=."""
    table = report.Race(cases, race.installed(["fastbn", "NumPy formula", "PyTorch"]))
    return raced(said, "Small arrays: microseconds a call", table, rounds, table.microseconds)


def raced(
    said: report.Report, title: str, table: report.Race, rounds: int, row: Callable[[race.Result], str]
) -> list[race.Result]:
    """One race: its table as it is measured, and who was wrong."""
    title = f"{title}, one thread, medians of {rounds} rounds"
    results = said.table(title, table.head, race.race(table.cases, rounds, table.names), row)
    said.say(*report.wrong(results))
    return results


def time_sizes(said: report.Report, wanted: Sequence[int], rounds: int) -> list[Timing]:
    """Those sizes that fit into memory."""
    title = f"Speed over the size of x, one thread, medians of {rounds} rounds"
    fit = sizes.fitting(wanted)
    timings = said.table(title, report.SIZES_HEAD, sizes.sweep(fit, rounds), report.sizes_row)
    if len(fit) < len(wanted):
        said.say(f"not measured, for want of memory: {', '.join(report.size(s) for s in wanted[len(fit) :])}")
    return timings


def time_threads(
    said: report.Report, shape: tuple[int, int, int], threads: Sequence[int], rounds: int
) -> list[scaling.Scaled]:
    """The scaling."""
    title = f"Scaling over threads, {shape[0]}x{shape[1]}x{shape[2]}x{shape[2]}, medians of {rounds} rounds"
    return said.table(title, report.THREADS_HEAD, scaling.scale(shape, threads, rounds), report.threads_row)
