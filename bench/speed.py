"""What is measured and how: cases, their check against the reference, the floor, interleaved rounds."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

import fastbn
from fastbn import _core, reference

# (channels, height): the distinct shapes of each network, at 224 x 224 images.
NETWORKS = {
    "ResNet-50": [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)],
    "BN-Inception": [(192, 56), (96, 28), (128, 14), (192, 14), (192, 7), (352, 7)],
    "MobileNetV2": [(32, 112), (96, 112), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7), (1280, 7)],
    "DenseNet-121": [(128, 56), (512, 28), (1024, 14), (128, 7), (1024, 7)],
}
PASSES = ("training", "inference", "backward")
CACHE = 64 << 20  # bytes: larger than the last-level cache of most machines, by which cold cases cycle


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
        shape = f"{self.batch}x{self.channels}x{self.height}x{self.height}"
        options = ("" if self.out else "-fresh") + ("-cold" if self.cold else "")
        return f"{self.what}-{shape}-{self.dtype}-{self.threads}t{options}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of x."""
        return self.batch, self.channels, self.height, self.height

    @property
    def bytes(self) -> int:
        """That must be moved: x read and y written, or x and dy read and dx written."""
        return (3 if self.what == "backward" else 2) * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


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


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes, every page of it written once."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(int(np.prod(shape)) + 64 // itemsize, dtype)
    start = -raw.ctypes.data % 64 // itemsize
    a = raw[start : start + int(np.prod(shape))].reshape(shape)
    a[...] = 1
    return a


class Buffers(NamedTuple):
    """The arrays of one call."""

    x: np.ndarray
    dy: np.ndarray
    out: np.ndarray


class Prepared:
    """A case with its arrays: what is timed, and the floor beside it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(0)
        sets = max(2, CACHE * 2 // case.bytes + 1) if case.cold else 1
        self.buffers = [Buffers(*(aligned(case.shape, case.dtype) for _ in range(3))) for _ in range(sets)]
        for b in self.buffers:
            b.x[...] = rng.standard_normal(case.shape, np.float32)
            b.dy[...] = rng.standard_normal(case.shape, np.float32)
        self.gamma, self.beta = rng.standard_normal((2, case.channels)).astype(case.dtype)
        self.stats = fastbn.batch_stats(self.buffers[0].x)
        self.turn = 0

    def call(self, b: Buffers) -> np.ndarray:
        """The call that is timed: y or dx."""
        out = b.out if self.case.out else None
        if self.case.what == "training":
            return fastbn.batch_norm(b.x, self.gamma, self.beta, out=out)[0]
        if self.case.what == "inference":
            return fastbn.normalize(b.x, self.stats.mean, self.stats.var, self.gamma, self.beta, out=out)
        return fastbn.batch_norm_backward(b.dy, b.x, self.stats, self.gamma, self.beta, out=out).dx

    def verify(self) -> None:
        """Compare one call with the float64 reference; AssertionError where it is wrong."""
        b = self.buffers[0]
        with fastbn.num_threads(self.case.threads):
            got = self.call(b)
        if self.case.what == "training":
            expected = reference.batch_norm(b.x, self.gamma, self.beta)[0]
        elif self.case.what == "inference":
            expected = reference.normalize(b.x, self.stats.mean, self.stats.var, self.gamma, self.beta)
        else:
            expected = reference.batch_norm_backward(b.dy, b.x, self.stats, self.gamma, self.beta).dx
        # The absolute terms of a result add up to some 24: four roundings of them are 96 units. (float64: the reference
        # rounds too, in sums of all values.)
        unit = 2.0 ** (-24 if self.case.dtype == "float32" else -50)
        np.testing.assert_allclose(got, expected, rtol=0, atol=100 * unit, err_msg=f"{self.case}: a wrong result")

    def next_buffers(self) -> Buffers:
        """The buffers in turn: all the same when warm, long unused ones when cold."""
        self.turn += 1
        return self.buffers[self.turn % len(self.buffers)]

    def once(self) -> None:
        """One call on the next buffers."""
        self.call(self.next_buffers())

    @property
    def repeat(self) -> int:
        """Calls that are timed together, so that a round is no shorter than the clock can tell."""
        return max(1, int(2e6) // self.case.bytes)

    def floor(self) -> float:
        """Seconds of a copy or a triad of as many bytes: the faster of an ordinary and a streaming one."""
        return min(seconds(partial(self.move, stream), self.repeat) for stream in (True, False))

    def move(self, stream: bool) -> None:
        """The copy or the triad."""
        b = self.next_buffers()
        _core.floor(b.x, b.dy if self.case.what == "backward" else None, b.out, stream)


def seconds(work: Callable[[], object], repeat: int) -> float:
    """Of one of `repeat` calls."""
    start = perf_counter()
    for _ in range(repeat):
        work()
    return (perf_counter() - start) / repeat


def measure(case: Case, rounds: int = 15) -> float:
    """Verify a case, then time it and its floor in turn: the median of their ratio, taken within each round.

    So it survives a change of clock speed.
    """
    p = Prepared(case)
    p.verify()
    ratios = []
    with fastbn.num_threads(case.threads):
        for _ in range(rounds):
            floor = p.floor()
            ratios.append(seconds(p.once, p.repeat) / floor)
    return float(np.median(ratios))


def machine() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{[*names, platform.processor() or platform.machine()][0]}, {platform.system()}"
