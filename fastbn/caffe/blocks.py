"""A batch-norm part of a net: the BatchNorm, the Scale behind it, and one fused layer for both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import fastbn
from fastbn.caffe.affine import Run, floats
from fastbn.caffe.batch_norm import BatchNorm, gradients_of
from fastbn.caffe.blobs import check_apart
from fastbn.caffe.scale import Scale


@dataclass(eq=False)
class Block:
    """A BatchNorm of a net with the Scale that follows it.

    Call it for the forward of both, which is one pass over x where the scale goes along axis 1, and `backward` for
    the gradient. The two layers by themselves give the same.

    Attributes
    ----------
    name : str
        Of the BatchNorm.
    batch_norm : BatchNorm
    scale : Scale or None
        None also where something else reads the BatchNorm's result.
    relu : bool
        Whether a ReLU, and nothing else, reads the result. It is not part of the block.
    notes : list of str
        What is unusual about the layer in the file; `oddities` adds what is about its numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn import caffe
    >>> block = caffe.Block("bn1", caffe.BatchNorm(1), caffe.Scale(filler={"value": 2}))
    >>> block(np.array([[1.0], [3.0]])).round(3)
    array([[-2.],
           [ 2.]])
    >>> block.fused()
    BatchNorm(1, eps=1e-05, momentum=0.001, dtype=float64)
    """

    name: str
    batch_norm: BatchNorm
    scale: Scale | None = None
    relu: bool = False
    notes: list[str] = field(default_factory=list)
    _saved: Any = field(default=None, repr=False)

    def __call__(self, x: ArrayLike, out: np.ndarray | None = None) -> np.ndarray:
        """BatchNorm and Scale of x.

        Parameters
        ----------
        x : array_like, shape (N, C, ...), float32 or float64
        out : ndarray, optional
            Takes y; may be x, but no memory of a blob.

        Returns
        -------
        y : ndarray, shape and dtype of x

        Raises
        ------
        TypeError, ValueError
            As in `BatchNorm` and `Scale`.
        """
        x = floats("x", x)
        bn, scale = self.batch_norm, self.scale
        bn.check(x)
        if scale is None:
            y, saved = bn.forward(x, None, None, out)
        else:
            y, saved = self._both(x, scale.run(x.shape), scale, out)
        self._saved = (saved,)
        return y

    def _both(self, x: np.ndarray, run: Run, scale: Scale, out: np.ndarray | None) -> tuple[np.ndarray, Any]:
        """In one pass where the scale goes along axis 1, else one after the other: what is kept is None then."""
        blobs = scale.blobs_for(run)  # before anything changes: they must fit x
        check_apart(out, blobs)
        if not run.is_channels:
            y = self.batch_norm(x, out)
            scale.use(blobs, run)
            return scale(y, out=y), None
        gamma, beta = blobs[0].data.reshape(-1), blobs[1].data.reshape(-1) if scale.bias_term else None
        y, saved = self.batch_norm.forward(x, gamma, beta, out)
        scale.use(blobs, run)
        return y, saved

    def backward(self, dy: ArrayLike, out: np.ndarray | None = None) -> np.ndarray:
        """Gradient of x; those of the Scale are added to the `diff` of its blobs.

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
        RuntimeError, TypeError, ValueError
            As in `Scale.backward`.
        """
        if self._saved is None:
            raise RuntimeError("backward: expected a forward before it, there was none")
        (saved,) = self._saved
        if self.scale is not None:
            self.scale.check_diffs(out)
        if saved is None:
            assert self.scale is not None
            dy, *of_scale = self.scale.gradients(dy)
            dx = self.batch_norm.backward(dy, out)
            self.scale.add_gradients(*of_scale)
            return dx
        check_apart(out, self.batch_norm.blobs)
        found = gradients_of(saved, dy, out, need_params=self.scale is not None)
        if self.scale is not None:
            self.scale.add_gradients(found.dgamma, found.dbeta)
        assert found.dx is not None
        return found.dx

    def fused(self) -> fastbn.BatchNorm:
        """One layer that equals the pair with global statistics, in eval mode.

        Returns
        -------
        bn : fastbn.BatchNorm
            Of dtype float64, so that dividing the sums by their weight loses nothing; x may be float32. Its momentum
            is 1 - moving_average_fraction. A ReLU that follows is not in it: see `relu`.

        Raises
        ------
        ValueError
            The number of channels is not known yet; a variance is negative; eps is 0; or the Scale is not one number
            per channel.
        """
        bn = self.batch_norm
        if bn.channels is None:
            raise ValueError(f"layer {self.name!r}: the number of channels is not known before the first forward")
        mean, var = bn.statistics()
        state = {"running_mean": mean, "running_var": var}
        if self.scale is not None:
            state |= self._affine(self.scale, bn.channels)
        try:
            layer = fastbn.BatchNorm(
                bn.channels,
                bn.eps,
                momentum=round(min(1.0, max(0.0, 1 - bn.moving_average_fraction)), 15),
                affine=self.scale is not None,
                dtype=np.float64,
            )
            layer.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from None
        return layer.eval()

    def _affine(self, scale: Scale, channels: int) -> dict[str, np.ndarray]:
        blobs = scale.blobs or scale.new_blobs(() if scale.num_axes == 0 else (channels,))
        vectors = [blob.data.reshape(-1) for blob in blobs]
        per_channel = (scale.axis, scale.num_axes) == (1, 1) and vectors[0].size == channels
        if not (per_channel or scale.num_axes == 0):
            raise ValueError(
                f"layer {self.name!r}: its Scale has axis {scale.axis}, num_axes {scale.num_axes} and shape "
                f"{blobs[0].shape}; expected one number per channel, axis 1 and num_axes 1"
            )
        scale.blobs[:] = blobs  # new ones are those of the first forward, too: a filler may be random
        gamma, beta = vectors[0], vectors[1] if scale.bias_term else np.zeros(1)
        return {"weight": np.broadcast_to(gamma, channels), "bias": np.broadcast_to(beta, channels)}

    def oddities(self) -> list[str]:
        """What one should know before relying on the layer: a list of sentences."""
        found = list(self.notes)
        if self.batch_norm.blobs:
            factor = float(self.batch_norm.blobs[2].data[0])
            _, var = self.batch_norm.statistics()
            if factor == 0:
                found.append("scale factor 0: mean and variance are taken as 0")
            if factor < 0:
                found.append(f"negative scale factor {factor:g}")
            if (var < 0).any():
                found.append(f"negative variance in {(var < 0).sum()} channels, least {var.min():g}")
        return found
