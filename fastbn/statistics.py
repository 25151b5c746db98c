"""Statistics and gradient sums as values: taken part by part, merged, handed on.

The merge is that of Chan, Golub and LeVeque (1979), in float64 around the mean of one part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from fastbn._cpu import DefaultMode
from fastbn._integers import as_integer


def _as_count(count: Any) -> int:
    count = as_integer("count", count)
    if not 0 <= count < 2**63:
        raise ValueError(f"count: expected a number >= 0 and below 2**63, got {count}")
    return count


def _frozen(name: str, values: Any) -> np.ndarray:
    """A read-only float64 copy of a vector."""
    if values is None or isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected one number per channel, got {type(values).__name__}")
    try:
        given = np.asarray(values)
    except Exception as error:
        raise TypeError(f"{name}: expected one number per channel: {error}") from None
    if given.dtype.kind in "bcmMOSU":
        raise TypeError(f"{name}: expected real numbers, got dtype {given.dtype}")
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"{name}: expected one number per channel, got shape {given.shape}")
    try:
        with DefaultMode():  # a caller's flush-to-zero would swallow subnormal float32
            vector = np.array(given, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected real numbers, got dtype {given.dtype}") from None
    vector.flags.writeable = False
    return vector


def _same_length(names: tuple[str, str], a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{names[1]}: expected {a.size} channels as in {names[0]}, got {b.size}")


class _Vectors:
    """What both values below share: comparison by content, and no concatenation as of tuples."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # an array or number of NumPy's on the left must not take it for a sequence either

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple):
            return NotImplemented
        parts: Any = self
        return len(parts) == len(other) and all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> Any:
        """Through the constructor, with any protocol: what comes back is checked and read-only."""
        return type(self), tuple(self)  # type: ignore[arg-type]

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Any:
        """What _replace calls: also through the constructor."""
        return cls(*values)

    def __mul__(self, other: object) -> Any:
        return NotImplemented

    __rmul__ = __mul__


class _BatchStats(NamedTuple):
    count: int  # type: ignore[assignment]  # not tuple.count
    mean: np.ndarray
    var: np.ndarray


class BatchStats(_Vectors, _BatchStats):  # type: ignore[misc]
    """Mean and variance of each channel, and of how many values: an immutable value that unpacks like a tuple.

    Parameters
    ----------
    count : int
        Values per channel, >= 0.
    mean, var : array_like, shape (C,)
        Mean and *biased* variance (divided by count). Kept as read-only float64 copies.

    Raises
    ------
    TypeError, ValueError
        Where count is not an integer from 0 to 2**63 - 1, or mean and var are not two vectors of one length.

    Examples
    --------
    >>> import fastbn
    >>> count, mean, var = fastbn.BatchStats(4, [0.5], [1.25])
    >>> fastbn.BatchStats(1, [1.0], [0.0]).merge(fastbn.BatchStats(1, [3.0], [0.0]))
    BatchStats(count=2, mean=array([2.]), var=array([1.]))
    """

    __slots__ = ()

    def __new__(cls, count: int, mean: Any, var: Any) -> BatchStats:
        count = _as_count(count)
        mean, var = _frozen("mean", mean), _frozen("var", var)
        _same_length(("mean", "var"), mean, var)
        return cls._own(count, mean, var)

    @classmethod
    def _own(cls, count: int, mean: np.ndarray, var: np.ndarray) -> BatchStats:
        """Take over fresh float64 vectors without a copy."""
        mean.flags.writeable = var.flags.writeable = False
        return tuple.__new__(cls, (count, mean, var))

    def __add__(self, other: object) -> Any:
        raise TypeError("BatchStats: statistics are merged with .merge(), not added")

    __radd__ = __add__

    @property
    def unbiased_var(self) -> np.ndarray:
        """The variance divided by count - 1, shape (C,). ValueError where count < 2."""
        if self.count < 2:
            raise ValueError(f"count: expected 2 or more values for an unbiased variance, got {self.count}")
        with np.errstate(all="ignore"), DefaultMode():
            return self.var * (self.count / (self.count - 1))

    def merge(self, *others: BatchStats) -> BatchStats:
        """The statistics of all values behind these and the other statistics, as if taken in one go, to rounding.

        Parameters
        ----------
        *others : BatchStats
            A count of 0 adds nothing.

        Returns
        -------
        stats : BatchStats

        Raises
        ------
        TypeError, ValueError
            Where another is not a BatchStats or has another number of channels, or there are 2**63 values or more.
        """
        for other in others:
            if not isinstance(other, BatchStats):
                raise TypeError(f"others: expected BatchStats, got {type(other).__name__}")
            _same_length(("the first", "others"), self.mean, other.mean)
        parts = [part for part in (self, *others) if part.count]
        if len(parts) < 2:
            return parts[0] if parts else self
        count = _as_count(sum(part.count for part in parts))
        # Means are added up as deviations from the first one, which keeps the digits where abs(mean) >> std.
        # (No deviation from infinity: that would be NaN where the mean is infinite.)
        near = np.where(np.isfinite(parts[0].mean), parts[0].mean, 0.0)
        with np.errstate(all="ignore"), DefaultMode():
            mean = near + sum(part.count * (part.mean - near) for part in parts) / count
            var = sum(part.count * (part.var + (part.mean - mean) ** 2) for part in parts) / count
        return BatchStats._own(count, np.asarray(mean), np.asarray(var))


class _GradientSums(NamedTuple):
    sum_dy: np.ndarray
    sum_dy_xmu: np.ndarray


class GradientSums(_Vectors, _GradientSums):  # type: ignore[misc]
    """sum(dy) and sum(dy*(x - mean)) of each channel: what the backward of a batch needs of each of its parts.

    The sums of parts add up with ``+``: the gradients of gamma and beta that `backward_apply` computes from a total are
    those of all its parts. An immutable value that unpacks like a tuple.

    Parameters
    ----------
    sum_dy, sum_dy_xmu : array_like, shape (C,)
        Kept as read-only float64 copies.

    Raises
    ------
    TypeError, ValueError
        Where they are not two vectors of one length.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.GradientSums([1.0], [2.0]) + fastbn.GradientSums([10.0], [20.0])
    GradientSums(sum_dy=array([11.]), sum_dy_xmu=array([22.]))
    """

    __slots__ = ()

    def __new__(cls, sum_dy: Any, sum_dy_xmu: Any) -> GradientSums:
        sum_dy, sum_dy_xmu = _frozen("sum_dy", sum_dy), _frozen("sum_dy_xmu", sum_dy_xmu)
        _same_length(("sum_dy", "sum_dy_xmu"), sum_dy, sum_dy_xmu)
        return tuple.__new__(cls, (sum_dy, sum_dy_xmu))

    def __add__(self, other: object) -> GradientSums:
        if not isinstance(other, GradientSums):
            raise TypeError(f"GradientSums: expected GradientSums to add, got {type(other).__name__}")
        _same_length(("the first", "the second"), self.sum_dy, other.sum_dy)
        with np.errstate(all="ignore"), DefaultMode():
            return GradientSums(self.sum_dy + other.sum_dy, self.sum_dy_xmu + other.sum_dy_xmu)

    def __radd__(self, other: object) -> GradientSums:
        """Let sum() of parts work, which starts from 0."""
        return self if isinstance(other, int) and other == 0 else self + other


class Gradients(NamedTuple):
    """What a backward gives; None where it was not asked for.

    Attributes
    ----------
    dx, dresidual : ndarray or None, shape and dtype of x
    dgamma, dbeta : ndarray or None, shape (C,)

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [3.0]])
    >>> gradients = fastbn.batch_norm_backward(x, x, fastbn.batch_stats(x), need_dx=False)
    >>> gradients.dx is None, gradients.dbeta
    (True, array([4.]))
    """

    dx: np.ndarray | None
    dgamma: np.ndarray | None
    dbeta: np.ndarray | None
    dresidual: np.ndarray | None


def pooled(parts: Iterable[BatchStats]) -> BatchStats:
    """The statistics of all values of all batches (estimator B of Wu and Johnson 2021)."""
    first, *others = parts
    return first.merge(*others)


def averaged(parts: Iterable[BatchStats]) -> BatchStats:
    """Algorithm 2 of Ioffe and Szegedy 2015: E[x] = mean of the means, Var[x] = mean of the unbiased variances.

    The result's `unbiased_var` is that Var[x]; its count is the number of all values.
    """
    parts = [part for part in parts if part.count]
    if not parts:
        raise ValueError("batches: expected at least one value, got empty batches only")
    if min(part.count for part in parts) < 2:
        raise ValueError("batches: expected 2 or more values per channel in each, for an unbiased variance, got 1")
    count = _as_count(sum(part.count for part in parts))
    with np.errstate(all="ignore"), DefaultMode():
        mean = np.mean([part.mean for part in parts], axis=0)
        unbiased = np.mean([part.unbiased_var for part in parts], axis=0)
        return BatchStats._own(count, mean, unbiased * ((count - 1) / count))
