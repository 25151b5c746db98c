"""Caffe's layers BatchNorm, Scale and Bias, with Caffe's own semantics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastbn
from fastbn.caffe.affine import Run, apply, floats, gradients, like, result, sums
from fastbn.caffe.blobs import Blob, Filler

PHASES = ("TRAIN", "TEST")
FillerLike = Filler | Mapping[str, Any] | None


def checked_phase(phase: str) -> str:
    """The argument phase."""
    if phase not in PHASES:
        raise ValueError(f'phase: expected "TRAIN" or "TEST", got {phase!r}')
    return phase


def before_forward(x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """What backward needs of x: itself, or a private copy where the forward is in place."""
    in_place = isinstance(out, np.ndarray) and np.may_share_memory(out, x)
    return x.copy(order="K") if in_place else x


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
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps: expected a finite number >= 0, got {eps}")
        if not math.isfinite(moving_average_fraction):
            raise ValueError(f"moving_average_fraction: expected a finite number, got {moving_average_fraction}")
        if use_global_stats not in (None, True, False):
            raise TypeError(f"use_global_stats: expected None, True or False, got {use_global_stats!r}")
        self.eps = float(eps)
        self.moving_average_fraction = float(moving_average_fraction)
        self.use_global_stats = use_global_stats
        self.phase = phase
        self.dtype = checked_dtype(dtype)
        self.blobs = [] if channels is None else self.new_blobs(checked_channels(channels))
        self._saved: _Saved | None = None

    @property
    def phase(self) -> str:
        """Either "TRAIN" or "TEST"."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = checked_phase(phase)

    @property
    def channels(self) -> int | None:
        """C; None before it is known."""
        return self.blobs[0].data.size if self.blobs else None

    @property
    def in_global_mode(self) -> bool:
        """Whether the next forward takes the statistics of the blobs."""
        return self.phase == "TEST" if self.use_global_stats is None else bool(self.use_global_stats)

    def new_blobs(self, channels: int) -> list[Blob]:
        """Blobs as they are before any batch."""
        return [Blob(np.zeros(n), self.dtype) for n in (channels, channels, 1)]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the global mode, shape (C,), float64."""
        if not self.blobs:
            raise ValueError("channels: not known before the first forward")
        return _statistics(self.blobs)

    def __call__(self, x: ArrayLike, out: np.ndarray | None = None) -> np.ndarray:
        """Normalise x; in batch mode, move the sums.

        Parameters
        ----------
        x : array_like, shape (N, C, ...), float32 or float64
        out : ndarray, optional
            Takes y; x itself for Caffe's in-place, of which backward keeps a private copy.

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
            Takes dx; may be dy.

        Returns
        -------
        dx : ndarray, shape and dtype of x
        """
        dx = gradients_of(self._saved, dy, out, need_params=False).dx
        assert dx is not None
        return dx

    def forward(
        self, x: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None, out: np.ndarray | None
    ) -> tuple[np.ndarray, _Saved]:
        """Normalise, scale and shift in one pass: y, and what `gradients_of` needs."""
        self.check(x)
        blobs = self.blobs or self.new_blobs(x.shape[1])
        kept_gamma = None if gamma is None else gamma.copy()
        if self.in_global_mode:
            mean, var = _statistics(blobs)
            var_eps = var + self.eps  # may be small and right where var alone is negative
            _check_variance(var, self.eps)
            saved = _Saved(x if gamma is None else before_forward(x, out), (mean, var_eps), kept_gamma, 0.0)
            y = fastbn.normalize(x, mean, var_eps, gamma, beta, eps=0.0, out=out)
        else:
            _check_writeable(blobs)
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
        unbiased = stats.var * (m / (m - 1) if m > 1 else 1)
        new: tuple[Any, ...] = (stats.mean, unbiased, 1.0)
        with np.errstate(all="ignore"):
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
        with np.errstate(all="ignore"):
            for blob, value in zip(blobs, (stats.mean, stats.var), strict=False):
                old = f * blob.data.astype(np.float64) if f else 0.0
                blob.data = old + (1 - f) * value


def _statistics(blobs: list[Blob]) -> tuple[np.ndarray, np.ndarray]:
    """Sums divided by their weight; 0 where the weight is 0."""
    if len(blobs) != 3 or blobs[0].shape != blobs[1].shape or blobs[2].shape != (1,):
        raise ValueError(f"blobs: expected shapes (C,), (C,), (1,), got {[blob.shape for blob in blobs]}")
    mean, var, weight = (blob.data.astype(np.float64) for blob in blobs)
    with np.errstate(all="ignore"):
        return (mean / weight, var / weight) if weight[0] != 0 else (np.zeros_like(mean), np.zeros_like(var))


def _check_variance(var: np.ndarray, eps: float) -> None:
    below = np.flatnonzero(var < -eps)
    if below.size:
        raise ValueError(
            f"blobs[1]: expected variances of at least -eps = {-eps:g}, got {var[below[0]]:g} in channel {below[0]}"
        )


def _check_writeable(blobs: list[Blob]) -> None:
    """Before the first byte: nothing must change by half."""
    for k, blob in enumerate(blobs):
        if not blob.data.flags.writeable:
            raise ValueError(f"blobs[{k}]: expected writeable data, got a read-only array")


def gradients_of(saved: _Saved | None, dy: ArrayLike, out: np.ndarray | None, need_params: bool) -> fastbn.Gradients:
    """The gradients of what `BatchNorm.forward` did."""
    if saved is None:
        raise RuntimeError("backward: expected a forward before it, there was none")
    x, stats, gamma, eps = saved
    training = isinstance(stats, fastbn.BatchStats)
    return fastbn.batch_norm_backward(
        dy, x, stats, gamma, gamma, eps=eps, training=training, need_params=need_params, out=out
    )


class _Broadcast:
    """What Scale and Bias share: axes, blobs made when the first x comes, one or two bottoms."""

    def __init__(self, axis: int, num_axes: int, dtype: DTypeLike, rng: np.random.Generator | int | None) -> None:
        if num_axes < -1:
            raise ValueError(f"num_axes: expected -1 or more, got {num_axes}")
        self.axis, self.num_axes = int(axis), int(num_axes)
        self.dtype = checked_dtype(dtype)
        self.blobs: list[Blob] = []
        self._rng = np.random.default_rng(rng)
        self._saved: Any = None

    def fillers(self, two_bottoms: bool) -> list[Filler]:
        """One filler for each blob."""
        raise NotImplementedError

    def run(self, shape: tuple[int, ...], bottom: tuple[int, ...] | None = None) -> Run:
        """The axes of an x with this shape that the blob, or the second bottom with its shape, goes along."""
        ndim = len(shape)
        if bottom == ():
            return Run(shape, 0, 0)
        if not -ndim <= self.axis < ndim:
            raise ValueError(f"axis: expected {-ndim} to {ndim - 1} for x with shape {shape}, got {self.axis}")
        start = self.axis % ndim
        num_axes = self.num_axes if bottom is None else len(bottom)
        stop = ndim if num_axes == -1 else start + num_axes
        if stop > ndim:
            raise ValueError(f"num_axes: axis {start} + {num_axes} axes is beyond the end of x with shape {shape}")
        if bottom is not None and bottom != shape[start:stop]:
            raise ValueError(f"expected the shape {shape[start:stop]}, axes {start} to {stop - 1} of x, got {bottom}")
        return Run(shape, start, stop)

    def blobs_for(self, run: Run, two_bottoms: bool = False) -> list[Blob]:
        """The blobs, new ones before the first forward; ValueError where they do not fit x."""
        fillers = self.fillers(two_bottoms)
        if not self.blobs:
            return self.new_blobs(run.inside, two_bottoms)
        if len(self.blobs) != len(fillers):
            raise ValueError(f"blobs: expected {len(fillers)}, got {len(self.blobs)}")
        for k, blob in enumerate(self.blobs):
            legacy = (1,) * (4 - len(run.inside)) + run.inside
            if blob.shape not in (run.inside, legacy) or blob.data.size != math.prod(run.inside):
                raise ValueError(f"blobs[{k}]: expected shape {run.inside}, axes of x {run.shape}, got {blob.shape}")
        return self.blobs

    def new_blobs(self, shape: tuple[int, ...], two_bottoms: bool = False) -> list[Blob]:
        """Blobs of a shape as the fillers make them."""
        return [filler.fill(shape, self.dtype, self._rng) for filler in self.fillers(two_bottoms)]

    def use(self, blobs: list[Blob], run: Run) -> None:
        """Keep blobs that fitted x, in the shape that x gave them."""
        self.blobs[:] = blobs
        for blob in blobs:
            if blob.shape != run.inside:
                blob.reshape(run.inside)

    def clear_diffs(self) -> None:
        """Set the accumulated gradients to 0."""
        for blob in self.blobs:
            blob.diff = 0

    def __repr__(self) -> str:
        bias = ", bias_term=True" if getattr(self, "bias_term", False) else ""
        shapes = [blob.shape for blob in self.blobs]
        return f"caffe.{type(self).__name__}(axis={self.axis}, num_axes={self.num_axes}{bias}), blobs {shapes}"

    def _last(self) -> Any:
        if self._saved is None:
            raise RuntimeError("backward: expected a forward before it, there was none")
        return self._saved


class Scale(_Broadcast):
    """Caffe's Scale: y = x*scale (+ bias), the scale learned or given as a second bottom.

    Parameters
    ----------
    axis : int
        First axis of x that the scale goes along; negative: from the end.
    num_axes : int
        How many axes it has: -1 all to the end, 0 none (one number). Not used with two bottoms.
    filler : Filler or mapping, optional
        How the scale starts. None: 1. A mapping without "value", as Caffe's `filler {}`: 0.
    bias_term : bool
        Whether there is a learned bias of the same shape.
    bias_filler : Filler or mapping, optional
        None: 0.
    dtype : float32 or float64
        Of the blobs; x may be of either type.
    rng : int or numpy.random.Generator, optional
        For random fillers. (Caffe's random numbers are not reproduced.)

    Attributes
    ----------
    blobs : list of Blob
        Scale and bias; with two bottoms the bias alone. Empty before the first forward. Gradients are accumulated in
        `diff`, see `clear_diffs`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn import caffe
    >>> scale = caffe.Scale(bias_term=True, dtype=np.float64)
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> y = scale(x)
    >>> scale.blobs[0].data = [10, 100]
    >>> scale(x)
    array([[ 10., 200.],
           [ 30., 400.]])
    >>> dx = scale.backward(np.ones((2, 2)))
    >>> scale.blobs[0].diff
    array([4., 6.])
    """

    def __init__(
        self,
        axis: int = 1,
        num_axes: int = 1,
        filler: FillerLike = None,
        bias_term: bool = False,
        bias_filler: FillerLike = None,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | int | None = 0,
    ) -> None:
        super().__init__(axis, num_axes, dtype, rng)
        self.filler, self.bias_filler = Filler.of(filler, 1.0), Filler.of(bias_filler, 0.0)
        self.bias_term = bool(bias_term)

    def fillers(self, two_bottoms: bool) -> list[Filler]:
        """Of the scale unless it is a bottom, and of the bias if there is one."""
        return [self.filler] * (not two_bottoms) + [self.bias_filler] * self.bias_term

    def __call__(self, x: ArrayLike, scale: ArrayLike | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Scale x, and add the bias.

        Parameters
        ----------
        x : array_like, float32 or float64
        scale : array_like, optional
            The second bottom: the shape of x's axes from `axis` on, as many as it has; or a scalar, for any axis.
        out : ndarray, optional
            Takes y; x itself for Caffe's in-place, of which backward keeps a private copy.

        Returns
        -------
        y : ndarray, shape and dtype of x

        Raises
        ------
        TypeError, ValueError
            Shapes or types do not fit. Nothing has changed then.
        """
        x = floats("x", x)
        second = None if scale is None else floats("scale", scale)
        try:
            run = self.run(x.shape, None if second is None else second.shape)
        except ValueError as error:
            raise error if second is None else ValueError(f"scale: {error}") from None
        blobs = self.blobs_for(run, second is not None)
        factor = blobs[0].data if second is None else second
        bias = blobs[-1].data if self.bias_term else None
        saved = before_forward(x, out), run, factor.copy() if second is None else factor, second is not None
        y = apply(x, run, factor, bias, out)
        self.use(blobs, run)
        self._saved = saved
        return y

    def backward(self, dy: ArrayLike, out: np.ndarray | None = None) -> Any:
        """Gradient of x; those of scale and bias are added to the `diff` of their blobs.

        Parameters
        ----------
        dy : array_like
            Gradient of y.
        out : ndarray, optional
            Takes dx; may be dy.

        Returns
        -------
        dx : ndarray, shape and dtype of x
            With two bottoms: (dx, gradient of the second bottom).
        """
        x, run, factor, two_bottoms = self._last()
        dy = like("dy", dy, x.shape, x.dtype)
        dx, dscale, dbias = gradients(dy, x, run, factor, out)
        self.add_gradients(None if two_bottoms else dscale, dbias)
        return (dx, dscale) if two_bottoms else dx

    def add_gradients(self, dscale: np.ndarray | None, dbias: np.ndarray | None) -> None:
        """Add to the diffs of the blobs."""
        with np.errstate(all="ignore"):
            if dscale is not None:
                self.blobs[0].diff += dscale.astype(self.dtype, copy=False)
            if self.bias_term and dbias is not None:
                self.blobs[-1].diff += dbias.astype(self.dtype, copy=False)


class Bias(_Broadcast):
    """Caffe's Bias: y = x + bias, the bias learned or given as a second bottom.

    Parameters
    ----------
    axis, num_axes, dtype, rng
        As in `Scale`.
    filler : Filler or mapping, optional
        How the bias starts. None: 0.

    Attributes
    ----------
    blobs : list of Blob
        The bias; none with two bottoms.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn import caffe
    >>> bias = caffe.Bias(filler={"value": 2})
    >>> bias(np.zeros((1, 2)))
    array([[2., 2.]])
    """

    def __init__(
        self,
        axis: int = 1,
        num_axes: int = 1,
        filler: FillerLike = None,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | int | None = 0,
    ) -> None:
        super().__init__(axis, num_axes, dtype, rng)
        self.filler = Filler.of(filler, 0.0)

    def fillers(self, two_bottoms: bool) -> list[Filler]:
        """Of the bias unless it is a bottom."""
        return [] if two_bottoms else [self.filler]

    def __call__(self, x: ArrayLike, bias: ArrayLike | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Add the bias to x.

        Parameters
        ----------
        x : array_like, float32 or float64
        bias : array_like, optional
            The second bottom, as in `Scale`.
        out : ndarray, optional
            Takes y; may be x.

        Returns
        -------
        y : ndarray, shape and dtype of x
        """
        x = floats("x", x)
        second = None if bias is None else floats("bias", bias)
        try:
            run = self.run(x.shape, None if second is None else second.shape)
        except ValueError as error:
            raise error if second is None else ValueError(f"bias: {error}") from None
        blobs = self.blobs_for(run, second is not None)
        y = apply(x, run, None, blobs[0].data if second is None else second, out)
        self.use(blobs, run)
        self._saved = run, x.dtype, second
        return y

    def backward(self, dy: ArrayLike, out: np.ndarray | None = None) -> Any:
        """Gradient of x, a copy of dy; that of the bias is added to its `diff`.

        Parameters
        ----------
        dy : array_like
            Gradient of y.
        out : ndarray, optional
            Takes dx; may be dy.

        Returns
        -------
        dx : ndarray, shape and dtype of x
            With two bottoms: (dx, gradient of the second bottom).
        """
        run, dtype, second = self._last()
        dy = like("dy", dy, run.shape, dtype)
        dbias = sums(dy, run)
        dx = result(out, dy)
        dx[...] = dy
        if second is not None:
            return dx, dbias.astype(second.dtype)
        self.blobs[0].diff += dbias.astype(self.dtype)
        return dx


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """The argument dtype."""
    if dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    return np.dtype(dtype)


def checked_channels(channels: int) -> int:
    """The argument channels."""
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise ValueError(f"channels: expected an integer of at least 1, got {channels!r}")
    return int(channels)
