"""Arguments of Caffe's layers, checked; and what their backward needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

PHASES = ("TRAIN", "TEST")


def checked_phase(phase: str) -> str:
    """The argument phase."""
    if phase not in PHASES:
        raise ValueError(f'phase: expected "TRAIN" or "TEST", got {phase!r}')
    return phase


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """The argument dtype."""
    if dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    return np.dtype(dtype)


def checked_channels(channels: int) -> int:
    """The argument channels."""
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise ValueError(f"channels: expected an integer of at least 1, got {channels!r}")
    return int(channels)


def before_forward(x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """What backward needs of x: itself, or a private copy where the forward is in place."""
    in_place = isinstance(out, np.ndarray) and np.may_share_memory(out, x)
    return x.copy(order="K") if in_place else x
