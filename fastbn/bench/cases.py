"""What is timed: the shapes of four networks, the passes, and their options: memory order, dtype, fusions, threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any

import numpy as np

import fastbn
from fastbn.bench.floor import Array

# (channels, height): the distinct shapes of each network, at 224 x 224 images.
NETWORKS = {
    "ResNet-50": [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)],
    "BN-Inception": [(192, 56), (96, 28), (128, 14), (192, 14), (192, 7), (352, 7)],
    "MobileNetV2": [(32, 112), (96, 112), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7), (1280, 7)],
    "DenseNet-121": [(128, 56), (512, 28), (1024, 14), (128, 7), (1024, 7)],
}
MATRICES = [(60, 100), (128, 4096), (4096, 256), (65536, 64)]  # (N, C): behind dense layers
SMALL = [(2, 8, 4), (4, 16, 8), (8, 32, 8), (1, 64, 7), (1, 64, 14), (8, 64, 7)]  # batch, channels, height
PASSES = ("training", "inference", "backward")

# Arrays that are read and written, of each thing that is timed. "from-y" is a backward from y alone, after a forward in
# place. The last four do less than a pass: statistics alone, a first layer's backward (need_dx=False), and that of a
# frozen layer, with and without parameters.
STREAMS = {
    "training": (1, 1),
    "inference": (1, 1),
    "backward": (2, 1),
    "from-y": (2, 1),
    "statistics": (1, 0),
    "params": (2, 0),
    "frozen": (2, 1),
    "frozen-dx": (1, 1),
}

# Memory orders. NHWC is channels-last by shape (axis=-1), channels_last by the strides of an NCHW shape (axis=1); slice
# is an x that is `buffer[:, :k]` of a buffer with twice the channels, as in a DenseNet's block.
ORDERS = ("NCHW", "NHWC", "channels_last", "NC", "slice")


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    batch: int
    channels: int
    height: int
    what: str
    dtype: str = "float32"
    threads: int = 1
    out: bool = True
    cold: bool = False
    order: str = "NCHW"
    activation: str | None = None
    residual: bool = False

    def __str__(self) -> str:
        options = [*self.kind, *["fresh"] * (not self.out), *["cold"] * self.cold]
        return "-".join([self.what, self.shape_name, self.dtype, f"{self.threads}t", *options])

    @property
    def kind(self) -> list[str]:
        """Order, activation, residual, as far as there are any."""
        order = "" if self.order in ("NCHW", "NC") else self.order
        return [*filter(None, (order, self.activation, "residual" * self.residual))]

    @property
    def label(self) -> str:
        """Shape, dtype and kind for a table: 32x14x14x256 NHWC; float32 goes without saying."""
        return " ".join([self.shape_name, *[self.dtype] * (self.dtype != "float32"), *self.kind])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        if self.order == "NC":
            return self.batch, self.channels
        if self.order == "NHWC":
            return self.batch, self.height, self.height, self.channels
        return self.batch, self.channels, self.height, self.height

    @property
    def shape_name(self) -> str:
        """32x64x112x112."""
        return "x".join(map(str, self.shape))

    @property
    def axis(self) -> int:
        """Of the channels."""
        return -1 if self.order == "NHWC" else 1

    def view(self, memory: Array) -> Array:
        """Flat memory as an array in this order; what is longer than x is the buffer that x is a slice of."""
        if self.order == "channels_last":
            return memory.reshape(self.batch, self.height, self.height, self.channels).transpose(0, 3, 1, 2)
        if self.order == "slice":
            return memory.reshape(self.batch, -1, self.height, self.height)[:, : self.channels]
        return memory.reshape(self.shape)

    @property
    def array_bytes(self) -> int:
        """Of x."""
        return prod(self.shape) * dtype_of(self.dtype).itemsize

    @property
    def streams(self) -> int:
        """Arrays as large as x that must be moved: each that is needed read once, each result written once."""
        added = 0
        if self.residual:  # it, or its gradient, and behind an activation the y that tells the mask
            added = 1 + (self.what == "backward" and self.activation is not None)
        return sum(STREAMS[self.what]) + added

    @property
    def streams_in_steps(self) -> int:
        """The same one step after the other, each reading what it needs once: the pass alone, then in its place + and
        activation; in the backward, first dy times the slope at y into an array of its own.
        """
        activated = self.activation is not None
        if self.what == "backward":
            return 3 + (3 if activated else 2 * self.residual)
        return 2 + 3 * self.residual + 2 * activated

    @property
    def bytes(self) -> int:
        """That must be moved."""
        return self.streams * self.array_bytes


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's dtype, or ml_dtypes' bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def half_types() -> Sequence[str]:
    """Those that can be had: bfloat16 with ml_dtypes only."""
    return ("float16", "bfloat16") if find_spec("ml_dtypes") else ("float16",)


def matrix(rows: int, channels: int, what: str, dtype: str = "float32", threads: int = 1) -> Case:
    """A case with an x of shape (N, C)."""
    return Case(rows, channels, 1, what, dtype, threads, order="NC")


def small_calls(shapes: Sequence[tuple[int, int, int]]) -> list[Case]:
    """As users call: a new result each time."""
    return [Case(*shape, what, out=False) for shape in shapes for what in PASSES]


def cases(full: bool) -> list[Case]:
    """The short list: ResNet-50 at batch 32 with one thread, and one shape with every option. The full one: all."""
    return full_cases() if full else short_cases()


def short_cases() -> list[Case]:
    """ResNet-50 at batch 32 with one thread, and one shape with every option."""
    one, threads = (256, 14), fastbn.get_num_threads()
    found = [Case(32, *shape, what) for shape in NETWORKS["ResNet-50"] for what in PASSES]
    found += [Case(batch, *one, what) for batch in (1, 8) for what in PASSES]
    found += [Case(8, *one, what, "float64") for what in PASSES]
    found += [Case(32, *one, "training", threads=threads), Case(32, *one, "training", out=False)]
    found += [Case(8, *one, "training", cold=True)]
    found += [Case(32, *one, what, dtype) for dtype in half_types() for what in PASSES]
    found += [Case(32, *one, what, order=order) for order in ("NHWC", "slice") for what in PASSES]
    found += [Case(32, *one, "training", order="channels_last")]
    found += [Case(32, *one, what, dtype, order="NHWC") for dtype in half_types() for what in PASSES]
    found += [matrix(*shape, what) for shape in MATRICES for what in PASSES]
    found += [Case(32, *one, what, activation="relu") for what in PASSES]
    found += [Case(32, *one, what, activation="relu", residual=True) for what in PASSES]
    found += [Case(32, *one, what) for what in STREAMS]
    return [*dict.fromkeys(found)]


def full_cases() -> list[Case]:
    """Four networks in float32, float64 with every option; ResNet-50 and matrices in other orders, types, fusions."""
    shapes = dict.fromkeys(shape for network in NETWORKS.values() for shape in network)
    threads = [*dict.fromkeys((1, fastbn.get_num_threads()))]
    found = [
        Case(batch, *shape, what, dtype, n, out, cold)
        for shape in shapes
        for batch in (1, 8, 32)
        for what in PASSES
        for dtype in ("float32", "float64")
        for n in threads
        for out, cold in ((True, False), (False, False), (True, True))
    ]
    types = ("float32", "float64", *half_types())
    resnet = NETWORKS["ResNet-50"]
    found += [
        Case(32, *shape, what, dtype, n, order=order)
        for shape, what, dtype, n, order in product(resnet, PASSES, types, threads, ORDERS)
        if order != "NC"
    ]
    found += [matrix(*shape, what, dtype, n) for shape, what, dtype, n in product(MATRICES, PASSES, types, threads)]
    activations = (None, "relu", "relu6", "leaky_relu")
    found += [
        Case(32, *shape, what, threads=n, order=order, activation=activation, residual=residual)
        for shape, what, n, order, activation, residual in product(
            resnet, PASSES, threads, ("NCHW", "NHWC"), activations, (False, True)
        )
    ]
    found += [Case(32, *shape, what, threads=n) for shape, what, n in product(resnet, STREAMS, threads)]
    return [*dict.fromkeys(found)]
