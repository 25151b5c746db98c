"""What layers learn and keep: blobs, with the fillers that give them their first values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbn.optional import DefaultMode, as_any_array, as_dtype, as_integer, as_number, check_overlap, read_only

VARIANCE_NORMS = ("FAN_IN", "FAN_OUT", "AVERAGE")


class Blob:
    """An array and its gradient, as in Caffe: `data` and `diff`, of the same shape and dtype.

    Both stay the same memory for life; assignment copies into them (TypeError for what are no real numbers, ValueError
    for a shape that does not broadcast to theirs, or where they are read-only). NumPy's functions take a blob for its
    data, and indices read and write that.

    Parameters
    ----------
    data : array_like
        Real numbers, copied.
    dtype : float32 or float64, optional
        None: float32 where data are, else float64.

    Raises
    ------
    TypeError
        data are no real numbers; another dtype.

    Examples
    --------
    >>> from fastbn import caffe
    >>> blob = caffe.Blob([1.0, 2.0])
    >>> blob.data = [3.0, 4.0]
    >>> blob[:], blob.diff
    (array([3., 4.]), array([0., 0.]))
    """

    def __init__(self, data: ArrayLike, dtype: DTypeLike | None = None) -> None:
        given = _real_numbers("data", data)
        if dtype is None:
            dtype = np.float32 if given.dtype == np.float32 else np.float64
        with DefaultMode():
            self._data = np.array(given, as_dtype(dtype), order="C")
        self._diff = np.zeros_like(self._data)

    @property
    def data(self) -> np.ndarray:
        """The values."""
        return self._data

    @data.setter
    def data(self, values: ArrayLike) -> None:
        _put("data", self._data, values)

    @property
    def diff(self) -> np.ndarray:
        """The gradient."""
        return self._diff

    @diff.setter
    def diff(self, values: ArrayLike) -> None:
        _put("diff", self._diff, values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of data and diff."""
        return self._data.shape

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Give data and diff another shape with as many values, else ValueError: new views of the same memory."""
        self._data, self._diff = self._data.reshape(shape), self._diff.reshape(shape)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._data, dtype, copy=copy)

    def __getitem__(self, index: Any) -> Any:
        return self._data[index]

    def __setitem__(self, index: Any, values: ArrayLike) -> None:
        self._data[index] = values

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"Blob({self._data!r})"


def _real_numbers(name: str, given: ArrayLike) -> np.ndarray:
    array = as_any_array(name, given)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


def _put(name: str, array: np.ndarray, values: ArrayLike) -> None:
    """array[...] = values, or an error that names the argument, with nothing written."""
    given = _real_numbers(name, values)
    if not array.flags.writeable:
        read_only(name)
    with DefaultMode():
        new = given.astype(array.dtype)  # a warning may be an error: before anything is written
    try:
        array[...] = new
    except ValueError:
        raise ValueError(f"{name}: expected shape {array.shape}, got {given.shape}") from None


def check_writeable(blobs: Iterable[Blob], part: str) -> None:
    """That all `data` or all `diff` can be written: asked before the first byte is, so that nothing changes by half."""
    for k, blob in enumerate(blobs):
        if not getattr(blob, part).flags.writeable:
            raise ValueError(f"blobs[{k}]: expected writeable {part}, got a read-only array")


def check_apart(out: object, blobs: Iterable[Blob]) -> None:
    """That a result, if there is an array for it, does not stand in a blob, which is read or written meanwhile."""
    if not isinstance(out, np.ndarray):
        return
    for k, blob in enumerate(blobs):
        for part in ("data", "diff"):
            check_overlap(out, f"the {part} of blobs[{k}]", getattr(blob, part), False)


@dataclass(frozen=True)
class Filler:
    """How a learned blob starts, with Caffe's names and defaults: note that the default is a constant 0.

    Parameters
    ----------
    type : {"constant", "uniform", "gaussian", "xavier", "msra"}
    value : float
        Of a constant.
    min, max : float
        Of a uniform distribution.
    mean, std : float
        Of a gaussian.
    sparse : int
        Gaussian: expected number of values that are not 0 per output; -1: all.
    variance_norm : {"FAN_IN", "FAN_OUT", "AVERAGE"}
        The n of xavier (uniform within sqrt(3/n)) and msra (gaussian with sqrt(2/n)).

    Raises
    ------
    TypeError, ValueError
        Another type or variance_norm, a field that is no finite number (sparse: no integer), min above max, or a
        negative std.

    Examples
    --------
    >>> from fastbn import caffe
    >>> caffe.Scale(filler=caffe.Filler("uniform", min=0.5, max=1.5), rng=1).filler.max
    1.5
    """

    type: str = "constant"
    value: float = 0.0
    min: float = 0.0
    max: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    sparse: int = -1
    variance_norm: str = "FAN_IN"

    @classmethod
    def of(cls, given: Filler | Mapping[str, Any] | None, absent: float) -> Filler:
        """A filler from an argument: None is the constant `absent`, a mapping has Caffe's fields."""
        if given is None:
            return cls(value=absent)
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"filler: expected a Filler, a mapping or None, got {type(given).__name__}")
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"filler: unknown fields {sorted(unknown, key=str)}")
        return cls(**given)

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or self.type not in KINDS:
            raise ValueError(f"filler.type: expected one of {', '.join(KINDS)}, got {self.type!r}")
        for name in ("value", "min", "max", "mean", "std"):
            as_number(f"filler.{name}", getattr(self, name))
        as_integer("filler.sparse", self.sparse)
        if self.min > self.max or self.std < 0:
            raise ValueError(f"filler: expected min <= max and std >= 0, got {self}")
        if self.variance_norm not in VARIANCE_NORMS:
            raise ValueError(
                f"filler.variance_norm: expected one of {', '.join(VARIANCE_NORMS)}, got {self.variance_norm!r}"
            )

    def fill(self, shape: tuple[int, ...], dtype: DTypeLike, rng: np.random.Generator) -> Blob:
        """A new blob with values from this filler."""
        if 0 in shape:
            return Blob(np.empty(shape), dtype)
        with np.errstate(all="ignore"), DefaultMode():
            return Blob(KINDS[self.type](self, shape, rng), dtype)


def _gaussian(filler: Filler, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.normal(filler.mean, filler.std, shape)
    if filler.sparse >= 0:
        values *= rng.random(shape) < filler.sparse / (shape[0] if shape else 1)
    return values


def _fan(filler: Filler, shape: tuple[int, ...]) -> float:
    count = math.prod(shape)
    fan_in, fan_out = count / (shape[0] if shape else 1), count / (shape[1] if len(shape) > 1 else 1)
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[filler.variance_norm]


KINDS: dict[str, Any] = {
    "constant": lambda f, shape, rng: np.full(shape, f.value),
    "uniform": lambda f, shape, rng: rng.uniform(f.min, f.max, shape),
    "gaussian": _gaussian,
    "xavier": lambda f, shape, rng: rng.uniform(-1, 1, shape) * math.sqrt(3 / _fan(f, shape)),
    "msra": lambda f, shape, rng: rng.normal(0, math.sqrt(2 / _fan(f, shape)), shape),
}
