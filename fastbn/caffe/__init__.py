"""Caffe's batch normalisation: its layers with Caffe's own semantics, and nets from prototxt and caffemodel.

    load(prototxt, caffemodel) ──> Net: blocks, phase, save ──> Block: batch_norm, scale, relu, fused()
    BatchNorm, Scale, Bias         Caffe's layers, in NumPy, on fastbn's kernels
    Blob, Filler                   what they learn and keep, and how it starts

    net.py      load and Net                   layers.py    the layers
    blocks.py   BatchNorm and Scale as one     affine.py    x*factor + bias over any axes
    shelf.py    blobs by layers' names         blobs.py     blobs and fillers
    graph.py    rules, who reads what          dialects.py  how forks store the same
    files.py    text, binary, what is broken   schema.py    Caffe's format as protobuf messages
    report.py   the command `fastbn caffe`

The layers need NumPy alone; reading files needs protobuf, the extra `caffe`.
"""

from fastbn.caffe.blobs import Blob, Filler
from fastbn.caffe.blocks import Block
from fastbn.caffe.layers import BatchNorm, Bias, Scale
from fastbn.caffe.net import Net, load

__all__ = ["BatchNorm", "Bias", "Blob", "Block", "Filler", "Net", "Scale", "load"]
