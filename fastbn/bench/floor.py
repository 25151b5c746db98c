"""The floor: the same bytes at the speed of memory. The only place that reaches past fastbn's public names."""

from collections.abc import Callable
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbn import _core

Array = NDArray[Any]


def move(x: Array, dy: Array | None, out: Array, stream: bool) -> None:
    """A copy of x, or the triad x + dy, by ordinary or streaming stores, with as many threads as fastbn may use."""
    _core.floor(x, dy, out, stream)


def aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """An array for `move`: it begins at a multiple of 64 bytes, and every page of it has been written once."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(prod(shape) + 64 // itemsize, dtype)
    start = -raw.ctypes.data % 64 // itemsize
    a = raw[start : start + prod(shape)].reshape(shape)
    a[...] = 1
    return a


def seconds(work: Callable[[], object], repeat: int) -> float:
    """Of one of `repeat` calls."""
    start = perf_counter()
    for _ in range(repeat):
        work()
    return (perf_counter() - start) / repeat
