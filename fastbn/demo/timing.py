"""How long batch normalization takes with fastbn and with the formula in NumPy, on the same arrays in the same run."""

from collections.abc import Callable
from math import nan
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import fastbn
from fastbn.demo.data import Array
from fastbn.demo.networks import Network

Results = tuple[Any, ...]  # y, dx, dgamma, dbeta


def by_fastbn(x: Array, dy: Array, gamma: Array, beta: Array, eps: float) -> Results:
    """Forward and backward with fastbn."""
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=eps)
    return y, *fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=eps)[:3]


def by_formula(x: Array, dy: Array, gamma: Array, beta: Array, eps: float) -> Results:
    """Forward (Algorithm 1) and backward as one writes them in NumPy, in the dtype of x throughout."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean = x.mean(axes, keepdims=True)
    var = x.var(axes, keepdims=True, mean=mean)
    invstd = 1 / np.sqrt(var + x.dtype.type(eps))
    xhat = (x - mean) * invstd
    y = gamma.reshape(shape) * xhat + beta.reshape(shape)

    m = x.size // x.shape[1]
    dbeta = dy.sum(axes)
    dgamma = (dy * xhat).sum(axes)
    dx = gamma.reshape(shape) * invstd / m * (m * dy - dbeta.reshape(shape) - xhat * dgamma.reshape(shape))
    return y, dx, dgamma, dbeta


def relative_difference(a: Array, b: Array) -> float:
    """Largest difference between a and b, against the largest value of b."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(b.dtype).tiny))


class BatchNormTimes:
    """Seconds in the BN layers of a network for one training step, once per call of `measure`."""

    def __init__(self) -> None:
        self.fastbn: list[float] = []
        self.formula: list[float] = []
        self.step: list[float] = []
        self.difference = 0.0

    def measure(self, network: Network, step_seconds: float) -> None:
        """Run both on what the BN layers of `network` were given in the training step that has just ended."""
        cases = [(network.x[i], network.dy[i], bn.gamma, bn.beta, bn.eps) for i, bn in network.batch_norms()]
        both: list[tuple[Callable[..., Results], list[float]]] = [(by_fastbn, self.fastbn), (by_formula, self.formula)]
        # In turns: who comes second finds the arrays in the caches.
        if len(self.step) % 2:
            both.reverse()
        results = {}
        for compute, seconds in both:
            start = perf_counter()
            results[compute] = [compute(*case) for case in cases]
            seconds.append(perf_counter() - start)
        self.step.append(step_seconds)
        for ours, theirs in zip(results[by_fastbn], results[by_formula], strict=True):
            pairs = zip(ours, theirs, strict=True)
            self.difference = max(self.difference, *(relative_difference(a, b) for a, b in pairs))

    def medians(self) -> tuple[float, float, float]:
        """Median seconds: BN with fastbn, BN with the formula, the whole training step (with fastbn); NaN where nothing
        was measured.
        """
        return median(self.fastbn or [nan]), median(self.formula or [nan]), median(self.step or [nan])
