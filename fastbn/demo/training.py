"""Training one network, and everything recorded on the way."""

from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import numpy as np

import fastbn
from fastbn.demo.data import BATCH, Array, Split, minibatches
from fastbn.demo.networks import Network, Sigmoid, softmax_cross_entropy
from fastbn.demo.timing import BatchNormTimes


@dataclass
class Record:
    """One training run. Two runs with the same seed compare equal; the times do not take part.

    Attributes
    ----------
    steps, accuracy, training_accuracy : list
        The steps after which the network was looked at, and its accuracy there on the test images and on the first
        500 training images (in eval mode, with running statistics).
    diverged_at : int or None
        The step at which the loss was no longer finite; the training ends there.
    percentiles : list
        The 15th, 50th and 85th percentile, over the test images, of the input of a typical sigmoid in the last hidden
        layer, at each of `steps`; empty for a network without sigmoids.
    population_accuracy : float or None
        The last test accuracy with population statistics (Algorithm 2) in place of running statistics.
    """

    batch_norm: bool
    rate: float
    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    training_accuracy: list[float] = field(default_factory=list)
    diverged_at: int | None = None
    percentiles: list[list[float]] = field(default_factory=list)
    population_accuracy: float | None = None
    times: BatchNormTimes = field(default_factory=BatchNormTimes, compare=False, repr=False)

    @property
    def name(self) -> str:
        """How tables, pictures and the progress bar call this run."""
        return f"{'with' if self.batch_norm else 'without'} BN, rate {self.rate:g}"

    def steps_to(self, goal: float, accuracy: list[float]) -> int | None:
        """The first step at which `accuracy` (a list of this record) is at least `goal`; None if there is none."""
        return next((step for step, value in zip(self.steps, accuracy, strict=True) if value >= goal), None)


@np.errstate(over="ignore", invalid="ignore")  # a network that diverges is one of the outcomes to show
def train(
    network: Network, data: Split, rate: float, steps: int, every: int, rng: np.random.Generator, title: str
) -> Record:
    """Plain gradient descent with a constant rate; looks at the network after every `every` steps.

    `rng` draws the mini-batches: the same state gives two networks the same ones in the same order.
    """
    from tqdm import tqdm

    record = Record(batch_norm=bool(network.batch_norms()), rate=rate)
    batches = minibatches(data, rng)
    inputs: list[Array] = []
    bar = tqdm(total=steps, desc=f"{title} {record.name}", unit="step")
    with bar:
        for step in range(1, steps + 1):
            start = perf_counter()
            if not isfinite(training_step(network, *next(batches), rate)):
                record.diverged_at = step
            seconds = perf_counter() - start
            bar.update()
            if step % every == 0 or step == record.diverged_at:
                if record.batch_norm and not record.diverged_at:  # else there was no backward
                    record.times.measure(network, seconds)
                record.steps.append(step)
                record.training_accuracy.append(accuracy(network, data.x[:500], data.labels[:500]))
                record.accuracy.append(accuracy(network, data.test_x, data.test_labels))
                inputs += sigmoid_percentiles(network)
                bar.set_postfix(accuracy=f"{record.accuracy[-1]:.1%}")
            if record.diverged_at:
                break
    if inputs:
        record.percentiles = typical(np.array(inputs)).tolist()
    if record.batch_norm:
        use_population_statistics(network, data)
        record.population_accuracy = accuracy(network, data.test_x, data.test_labels)
    return record


def training_step(network: Network, x: Array, labels: Array, rate: float) -> float:
    """Forward, backward, descend. Returns the loss; leaves the network as it was where that is not finite."""
    loss, dz = softmax_cross_entropy(network(x), labels)
    if isfinite(loss):
        network.backward(dz)
        network.descend(rate)
    return loss


def accuracy(network: Network, x: Array, labels: Array) -> float:
    """Share of the images x recognised in eval mode."""
    network.train(False)
    z = network(x)
    network.train(True)
    return float((z.argmax(axis=1) == labels).mean())


def sigmoid_percentiles(network: Network) -> list[Array]:
    """The {15, 50, 85} percentiles, (3, units), of what the last sigmoids were given in the last forward pass."""
    places = [i for i, layer in enumerate(network.layers) if isinstance(layer, Sigmoid)]
    return [np.percentile(network.x[i], (15, 50, 85), axis=0) for i in places[-1:]]


def typical(inputs: Array) -> Array:
    """Of percentiles (evaluations, 3, units), those of the unit whose median moves as far as the median unit's."""
    medians = inputs[:, 1]
    distance = medians.max(axis=0) - medians.min(axis=0)
    return inputs[:, :, np.argsort(distance, kind="stable")[len(distance) // 2]]


def use_population_statistics(network: Network, data: Split) -> None:
    """Algorithm 2 of the paper: population statistics of the training set take the place of running statistics.

    With the weights fixed, every mini-batch goes through the network once, in training mode, so that each BN layer sees
    the inputs that it has seen in training. E[x] is the mean of its batch means, Var[x] that of its unbiased batch
    variances.
    """
    network.train(True)
    layers = network.batch_norms()
    seen: list[list[fastbn.BatchStats]] = [[] for _ in layers]
    for start in range(0, len(data.x) - BATCH + 1, BATCH):
        network(data.x[start : start + BATCH])
        for stats, (i, _) in zip(seen, layers, strict=True):
            stats.append(fastbn.batch_stats(network.x[i]))
    for stats, (_, bn) in zip(seen, layers, strict=True):
        bn.recalibrate(stats, method="paper")
