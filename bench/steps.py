"""What comes before and after a batch normalization: a chain of layers, and the one that reads y next.

    python bench/steps.py chain      ten times convolution - BN - leaky_relu, forward and backward: memory and time,
                                     with y in an array of its own, in place of x, and PyTorch where it is installed
    python bench/steps.py reader     inference and what reads y right after, with streaming stores and without

Convolutions are 1x1, by np.matmul. In place, a layer's x, which is what the convolution made, is overwritten by its y:
of the two arrays that a layer keeps for the backward, one is left.

Large results are written past the caches (streamed), which is faster, but the next layer then reads them from memory.
Ordinary stores are had by giving `normalize` a few samples at a time, since small results are not streamed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import fastbn
from fastbn.bench import machine
from fastbn.bench.floor import Array, seconds
from fastbn.bench.memory import peak_of
from fastbn.cli import count

LAYERS = 10
CHAIN = (32, 64, 56, 56)  # 25.7 MB
WAYS = ("y apart", "in place", "PyTorch")
BATCHES = (4, 6, 8, 12, 16, 32, 64, 128)  # times 0.8 MB
ORDINARY = 4  # samples at a time: 3.2 MB, less than what is streamed


# ---- a chain of ten


class Convolution:
    """1x1, without a bias; keeps its input."""

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        self.w = rng.standard_normal((channels, channels), np.float32) / np.float32(channels**0.5)

    def __call__(self, x: Array) -> Array:
        self.x = x
        return np.matmul(self.w, x.reshape(*x.shape[:2], -1)).reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        """Gradient of x; that of w in dw. The input is let go."""
        flat, x = dy.reshape(*dy.shape[:2], -1), self.x.reshape(*dy.shape[:2], -1)
        self.dw = sum(flat[i] @ x[i].T for i in range(len(x)))
        del self.x
        return np.matmul(self.w.T, flat).reshape(dy.shape)


def chain(shape: tuple[int, ...], in_place: bool) -> Callable[[], Array]:
    """One step of training, from x to the gradient of it."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    convolutions = [Convolution(shape[1], rng) for _ in range(LAYERS)]
    norms = [fastbn.BatchNorm2d(shape[1], activation="leaky_relu", negative_slope=0.1) for _ in range(LAYERS)]

    def step() -> Array:
        y = x
        for convolution, norm in zip(convolutions, norms, strict=True):
            z = convolution(y)
            y = norm(z, out=z if in_place else None)
        del z, y
        d = dy.copy()
        for k in reversed(range(LAYERS)):
            d = norms[k].backward(d, out=d)
            norms[k] = norms[k].__class__(shape[1], activation="leaky_relu", negative_slope=0.1)  # lets go of its x
            d = convolutions[k].backward(d)
        return d

    return step


def torch_chain(shape: tuple[int, ...]) -> Callable[[], Any]:
    """The same in PyTorch, activations in place."""
    import torch
    from torch import nn

    torch.set_num_threads(fastbn.get_num_threads())
    x, dy = torch.randn(2, *shape)
    x.requires_grad_()

    def layer() -> list[Any]:
        return [nn.Conv2d(shape[1], shape[1], 1, bias=False), nn.BatchNorm2d(shape[1]), nn.LeakyReLU(0.1, inplace=True)]

    net = nn.Sequential(*(module for _ in range(LAYERS) for module in layer()))

    def step() -> Any:
        x.grad = None
        net(x).backward(dy)
        return x.grad

    return step


def step_of(way: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """By its name."""
    return torch_chain(shape) if way == "PyTorch" else chain(shape, way == "in place")


def chain_taken(way: str, shape: tuple[int, ...], rounds: int) -> tuple[float, float]:
    """Memory of a step in arrays as large as x, and seconds. The first step has allocated what stays."""
    step = step_of(way, shape)
    step()
    taken = peak_of(step)
    times = [seconds(step, 1) for _ in range(rounds)]
    return (float("nan") if taken is None else taken / (4 * np.prod(shape))), median(times)


def tell_chain(rounds: int) -> None:
    """A row for each way, each in a process of its own."""
    print(f"{LAYERS} x (convolution 1x1, BN, leaky_relu), x {'x'.join(map(str, CHAIN))}, forward and backward")
    print(f"{'':10}  arrays of the size of x  ms")
    for way in WAYS:
        if way != "PyTorch" or find_spec("torch"):
            command = [sys.executable, str(Path(__file__).resolve()), "--one", way, "--rounds", str(rounds)]
            taken, took = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(f"{way:10}  {taken:23.1f}  {1e3 * took:.0f}")


# ---- who reads y next


class Step:
    """z, what a convolution made; y, normalised and activated; and two that read y next."""

    def __init__(self, batch: int) -> None:
        rng = np.random.default_rng(0)
        self.z = rng.standard_normal((batch, *CHAIN[1:]), np.float32)
        self.y = np.ones_like(self.z)
        self.w = rng.standard_normal((CHAIN[1], CHAIN[1]), np.float32)
        self.stats = fastbn.batch_stats(self.z)
        self.next = np.ones_like(self.z)

    def normalize(self, at_once: int) -> None:
        """relu(BN(z)), some samples at a time."""
        for start in range(0, len(self.z), at_once):
            some = slice(start, start + at_once)
            fastbn.normalize(self.z[some], *self.stats[1:], activation="relu", out=self.y[some])

    def convolve(self) -> None:
        """The reader that works hard."""
        n, c = self.y.shape[:2]
        np.matmul(self.w, self.y.reshape(n, c, -1), out=self.next.reshape(n, c, -1))

    def sum(self) -> None:
        """The reader that does next to nothing but read."""
        fastbn.batch_stats(self.y)

    def time(self, read: Callable[[], None], at_once: int) -> tuple[float, float]:
        """Seconds of both, and of the normalization alone."""
        start = perf_counter()
        self.normalize(at_once)
        between = perf_counter()
        read()
        return perf_counter() - start, between - start


def tell_reader(rounds: int) -> None:
    """A row for each size, one thread; ratios are taken within a round."""
    print("streaming over ordinary stores: time of normalize alone, and with what reads y next (below 1: faster)")
    print(f"{'y':>8}  normalize  with statistics  with a convolution 1x1")
    with fastbn.num_threads(1), threadpool_limits(1, "blas"):
        for batch in BATCHES:
            step, found = Step(batch), []
            for read in (step.sum, step.convolve):
                pairs = [(step.time(read, batch), step.time(read, ORDINARY)) for _ in range(rounds + 1)][1:]
                found.append([median(s[k] / o[k] for s, o in pairs) for k in (0, 1)])
            both, alone = zip(*found, strict=True)
            print(f"{step.y.nbytes / 1e6:5.1f} MB  {median(alone):9.2f}  {both[0]:15.2f}  {both[1]:22.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"chain": tell_chain, "reader": tell_reader}
    parser.add_argument("what", nargs="?", choices=tables, help="(both)")
    parser.add_argument("--rounds", type=count, default=9, help="(%(default)s)")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(chain_taken(args.one, CHAIN, args.rounds)))
        return 0
    print(machine.name())
    for what in [args.what] if args.what else tables:
        print()
        tables[what](args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
