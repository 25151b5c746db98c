"""The definition of everything, in float64 NumPy: one formula a line, for tests and for reading.

The signatures are those of the fast functions. Results stay float64 whatever x is, except in `out`. Nothing here is
fast, and arguments are not checked.

    z = (x - mean)*invstd*gamma + beta + residual    y = act(z)    g = dy*act'(z), what backward works with

The kinks of act' are looked for in z as it was stored, that is in the dtype of x.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastbn.statistics import BatchStats, Gradients, GradientSums

__all__ = [
    "backward_apply",
    "backward_sums",
    "batch_norm",
    "batch_norm_backward",
    "batch_stats",
    "fold_batch_norm",
    "normalize",
    "population_stats",
]


def _wide(x: Any, axis: int) -> np.ndarray:
    """Float64 with the channels first and all else behind: (C, values)."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    return x.reshape(len(x), x.size // len(x))


def _column(vector: Any, missing: float) -> Any:
    """A vector of channels as a column beside (C, values)."""
    return missing if vector is None else np.asarray(vector, np.float64)[:, None]


def _shaped(wide: np.ndarray, x: Any, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """(C, values) back in the shape of x; into `out` where it is given."""
    shape = np.moveaxis(np.asarray(x), axis, 0).shape
    result = np.moveaxis(wide.reshape(shape), 0, axis)
    if out is None:
        return result
    with np.errstate(all="ignore"):
        out[...] = result
    return out


def _invstd(var: Any, eps: float) -> np.ndarray:
    """1/sqrt(var + eps), and 0 where that is 1/0: a constant channel gives beta with any eps."""
    v = np.asarray(var, np.float64) + eps
    return np.divide(1, np.sqrt(v), out=np.zeros_like(v), where=v != 0)


def _stored(wide: np.ndarray, like: Any) -> np.ndarray:
    """Values as an array like this holds them. Half types are computed in float32 and then rounded."""
    dtype = np.asarray(like).dtype
    return (wide.astype(np.float32) if dtype.itemsize == 2 else wide).astype(dtype).astype(np.float64)


def _activated(z: np.ndarray, activation: str | None, negative_slope: float) -> np.ndarray:
    """act(z). NaN stays NaN."""
    if activation == "leaky_relu":
        return np.where(z < 0, negative_slope * z, z)
    y = z if activation is None else np.where(z < 0, 0, z)
    return np.where(y > 6, 6, y) if activation == "relu6" else y


def _gated(dy: np.ndarray, z: np.ndarray, activation: str | None, negative_slope: float) -> np.ndarray:
    """dy*act'(z), from z or act(z). Where that is NaN as in PyTorch: 1, and the slope of leaky_relu."""
    if activation == "leaky_relu":
        return np.where(z > 0, dy, negative_slope * dy)
    g = dy if activation is None else np.where(z <= 0, 0, dy)
    return np.where(z >= 6, 0, g) if activation == "relu6" else g


def batch_stats(x: Any, *, axis: int = 1) -> BatchStats:
    """mean = sum(x)/n, var = sum((x - mean)**2)/n, over all axes but one."""
    x = _wide(x, axis)
    c, n = x.shape
    if n == 0:
        return BatchStats(0, np.zeros(c), np.zeros(c))
    with np.errstate(all="ignore"):
        # Around one of the values: exact for constant channels, and no digits lost where abs(mean) >> std.
        near = np.where(np.isfinite(x[:, :1]), x[:, :1], 0)
        mean = near + (x - near).mean(axis=1, keepdims=True)
        var = ((x - mean) ** 2).mean(axis=1)
    return BatchStats(n, mean[:, 0], var)


def normalize(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Any = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """y = act((x - mean)*invstd*gamma + beta + residual)."""
    with np.errstate(all="ignore"):
        xhat = (_wide(x, axis) - _column(mean, 0)) * _column(_invstd(var, eps), 1)
        z = xhat * _column(gamma, 1) + _column(beta, 0) + (0 if residual is None else _wide(residual, axis))
        y = _activated(z, activation, negative_slope)
    return _shaped(y, x, axis, out)


def batch_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Any = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, BatchStats]:
    """`normalize` with the statistics of x itself."""
    stats = batch_stats(x, axis=axis)
    y = normalize(
        x, stats.mean, stats.var, gamma, beta, eps=eps, axis=axis, activation=activation,
        negative_slope=negative_slope, residual=residual, out=out,
    )  # fmt: skip
    return y, stats


def _behind(
    dy: Any,
    x: Any,
    stats: Any,
    gamma: Any,
    beta: Any,
    eps: float,
    axis: int,
    activation: str | None,
    negative_slope: float,
    residual: bool,
    y: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """g = dy*act'(z), and x - mean, both (C, values)."""
    mean, var = (np.asarray(v, np.float64)[:, None] for v in tuple(stats)[-2:])
    scale, shift = _column(gamma, 1), _column(beta, 0)
    if x is None:  # y was written over it
        z = _wide(y, axis)
        z = np.where(z > 0, z, z / negative_slope) if activation == "leaky_relu" else z
        xmu = (z - shift) / scale * np.sqrt(var + eps)
    else:
        xmu = _wide(x, axis) - mean
        z = _wide(y, axis) if residual and activation else xmu * _invstd(var, eps) * scale + shift
    return _gated(_wide(dy, axis), _stored(z, y if x is None else x), activation, negative_slope), xmu


def backward_sums(
    dy: Any,
    x: Any,
    stats: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    y: Any = None,
    training: bool = True,
) -> GradientSums:
    """sum_dy = sum(g), sum_dy_xmu = sum(g*(x - mean))."""
    with np.errstate(all="ignore"):
        g, xmu = _behind(dy, x, stats, gamma, beta, eps, axis, activation, negative_slope, residual, y)
        return GradientSums(g.sum(axis=1), (g * xmu).sum(axis=1))


def backward_apply(
    dy: Any,
    x: Any,
    stats: Any,
    sums: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    y: Any = None,
    training: bool = True,
    need_dx: bool = True,
    need_params: bool = True,
    out: Any = None,
) -> Gradients:
    """dx = gamma*invstd*(g - sum_dy/n - xmu*invstd**2*sum_dy_xmu/n), without training gamma*invstd*g; dresidual = g."""
    *count, _, var = stats
    invstd = _invstd(var, eps)
    out, out_residual = out if residual and out is not None else (out, None)
    dx = dgamma = dbeta = dresidual = None
    with np.errstate(all="ignore"):
        g, xmu = _behind(dy, x, stats, gamma, beta, eps, axis, activation, negative_slope, residual, y)
        if residual:
            dresidual = _shaped(g.copy(), dy, axis, out_residual)
        if need_params:
            dgamma, dbeta = sums[1] * invstd, np.array(sums[0], np.float64)
        if need_dx:
            inner = g
            if training and g.size:
                xhat, n = xmu * _column(invstd, 1), count[0]
                inner = g - _column(sums[0], 0) / n - xhat * _column(sums[1] * invstd, 0) / n
            dx = _shaped(_column(gamma, 1) * _column(invstd, 1) * inner, dy, axis, out)
    return Gradients(dx, dgamma, dbeta, dresidual)


def batch_norm_backward(
    dy: Any,
    x: Any,
    stats: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    y: Any = None,
    training: bool = True,
    need_dx: bool = True,
    need_params: bool = True,
    out: Any = None,
) -> Gradients:
    """`backward_apply` with the `backward_sums` of x itself."""
    same: dict[str, Any] = {
        "eps": eps, "axis": axis, "activation": activation, "negative_slope": negative_slope, "residual": residual,
        "y": y, "training": training,
    }  # fmt: skip
    sums = backward_sums(dy, x, stats, gamma, beta, **same)
    return backward_apply(dy, x, stats, sums, gamma, beta, need_dx=need_dx, need_params=need_params, out=out, **same)


def population_stats(batches: Iterable[Any], *, axis: int = 1, method: str = "pooled") -> BatchStats:
    """Pooled: the statistics of all values together. Paper: means of the means and of the unbiased variances."""
    stats = [b if isinstance(b, BatchStats) else batch_stats(b, axis=axis) for b in batches]
    stats = [s for s in stats if s.count] or stats[:1]
    n = sum(s.count for s in stats)
    if n == 0:
        return stats[0]
    with np.errstate(all="ignore"):
        if method == "pooled":
            mean = sum(s.count * s.mean for s in stats) / n
            var = sum(s.count * (s.var + (s.mean - mean) ** 2) for s in stats) / n
            return BatchStats(n, mean, var)
        unbiased = np.mean([s.var * s.count / (s.count - 1) for s in stats], axis=0)
        return BatchStats(n, np.mean([s.mean for s in stats], axis=0), unbiased * (n - 1) / n)


def fold_batch_norm(
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 0,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """weight*scale and (bias - mean)*scale + beta with scale = gamma*invstd: y = normalize(weight*x + bias)."""
    weight = np.asarray(weight, np.float64)
    mean, bias, beta = (0 if v is None else np.asarray(v, np.float64) for v in (mean, bias, beta))
    scale = _column(gamma, 1) * _column(_invstd(var, eps), 1)
    scales = scale  # of each output channel, by input channel: those of one group, where the groups stand on the inputs
    if axis % weight.ndim != 0:
        scales = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0).T
    outputs_first = np.moveaxis(weight, axis, 0)
    with np.errstate(all="ignore"):
        folded = outputs_first * scales.reshape(scales.shape + (1,) * (weight.ndim - 2))
        return np.moveaxis(folded, 0, axis), (bias - mean) * scale[:, 0] + beta
