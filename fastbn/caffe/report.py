"""The command `fastbn caffe`: a table of a net's batch-norm layers, and their state as an npz file."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from fastbn.caffe.blocks import Block
from fastbn.caffe.files import write
from fastbn.caffe.net import Net

TITLES = ("layer", "channels", "eps", "mean", "variance", "scale", "shift", "ReLU")
SHOWN = 4  # layers named beside an oddity


def table(net: Net) -> str:
    """One line a layer, and below what is odd about some."""
    rows = [TITLES, *(_row(block) for block in net.blocks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    channels = sum(block.batch_norm.channels or 0 for block in net.blocks)
    count = f"{len(net.blocks)} batch-norm layers in phase {net.phase}, {channels} channels"
    return "\n".join([*(lines if net.blocks else []), count, *_oddities(net)])


def state(net: Net) -> dict[str, np.ndarray]:
    """Parameters and statistics of all blocks in PyTorch's names: layer.weight, layer.running_mean, ...

    Raises
    ------
    ValueError
        As in `Block.fused`, or two blocks of the net have one name.
    """
    found: dict[str, np.ndarray] = {}
    for block in net.blocks:
        arrays = {f"{block.name}.{key}": value for key, value in block.fused().state_dict().items()}
        if found.keys() & arrays.keys():
            raise ValueError(f"layer {block.name!r}: two blocks of the net have this name")
        found |= arrays
    return found


def export(net: Net, path: str | os.PathLike[str]) -> None:
    """Write `state` to an npz file. ValueError where there is nothing to write."""
    arrays: Any = state(net)
    if not arrays:
        raise ValueError("net: expected batch-norm layers with blobs to export, got none")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write(path, buffer.getvalue())


def _row(block: Block) -> tuple[str, ...]:
    bn, scale = block.batch_norm, block.scale
    mean, var = bn.statistics() if bn.blobs else (None, None)
    factors = [blob.data for blob in scale.blobs] if scale is not None else []
    return (
        block.name,
        "?" if bn.channels is None else str(bn.channels),
        f"{bn.eps:g}",
        _range(mean),
        _range(var),
        _range(factors[0] if factors else None),
        _range(factors[1] if len(factors) > 1 else None),
        "yes" if block.relu else "-",
    )


def _oddities(net: Net) -> list[str]:
    """One line for each kind, with the layers it is about."""
    names: dict[str, list[str]] = {}
    for block in net.blocks:
        for text in block.oddities():
            names.setdefault(text, []).append(block.name)
    lines = [f"{_several(layers)}: {text}" for text, layers in names.items()]
    return ["oddities:", *lines] if lines else []


def _several(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _range(values: np.ndarray | None) -> str:
    if values is None:
        return "-"
    return f"{values.min():.4g} to {values.max():.4g}"
