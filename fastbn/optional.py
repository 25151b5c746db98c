"""What optional parts of the package check and compute by themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastbn import _core, _cpu, _explain

as_any_array, as_dtype, as_eps = _explain.as_any_array, _explain.as_dtype, _explain.as_eps
as_integer, as_number, as_flag = _explain.as_integer, _explain.as_number, _explain.as_flag
check_like, check_overlap, read_only = _explain.check_like, _explain.check_overlap, _explain.read_only
option = _explain.option
DefaultMode = _cpu.DefaultMode


def check_result(
    out: np.ndarray | None, x: np.ndarray, inputs: Mapping[str, np.ndarray], apart: Mapping[str, np.ndarray | None]
) -> None:
    """Raise unless `out`, if any, can take a result like x: one of the inputs itself, but apart from all else."""
    if out is None:
        return
    _explain.check_out(out, x)
    for name, other in {**apart, **inputs}.items():
        itself = name in inputs
        if other is not None and np.may_share_memory(out, other) and not (itself and _core.same_memory(out, other)):
            _explain.check_overlap(out, name, other, itself)
