"""y = x*factor + bias over any run of axes, and its gradients, on fastbn's kernels.

x seen as (outer, values of the factor, inner) is an array with its channels on axis 1, normalised with mean 0 and
variance 1. The usual case, a factor per channel, needs no other view of x, so that any strides are gathered in tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import fastbn
from fastbn.optional import DefaultMode, as_any_array, check_like, check_result


class Run(NamedTuple):
    """The axes start to stop - 1 of arrays with a shape."""

    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def inside(self) -> tuple[int, ...]:
        """The lengths of the axes of the run: the shape of the factor."""
        return self.shape[self.start : self.stop]

    @property
    def is_channels(self) -> bool:
        """Whether that is axis 1 alone."""
        return (self.start, self.stop) == (1, 2)

    @property
    def is_everything(self) -> bool:
        """Whether each value of x has a factor of its own."""
        return math.prod(self.shape) == math.prod(self.inside)

    def view(self, a: np.ndarray) -> np.ndarray:
        """The array with the run as axis 1; a copy where strides do not allow a view."""
        if self.is_channels:
            return a
        outer, inner = math.prod(self.shape[: self.start]), math.prod(self.shape[self.stop :])
        return a.reshape(outer, math.prod(self.inside), inner)

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Statistics that leave everything as it is: mean 0, variance 1."""
        values = math.prod(self.inside)
        return np.zeros(values), np.ones(values)


def floats(name: str, given: object) -> np.ndarray:
    """An argument as an array of float32 or float64."""
    array = as_any_array(name, given)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected an array of float32 or float64, got {array.dtype}")
    return array


def like(name: str, given: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An argument that has to have the shape and dtype of x."""
    array = floats(name, given)
    check_like(name, array, shape, dtype)
    return array


def apply(
    x: np.ndarray, run: Run, factor: np.ndarray | None, bias: np.ndarray | None, out: np.ndarray | None
) -> np.ndarray:
    """x*factor + bias."""
    apart = {"scale": factor, "bias": bias}
    if run.is_everything:
        check_result(out, x, {"x": x}, apart)
        y = np.empty_like(x) if out is None else out
        with np.errstate(all="ignore"), DefaultMode():
            np.multiply(x, 1 if factor is None else factor.reshape(x.shape), out=y, casting="same_kind")
            return y if bias is None else np.add(y, bias.reshape(x.shape), out=y, casting="same_kind")
    vectors = [None if v is None else v.reshape(-1) for v in (factor, bias)]

    def compute(to: np.ndarray | None) -> np.ndarray:
        return fastbn.normalize(run.view(x), *run.constants(), *vectors, eps=0.0, out=to)

    return _into(compute, run, x, out, {"x": x}, apart)


def gradients(
    dy: np.ndarray, x: np.ndarray, run: Run, factor: np.ndarray, out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dfactor, dbias) = (dy*factor, sum(dy*x), sum(dy)), sums over the axes outside of the run.

    dfactor is of the factor's type, dbias in float64; of x's where each value of x has a bias of its own.
    """
    if run.is_everything:
        check_result(out, x, {"dy": dy, "x": x}, {"scale": factor})
        with np.errstate(all="ignore"), DefaultMode():
            products = np.multiply(dy, x, dtype=np.result_type(x, factor)).astype(factor.dtype, copy=False)
            dbias = dy.reshape(run.inside).copy()
        return apply(dy, run, factor, None, out), products.reshape(run.inside), dbias
    vector, statistics = factor.reshape(-1), run.constants()
    any_bias = statistics[0]  # in float64, as its gradient then is
    rest: list[Any] = []

    def compute(to: np.ndarray | None) -> np.ndarray:
        found = fastbn.batch_norm_backward(
            run.view(dy), run.view(x), statistics, vector, any_bias, eps=0.0, training=False, out=to
        )
        rest[:] = found.dgamma, found.dbeta
        assert found.dx is not None
        return found.dx

    dx = _into(compute, run, x, out, {"dy": dy, "x": x}, {"scale": factor})
    return dx, rest[0].reshape(run.inside), rest[1].reshape(run.inside)


def sums(dy: np.ndarray, run: Run) -> np.ndarray:
    """The sums of dy over the axes outside of the run, as float64."""
    if run.is_everything:
        with DefaultMode():
            return dy.reshape(run.inside).astype(np.float64)
    view = run.view(dy)
    return fastbn.backward_sums(view, view, run.constants(), eps=0.0, training=False).sum_dy.reshape(run.inside)


def _into(
    compute: Callable[[Any], np.ndarray],
    run: Run,
    x: np.ndarray,
    out: np.ndarray | None,
    inputs: Mapping[str, np.ndarray],
    apart: Mapping[str, np.ndarray | None],
) -> np.ndarray:
    """The result in the shape of x, in `out` where that is given."""
    check_result(out, x, inputs, apart)
    if run.is_channels:
        return compute(out)
    if out is None:
        return compute(None).reshape(x.shape)
    if out.flags.c_contiguous:
        compute(run.view(out))
    else:
        out[...] = compute(None).reshape(x.shape)
    return out
