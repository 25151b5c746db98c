"""Caffe's files for tests, written byte by byte: an encoder of its own, so that no test believes fastbn's schema.

field, blob, layer, caffemodel   the wire format
EXAMPLE                          a text that has to work as it stands
resnet50, mobilenet_v2           the batch-norm parts of two nets: names and shapes; prototxts in their styles
"""

import struct
from typing import NamedTuple

import numpy as np

# ---- wire format: https://protobuf.dev/programming-guides/encoding, numbers of caffe.proto


def varint(number):
    number &= 2**64 - 1
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, value):
    """A field: an int as a varint, a float as fixed32, bytes and text with their length."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def blob(values, shape=None, *, legacy=None, double=False, packed=True, extra=b""):
    """A BlobProto; legacy: (num, channels, height, width) instead of a shape."""
    values = np.asarray(values)
    kind, number = ("<f8", 8) if double else ("<f4", 5)
    if packed:
        data = field(number, values.astype(kind).tobytes())
    else:
        tag = varint(number << 3 | (1 if double else 5))
        data = b"".join(tag + value.tobytes() for value in values.astype(kind).ravel())
    if legacy is not None:
        return b"".join(field(k + 1, n) for k, n in enumerate(legacy)) + data + extra
    dims = b"".join(varint(n) for n in (values.shape if shape is None else shape))
    return (
        data + field(7, field(1, dims) if packed else dims_unpacked(values.shape if shape is None else shape)) + extra
    )


def dims_unpacked(shape):
    return b"".join(field(1, n) for n in shape)


def layer(name, kind, blobs=(), extra=b""):
    """A LayerParameter as field 100 of a net."""
    return field(100, field(1, name) + field(2, kind) + b"".join(field(7, b) for b in blobs) + extra)


def caffemodel(*layers, extra=b""):
    return field(1, "a net") + extra + b"".join(layers)


def decode(data):
    """Fields of a message as a list of (number, value), values of known lengths as bytes."""
    found, at = [], 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            found.append((tag >> 3, number()))
            continue
        length = number() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
        found.append((tag >> 3, data[at : at + length]))
        at += length
    return found


# ---- nets

EXAMPLE = """
layer {
  bottom: "Convolution1"
  top: "Convolution1"
  name: "bn1"
  type: "BatchNorm"
  batch_norm_param {
    use_global_stats: true
  }
  include {
    phase: TEST
  }
}
layer {
  bottom: "Convolution1"
  top: "Convolution1"
  name: "bn1"
  type: "BatchNorm"
  include {
    phase: TRAIN
  }
}
layer {
  bottom: "Convolution1"
  top: "Convolution1"
  name: "scale1"
  type: "Scale"
  scale_param {
    bias_term: true
  }
}
"""


class Part(NamedTuple):
    """A batch normalisation of a net: names, channels, rows and columns, and whether a ReLU follows."""

    conv: str
    bn: str
    scale: str
    channels: int
    size: int
    relu: bool


def resnet50():
    """ResNet-50 as its authors published it for Caffe: stride in the first 1x1 convolution of a stage."""
    parts = [Part("conv1", "bn_conv1", "scale_conv1", 64, 112, True)]
    for stage, (blocks, width, size) in enumerate([(3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)], start=2):
        for block in "abcdef"[:blocks]:
            branches = [("branch1", 4 * width, False)] * (block == "a")
            branches += [("branch2a", width, True), ("branch2b", width, True), ("branch2c", 4 * width, False)]
            for branch, channels, relu in branches:
                where = f"{stage}{block}_{branch}"
                parts.append(Part(f"res{where}", f"bn{where}", f"scale{where}", channels, size, relu))
    return parts


def mobilenet_v2():
    """MobileNetV2 as in the paper."""
    parts, size, inputs = [], 112, 32

    def add(name, channels, relu=True):
        parts.append(Part(name, f"{name}/bn", f"{name}/scale", channels, size, relu))

    add("conv1", 32)
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for stage, (expansion, outputs, repeats, stride) in enumerate(table, start=2):
        for block in range(1, repeats + 1):
            name = f"conv{stage}_{block}"
            if expansion > 1:
                add(f"{name}/expand", expansion * inputs)
            size //= stride if block == 1 else 1
            add(f"{name}/dwise", expansion * inputs)
            add(f"{name}/linear", outputs, relu=False)
            inputs = outputs
    add("conv6_4", 1280)
    return parts


def parameters(part, rng):
    """What a training may have left: blobs of the BatchNorm and of the Scale, as float32."""
    c, weight = part.channels, rng.uniform(1, 999)
    mean, var = rng.normal(0, 2, c), rng.uniform(0.01, 4, c)
    gamma, beta = rng.uniform(0.2, 2, c), rng.normal(size=c)
    as32 = [np.array(a, np.float32) for a in (mean * weight, var * weight, [weight], gamma, beta)]
    return as32[:3], as32[3:]


def model_of(parts, seed=0):
    """A caffemodel for the parts, convolutions included (as small as their contents are unknown)."""
    rng, layers = np.random.default_rng(seed), []
    for part in parts:
        statistics, affine = parameters(part, rng)
        layers.append(layer(part.conv, "Convolution", [blob(rng.normal(size=(2, 3, 1, 1)))]))
        layers.append(layer(part.bn, "BatchNorm", [blob(b) for b in statistics]))
        layers.append(layer(part.scale, "Scale", [blob(b) for b in affine]))
    return caffemodel(*layers)


def inputs_of(parts, shape):
    """Input layers in place of the convolutions, so that others can run the parts by themselves."""
    text = ""
    for part in parts:
        dims = " ".join(f"dim: {n}" for n in shape(part))
        text += f'layer {{ name: "{part.conv}" type: "Input" top: "{part.conv}" '
        text += f"input_param {{ shape {{ {dims} }} }} }}\n"
    return text


def in_place_prototxt(parts):
    """The style of ResNet's prototxt: everything in place on the convolution's result."""
    text = ""
    for part in parts:
        where = f'bottom: "{part.conv}" top: "{part.conv}"'
        text += (
            f'layer {{ {where} name: "{part.bn}" type: "BatchNorm" batch_norm_param {{ use_global_stats: true }} }}\n'
        )
        text += f'layer {{ {where} name: "{part.scale}" type: "Scale" scale_param {{ bias_term: true }} }}\n'
        if part.relu:
            text += f'layer {{ {where} name: "{part.conv}_relu" type: "ReLU" }}\n'
    return text


def apart_prototxt(parts):
    """The style of MobileNet's prototxt: a top of its own, eps, and three params of learning rate 0."""
    text, frozen = "", "param { lr_mult: 0 decay_mult: 0 } " * 3
    for part in parts:
        where = f'bottom: "{part.bn}" top: "{part.bn}"'
        text += f'layer {{ name: "{part.bn}" type: "BatchNorm" bottom: "{part.conv}" top: "{part.bn}" {frozen}\n'
        text += "  batch_norm_param { use_global_stats: true eps: 1e-5 } }\n"
        text += f'layer {{ name: "{part.scale}" type: "Scale" {where} scale_param {{ bias_term: true }} }}\n'
        if part.relu:
            text += f'layer {{ name: "{part.conv}/relu" type: "ReLU" {where} }}\n'
    return text


def size_of(parts):
    """Layers, sum of channels, values per image."""
    return len(parts), sum(p.channels for p in parts), sum(p.channels * p.size**2 for p in parts)
