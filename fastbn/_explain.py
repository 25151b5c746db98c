"""Every conversion and every error text: what `_core` asks when it does not accept an argument at once.

Each function either returns what the argument means or raises an error that names the argument, what was expected and
what came. Nothing has been written when one of them runs. (`option` makes of them properties of layers.)
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NoReturn

import numpy as np

from fastbn._cpu import DefaultMode
from fastbn._integers import as_integer
from fastbn.statistics import BatchStats

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
ACTIVATIONS = ("relu", "relu6", "leaky_relu")
ARRAY_TYPES = "float16, bfloat16, float32 or float64"


def as_any_array(name: str, given: Any) -> np.ndarray:
    """What np.asarray makes of an argument, if that loses nothing."""
    if given is None:
        raise TypeError(f"{name}: expected an array, got None")
    try:
        if not _is_masked(given):
            return np.asarray(given)
    except Exception as error:  # a list that holds itself, too
        raise TypeError(f"{name}: expected an array, got {type(given).__name__}: {error}") from error
    raise TypeError(f"{name}: expected a plain array, got a masked array (its mask would be lost)")


def _is_masked(given: Any) -> bool:
    """Whether this is a masked array, or a list of such, however deep."""
    if isinstance(given, (list, tuple)):
        return any(_is_masked(part) for part in given)
    return isinstance(given, np.ma.MaskedArray)


def as_array(name: str, given: Any) -> np.ndarray:
    """An array argument as a plain ndarray of one of the kernels' types."""
    array = as_any_array(name, given)
    if not (array.dtype.isnative and _is_half(array.dtype)):
        _check_float(name, array, ARRAY_TYPES)
    return array


def _is_half(dtype: np.dtype) -> bool:
    return dtype == np.float16 or (dtype.name == "bfloat16" and dtype.type.__module__ == "ml_dtypes")


def _check_float(name: str, array: np.ndarray, expected: str = "float32 or float64") -> None:
    if not array.dtype.isnative:
        raise TypeError(f"{name}: expected native byte order, got dtype {array.dtype.str!r}")
    if array.dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype {expected}, got {array.dtype}")


def wrong_axis(x: np.ndarray, axis: int, name: str = "x", axes: str = "(N, C, ...)") -> NoReturn:
    """Say that x has no such axis, or too few of them."""
    if x.ndim < 2:
        raise ValueError(f"{name}: expected 2 or more dimensions, {axes}, got shape {x.shape}")
    raise ValueError(f"axis: expected {-x.ndim} to {x.ndim - 1} for {name} with shape {x.shape}, got {axis}")


def checked_axis(x: np.ndarray, axis: Any, name: str = "x", axes: str = "(N, C, ...)", channel: str = "channel") -> int:
    """The axis of the channels of x, from 0 on, once x has that axis and a channel."""
    axis = as_integer("axis", axis)
    if x.ndim < 2 or not -x.ndim <= axis < x.ndim:
        wrong_axis(x, axis, name, axes)
    if x.shape[axis] == 0:
        raise ValueError(f"{name}: expected at least one {channel} on axis {axis}, got shape {x.shape}")
    return axis % x.ndim


def check_like(name: str, given: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """That an array has the shape and type of x."""
    if given.dtype != dtype:
        raise TypeError(f"{name}: expected the dtype of x, {dtype}, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"{name}: expected the shape of x, {shape}, got {given.shape}")


def as_vector(name: str, given: Any, channels: int) -> np.ndarray:
    """A vector argument as an array (channels,) of float32 or float64."""
    vector = as_any_array(name, given)
    _check_float(name, vector)
    if vector.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), a number per channel, got {vector.shape}")
    return vector


def as_number(name: str, given: Any) -> float:
    """A real number that is not a bool and not NaN or infinite."""
    if isinstance(given, np.ndarray) and given.ndim == 0:
        given = given[()]
    if isinstance(given, (bool, np.bool_)) or not isinstance(given, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(given).__name__}")
    try:
        value = float(given)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got one that no float can hold") from None
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def as_dtype(dtype: Any) -> np.dtype:
    """The argument dtype of what holds parameters."""
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}") from None
    if wanted is None or wanted not in FLOATS:
        raise TypeError(f"dtype: expected float32 or float64, got {wanted}")
    return wanted


def as_eps(given: Any) -> float:
    """The eps of a function."""
    eps = as_number("eps", given)
    if eps < 0:
        raise ValueError(f"eps: expected a number >= 0, got {eps}")
    return eps


def check_variance(name: str, var: np.ndarray) -> None:
    """That no variance is negative."""
    with DefaultMode():
        below = np.flatnonzero(var < 0)
    if below.size:
        raise ValueError(f"{name}: expected variances >= 0, got {var[below[0]]} in channel {below[0]}")


def no_values(x: np.ndarray) -> NoReturn:
    """Say that there is nothing to take statistics from."""
    raise ValueError(f"x: expected at least one value per channel, got shape {x.shape}")


def _came(given: Any) -> str:
    """What came, for an error: of a tuple or a list also how many."""
    kind = type(given).__name__
    return f"{kind} of {len(given)}" if isinstance(given, (tuple, list)) else kind


def as_stats(stats: Any, training: bool) -> tuple[int, Any, Any]:
    """(count, mean, var) from the argument stats; without training a pair (mean, var) will do."""
    if isinstance(stats, BatchStats):
        return stats
    if isinstance(stats, (tuple, list)) and len(stats) == 3:
        try:
            return BatchStats(*stats)
        except (TypeError, ValueError) as error:
            raise type(error)(f"stats: {error}") from None
    if isinstance(stats, (tuple, list)) and len(stats) == 2 and not training:
        return 0, stats[0], stats[1]
    wanted = "BatchStats or (count, mean, var)" if training else "BatchStats, (count, mean, var) or (mean, var)"
    raise TypeError(f"stats: expected {wanted}, got {_came(stats)}")


def as_sums(sums: Any) -> Any:
    """(sum_dy, sum_dy_xmu) from the argument sums."""
    if isinstance(sums, tuple) and len(sums) == 2:
        return sums
    raise TypeError(f"sums: expected GradientSums or a tuple (sum_dy, sum_dy_xmu), got {_came(sums)}")


def wrong_count(count: int, values: int) -> NoReturn:
    """Say that stats are not those of x."""
    raise ValueError(f"stats: expected the statistics of x, count {values}, got count {count}")


def no_count(count: int) -> NoReturn:
    """Say that stats are those of nothing."""
    raise ValueError(f"stats: expected the statistics of all parts, count 1 or more, got count {count}")


def check_activation(name: Any) -> None:
    """That there is such an activation."""
    if not isinstance(name, str):
        raise TypeError(f"activation: expected one of {ACTIVATIONS} or None, got {type(name).__name__}")
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS} or None, got {name!r}")


def as_slope(given: Any) -> float:
    """The slope of a leaky activation."""
    slope = as_number("negative_slope", given)
    if slope < 0:
        raise ValueError(f"negative_slope: expected a number >= 0, got {slope}")
    return slope


def check_can_undo(activation: Any, slope: float, gamma: Any, residual: bool, dtype: np.dtype, name: str = "x") -> None:
    """That the input can be had from the output: what backward from y alone, after an in-place forward, needs."""

    def vanishes(factor: Any) -> bool:
        """Whether it makes 0 of what it multiplies: so does a factor that is too small for the type of y."""
        with np.errstate(all="ignore"), DefaultMode():
            return bool((np.asarray(factor).astype(dtype) == 0).any())

    if activation is not None:
        check_activation(activation)
    why = None
    if residual:
        why = "a residual was added"
    elif activation not in (None, "leaky_relu"):
        why = f"{activation} keeps nothing of values below 0"
    elif activation is not None and vanishes(slope):
        why = f"leaky_relu with negative_slope {slope:g} keeps nothing of values below 0"
    elif gamma is not None and vanishes(gamma):
        why = f"gamma is 0 in a channel, as {dtype}"
    if why is not None:
        wanted = "the input of the forward" if name == "x" else "memory apart from x"
        raise ValueError(f"{name}: expected {wanted}, since x cannot be had from y alone: {why}")


def check_method(method: Any) -> None:
    """How population statistics are taken."""
    if not isinstance(method, str) or method not in ("pooled", "paper"):
        raise ValueError(f'method: expected "pooled" or "paper", got {method!r}')


def needs_y(activation: str) -> NoReturn:
    """Say that the mask behind a residual is read from y."""
    raise ValueError(f"y: expected the forward's result, needed with residual=True and activation={activation!r}")


def as_outs(out: Any) -> tuple[Any, Any]:
    """(dx, dresidual) from the argument out of a backward with a residual."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out: expected a pair (dx, dresidual), got {_came(out)}")
    return out[0], out[1]


def as_flag(name: str, given: Any) -> bool:
    """An option that is on or off; 0 and 1 will do."""
    if not isinstance(given, (bool, np.bool_, int, np.integer)):
        raise TypeError(f"{name}: expected a bool, got {type(given).__name__}")
    if given not in (0, 1):
        raise ValueError(f"{name}: expected a bool, got {given}")
    return bool(given)


def option(attribute: str, check: Callable[[Any], Any], what: str) -> Any:
    """A property for an option of a layer that may be set later, too: the same is accepted as by the constructor."""

    def put(layer: Any, value: Any) -> None:
        setattr(layer, attribute, check(value))

    return property(attrgetter(attribute), put, doc=what)


def useless_out() -> NoReturn:
    """Say that there is nothing to write to out."""
    raise ValueError("out: expected None with need_dx=False, since no dx is computed")


def check_out(out: Any, x: np.ndarray) -> None:
    """That out can take a result like x."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out: expected an array, got {type(out).__name__}")
    check_like("out", out, x.shape, x.dtype)
    if not out.flags.writeable:
        read_only("out")
    if _overlaps_itself(out):
        raise ValueError(f"out: expected each value in a place of its own, got strides {out.strides}")


def _overlaps_itself(out: np.ndarray) -> bool:
    """Whether two values of an array share bytes: where strides do not tell, by halves, which are all alike."""
    if out.flags.c_contiguous or out.flags.f_contiguous or out.size == 0:
        return False
    low, high = np.lib.array_utils.byte_bounds(out)
    if high - low < out.nbytes:
        return True
    axes = sorted((abs(step), length) for step, length in zip(out.strides, out.shape, strict=True) if length > 1)
    reach = out.itemsize
    for step, length in axes:
        if step < reach:
            break
        reach += step * (length - 1)
    else:
        return False
    while out.size > 1:
        out, other = np.array_split(out, 2, axis=int(np.argmax(out.shape)))
        if _share_memory(out, other):
            return True
    return False


def _share_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share a byte; also where that would take too long to find out."""
    try:
        return np.shares_memory(a, b, max_work=1_000_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def check_overlap(out: np.ndarray, name: str, other: np.ndarray, itself: bool) -> None:
    """That out, whose extent crosses that of an input, shares no byte with it."""
    if _share_memory(out, other):
        allowed = f"{name} itself or memory apart from it" if itself else f"memory apart from {name}"
        raise ValueError(f"out: expected {allowed}, got an array that overlaps {name}")


def wrong_target(name: str, given: np.ndarray, channels: int | None) -> NoReturn:
    """Say that a layer's array cannot be written to, or is not what it was."""
    if not given.flags.writeable:
        read_only(name)
    wanted = "()" if channels is None else f"({channels},)"
    got = f"{given.dtype} of shape {given.shape}"
    raise ValueError(f"{name}: expected the layer's array as it was made, of shape {wanted}, got {got}")


def has_changed() -> NoReturn:
    """Say that an array is not what was checked any more."""
    raise RuntimeError("fastbn: an array has changed its shape or dtype since it was checked")


def read_only(name: str) -> NoReturn:
    """Say that an array cannot be written to."""
    raise ValueError(f"{name}: expected a writeable array, got a read-only one")
