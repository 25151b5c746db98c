"""The command `fastbn demo`: two claims of the batch normalization paper, tried on 5000 real MNIST images.

(a) Section 4.1 of Ioffe and Szegedy 2015: three hidden layers of 100 sigmoid units, with and without BN.
(b) A small convolutional network, conv - BN - ReLU, with and without BN, at a low and at a high learning rate.

What is compared starts from the same weights and sees the same mini-batches. Where the paper gives a number (layers,
units, batch 60), it is that. Of the others, sigma = 0.1 (`networks.SIGMA`) and the rate 0.1 of (a) were fixed before
any result was seen. The rates of (b) come from a sweep, which said: without BN the network learns at rates up to 0.5,
with BN up to 1.5. From 2 on it fails with BN too, because the classifier, its last layer, has no BN behind it.

The way of a run: `data` -> `networks` -> `training` (with `timing`) -> `pictures`, `report`.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from fastbn.commands import CannotRunError, check_extra, writeable_folder
from fastbn.demo import data, networks, pictures, report
from fastbn.demo.training import Record, train

__all__ = ["FULL", "QUICK", "CannotRunError", "Plan", "Results", "experiment", "run"]

SIGMOID_RATE = 0.1
CONV_RATES = (0.1, 1.0)

# What the generators are for: each purpose draws from one of its own, seeded with (seed, purpose).
SHUFFLE, WEIGHTS, BATCHES = range(3)


@dataclass(frozen=True)
class Plan:
    """How many steps of training, and after how many of them the networks are looked at."""

    sigmoid_steps: int
    conv_steps: int
    every: int


FULL = Plan(sigmoid_steps=8000, conv_steps=800, every=20)
QUICK = Plan(sigmoid_steps=1500, conv_steps=160, every=20)


@dataclass
class Results:
    """All training runs: the sigmoid networks, and the convolutional ones rate by rate; without BN first."""

    sigmoid: list[Record]
    conv: list[Record]


def experiment(plan: Plan, seed: int) -> Results:
    """Train the six networks.

    The same plan and seed give the same numbers to the last digit, times excepted. With another number of threads that
    holds for fastbn, but not for every BLAS in the matrix products: compare runs with equal OPENBLAS_NUM_THREADS.
    """

    def rng(purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, purpose])

    rows, planes = data.split(*data.load(), rng(SHUFFLE))
    sigmoid = [
        train(
            networks.sigmoid_network(rng(WEIGHTS), batch_norm),
            rows, SIGMOID_RATE, plan.sigmoid_steps, plan.every, rng(BATCHES), "sigmoid",
        )
        for batch_norm in (False, True)
    ]  # fmt: skip
    conv = [
        train(
            networks.conv_network(rng(WEIGHTS), batch_norm),
            planes, rate, plan.conv_steps, plan.every, rng(BATCHES), "convolution",
        )
        for rate in CONV_RATES
        for batch_norm in (False, True)
    ]  # fmt: skip
    return Results(sigmoid, conv)


def run(out: str | Path = "fastbn-demo", seed: int = 0, quick: bool = False) -> Results:
    """Train, write the pictures and `report.txt` to the folder `out`, print the report.

    Parameters
    ----------
    out : str or Path
        The folder; created if need be.
    seed : int
        >= 0. The same seed gives the same numbers (see `experiment`).
    quick : bool
        Train for fewer steps.

    Returns
    -------
    results : Results

    Raises
    ------
    CannotRunError
        The extra `demo` is not installed, or nothing can be written to `out`.
    """
    check_extra("demo")
    folder = writeable_folder(out)
    start = perf_counter()
    results = experiment(QUICK if quick else FULL, seed)
    written = pictures.draw(results.sigmoid, results.conv, folder)
    text = report.closing_table(results.sigmoid, results.conv, seed)
    path = folder / "report.txt"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"{perf_counter() - start:.0f} s; written: {', '.join(map(str, [*written, path]))}")
    return results
