"""The tables, a line at a time, as figures come in: on the screen and in report.txt."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TypeVar

import fastbn
from fastbn.bench import machine
from fastbn.bench.cases import Case
from fastbn.bench.measure import Timing
from fastbn.bench.race import Result
from fastbn.bench.scaling import Scaled

T = TypeVar("T")


class Report:
    """Prints lines and keeps them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, *lines: str) -> None:
        """Print and keep lines."""
        self.lines += lines
        for line in lines:
            print(line, flush=True)

    def table(self, title: str, head: str, found: Iterable[T], row: Callable[[T], str]) -> list[T]:
        """Print and keep a row for each figure as it is found; returns the figures."""
        self.say("", title, "-" * len(title), head)
        kept = []
        for figure in found:
            self.say(row(figure))
            kept.append(figure)
        return kept

    def write(self, path: Path) -> None:
        """Store what has been said."""
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def head() -> list[str]:
    """What was measured where."""
    return [
        f"fastbn {fastbn.__version__}, kernels {fastbn.isa}, float32; {machine.name()}",
        "Time over floor: 1 is the time of the fastest copy of x (backward: triad dy + x) in the same round.",
    ]


class Race:
    """The tables of a race: pass and case to the left, a column for each contender."""

    def __init__(self, cases: Sequence[Case], names: Sequence[str]) -> None:
        self.cases, self.names = cases, names
        self.width = max(14, *(len(case.label) for case in cases))

    @property
    def head(self) -> str:
        """The contenders' names."""
        return self.cells("pass", "x", self.names)

    def ratios(self, result: Result) -> str:
        """Time over floor in a case."""
        return self.row(result, lambda name: number(result.ratios.get(name)))

    def microseconds(self, result: Result) -> str:
        """Of a call."""
        return self.row(result, lambda name: number(1e6 * result.seconds[name] if name in result.seconds else None))

    @property
    def memory_head(self) -> str:
        """As `head`, for `memory`."""
        return f"{self.head}  moved  in steps"

    def memory(self, result: Result) -> str:
        """At the peak, beyond the arguments, in arrays as large as x; and how many of these are read and written."""
        taken = {name: b / result.case.array_bytes for name, b in result.memory.items() if b is not None}
        cells = self.row(result, lambda name: number(taken.get(name)))
        return f"{cells}  {result.case.streams:5}  {result.case.streams_in_steps:8}"

    def row(self, result: Result, figure: Callable[[str], str]) -> str:
        """A case of the race."""
        found = ["wrong" if name in result.wrong else figure(name) for name in self.names]
        return self.cells(result.case.what, result.case.label, found)

    def means(self, results: Sequence[Result]) -> list[str]:
        """Geometric means of the ratios."""
        lines = []
        for what in dict.fromkeys(result.case.what for result in results):
            ran = [r.ratios for r in results if r.case.what == what]
            means = [
                number(geometric_mean([r[n] for r in ran]) if all(n in r for r in ran) else None) for n in self.names
            ]
            lines.append(self.cells(what, "geometric mean", means))
        return lines

    def cells(self, what: str, case: str, found: Sequence[str]) -> str:
        """Under the contenders' names."""
        figures = [f"{cell:>{max(6, len(name))}}" for cell, name in zip(found, self.names, strict=True)]
        return "  ".join([f"{what:9}", f"{case:{self.width}}", *figures])


def wrong(results: Sequence[Result]) -> list[str]:
    """Who gave what wrong answer."""
    return [f"not timed: {text}" for result in results for text in result.wrong.values()]


def number(ratio: float | None) -> str:
    """A ratio, or a dash where a contender has no such pass."""
    return "-" if ratio is None else f"{ratio:.2f}"


SIZES_HEAD = f"{'pass':9}  {'x':>7}  {'shape':15}  {'GB/s':>7}  {'floor GB/s':>10}  time over floor"


def sizes_row(timing: Timing) -> str:
    """A size of the sweep."""
    case = timing.case
    speeds = f"{timing.gb_per_s:7.1f}  {timing.floor_gb_per_s:10.1f}  {timing.ratio:15.2f}"
    return f"{case.what:9}  {size(case.array_bytes):>7}  {case.shape_name:15}  {speeds}"


def size(count: float) -> str:
    """Bytes as people say them: 2 KB, 16 MB; K is 1024."""
    units = iter(("B", "KB", "MB", "GB"))
    unit = next(units)
    while count >= 999.5 and unit != "GB":
        count, unit = count / 1024, next(units)
    return f"{count:.3g} {unit}"


THREADS_HEAD = f"{'pass':9}  threads  time over floor  speed-up  floor's speed-up"


def threads_row(scaled: Scaled) -> str:
    """A number of threads."""
    case = scaled.timing.case
    figures = f"{scaled.timing.ratio:15.2f}  {scaled.speedup:8.2f}  {scaled.floor_speedup:16.2f}"
    return f"{case.what:9}  {case.threads:7}  {figures}"
