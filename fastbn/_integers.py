"""What counts as an integer among arguments: what Python can index with, but no bool."""

import operator
from typing import Any

import numpy as np


def as_integer(name: str, given: Any) -> int:
    """An integer argument as an int."""
    if isinstance(given, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got a bool")
    try:
        return operator.index(given)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(given).__name__}") from None
