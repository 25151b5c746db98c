"""Reading a net and writing it back: `load`, and the `Net` that it gives."""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import DTypeLike

from fastbn.caffe.affine import Run
from fastbn.caffe.batch_norm import BatchNorm
from fastbn.caffe.blocks import Block
from fastbn.caffe.checks import checked_phase
from fastbn.caffe.dialects import BN
from fastbn.caffe.files import Source, decimal, write
from fastbn.caffe.graph import Node, nodes
from fastbn.caffe.scale import Scale
from fastbn.caffe.shelf import Channels, Options, Shelf, in_layer, phase_of
from fastbn.optional import as_dtype


def load(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None = None,
    phase: str = "TEST",
    channels: Channels = None,
    *,
    bn: str | None = None,
    dtype: DTypeLike | None = None,
) -> Net:
    """Read the batch-norm layers of a Caffe net.

    Parameters
    ----------
    prototxt : path
        The net's definition, as text or binary (a caffemodel holds one, too).
    caffemodel : path, optional
        Blobs, matched by the names of layers. None: those in `prototxt`, if there are any.
    phase : {"TEST", "TRAIN"}
        For include and exclude rules, and for layers that do not say which statistics they use.
    channels : int or mapping from name to int, optional
        For layers without blobs in the file; other names may be among them. Where it is not given either, the first
        array tells.
    bn : {"variance", "invstd"}, optional
        What the fourth blob of layers of type "BN" is (yjxiong's fork): the variance, as since April 2016, or its
        inverse square root, as before. Nothing in a file tells them apart.
    dtype : float32 or float64, optional
        Of the blobs; None: as they are stored.

    Returns
    -------
    net : Net

    Raises
    ------
    TypeError, ValueError
        An argument is none of those above.
    ValueError
        A file is broken or a layer makes no sense; the message names file, layer and field.
    OSError
        A file cannot be read.
    ImportError
        The extra `caffe` is not installed.

    Notes
    -----
    eps and moving_average_fraction are stored as float32; they are taken as the decimal numbers that were meant, 1e-5
    and not 9.99999974e-6.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from fastbn import caffe
    >>> path = pathlib.Path(tempfile.mkdtemp(), "net.prototxt")
    >>> _ = path.write_text('layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }')
    >>> caffe.load(path, channels=3).blocks[0].batch_norm.blobs[0].shape
    (3,)
    """
    checked_phase(phase)
    if bn is not None and bn not in tuple(BN):
        raise ValueError(f'bn: expected "variance", "invstd" or None, got {bn!r}')
    wanted = None if dtype is None else as_dtype(dtype)
    source = Source(prototxt)
    stored = source if caffemodel is None else Source(caffemodel)
    options = Options(channels, bn, wanted, needed=caffemodel is not None)
    return Net(source.definition(), Shelf(stored.weights(options.needed), options), phase)


class Net:
    """The batch-norm layers of a Caffe net: made by `load`.

    Attributes
    ----------
    blocks : list of Block
        In the order of the file, those of the current phase.
    phase : {"TEST", "TRAIN"}
        Assign to switch: the blocks are then those of the other phase. Layers of one name share their blobs.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from fastbn import caffe
    >>> path = pathlib.Path(tempfile.mkdtemp(), "net.prototxt")
    >>> _ = path.write_text('''
    ... layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
    ... layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
    ... ''')
    >>> net = caffe.load(path, phase="TRAIN", channels=3)
    >>> [(block.name, block.relu, block.batch_norm.in_global_mode) for block in net.blocks]
    [('bn1', True, False)]
    """

    def __init__(self, definition: Any, shelf: Shelf, phase: str) -> None:
        self._definition, self._shelf = definition, shelf
        self._layers: dict[int, tuple[BatchNorm | None, Scale | None]] = {}
        self.phase = phase

    @property
    def phase(self) -> str:
        """Either "TRAIN" or "TEST"."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        found = nodes(self._definition, checked_phase(phase))
        norms, blocks = [node for node in found if node.type in ("BatchNorm", "BN")], []
        for node in norms:
            with in_layer(node):
                blocks.append(self._block(node, phase))
        for node, block in zip(norms, blocks, strict=True):
            block.batch_norm.phase = phase_of(node, phase)
        self.blocks, self._phase = blocks, phase

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a caffemodel.

        It is the one that was read, with the blobs of the batch-norm layers that have changed; all else in it, known
        or not, stays. Without one it holds these layers alone: name, type and blobs, which is what Caffe reads.

        Parameters
        ----------
        path : path
            Written as a whole or not at all; may be a file that was read.

        Raises
        ------
        ValueError
            There is nothing to write: no layer has blobs yet.
        OSError
            The file cannot be written.
        """
        content = self._shelf.written()
        if not content:
            raise ValueError("net: expected batch-norm layers with blobs to save, got none")
        write(path, content)

    def _block(self, node: Node, phase: str) -> Block:
        bottoms, tops = len(node.layer.bottom), len(node.layer.top)
        if (bottoms, tops) != (1, 1):
            hint = "" if bottoms or tops else " (a file of blobs alone needs the prototxt that belongs to it)"
            raise ValueError(f"expected one bottom and one top, got {bottoms} and {tops}{hint}")
        batch_norm, scale = self._made(node, phase)
        assert batch_norm is not None
        last, notes = node, []
        if not self._shelf.has(node):
            notes.append("no blobs in the file")
        follower = node.only_reader
        if follower is not None and follower.type == "Scale":
            if scale is not None:
                notes.append(f"has a scale, and is followed by the Scale {follower.name!r}, which is not in this block")
            else:
                with in_layer(follower):
                    scale, last = self._made(follower, phase)[1], follower
                    _fit(batch_norm, scale)
        elif any(reader.type == "Scale" for reader in node.readers):
            by = "by a Scale with two bottoms" if len(node.readers) == 1 else "by a Scale and by others"
            notes.append(f"its result is read {by}: the Scale is not in this block")
        relu, follower = False, last.only_reader
        if follower is not None and follower.type == "ReLU":
            slope = decimal(follower.layer.relu_param.negative_slope)
            relu = slope == 0
            if not relu:
                notes.append(f"followed by a leaky ReLU, negative_slope {slope:g}")
        return Block(node.name, batch_norm, scale, relu, notes)

    def _made(self, node: Node, phase: str) -> tuple[BatchNorm | None, Scale | None]:
        """The layers of a node: the same objects each time."""
        if node.index not in self._layers:
            self._layers[node.index] = (
                (None, self._shelf.scale(node))
                if node.type == "Scale"
                else self._shelf.batch_norm(node, phase_of(node, phase))
            )
        return self._layers[node.index]


def _fit(batch_norm: BatchNorm, scale: Scale | None) -> None:
    """Make the blobs that are missing, now that the channels are known from the others; check that both agree."""
    assert scale is not None
    if (scale.axis, scale.num_axes) != (1, 1):
        return
    channels = batch_norm.channels or (scale.blobs[0].data.size if scale.blobs else None)
    if channels is None:
        return
    run = Run((1, channels), 1, 2)
    scale.use(scale.blobs_for(run), run)
    if not batch_norm.blobs:
        batch_norm.blobs[:] = batch_norm.new_blobs(channels)
