"""The blobs of a net by the names of layers: those of the file, and what has become of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastbn.caffe import dialects
from fastbn.caffe.batch_norm import BatchNorm, RunningAverage
from fastbn.caffe.blobs import VARIANCE_NORMS, Blob, Filler
from fastbn.caffe.checks import PHASES, checked_channels
from fastbn.caffe.files import blob_array, decimal, is_legacy, put_blob, text
from fastbn.caffe.graph import Node, by_name
from fastbn.caffe.scale import Scale

Channels = int | Mapping[str, int] | None
OUTER_SCALE = ("scale",)  # the roles of a layer of type Scale, whatever it holds


@dataclass(frozen=True)
class Options:
    """The arguments of `load` that layers depend on."""

    channels: Channels
    bn: str | None
    dtype: Any
    needed: bool  # a caffemodel was given: what stands in it without blobs is an error

    def channels_of(self, name: str) -> int | None:
        """The argument channels for one layer."""
        given = self.channels.get(name) if isinstance(self.channels, Mapping) else self.channels
        return None if given is None else checked_channels(given)


@dataclass
class Entry:
    """The blobs that all layers of one name and type share, and where they stand in the file."""

    roles: tuple[str, ...]
    eps: float
    place: int | None  # index among the file's layers
    batch_norm: list[Blob] = field(default_factory=list)
    scale: list[Blob] = field(default_factory=list)
    as_read: list[np.ndarray] = field(default_factory=list)

    def in_file(self) -> list[np.ndarray]:
        """What a file holds for the blobs as they are now; nothing while they are not known."""
        if self.roles == OUTER_SCALE:
            return [blob.data.copy() for blob in self.scale]
        return dialects.give(self.roles, self.batch_norm, self.scale, self.eps) if self.batch_norm else []


class Shelf:
    """Makes layers with the blobs of their name, and writes these back."""

    def __init__(self, weights: Any, options: Options) -> None:
        self._weights, self._options = weights, options
        self._places = by_name(weights.layer)
        self._rng = np.random.default_rng(0)  # of all layers: else their fillers would give them all the same numbers
        self._entries: dict[tuple[bytes, bytes], Entry] = {}  # by name and type

    # ---- layers

    def batch_norm(self, node: Node, phase: str) -> tuple[BatchNorm, Scale | None]:
        """A BatchNorm, and the Scale that forks have inside of it."""
        place, param = self._place(node), node.layer.batch_norm_param
        dtype = self._dtype(place)
        inner: Scale | None = None
        layer: BatchNorm
        if node.type == "BN":
            roles, layer, inner = self._yjxiong(node, phase, dtype)
        elif self._is_nvidias(node, place):
            roles, layer = dialects.NVIDIA, nvidias_batch_norm(param, phase, dtype, fresh=place is None)
            inner = inner_scale(param, "scale_filler", 1.0, dtype, self._rng)
        else:
            use = param.use_global_stats if param.HasField("use_global_stats") else None
            roles = dialects.BVLC
            f = decimal(param.moving_average_fraction)
            layer = BatchNorm(None, decimal(param.eps), f, use, phase, dtype)
        entry = self._entry(node, place, roles, layer, inner)
        layer.blobs = entry.batch_norm
        if inner is not None:
            inner.blobs = entry.scale
        return layer, inner

    def has(self, node: Node) -> bool:
        """Whether the file has blobs for a layer."""
        return self._place(node) is not None

    def scale(self, node: Node) -> Scale:
        """A Scale."""
        param, place = node.layer.scale_param, self._place(node)
        layer = Scale(
            param.axis,
            param.num_axes,
            filler(param, "filler", 1.0),
            param.bias_term,
            filler(param, "bias_filler", 0.0),
            self._dtype(place),
            self._rng,
        )
        key = node.layer.name, node.layer.type
        if key not in self._entries:
            entry = Entry(OUTER_SCALE, 0.0, place)
            if place is not None:
                arrays = self._arrays(place, 1 + layer.bias_term)
                entry.scale = [
                    as_blob(in_axes(array, legacy, param.num_axes, f"blobs[{k}]"), layer.dtype)
                    for k, (array, legacy) in enumerate(arrays)
                ]
                entry.as_read = entry.in_file()
            self._entries[key] = entry
        layer.blobs = self._entries[key].scale
        return layer

    def _yjxiong(self, node: Node, phase: str, dtype: Any) -> tuple[tuple[str, ...], RunningAverage, Scale]:
        style = self._options.bn
        if style is None:
            raise ValueError(
                'type BN: expected the argument bn="variance" or bn="invstd", which says what its fourth blob is; '
                "nothing in the file does"
            )
        param = getattr(node.layer, "bn_param", None)  # only text tells: in binary its number is another's elsewhere
        momentum, eps = (decimal(param.momentum), decimal(param.eps)) if param is not None else (0.9, 1e-5)
        use = True if param is not None and param.frozen else None
        layer = RunningAverage(None, eps, momentum, use, phase, dtype)
        return dialects.BN[style], layer, inner_scale(param, "slope_filler", 0.0, dtype, self._rng)

    def _is_nvidias(self, node: Node, place: int | None) -> bool:
        param = node.layer.batch_norm_param
        said = getattr(param, "scale_bias", False) or _has(param, "scale_filler") or _has(param, "bias_filler")
        return said or (place is not None and len(self._weights.layer[place].blobs) == len(dialects.NVIDIA))

    # ---- blobs

    def _entry(
        self, node: Node, place: int | None, roles: tuple[str, ...], layer: BatchNorm, inner: Scale | None
    ) -> Entry:
        key = node.layer.name, node.layer.type
        entry = self._entries.get(key)
        wanted = self._options.channels_of(node.name)
        if entry is None:
            entry = Entry(roles, layer.eps, place)
            if place is not None:
                strict = roles == dialects.BVLC
                arrays = [
                    in_axes(array, legacy, 1, f"blobs[{k}]") if strict else flat(array, f"blobs[{k}]")
                    for k, (array, legacy) in enumerate(self._arrays(place, len(roles)))
                ]
                found = dialects.take(roles, arrays, layer.eps)
                entry.batch_norm = [as_blob(found[role], layer.dtype) for role in dialects.BVLC]
                entry.scale = [as_blob(found[role], layer.dtype) for role in ("gamma", "beta") if role in found]
                entry.as_read = entry.in_file()
            elif wanted is not None:
                entry.batch_norm = layer.new_blobs(wanted)
                entry.scale = inner.new_blobs((wanted,)) if inner is not None else []
            self._entries[key] = entry
        if entry.roles != roles:
            raise ValueError(f"two layers of this name store different blobs: {entry.roles} and {roles}")
        if wanted is not None and entry.batch_norm and entry.batch_norm[0].data.size != wanted:
            raise ValueError(f"channels: expected {entry.batch_norm[0].data.size}, as in the file, got {wanted}")
        return entry

    def _place(self, node: Node) -> int | None:
        """The file's layer of this name: where there are several, of this type, and of these the last."""
        places = self._places.get(node.layer.name, [])
        if not self._options.needed:
            places = [p for p in places if self._weights.layer[p].blobs]
        same_type = [p for p in places if self._weights.layer[p].type == node.layer.type]
        return (same_type or places or [None])[-1]  # type: ignore[list-item]

    def _arrays(self, place: int, count: int) -> list[tuple[np.ndarray, bool]]:
        """The blobs of a layer of the file, and whether their shapes are legacy ones."""
        blobs = self._weights.layer[place].blobs
        if len(blobs) != count:
            raise ValueError(f"blobs: expected {count}, got {len(blobs)}")
        return [(blob_array(blob, f"blobs[{k}]"), is_legacy(blob)) for k, blob in enumerate(blobs)]

    def _dtype(self, place: int | None) -> Any:
        if self._options.dtype is not None:
            return self._options.dtype
        doubles = place is not None and any(len(blob.double_data) for blob in self._weights.layer[place].blobs)
        return np.float64 if doubles else np.float32

    # ---- writing

    def written(self) -> bytes:
        """The file, with blobs that have changed since it was read."""
        weights = type(self._weights)()
        weights.CopyFrom(self._weights)
        for (name, kind), entry in self._entries.items():
            arrays = entry.in_file()
            if not arrays:
                continue
            new = entry.place is None
            layer = weights.layer.add(name=name, type=kind) if new else weights.layer[entry.place]
            for k, array in enumerate(arrays):
                if new:
                    put_blob(layer.blobs.add(), array)
                elif not np.array_equal(array, entry.as_read[k], equal_nan=True):
                    put_blob(layer.blobs[k], array)
        return weights.SerializeToString()


@contextmanager
def in_layer(node: Node) -> Iterator[None]:
    """Errors that name the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {node.name!r}: {error}") from None


def phase_of(node: Node, phase: str) -> str:
    """The phase a layer says, or the net's."""
    return PHASES[node.layer.phase] if node.layer.HasField("phase") else phase


def nvidias_batch_norm(param: Any, phase: str, dtype: Any, fresh: bool) -> RunningAverage:
    """With an eps of at least 1e-5; the phase alone decides on the statistics."""
    eps, f = max(decimal(param.eps), 1e-5), decimal(param.moving_average_fraction)
    layer = RunningAverage(None, eps, f, None, phase, dtype)
    layer.copies = 2 if fresh else 0
    return layer


def inner_scale(param: Any, scale_filler: str, absent: float, dtype: Any, rng: np.random.Generator) -> Scale:
    """The Scale inside of a fork's layer."""
    return Scale(1, 1, filler(param, scale_filler, absent), True, filler(param, "bias_filler", 0.0), dtype, rng)


def filler(param: Any, name: str, absent: float) -> Filler:
    """A filler of a message, or the constant that stands for an absent one."""
    if param is None or not _has(param, name):
        return Filler(value=absent)
    given = getattr(param, name)
    numbers = {key: decimal(getattr(given, key)) for key in ("value", "min", "max", "mean", "std")}
    norm = VARIANCE_NORMS[given.variance_norm]
    return Filler(text(given.type), **numbers, sparse=given.sparse, variance_norm=norm)


def as_blob(array: np.ndarray, dtype: Any) -> Blob:
    """A blob of a dtype that can hold the file's numbers."""
    with np.errstate(all="ignore"):
        blob = Blob(array, dtype)
    if not np.isfinite(blob.data).all():
        raise ValueError(f"blobs: expected values in the range of {np.dtype(dtype)}, got up to {abs(array).max():g}")
    return blob


def in_axes(array: np.ndarray, legacy: bool, num_axes: int, where: str) -> np.ndarray:
    """A blob with as many axes as its layer has: legacy ones have four, with ones in front."""
    if num_axes == -1:
        return array
    front = array.ndim - num_axes
    if legacy and front >= 0 and array.shape[:front] == (1,) * front:
        return array.reshape(array.shape[front:])
    if array.ndim != num_axes:
        raise ValueError(f"{where}.shape: expected {num_axes} axes, got shape {array.shape}")
    return array


def flat(array: np.ndarray, where: str) -> np.ndarray:
    """A fork's blob of one number per channel, wherever that axis is."""
    if array.size not in array.shape:
        raise ValueError(f"{where}.shape: expected one axis of channels, got shape {array.shape}")
    return array.reshape(-1)


def _has(param: Any, name: str) -> bool:
    return name in param.DESCRIPTOR.fields_by_name and param.HasField(name)
