"""GB/s over the size of x, one thread: from calls to caches to memory."""

from collections.abc import Iterator, Sequence

from fastbn.bench import machine
from fastbn.bench.cases import PASSES, Case
from fastbn.bench.measure import Timing, measure

ARRAYS = 3  # x, dy and the result, as large as x
SPARE = 2  # times as much as these must be free


def case_of(size: int, what: str) -> Case:
    """An x of some `size` bytes: planes of 28x28 (8x8 below 16 KB), as many samples as channels and at most 32."""
    height = 28 if size >= 16 << 10 else 8
    rows = size // (4 * height * height)
    batch = min(32, 1 << (rows.bit_length() - 1) // 2)
    return Case(batch, round(rows / batch), height, what)


def fitting(sizes: Sequence[int]) -> list[int]:
    """Those for which there is memory."""
    return [size for size in sizes if ARRAYS * SPARE * size <= machine.free_memory()]


def sweep(sizes: Sequence[int], rounds: int) -> Iterator[Timing]:
    """Every size, every pass."""
    for size in sizes:
        for what in PASSES:
            yield measure(case_of(size, what), rounds)
