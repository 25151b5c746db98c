"""OpenCV 4 reads the same files: an implementation of its own, for inference in 2 to 5 dimensions.

It computes in float32 with a scale and a shift per channel, y = x*mul + add, so that it is off by a few roundings of
abs(x*mul) and abs(add). It has no phases: use_global_stats counts as true, and rules are not applied.
"""

import cv2
import numpy as np
import pytest
from arrays import U32
from caffe_files import (
    apart_prototxt,
    blob,
    caffemodel,
    in_place_prototxt,
    inputs_of,
    layer,
    mobilenet_v2,
    model_of,
    resnet50,
)

from fastbn import caffe


@pytest.fixture
def read(tmp_path):
    """Reads a net with both."""

    def both(prototxt, model):
        paths = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
        paths[0].write_text(prototxt)
        paths[1].write_bytes(model)
        return caffe.load(*paths), cv2.dnn.readNetFromCaffe(*map(str, paths))

    return both


def assert_same(found, expected, net):
    """Within roundings of the terms of y = x*mul + add."""
    mean, var = net.batch_norm.statistics()
    gamma, beta = (b.data.astype(float) for b in net.scale.blobs) if net.scale is not None else (1, 0)
    size = abs(gamma) * (6 + abs(mean)) / np.sqrt(var + net.batch_norm.eps) + abs(beta)
    limit = 8 * U32 * np.broadcast_to(size, found.shape[1:2]).reshape(-1, *[1] * (found.ndim - 2))
    assert (abs(found - expected) <= limit).all()


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("weight", [0, 3.25])
@pytest.mark.parametrize("legacy", [False, True], ids=["shape", "legacy"])
@pytest.mark.parametrize("shape", [(6, 7), (3, 7, 5), (2, 7, 3, 4), (2, 7, 2, 3, 2)], ids=str)
def test_inference(shape, legacy, weight, relu, read):
    rng = np.random.default_rng(len(shape))
    x = rng.uniform(-6, 6, size=shape).astype(np.float32)

    def stored(values):
        return blob(values, legacy=(1, 1, 1, len(values)) if legacy else None)

    var = stored(rng.uniform(0.2, 3, 7))
    statistics = [stored(rng.normal(size=7)), var, stored([weight])]
    model = caffemodel(
        layer("bn", "BatchNorm", statistics),
        layer("scale", "Scale", [stored(rng.normal(size=7)), stored(rng.normal(size=7))]),
    )
    dims = " ".join(f"dim: {n}" for n in shape)
    text = f'layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}\n'
    text += 'layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { eps: 0.01 } }\n'
    text += 'layer { name: "scale" type: "Scale" bottom: "y" top: "z" scale_param { bias_term: true } }\n'
    text += 'layer { name: "relu" type: "ReLU" bottom: "z" top: "z" }\n' * relu
    net, other = read(text, model)
    (block,) = net.blocks
    assert block.relu == relu
    other.setInput(x)
    expected = other.forward()
    for y in (block(x), block.fused()(x), block.scale(block.batch_norm(x))):
        assert_same(np.maximum(y, 0) if relu else y, expected, block)


def test_a_saved_file_is_read_by_opencv(read, tmp_path):
    """After a training, written without a caffemodel to start from."""
    rng = np.random.default_rng(0)
    text = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 dim: 5 dim: 5 } } }\n'
    text += 'layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" }\n'
    text += 'layer { name: "scale" type: "Scale" bottom: "x" top: "x" scale_param { bias_term: true } }\n'
    (tmp_path / "net").write_text(text)
    net = caffe.load(tmp_path / "net", phase="TRAIN")
    for _ in range(3):
        net.blocks[0](rng.uniform(-6, 6, size=(4, 3, 5, 5)).astype(np.float32))
    net.blocks[0].scale.blobs[0].data = [0.5, -1, 2]
    net.save(tmp_path / "model")
    net.phase = "TEST"
    other = cv2.dnn.readNetFromCaffe(str(tmp_path / "net"), str(tmp_path / "model"))
    x = rng.uniform(-6, 6, size=(4, 3, 5, 5)).astype(np.float32)
    other.setInput(x)
    assert_same(net.blocks[0](x), other.forward(), net.blocks[0])


@pytest.mark.parametrize(
    ("parts", "prototxt"),
    [(resnet50(), in_place_prototxt), (mobilenet_v2(), apart_prototxt)],
    ids=["ResNet-50", "MobileNetV2"],
)
def test_published_nets(parts, prototxt, read):
    """The batch-norm parts of two nets, on planes an eighth of their size."""
    rng = np.random.default_rng(1)
    xs = {p.conv: rng.uniform(-6, 6, size=(1, p.channels, 1 + p.size // 8, 1 + p.size // 8)) for p in parts}
    net, other = read(inputs_of(parts, lambda part: xs[part.conv].shape) + prototxt(parts), model_of(parts))
    for name, x in xs.items():
        other.setInput(x.astype(np.float32), name)
    last = {part.conv: part.scale for part in parts}
    results = other.forward([last[part.conv] for part in parts])
    for part, block, expected in zip(parts, net.blocks, results, strict=True):
        y = block.fused()(xs[part.conv].astype(np.float32))
        assert_same(y, expected, block)
