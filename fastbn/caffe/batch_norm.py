"""Caffe's BatchNorm, which keeps running sums, and that of forks, which keep averages."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastbn
from fastbn.caffe.affine import floats
from fastbn.caffe.blobs import Blob, check_apart, check_writeable
from fastbn.caffe.checks import before_forward, checked_channels, checked_phase, checked_use
from fastbn.optional import DefaultMode, as_dtype, as_eps, as_number, option


class _Saved(NamedTuple):
    """What a forward of BatchNorm keeps for backward."""

    x: np.ndarray
    stats: fastbn.BatchStats | tuple[np.ndarray, np.ndarray]
    gamma: np.ndarray | None
    eps: float


class BatchNorm:
    """Caffe's BatchNorm: normalises axis 1, keeps running *sums* of statistics, and has no scale and no shift.

    In batch mode, with m values per channel and f = moving_average_fraction::

        y = (x - mean)/sqrt(var + eps)          of the batch, var biased
        blobs[0] = f*blobs[0] + mean
        blobs[1] = f*blobs[1] + var*m/(m - 1)   (var, where m is 1)
        blobs[2] = f*blobs[2] + 1

    In global mode the statistics are ``blobs[0]/blobs[2]`` and ``blobs[1]/blobs[2]``, or 0 where blobs[2] is 0, and
    nothing is updated.

    Parameters
    ----------
    channels : int, optional
        C. None: taken from the first x; there are no blobs before that.
    eps : float
        Added to the variance, >= 0.
    moving_average_fraction : float
        Weight of what the sums held before. (fastbn's and PyTorch's momentum is 1 minus that.)
    use_global_stats : bool, optional
        None: global mode in phase "TEST", batch mode in phase "TRAIN".
    phase : {"TRAIN", "TEST"}
    dtype : float32 or float64
        Of the blobs; x may be of either type.

    Attributes
    ----------
    blobs : list of Blob
        Sum of means (C,), sum of variances (C,), sum of weights (1,): zeros at first.

    Raises
    ------
    TypeError, ValueError
        channels is no positive integer, eps or moving_average_fraction no finite number or eps negative, or another
        argument none of those above.

    Notes
    -----
    Means and variances are computed in float64 and rounded once, where Caffe rounds each step. As in Caffe, NaN in a
    batch goes into the sums; a variance below -eps is an error here, and NaN there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn import caffe
    >>> bn = caffe.BatchNorm(1, dtype=np.float64)
    >>> y = bn(np.array([[1.0], [3.0]]))
    >>> bn.blobs
    [Blob(array([2.])), Blob(array([2.])), Blob(array([1.]))]
    >>> bn.phase = "TEST"
    >>> float(bn(np.array([[4.0]])).round(6)[0, 0])
    1.41421
    """

    def __init__(
        self,
        channels: int | None = None,
        eps: float = 1e-5,
        moving_average_fraction: float = 0.999,
        use_global_stats: bool | None = None,
        phase: str = "TRAIN",
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.eps = eps
        self.moving_average_fraction = moving_average_fraction
        self.use_global_stats = use_global_stats
        self.phase = phase
        self.dtype = as_dtype(dtype)
        self.blobs = [] if channels is None else self.new_blobs(checked_channels(channels))
        self._saved: _Saved | None = None

    eps: float = option("_eps", as_eps, "Added to the variance, >= 0.")
    moving_average_fraction: float = option(
        "_moving_average_fraction",
        partial(as_number, "moving_average_fraction"),
        "Weight of what the sums held before.",
    )
    use_global_stats: bool | None = option(
        "_use_global_stats", checked_use, "Whether the mode is always global, or never; None: the phase says."
    )
    phase: str = option("_phase", checked_phase, 'Either "TRAIN" or "TEST".')

    @property
    def channels(self) -> int | None:
        """C; None before it is known."""
        return self.blobs[0].data.size if self.blobs else None

    @property
    def in_global_mode(self) -> bool:
        """Whether the next forward takes the statistics of the blobs."""
        return self.phase == "TEST" if self.use_global_stats is None else self.use_global_stats

    def new_blobs(self, channels: int) -> list[Blob]:
        """Blobs as they are before any batch: a list of Blob."""
        return [Blob(np.zeros(n), self.dtype) for n in (channels, channels, 1)]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the global mode, shape (C,), float64.

        Raises
        ------
        ValueError
            channels is not known yet, or the blobs have other shapes.
        """
        if not self.blobs:
            raise ValueError("channels: not known before the first forward")
        _check_shapes(self.blobs)
        return _statistics(self.blobs)

    def __call__(self, x: ArrayLike, out: np.ndarray | None = None) -> np.ndarray:
        """Normalise x; in batch mode, move the sums.

        Parameters
        ----------
        x : array_like, shape (N, C, ...), float32 or float64
        out : ndarray, optional
            Takes y; x itself for Caffe's in-place, of which backward keeps a private copy. No memory of a blob.

        Returns
        -------
        y : ndarray, shape and dtype of x

        Raises
        ------
        TypeError, ValueError
            As in `fastbn.batch_norm`; also for another number of channels, and in global mode for a variance below
            -eps. Nothing has changed then.
        """
        y, self._saved = self.forward(floats("x", x), None, None, out)
        return y

    def backward(self, dy: ArrayLike, out: np.ndarray | None = None) -> np.ndarray:
        """Gradient of the last forward's x, in the mode of that forward.

        Parameters
        ----------
        dy : array_like
            Gradient of y.
        out : ndarray, optional
            Takes dx; may be dy, but no memory of a blob.

        Returns
        -------
        dx : ndarray, shape and dtype of x

        Raises
        ------
        RuntimeError
            There was no forward.
        TypeError, ValueError
            dy or out does not fit x. Nothing has changed then.
        """
        check_apart(out, self.blobs)
        dx = gradients_of(self._saved, dy, out, need_params=False).dx
        assert dx is not None
        return dx

    def forward(
        self, x: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None, out: np.ndarray | None
    ) -> tuple[np.ndarray, _Saved]:
        """Normalise, scale and shift in one pass: y, and what `gradients_of` needs."""
        self.check(x)
        blobs = self.blobs or self.new_blobs(x.shape[1])
        _check_shapes(blobs)
        check_apart(out, blobs)
        kept_gamma = None if gamma is None else gamma.copy()
        if self.in_global_mode:
            mean, var = _statistics(blobs)
            with DefaultMode():
                var_eps = var + self.eps  # may be small and right where var alone is negative
                _check_variance(var, self.eps)
            saved = _Saved(x if gamma is None else before_forward(x, out), (mean, var_eps), kept_gamma, 0.0)
            y = fastbn.normalize(x, mean, var_eps, gamma, beta, eps=0.0, out=out)
        else:
            check_writeable(blobs, "data")
            kept = before_forward(x, out)
            y, stats = fastbn.batch_norm(x, gamma, beta, eps=self.eps, out=out)
            saved = _Saved(kept, stats, kept_gamma, self.eps)
            self._move(blobs, stats)
        self.blobs[:] = blobs
        return y, saved

    def check(self, x: np.ndarray) -> None:
        """That x has channels, and as many as the blobs."""
        if x.ndim < 2:
            raise ValueError(f"x: expected 2 or more dimensions, (N, C, ...), got shape {x.shape}")
        if self.blobs and x.shape[1] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels on axis 1, got shape {x.shape}")

    def _move(self, blobs: list[Blob], stats: fastbn.BatchStats) -> None:
        f, m = self.moving_average_fraction, stats.count
        with np.errstate(all="ignore"), DefaultMode():
            unbiased = stats.var * (m / (m - 1) if m > 1 else 1)
            new: tuple[Any, ...] = (stats.mean, unbiased, 1.0)
            for blob, value in zip(blobs, new, strict=True):
                blob.data = f * blob.data.astype(np.float64) + value

    def __repr__(self) -> str:
        use = "" if self.use_global_stats is None else f", use_global_stats={self.use_global_stats}"
        return (
            f"caffe.BatchNorm({self.channels}, eps={self.eps}, moving_average_fraction="
            f"{self.moving_average_fraction}{use}, phase={self.phase!r}, dtype={self.dtype})"
        )


class RunningAverage(BatchNorm):
    """The BatchNorm of forks that keep averages instead of sums: ``f*old + (1 - f)*new``, the variance biased.

    blobs[2] stays 1, so that the global statistics are the first two blobs. NVIDIA's layer copies the first two
    batches of a fresh layer; `copies` counts them down.
    """

    copies = 0

    def new_blobs(self, channels: int) -> list[Blob]:
        """Mean 0, variance 0, weight 1."""
        mean, var, _ = super().new_blobs(channels)
        return [mean, var, Blob(np.ones(1), self.dtype)]

    def _move(self, blobs: list[Blob], stats: fastbn.BatchStats) -> None:
        f = 0.0 if self.copies else self.moving_average_fraction
        self.copies = max(0, self.copies - 1)
        with np.errstate(all="ignore"), DefaultMode():
            for blob, value in zip(blobs, (stats.mean, stats.var), strict=False):
                old = f * blob.data.astype(np.float64) if f else 0.0
                blob.data = old + (1 - f) * value


def _check_shapes(blobs: list[Blob]) -> None:
    if len(blobs) != 3 or blobs[0].data.ndim != 1 or blobs[0].shape != blobs[1].shape or blobs[2].shape != (1,):
        raise ValueError(f"blobs: expected shapes (C,), (C,), (1,), got {[blob.shape for blob in blobs]}")


def _statistics(blobs: list[Blob]) -> tuple[np.ndarray, np.ndarray]:
    """Sums divided by their weight; 0 where the weight is 0."""
    with np.errstate(all="ignore"), DefaultMode():
        mean, var, weight = (blob.data.astype(np.float64) for blob in blobs)
        return (mean / weight, var / weight) if weight[0] != 0 else (np.zeros_like(mean), np.zeros_like(var))


def _check_variance(var: np.ndarray, eps: float) -> None:
    below = np.flatnonzero(var < -eps)
    if below.size:
        raise ValueError(
            f"blobs[1]: expected variances of at least -eps = {-eps:g}, got {var[below[0]]:g} in channel {below[0]}"
        )


def gradients_of(saved: _Saved | None, dy: ArrayLike, out: np.ndarray | None, need_params: bool) -> fastbn.Gradients:
    """The gradients of what `BatchNorm.forward` did."""
    if saved is None:
        raise RuntimeError("backward: expected a forward before it, there was none")
    x, stats, gamma, eps = saved
    training = isinstance(stats, fastbn.BatchStats)
    return fastbn.batch_norm_backward(
        dy, x, stats, gamma, gamma, eps=eps, training=training, need_params=need_params, out=out
    )
