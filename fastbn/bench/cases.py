"""What is timed: the shapes of four networks, three passes, and their options."""

from dataclasses import dataclass
from math import prod

import numpy as np

import fastbn

# (channels, height): the distinct shapes of each network, at 224 x 224 images.
NETWORKS = {
    "ResNet-50": [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)],
    "BN-Inception": [(192, 56), (96, 28), (128, 14), (192, 14), (192, 7), (352, 7)],
    "MobileNetV2": [(32, 112), (96, 112), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7), (1280, 7)],
    "DenseNet-121": [(128, 56), (512, 28), (1024, 14), (128, 7), (1024, 7)],
}
PASSES = ("training", "inference", "backward")


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

    def __str__(self) -> str:
        options = ("" if self.out else "-fresh") + ("-cold" if self.cold else "")
        return f"{self.what}-{self.shape_name}-{self.dtype}-{self.threads}t{options}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of x."""
        return self.batch, self.channels, self.height, self.height

    @property
    def shape_name(self) -> str:
        """32x64x112x112."""
        return "x".join(map(str, self.shape))

    @property
    def array_bytes(self) -> int:
        """Of x."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """That must be moved: x read and y written, or x and dy read and dx written."""
        return (3 if self.what == "backward" else 2) * self.array_bytes


def cases(full: bool) -> list[Case]:
    """The short list: ResNet-50 at batch 32 with one thread, and one shape with every option. The full one: all."""
    threads = fastbn.get_num_threads()
    if not full:
        short = [Case(32, *shape, what) for shape in NETWORKS["ResNet-50"] for what in PASSES]
        one = (256, 14)
        short += [Case(batch, *one, what) for batch in (1, 8) for what in PASSES]
        short += [Case(8, *one, what, "float64") for what in PASSES]
        short += [Case(32, *one, "training", threads=threads), Case(32, *one, "training", out=False)]
        return [*dict.fromkeys([*short, Case(8, *one, "training", cold=True)])]
    shapes = dict.fromkeys(shape for network in NETWORKS.values() for shape in network)
    return [
        Case(batch, *shape, what, dtype, n, out, cold)
        for shape in shapes
        for batch in (1, 8, 32)
        for what in PASSES
        for dtype in ("float32", "float64")
        for n in dict.fromkeys((1, threads))
        for out, cold in ((True, False), (False, False), (True, True))
    ]
