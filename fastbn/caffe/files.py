"""Files: text or binary, into messages; where a broken one is broken; blobs into arrays and back."""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fastbn.caffe.schema import message

# What no text holds but every binary net does: bytes below a space, other than tab, newlines and form feed.
NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
LEGACY = ("num", "channels", "height", "width")
LONGEST_MESSAGE = 300
MOST_AXES = 32  # of a blob, in Caffe


class Source:
    """The content of one file, and its name for error messages."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.content = Path(path).read_bytes()
        if not self.content:
            raise ValueError(f"{self.path}: expected a prototxt or caffemodel, got an empty file")
        if self.content.startswith(b"\x89HDF"):
            raise ValueError(f"{self.path}: expected a prototxt or caffemodel, got an HDF5 file")
        self.is_text = not NO_TEXT.search(self.content)

    def definition(self) -> Any:
        """The layers with their parameters."""
        return self._parsed("TextNetParameter" if self.is_text else "NetParameter")

    def weights(self, needed: bool) -> Any:
        """The layers with their blobs, and whatever else a binary file holds, to be written back. A text may have none
        where they are not `needed`.
        """
        if not self.is_text:
            return self._parsed("Weights")
        if b"blobs" not in self.content:
            if needed:
                raise ValueError(f"{self.path}: expected a caffemodel, got a text without blobs")
            return message("Weights")()
        layers = self._parsed("Weights").layer
        return message("Weights")(layer=[layer for layer in layers if layer.blobs])

    def _parsed(self, name: str) -> Any:
        kind = message(name)
        return _from_text(kind, self) if self.is_text else _from_binary(kind, self)


def _from_text(kind: Any, source: Source) -> Any:
    from google.protobuf import text_format

    text = source.content.decode("utf-8-sig", "backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # an unknown escape: Caffe's own parser refuses it
            return text_format.Parse(text, kind(), allow_unknown_field=True)
    except RecursionError:
        raise ValueError(f"{source.path}: messages are nested too deeply") from None
    except (text_format.ParseError, ValueError, OverflowError, DeprecationWarning) as error:
        raise ValueError(f"{source.path}: {_short(str(error))}") from None


def _from_binary(kind: Any, source: Source) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(source.content)
    except DecodeError:
        where = _broken(source.content, kind.DESCRIPTOR, "the file")
        raise ValueError(f"{source.path}: {where or 'expected a caffemodel, got something else'}") from None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " ..."


def text(value: bytes) -> str:
    """A name, whatever its bytes."""
    return value.decode("utf-8", "backslashreplace")


# ---- where a binary file is broken: a second reading, after protobuf has refused it


class _BrokenError(Exception):
    pass


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _BrokenError(f"ends or is damaged at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _broken(data: bytes, descriptor: Any, where: str) -> str | None:
    """What is wrong with a message, named by layer and field; None where nothing is found."""
    at, seen, name = 0, dict[int, int](), ""
    while at < len(data):
        try:
            tag, start = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            field = descriptor.fields_by_number.get(number)
            label = field.name if field is not None else f"field {number}"
            if number == 0 or kind > 5:
                raise _BrokenError(f"has no valid field at byte {at}")
            if kind == 0:
                _, at = _varint(data, start)
                continue
            if kind in (3, 4):
                at = start
                continue
            length, start = _varint(data, start) if kind == 2 else ({1: 8, 5: 4}[kind], start)
            if length > len(data) - start:
                inner = f"{seen.get(number, -1) + 1}{_name(data[start:])}" if label == "layer" else ""
                left = len(data) - start
                raise _BrokenError(f"{label} {inner}".rstrip() + f": expected {length} bytes, {left} are left")
        except _BrokenError as error:
            return f"{where}{name}: {error}"
        chunk, at = data[start : start + length], start + length
        if label == "name":
            name = _quoted(chunk)
        if kind != 2 or field is None:
            continue
        seen[number] = seen.get(number, -1) + 1
        if length % {field.TYPE_FLOAT: 4, field.TYPE_DOUBLE: 8}.get(field.type, 1):
            return f"{where}{name}: {label}: {length} bytes are no whole number of values"
        if field.message_type is not None:
            inner = f"{label} {seen[number]}" if label == "layer" else f"{where}{name}: {label}[{seen[number]}]"
            found = _broken(chunk, field.message_type, inner)
            if found:
                return found
    return None


def _name(layer: bytes) -> str:
    """The name of a layer that is cut, if it begins with one."""
    return _quoted(layer[2 : 2 + layer[1]]) if layer[:1] == b"\n" and len(layer) > 1 else ""


def _quoted(name: bytes) -> str:
    return f" {text(name)[:100]!r}"


# ---- blobs


def blob_array(blob: Any, where: str) -> np.ndarray:
    """The values of a BlobProto in their shape, float64 if they are stored so. Legacy shapes have four axes."""
    legacy = is_legacy(blob)
    field = "double_data" if len(blob.double_data) else "data"
    shape = tuple(getattr(blob, name) for name in LEGACY) if legacy else tuple(blob.shape.dim)
    values = getattr(blob, field)
    if len(shape) > MOST_AXES:
        raise ValueError(f"{where}.shape: expected at most {MOST_AXES} axes, got {len(shape)}")
    if any(length < 0 for length in shape) or math.prod(shape) != len(values):
        raise ValueError(f"{where}.{field}: expected the values of shape {shape}, got {len(values)}")
    array = np.array(values, np.float32 if field == "data" else np.float64).reshape(shape)
    if not np.isfinite(array).all():
        first = int(np.flatnonzero(~np.isfinite(array.ravel()))[0])
        raise ValueError(f"{where}.{field}: expected finite values, got {array.ravel()[first]} at {first}")
    return array


def is_legacy(blob: Any) -> bool:
    """Whether a BlobProto has its shape in the four old fields."""
    return any(blob.HasField(name) for name in LEGACY)


def put_blob(blob: Any, array: np.ndarray) -> None:
    """Write values and shape as Caffe does: double_data in a double net, and no legacy fields."""
    for name in (*LEGACY, "shape", "data", "double_data"):
        blob.ClearField(name)
    blob.shape.dim.extend(array.shape)
    (blob.double_data if array.dtype == np.float64 else blob.data).extend(array.ravel().tolist())


def decimal(value: float) -> float:
    """The decimal number that a float field stands for: 1e-5, and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file as a whole or not at all."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = f"{target}.{secrets.token_hex(8)}.part"
    try:  # (tempfile's files are for this user alone; here the system leaves the mode to umask, as for any new file)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:  # of the file that was asked for
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
