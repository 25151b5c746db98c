"""One large array with 1 to all threads: time over the floor with as many threads, and speed-up over one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

import fastbn
from fastbn.bench.cases import PASSES, Case
from fastbn.bench.floor import Array
from fastbn.bench.measure import Prepared, Timing, WrongResultError

SETTLE = 0.01  # seconds


@dataclass(frozen=True)
class Scaled:
    """A pass with some number of threads; both speed-ups are over one thread, that of the floor is the memory's."""

    timing: Timing
    speedup: float
    floor_speedup: float


def steps(most: int) -> list[int]:
    """1 to `most` threads, in steps that grow: 1, 2, 3, 4, 6, 8, 12, 16, 24..."""
    ladder = {n << k for k in range(10) for n in (2, 3)}
    return sorted({1, most} | {n for n in ladder if n < most})


def scale(shape: tuple[int, int, int], threads: Sequence[int], rounds: int) -> Iterator[Scaled]:
    """Every pass with each number of threads (the first is 1); all of them in each round."""
    for what in PASSES:
        prepared = Prepared(Case(*shape, what))
        prepared.verify()
        same_with_any(prepared, threads)
        times = np.array([[one_round(prepared, n) for n in threads] for _ in range(rounds)])
        took, floor = times[..., 0], times[..., 1]
        for i, n in enumerate(threads):
            timing = Timing(replace(prepared.case, threads=n), took[:, i], floor[:, i])
            yield Scaled(timing, speedup(took, i), speedup(floor, i))


def same_with_any(p: Prepared, threads: Sequence[int]) -> None:
    """What has been verified with one thread must come out, bit by bit, with others before they are timed."""
    with fastbn.num_threads(1):
        right = {name: a.copy() for name, a in p.results(p.calls[0]()).items()}
    for n in threads:
        with fastbn.num_threads(n):
            found = p.results(p.calls[0]())
            if not all(np.array_equal(found[name], a) for name, a in right.items()):
                raise WrongResultError(f"{replace(p.case, threads=n)}: a wrong result, not that of one thread")


def one_round(p: Prepared, threads: int) -> tuple[float, float]:
    """Seconds of a call and of the floor, with a team of this size that has worked for a while.

    To change its size takes up to a millisecond, and then the system moves threads to processors of their own.
    """
    with fastbn.num_threads(threads):
        until = perf_counter() + SETTLE
        while perf_counter() < until:
            p.once()
        return p.round(p.once)


def speedup(took: Array, i: int) -> float:
    """Over the first, taken within each round."""
    return float(np.median(took[:, 0] / took[:, i]))
