"""The functions: names, documentation, results. The work is done in `_core`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from fastbn import _core, _explain
from fastbn._integers import as_integer
from fastbn.statistics import BatchStats, Gradients, GradientSums, averaged, pooled

__all__ = [
    "backward_apply",
    "backward_sums",
    "batch_norm",
    "batch_norm_backward",
    "batch_stats",
    "normalize",
    "population_stats",
]


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, BatchStats]:
    """Normalise each channel of a batch with its own statistics: the training forward.

    ``y = (x - mean)/sqrt(var + eps)*gamma + beta``, with mean and biased variance over all values of a channel:
    Algorithm 1 of Ioffe and Szegedy 2015, and what ``torch.nn.functional.batch_norm(..., training=True)`` gives.
    Then a residual may be added, then an activation applied, all in one pass.

    Parameters
    ----------
    x : array_like, shape (N, C, ...), float32, float64, float16 or bfloat16 (of ml_dtypes)
        Two or more dimensions, channels on `axis`, at least one value per channel; any strides. Statistics are carried
        in float64.
    gamma, beta : array_like, shape (C,), float32 or float64, optional
        Scale and shift; ones and zeros where not given.
    eps : float
        Added to the variance, >= 0. With 0, a constant channel still gives beta.
    axis : int
        Where the channels are: 1 in (N, C, ...), -1 in channels-last (N, ..., C), or any other.
    activation : {None, "relu", "relu6", "leaky_relu"}
        Of ``z = (x - mean)/sqrt(var + eps)*gamma + beta + residual``: ``max(z, 0)``, ``min(max(z, 0), 6)``, or z where
        it is not below 0 and ``negative_slope*z`` elsewhere. NaN stays NaN.
    negative_slope : float
        Of "leaky_relu", >= 0.
    residual : array_like, optional
        Added before the activation: the shape and dtype of x, any strides.
    out : ndarray, optional
        Written instead of a new array: the shape and dtype of x; x or residual itself, or memory apart from all
        arguments. `batch_norm_backward` can do without an x that was overwritten (see its y).

    Returns
    -------
    y : ndarray, shape and dtype of x
        Laid out as ``np.empty_like(x)`` would be; `out` where it was given.
    stats : BatchStats
        Count, mean and biased variance, for the backward and for running statistics.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came. Nothing has been written then.

    Notes
    -----
    A channel with one value, or with equal values, gives beta. NaN and infinity stay within their channel.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> y, stats = fastbn.batch_norm(np.array([[1.0], [3.0]]), eps=0)
    >>> y.ravel(), stats.mean, stats.var
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    return _core.batch_norm(x, gamma, beta, eps, axis, activation, negative_slope, residual, out)


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise each channel with given statistics: inference, or the second half of a training forward.

    ``y = (x - mean)/sqrt(var + eps)*gamma + beta``, a residual added and an activation applied as in `batch_norm`.
    With the statistics of `batch_stats` the bits are those of `batch_norm`.

    Parameters
    ----------
    x : array_like, shape (N, C, ...), float32, float64, float16 or bfloat16 (of ml_dtypes)
        Two or more dimensions, any strides; may be empty.
    mean, var : array_like, shape (C,), float32 or float64
        var >= 0.
    gamma, beta, eps, axis, activation, negative_slope, residual, out
        As in `batch_norm`.

    Returns
    -------
    y : ndarray, shape and dtype of x

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`.

    Notes
    -----
    For types other than float64, ``(x - mean)*invstd*gamma`` beyond the largest float32 is infinite, even where a
    residual would bring the sum back. (That takes statistics which are not those of x.)

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.normalize(np.array([[1.0], [3.0]]), [2.0], [4.0], gamma=[10.0], beta=[1.0], eps=0)
    array([[-4.],
           [ 6.]])
    """
    return _core.normalize(x, mean, var, gamma, beta, eps, axis, activation, negative_slope, residual, out)


def batch_stats(x: ArrayLike, *, axis: int = 1) -> BatchStats:
    """Count, mean and biased variance of each channel.

    Parameters
    ----------
    x : array_like, shape (N, C, ...), float32, float64, float16 or bfloat16 (of ml_dtypes)
        May be empty: count, mean and var are 0 then.
    axis : int
        Where the channels are: 1 in (N, C, ...), -1 in channels-last (N, ..., C), or any other.

    Returns
    -------
    stats : BatchStats
        Merge those of the parts of a batch with `BatchStats.merge`.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.batch_stats(np.array([[1.0, 10.0], [3.0, 10.0]]))
    BatchStats(count=2, mean=array([ 2., 10.]), var=array([1., 0.]))
    """
    return _core.batch_stats(x, axis)


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike | None,
    stats: BatchStats | tuple[int, ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike],
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    y: ArrayLike | None = None,
    training: bool = True,
    need_dx: bool = True,
    need_params: bool = True,
    out: np.ndarray | tuple[np.ndarray | None, np.ndarray | None] | None = None,
) -> Gradients:
    """Gradients of `batch_norm` (training) or of `normalize` (``training=False``).

    With ``xmu = x - mean``, ``invstd = 1/sqrt(var + eps)`` and n = stats.count::

        sum_dy     = sum(dy)        dbeta  = sum_dy
        sum_dy_xmu = sum(dy*xmu)    dgamma = sum_dy_xmu*invstd
        dx = gamma*invstd*(dy - sum_dy/n - xmu*invstd**2*sum_dy_xmu/n)      training
        dx = gamma*invstd*dy                                                training=False

    Behind an activation, dy in all of these is ``dy*act'(z)``, which is dresidual too. As in PyTorch, the derivative of
    relu is 0 at 0, of relu6 0 at 0 and 6, of leaky_relu its slope at 0, each of z as it was stored.

    Parameters
    ----------
    dy : array_like
        Gradient of y: the shape and dtype of x, any strides.
    x : array_like, shape (N, C, ...), float32, float64, float16 or bfloat16 (of ml_dtypes)
        What the forward was given. Its memory order decides the order of the sums. None after a forward that wrote y
        over it: everything is then computed from y, to rounding; possible without activation or with leaky_relu with a
        slope > 0, without a residual, and where no gamma is 0.
    stats : BatchStats
        What the forward returned, or a tuple (count, mean, var); without training also a pair (mean, var).
    gamma, beta : array_like, shape (C,), optional
        As in the forward.
    eps, axis, activation, negative_slope
        As in the forward.
    residual : bool
        Whether the forward was given one.
    y : array_like, optional
        What the forward returned: needed with a residual and an activation, where it tells what was cut off (else that
        is computed from x again), and where x is None.
    training : bool
        Whether mean and var depended on x.
    need_dx, need_params : bool
        What is not needed is not computed, and None in the result.
    out : ndarray, optional
        Takes dx: the shape and dtype of x; dy or x itself (y, where x is None), or memory apart from all arguments.
        With a residual a pair for dx and dresidual, either of which may be None; dresidual, too, may take the place of
        dy or x.

    Returns
    -------
    gradients : Gradients
        ``(dx, dgamma, dbeta, dresidual)``. dx has the dtype of x; dgamma and dbeta, shape (C,), have the dtypes of
        gamma and beta where these are given, else float32 (float64 for float64 x); dresidual, an array of its own like
        dx, is None without a residual.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`; ValueError where stats.count is not the number of values per channel of x (training), and
        where x is None and cannot be had from y.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> y, stats = fastbn.batch_norm(x, eps=0)
    >>> gradients = fastbn.batch_norm_backward(np.array([[1.0], [0.0], [1.0]]), x, stats, eps=0)
    >>> gradients.dbeta, gradients.dgamma
    (array([2.]), array([0.]))
    """
    return _core.backward(
        dy, x, stats, None, gamma, beta, eps, axis, activation, negative_slope, residual, y, training, need_dx,
        need_params, out, True,
    )  # fmt: skip


def backward_sums(
    dy: ArrayLike,
    x: ArrayLike | None,
    stats: BatchStats | tuple[int, ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike],
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    y: ArrayLike | None = None,
    training: bool = True,
) -> GradientSums:
    """The sums over a part of a batch that its backward needs: the first half of `batch_norm_backward`.

    Parameters
    ----------
    dy, x : array_like
        One part of the batch: gradient and input.
    stats : BatchStats
        Of the whole batch (``a.merge(b, ...)`` of the parts).
    gamma, beta, eps, axis, activation, negative_slope, residual, y, training
        As in `batch_norm_backward`.

    Returns
    -------
    sums : GradientSums
        ``(sum(dy), sum(dy*(x - mean)))``, to be added up over the parts.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_backward`, but for stats.count, which need not be the number of values of x.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [3.0]])
    >>> fastbn.backward_sums(np.ones((2, 1)), x, fastbn.batch_stats(x))
    GradientSums(sum_dy=array([2.]), sum_dy_xmu=array([0.]))
    """
    return _core.backward(
        dy, x, stats, None, gamma, beta, eps, axis, activation, negative_slope, residual, y, training, False, True,
        None, False,
    )  # fmt: skip


def backward_apply(
    dy: ArrayLike,
    x: ArrayLike | None,
    stats: BatchStats | tuple[int, ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike],
    sums: GradientSums | tuple[ArrayLike, ArrayLike],
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    y: ArrayLike | None = None,
    training: bool = True,
    need_dx: bool = True,
    need_params: bool = True,
    out: np.ndarray | tuple[np.ndarray | None, np.ndarray | None] | None = None,
) -> Gradients:
    """Gradients of a part of a batch from the sums over all of it: the second half of `batch_norm_backward`.

    Parameters
    ----------
    dy, x : array_like
        One part of the batch: gradient and input.
    stats : BatchStats
        Of the whole batch; its count is the n of the formula.
    sums : GradientSums
        Of the whole batch: the sum of the parts' `backward_sums`; or a tuple (sum_dy, sum_dy_xmu).
    gamma, beta, eps, axis, activation, negative_slope, residual, y, training, need_dx, need_params, out
        As in `batch_norm_backward`.

    Returns
    -------
    gradients : Gradients
        dx of this part; dgamma and dbeta of the whole batch.

    Raises
    ------
    TypeError, ValueError
        As in `backward_sums`; TypeError where sums are neither GradientSums nor a tuple of two.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x, dy = np.random.default_rng(0).normal(size=(2, 6, 3))
    >>> stats = fastbn.batch_stats(x[:4]).merge(fastbn.batch_stats(x[4:]))
    >>> sums = fastbn.backward_sums(dy[:4], x[:4], stats) + fastbn.backward_sums(dy[4:], x[4:], stats)
    >>> part = fastbn.backward_apply(dy[4:], x[4:], stats, sums)
    >>> np.allclose(part.dx, fastbn.batch_norm_backward(dy, x, fastbn.batch_stats(x)).dx[4:])
    True
    """
    return _core.backward(
        dy, x, stats, _explain.as_sums(sums), gamma, beta, eps, axis, activation, negative_slope, residual, y, training,
        need_dx, need_params, out, False,
    )  # fmt: skip


def population_stats(batches: Iterable[ArrayLike | BatchStats], *, axis: int = 1, method: str = "pooled") -> BatchStats:
    """Statistics of a population from many batches; its `unbiased_var` is what belongs in a running variance.

    Parameters
    ----------
    batches : iterable of array_like or BatchStats
        Arrays as in `batch_stats`, or statistics already taken; batches may differ in size.
    axis : int
        Where the channels of arrays are.
    method : {"pooled", "paper"}
        "pooled": the statistics of all values together. "paper": Algorithm 2 of Ioffe and Szegedy 2015, the mean of
        the batches' means, and (as `unbiased_var`) the mean of their unbiased variances.

    Returns
    -------
    stats : BatchStats
        count is the number of all values per channel.

    Raises
    ------
    TypeError, ValueError
        As in `batch_stats`; TypeError where batches cannot be iterated over; ValueError for no batch, for different
        numbers of channels, a negative variance, another method, and ("paper") for a batch with one value per channel,
        or none but empty ones.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> batches = [np.array([[0.0], [2.0]]), np.array([[4.0], [6.0]])]
    >>> fastbn.population_stats(batches)
    BatchStats(count=4, mean=array([3.]), var=array([5.]))
    >>> fastbn.population_stats(batches, method="paper").unbiased_var
    array([2.])
    """
    _explain.check_method(method)
    parts = stats_of_batches(batches, axis)
    return pooled(parts) if method == "pooled" else averaged(parts)


def _stats_of_batch(batch: ArrayLike | BatchStats, axis: int, check: Callable[[np.ndarray], None] | None) -> BatchStats:
    if isinstance(batch, BatchStats):
        return batch
    x = _explain.as_array("x", batch)
    if check is not None:
        check(x)
    return batch_stats(x, axis=axis)


def stats_of_batches(
    batches: Iterable[ArrayLike | BatchStats], axis: int, check: Callable[[np.ndarray], None] | None = None
) -> list[BatchStats]:
    """The statistics of each batch, at least one, all of as many channels; `check` raises for what is no batch."""
    if isinstance(batches, (BatchStats, np.ndarray, str)) or not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable of batches, got {type(batches).__name__}")
    axis = as_integer("axis", axis)
    parts = []
    for k, batch in enumerate(batches):
        try:
            parts.append(_stats_of_batch(batch, axis, check))
        except (TypeError, ValueError) as error:
            raise type(error)(f"batches[{k}]: {str(error).removeprefix('x: ')}") from None
    if not parts:
        raise ValueError("batches: expected at least one batch, got none")
    channels = {part.mean.size for part in parts}
    if len(channels) > 1:
        raise ValueError(f"batches: expected the same number of channels in each, got {sorted(channels)}")
    for k, part in enumerate(parts):
        _explain.check_variance(f"batches[{k}]", part.var)
    return parts
