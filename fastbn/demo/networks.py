"""The two networks, as lists of layers.

A layer is anything with the three methods of `Layer`; `fastbn.BatchNorm1d` and `BatchNorm2d` have them and stand in
the lists as they are. Where a network has no batch normalization, it has a `Bias` in the same place: BN's beta does
the work of the bias, so the weights before it carry none (section 3.2 of the paper).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

import fastbn
from fastbn.demo.data import Array

Parameter = tuple[str, Array, Array]  # name, value, gradient

SIGMA = 0.1  # of all initial weights: "small random Gaussian values", section 4.1; the paper does not say how small


class Layer(Protocol):
    """What a network asks of its layers."""

    def __call__(self, x: Array) -> Array:
        """The output y; keeps what backward needs."""

    def backward(self, dy: Array) -> Array:
        """The gradient dx; overwrites the gradients of the parameters."""

    def parameters(self) -> list[Parameter]:
        """Name, value and gradient of each parameter: the same arrays for life."""


class Dense:
    """y = x w, with w (inputs, outputs)."""

    def __init__(self, w: Array) -> None:
        self.w, self.dw = w, np.zeros_like(w)

    def __call__(self, x: Array) -> Array:
        self.x = x
        return x @ self.w

    def backward(self, dy: Array) -> Array:
        np.matmul(self.x.T, dy, out=self.dw)
        return dy @ self.w.T

    def parameters(self) -> list[Parameter]:
        return [("w", self.w, self.dw)]


class Conv:
    """3 x 3 convolution of stride 2 in NCHW, zeros around, as a matrix product; w is (outputs, inputs, 3, 3)."""

    def __init__(self, w: Array) -> None:
        self.w, self.dw = w, np.zeros_like(w)

    def __call__(self, x: Array) -> Array:
        self.padded_shape = (*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        n, c, h, w = windows.shape[:4]
        # One column for each output pixel, so that the product below comes out in NCHW.
        self.columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, c * 9, h * w)
        return np.matmul(self.w.reshape(len(self.w), -1), self.columns).reshape(n, -1, h, w)

    def backward(self, dy: Array) -> Array:
        n, c_out, h, w = dy.shape
        flat = dy.reshape(n, c_out, h * w)
        self.dw[...] = np.matmul(flat, self.columns.transpose(0, 2, 1)).sum(axis=0).reshape(self.dw.shape)
        dcolumns = np.matmul(self.w.reshape(c_out, -1).T, flat).reshape(n, -1, 3, 3, h, w)
        dpadded = np.zeros(self.padded_shape, dy.dtype)
        for i in range(3):
            for j in range(3):
                dpadded[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += dcolumns[:, :, i, j]
        return dpadded[:, :, 1:-1, 1:-1]

    def parameters(self) -> list[Parameter]:
        return [("w", self.w, self.dw)]


class Bias:
    """y = x + b, one b for each channel (axis 1)."""

    def __init__(self, channels: int, dtype: DTypeLike = np.float32) -> None:
        self.b, self.db = np.zeros(channels, dtype), np.zeros(channels, dtype)

    def __call__(self, x: Array) -> Array:
        return x + self.b.reshape(-1, *[1] * (x.ndim - 2))

    def backward(self, dy: Array) -> Array:
        dy.sum(axis=(0, *range(2, dy.ndim)), out=self.db)
        return dy

    def parameters(self) -> list[Parameter]:
        return [("b", self.b, self.db)]


class Parameterless:
    """A layer that learns nothing."""

    def parameters(self) -> list[Parameter]:
        return []


class Sigmoid(Parameterless):
    """y = 1 / (1 + exp(-x)), by way of tanh, which cannot overflow."""

    def __call__(self, x: Array) -> Array:
        self.y = 0.5 * np.tanh(0.5 * x) + 0.5
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * self.y * (1 - self.y)


class ReLU(Parameterless):
    """y = max(x, 0)."""

    def __call__(self, x: Array) -> Array:
        self.y = np.maximum(x, 0)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (self.y > 0)


class Flatten(Parameterless):
    """(n, c, h, w) to (n, c * h * w)."""

    def __call__(self, x: Array) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)


class Network:
    """Layers one after the other.

    Attributes
    ----------
    x, dy : list of arrays
        The input of each layer in the last forward pass, and the gradient of each layer's output in the last
        backward pass. The layers hold on to most of these arrays anyway.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.x: list[Array] = []
        self.dy: list[Array] = []

    def __call__(self, x: Array) -> Array:
        self.x = []
        for layer in self.layers:
            self.x.append(x)
            x = layer(x)
        return x

    def backward(self, dy: Array) -> None:
        self.dy = []
        for layer in reversed(self.layers):
            self.dy.insert(0, dy)
            dy = layer.backward(dy)

    def descend(self, rate: float) -> None:
        """One step of plain gradient descent."""
        for layer in self.layers:
            for _, value, gradient in layer.parameters():
                value -= rate * gradient

    def batch_norms(self) -> list[tuple[int, fastbn.BatchNorm]]:
        """The BN layers and their places."""
        return [(i, layer) for i, layer in enumerate(self.layers) if isinstance(layer, fastbn.BatchNorm)]

    def train(self, mode: bool = True) -> None:
        """Batch statistics (True) or running statistics (False) in every BN layer."""
        for _, bn in self.batch_norms():
            bn.train(mode)


def gaussian(rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Initial weights."""
    return rng.normal(0, SIGMA, shape).astype(dtype)


def sigmoid_network(
    rng: np.random.Generator,
    batch_norm: bool,
    sizes: Sequence[int] = (784, 100, 100, 100, 10),
    dtype: DTypeLike = np.float32,
) -> Network:
    """Section 4.1 of the paper: three hidden layers of 100 sigmoid units."""
    layers: list[Layer] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        shift = fastbn.BatchNorm1d(outputs, dtype=dtype) if batch_norm else Bias(outputs, dtype)
        layers += [Dense(gaussian(rng, (inputs, outputs), dtype)), shift, Sigmoid()]
    return Network([*layers, *classifier(rng, sizes[-2], sizes[-1], dtype)])


def conv_network(
    rng: np.random.Generator,
    batch_norm: bool,
    channels: Sequence[int] = (1, 8, 16, 32),
    image: int = 28,
    dtype: DTypeLike = np.float32,
) -> Network:
    """Three times conv - BN - ReLU in NCHW, each halving the image, then a linear classifier."""
    layers: list[Layer] = []
    for c_in, c_out in pairwise(channels):
        image = (image + 1) // 2
        shift = fastbn.BatchNorm2d(c_out, dtype=dtype) if batch_norm else Bias(c_out, dtype)
        layers += [Conv(gaussian(rng, (c_out, c_in, 3, 3), dtype)), shift, ReLU()]
    return Network([*layers, Flatten(), *classifier(rng, channels[-1] * image**2, 10, dtype)])


def classifier(rng: np.random.Generator, inputs: int, classes: int, dtype: DTypeLike) -> list[Layer]:
    """The last layer: linear, its outputs go to the softmax."""
    return [Dense(gaussian(rng, (inputs, classes), dtype)), Bias(classes, dtype)]


def softmax_cross_entropy(z: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross-entropy of softmax(z), z (n, classes), and its gradient dz."""
    rows = np.arange(len(z))
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z)
    total = p.sum(axis=1, keepdims=True)
    loss = float((np.log(total[:, 0]) - z[rows, labels]).mean())
    dz = p / total
    dz[rows, labels] -= 1
    return loss, dz / len(z)
