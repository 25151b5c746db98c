"""Caffe's Scale and Bias, along any axes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbn.caffe.affine import Run, apply, floats, gradients, like, sums
from fastbn.caffe.blobs import Blob, Filler, check_apart, check_writeable
from fastbn.caffe.checks import before_forward
from fastbn.optional import DefaultMode, as_dtype, as_flag, as_integer, check_result, option

FillerLike = Filler | Mapping[str, Any] | None


def _checked_num_axes(num_axes: Any) -> int:
    count = as_integer("num_axes", num_axes)
    if count < -1:
        raise ValueError(f"num_axes: expected -1 or more, got {num_axes}")
    return count


class _Broadcast(ABC):
    """What Scale and Bias share: axes, blobs made when the first x comes, one or two bottoms."""

    def __init__(self, axis: int, num_axes: int, dtype: DTypeLike, rng: np.random.Generator | int | None) -> None:
        self.axis, self.num_axes = axis, num_axes
        self.dtype = as_dtype(dtype)
        self.blobs: list[Blob] = []
        try:
            self._rng = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            raise type(error)(f"rng: {error}") from None
        self._saved: Any = None

    axis: int = option("_axis", partial(as_integer, "axis"), "First axis of x that the blobs go along.")
    num_axes: int = option("_num_axes", _checked_num_axes, "How many axes the blobs have; -1: all to the end.")

    @abstractmethod
    def fillers(self, two_bottoms: bool) -> list[Filler]:
        """One filler for each blob."""

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
            place = f"from axis {start} of x with shape {shape} on"
            if bottom is not None:
                raise ValueError(f"expected at most {ndim - start} axes, {place}, got shape {bottom}")
            raise ValueError(f"num_axes: expected at most {ndim - start}, {place}, got {num_axes}")
        if bottom is not None and bottom != shape[start:stop]:
            raise ValueError(f"expected the shape {shape[start:stop]}, axes {start} to {stop - 1} of x, got {bottom}")
        return Run(shape, start, stop)

    def accept(
        self, x: ArrayLike, name: str, given: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray | None, Run, list[Blob]]:
        """The bottoms of a forward, the second with a name, as arrays; the axes they share, and the blobs."""
        x, second = floats("x", x), None if given is None else floats(name, given)
        try:
            run = self.run(x.shape, None if second is None else second.shape)
        except ValueError as error:
            raise error if second is None else ValueError(f"{name}: {error}") from None
        return x, second, run, self.blobs_for(run, second is not None)

    def blobs_for(self, run: Run, two_bottoms: bool = False) -> list[Blob]:
        """The blobs, new ones before the first forward; ValueError where they do not fit x."""
        fillers = self.fillers(two_bottoms)
        if not self.blobs:
            return self.new_blobs(run.inside, two_bottoms)
        if len(self.blobs) != len(fillers):
            raise ValueError(f"blobs: expected {len(fillers)}, got {len(self.blobs)}")
        for k, blob in enumerate(self.blobs):
            legacy = (1,) * (4 - len(run.inside)) + run.inside
            if blob.shape not in (run.inside, legacy):
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

    def check_diffs(self, out: np.ndarray | None) -> None:
        """That gradients can be added to the blobs, beside a dx in `out`: asked before that is written."""
        check_writeable(self.blobs, "diff")
        check_apart(out, self.blobs)

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
        For random fillers. (Caffe's random numbers are not reproduced.) Layers that are given the same number start
        alike: give several of them one Generator.

    Attributes
    ----------
    blobs : list of Blob
        Scale and bias; with two bottoms the bias alone. Empty before the first forward. Gradients are accumulated in
        `diff`, see `clear_diffs`.

    Raises
    ------
    TypeError, ValueError
        axis or num_axes is no integer or num_axes below -1, or another argument none of those above.

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
        self.filler, self.bias_filler = filler, bias_filler
        self.bias_term = bias_term

    filler: Any = option("_filler", partial(Filler.of, absent=1.0), "How the scale starts.")
    bias_filler: Any = option("_bias_filler", partial(Filler.of, absent=0.0), "How the bias starts.")
    bias_term: bool = option("_bias_term", partial(as_flag, "bias_term"), "Whether there is a learned bias.")

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
            Takes y; x itself for Caffe's in-place, of which backward keeps a private copy. No memory of a blob.

        Returns
        -------
        y : ndarray, shape and dtype of x

        Raises
        ------
        TypeError, ValueError
            Shapes or types do not fit. Nothing has changed then.
        """
        x, second, run, blobs = self.accept(x, "scale", scale)
        check_apart(out, blobs)
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
            Takes dx; may be dy, but no memory of a blob.

        Returns
        -------
        dx : ndarray, shape and dtype of x
            With two bottoms: (dx, gradient of the second bottom).

        Raises
        ------
        RuntimeError
            There was no forward.
        TypeError, ValueError
            dy or out does not fit x, or a blob cannot be written. Nothing has changed then.
        """
        two_bottoms = self._last()[-1]
        self.check_diffs(out)
        dx, dscale, dbias = self.gradients(dy, out)
        self.add_gradients(None if two_bottoms else dscale, dbias)
        return (dx, dscale) if two_bottoms else dx

    def gradients(self, dy: ArrayLike, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of x, scale and bias, as a tuple; the blobs stay as they are. See `backward` for dy, out and errors."""
        x, run, factor, _ = self._last()
        return gradients(like("dy", dy, x.shape, x.dtype), x, run, factor, out)

    def add_gradients(self, dscale: np.ndarray | None, dbias: np.ndarray | None) -> None:
        """Add to the diffs of the blobs."""
        with np.errstate(all="ignore"), DefaultMode():
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
        The bias; none with two bottoms. Gradients are accumulated in `diff`, see `clear_diffs`.

    Raises
    ------
    TypeError, ValueError
        As in `Scale`.

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
        self.filler = filler

    filler: Any = option("_filler", partial(Filler.of, absent=0.0), "How the bias starts.")

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
            Takes y; may be x, but no memory of a blob.

        Returns
        -------
        y : ndarray, shape and dtype of x

        Raises
        ------
        TypeError, ValueError
            Shapes or types do not fit. Nothing has changed then.
        """
        x, second, run, blobs = self.accept(x, "bias", bias)
        check_apart(out, blobs)
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
            Takes dx; may be dy, but no memory of a blob.

        Returns
        -------
        dx : ndarray, shape and dtype of x
            With two bottoms: (dx, gradient of the second bottom).

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As in `Scale.backward`.
        """
        run, dtype, second = self._last()
        self.check_diffs(out)
        dy = like("dy", dy, run.shape, dtype)
        dbias = sums(dy, run)
        check_result(out, dy, {"dy": dy}, {})
        dx = np.empty_like(dy) if out is None else out
        dx[...] = dy
        with np.errstate(all="ignore"), DefaultMode():
            if second is not None:
                return dx, dbias.astype(second.dtype)
            self.blobs[0].diff += dbias.astype(self.dtype)
        return dx
