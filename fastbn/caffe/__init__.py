"""Caffe's batch normalisation: its layers with Caffe's own semantics, and nets from prototxt and caffemodel.

    load(prototxt, caffemodel) ──> Net: blocks, phase, save ──> Block: batch_norm, scale, relu, fused()
    BatchNorm, Scale, Bias         Caffe's layers, in NumPy, on fastbn's kernels
    Blob, Filler                   what they learn and keep, and how it starts

    net.py      load and Net                   batch_norm.py  BatchNorm
    blocks.py   BatchNorm and Scale as one     scale.py       Scale and Bias
    shelf.py    blobs by layers' names         affine.py      x*factor + bias over any axes
    graph.py    rules, who reads what          blobs.py       blobs and fillers
    files.py    text, binary, what is broken   schema.py      Caffe's format as protobuf messages
    report.py   the command `fastbn caffe`     dialects.py    how forks store the same
    checks.py   arguments that layers share

The layers need NumPy alone; reading files needs protobuf, the extra `caffe`.
"""

from fastbn.caffe.batch_norm import BatchNorm
from fastbn.caffe.blobs import Blob, Filler
from fastbn.caffe.blocks import Block
from fastbn.caffe.net import Net, load
from fastbn.caffe.scale import Bias, Scale

__all__ = ["BatchNorm", "Bias", "Blob", "Block", "Filler", "Net", "Scale", "load"]
