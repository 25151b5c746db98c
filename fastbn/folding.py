"""Batch normalisation with fixed statistics is a scale and a shift: here the layer before it takes them over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _explain
from fastbn._cpu import DefaultMode
from fastbn._integers import as_integer

__all__ = ["fold_batch_norm"]


def fold_batch_norm(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 0,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Fold a batch normalisation into the convolution or dense layer before it: inference without the normalisation.

    With ``scale = gamma/sqrt(var + eps)``, channel by channel::

        weight -> weight*scale        bias -> (bias - mean)*scale + beta

    Computed in float64 and rounded once. The new layer then gives what `normalize` would make of the old one's output.

    Parameters
    ----------
    weight : array_like, float32, float64, float16 or bfloat16 (of ml_dtypes)
        Two or more dimensions: (O, I/groups, ...) of a convolution, (out, in) of a dense layer; with ``axis=1``
        (I, O/groups, ...) of a transposed convolution, (in, out) of a dense layer.
    bias : array_like, shape (C,), or None
        Of one of the types of a weight; None where the layer has none.
    mean, var : array_like, shape (C,), float32 or float64
        Running statistics, var >= 0.
    gamma, beta : array_like, shape (C,), float32 or float64, optional
        Scale and shift; ones and zeros where not given.
    eps : float
        Added to the variance, >= 0. Where both are 0 the channel gives beta, as everywhere.
    axis : int
        Where weight has its output channels: 0, 1 or (with one group) any other.
    groups : int
        Of the convolution. With ``axis=0`` all C output channels stand on that axis; with ``axis=1`` those of one group
        do, C is their number times groups, and each group has its own part of axis 0.

    Returns
    -------
    weight : ndarray
        New, with the shape and dtype of `weight`.
    bias : ndarray, shape (C,)
        New, with the dtype of `bias` where it is given, else of `weight`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came.

    Notes
    -----
    Zeros that a convolution pads with are zeros before and after: folding changes nothing there. Folding a
    normalisation into the layer *behind* it would not be exact at padded borders, and is not offered.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> weight = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> weight, bias = fastbn.fold_batch_norm(weight, None, mean=[1.0, 1.0], var=[4.0, 0.25], beta=[0.0, 5.0], eps=0)
    >>> weight
    array([[0.5, 1. ],
           [6. , 8. ]])
    >>> bias
    array([-0.5,  3. ])
    """
    w = _explain.as_array("weight", weight)
    axis = _explain.checked_axis(w, axis, "weight", "(O, I, ...)", "output channel")
    groups = _checked_groups(w, axis, groups)
    channels = w.shape[axis] * (groups if axis == 1 else 1)
    b = w[:0] if bias is None else _checked_bias(bias, channels)
    eps = _explain.as_eps(eps)
    m, v = (_explain.as_vector(name, given, channels) for name, given in (("mean", mean), ("var", var)))
    _explain.check_variance("var", v)
    g = 1.0 if gamma is None else _explain.as_vector("gamma", gamma, channels)
    shift = 0.0 if beta is None else _explain.as_vector("beta", beta, channels)
    with np.errstate(all="ignore"), DefaultMode():
        spread = np.sqrt(v.astype(np.float64) + eps)
        scale = g * np.divide(1, spread, out=np.zeros_like(spread), where=spread != 0)
        new_bias = ((0.0 if bias is None else b.astype(np.float64)) - m) * scale + shift
        new_weight = w.astype(np.float64) * _beside(scale, w, axis, groups)
        return _rounded(new_weight, w.dtype), _rounded(new_bias, b.dtype)


def _beside(scale: np.ndarray, weight: np.ndarray, axis: int, groups: int) -> np.ndarray:
    """The factors of the output channels, in a shape that multiplies weight."""
    if groups > 1 and axis == 1:  # (I, O/groups): each group of inputs has the factors of its own outputs
        scale = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0)
        return scale.reshape(scale.shape + (1,) * (weight.ndim - 2))
    return scale.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])


def _rounded(wide: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float64 rounded once, as NumPy does it. bfloat16 comes by way of float32, which would round as well.

    Unless what float32 cannot hold gets an odd last digit there: nothing seems half way between two bfloat16 then.
    """
    if dtype in _explain.FLOATS or dtype == np.float16:
        return wide.astype(dtype)
    near = wide.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near) > np.abs(wide)
    bits |= near != wide
    return near.astype(dtype)


def _checked_groups(weight: np.ndarray, axis: int, groups: Any) -> int:
    """The number of groups: one, or a divisor of axis 0, where the outputs (axis=0) or inputs (axis=1) of all stand."""
    number = as_integer("groups", groups)
    if number < 1:
        raise ValueError(f"groups: expected at least 1, got {number}")
    if number > 1 and axis > 1:
        raise ValueError(f"groups: expected 1 with output channels on axis {axis}, got {number}")
    if weight.shape[0] % number:
        raise ValueError(f"groups: expected a divisor of axis 0 of weight, shape {weight.shape}, got {number}")
    return number


def _checked_bias(bias: ArrayLike, channels: int) -> np.ndarray:
    """A bias as an array (channels,); other than the vectors of a normalisation it may be of a half type."""
    array = _explain.as_array("bias", bias)
    if array.shape != (channels,):
        raise ValueError(f"bias: expected shape ({channels},), a number per channel, got {array.shape}")
    return array
