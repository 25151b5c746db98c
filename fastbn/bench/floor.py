"""The floor: the same bytes at the speed of memory. The only place that reaches past fastbn's public names."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbn import _core

Array = NDArray[Any]


def move(x: Array, dy: Array | None, out: Array, stream: bool) -> None:
    """A copy of x, or the triad x + dy, by ordinary or streaming stores, with as many threads as fastbn may use."""
    _core.floor(x, dy, out, stream)


def forget_result() -> None:
    """Give back the memory that fastbn keeps of a freed result."""
    _core.forget_result()


def aligned(size: int, dtype: "np.dtype[Any]") -> Array:
    """Flat memory for `move`: it begins at a multiple of 64 bytes, and every page of it has been written once."""
    raw = np.empty(size + 64 // dtype.itemsize, dtype)
    start = -raw.ctypes.data % 64 // dtype.itemsize
    a = raw[start : start + size]
    a[...] = 1
    return a


def as_moved(memory: Array, size: int) -> Array:
    """The first `size` values of flat memory as `move` takes them: half types as float32 of as many bytes."""
    a = memory[:size]
    return a if a.itemsize >= 4 else a[: size // 2 * 2].view(np.float32)


def seconds(work: Callable[[], object], repeat: int) -> float:
    """Of one of `repeat` calls."""
    start = perf_counter()
    for _ in range(repeat):
        work()
    return (perf_counter() - start) / repeat
