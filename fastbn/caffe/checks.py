"""Arguments of Caffe's layers, checked; and what their backward needs."""

from __future__ import annotations

import numpy as np

PHASES = ("TRAIN", "TEST")


def checked_phase(phase: str) -> str:
    """The argument phase."""
    if not isinstance(phase, str) or phase not in PHASES:
        raise ValueError(f'phase: expected "TRAIN" or "TEST", got {phase!r}')
    return phase


def checked_use(use_global_stats: bool | None) -> bool | None:
    """The argument use_global_stats."""
    if use_global_stats is None:
        return None
    if not isinstance(use_global_stats, (bool, np.bool_, int)) or use_global_stats not in (0, 1):
        raise TypeError(f"use_global_stats: expected None, True or False, got {use_global_stats!r}")
    return bool(use_global_stats)


def checked_channels(channels: int) -> int:
    """The argument channels."""
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise ValueError(f"channels: expected an integer of at least 1, got {channels!r}")
    return int(channels)


def before_forward(x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """What backward needs of x: itself, or a private copy where the forward is in place."""
    in_place = isinstance(out, np.ndarray) and np.may_share_memory(out, x)
    return x.copy(order="K") if in_place else x
