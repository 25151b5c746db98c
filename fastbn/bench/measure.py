"""How a case is timed: checked against the reference first, then in rounds, each with the floor beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import fastbn
from fastbn import reference
from fastbn.bench.cases import Case
from fastbn.bench.floor import Array, aligned, move, seconds
from fastbn.commands import CannotRunError

CACHE = 64 << 20  # bytes: larger than the last-level cache of most machines, by which cold cases cycle
AT_ONCE = 1 << 18  # values whose float64 reference is computed at a time: it stays in the caches

# The absolute terms of a result add up to some 24: four roundings of them are 96 units. (float64: the reference
# rounds too, in sums of all values.)
TOLERANCE = {"float32": 100 * 2.0**-24, "float64": 100 * 2.0**-50}


class WrongResultError(CannotRunError):
    """A result is not the reference's: what made it is not timed."""


class Buffers(NamedTuple):
    """The arrays of one call."""

    x: Array
    dy: Array
    out: Array


class Prepared:
    """A case with its arrays: what is timed, and the floor beside it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(0)
        sets = max(2, CACHE * 2 // case.bytes + 1) if case.cold else 1
        self.buffers = [Buffers(*(aligned(case.shape, case.dtype) for _ in range(3))) for _ in range(sets)]
        for b in self.buffers:
            fill(b.x, rng)
            fill(b.dy, rng)
        self.gamma, self.beta = rng.standard_normal((2, case.channels)).astype(case.dtype)
        self.stats = fastbn.batch_stats(self.buffers[0].x)
        self.turn = 0

    def call(self, b: Buffers) -> Any:
        """The call that is timed: y or dx."""
        out = b.out if self.case.out else None
        if self.case.what == "training":
            return fastbn.batch_norm(b.x, self.gamma, self.beta, out=out)[0]
        if self.case.what == "inference":
            return fastbn.normalize(b.x, self.stats.mean, self.stats.var, self.gamma, self.beta, out=out)
        return fastbn.batch_norm_backward(b.dy, b.x, self.stats, self.gamma, self.beta, out=out).dx

    def expected(self, channels: slice) -> Any:
        """The float64 reference's y or dx of some channels."""
        x, dy, _ = (a[:, channels] for a in self.buffers[0])
        count, mean, var = self.stats
        stats = fastbn.BatchStats(count, mean[channels], var[channels])
        gamma, beta = self.gamma[channels], self.beta[channels]
        if self.case.what == "training":
            return reference.batch_norm(x, gamma, beta)[0]
        if self.case.what == "inference":
            return reference.normalize(x, stats.mean, stats.var, gamma, beta)
        return reference.batch_norm_backward(dy, x, stats, gamma, beta).dx

    def verify(self) -> None:
        """Compare one call with the reference."""
        with fastbn.num_threads(self.case.threads):
            self.check(self.call(self.buffers[0]), TOLERANCE[self.case.dtype])

    def check(self, got: Array, tolerance: float) -> None:
        """Compare a y or dx with the reference; WrongResultError where it is wrong."""
        some = max(1, AT_ONCE * self.case.channels // got.size)
        for start in range(0, self.case.channels, some):
            channels = slice(start, start + some)
            off = np.abs(got[:, channels] - self.expected(channels)).max()
            if not off <= tolerance:
                raise WrongResultError(
                    f"{self.case}: a wrong result, off by {off:.2g} where {tolerance:.2g} is granted"
                )

    def next_buffers(self) -> Buffers:
        """The buffers in turn: all the same when warm, long unused ones when cold."""
        self.turn += 1
        return self.buffers[self.turn % len(self.buffers)]

    def once(self) -> None:
        """One call on the next buffers."""
        self.call(self.next_buffers())

    @property
    def repeat(self) -> int:
        """Calls that are timed together, so that a round is no shorter than the clock can tell."""
        return max(1, int(2e6) // self.case.bytes)

    def floor(self) -> float:
        """Seconds of a copy or a triad of as many bytes: the faster of an ordinary and a streaming one."""
        return min(self.seconds(partial(self.move, stream)) for stream in (True, False))

    def move(self, stream: bool) -> None:
        """The copy or the triad."""
        b = self.next_buffers()
        move(b.x, b.dy if self.case.what == "backward" else None, b.out, stream)

    def warm(self, work: Callable[[], object]) -> None:
        """Call it once where its arrays may be in the caches: the floor's streaming stores have driven them out."""
        if not self.case.cold and self.case.bytes < CACHE:
            work()

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call, in a row of its like."""
        self.warm(work)
        return seconds(work, self.repeat)

    def round(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds of `work` and of the floor."""
        floor = self.floor()
        return self.seconds(work), floor


def fill(a: Array, rng: np.random.Generator) -> None:
    """With random values, which repeat after a million: to draw a gigabyte of them takes longer than to time it."""
    values = rng.standard_normal(min(a.size, 1_000_003), np.float32)
    flat = a.reshape(-1)
    for start in range(0, a.size, values.size):
        part = flat[start : start + values.size]
        part[:] = values[: part.size]


class Timing(NamedTuple):
    """A case, timed: seconds of a call and of the floor, round by round."""

    case: Case
    seconds: Array
    floor: Array

    @property
    def ratio(self) -> float:
        """Time over floor: taken within each round, so that it survives a change of clock speed; then the median."""
        return float(np.median(self.seconds / self.floor))

    @property
    def gb_per_s(self) -> float:
        """At which the bytes that must be moved were moved."""
        return self.case.bytes / float(np.median(self.seconds)) / 1e9

    @property
    def floor_gb_per_s(self) -> float:
        """The same of the floor."""
        return self.case.bytes / float(np.median(self.floor)) / 1e9


def measure(case: Case, rounds: int = 15) -> Timing:
    """Verify a case, then time it and its floor in turn."""
    p = Prepared(case)
    p.verify()
    with fastbn.num_threads(case.threads):
        took, floor = np.array([p.round(p.once) for _ in range(rounds)]).T
    return Timing(case, took, floor)
