"""Caffe's nets: what `load` finds in prototxt and caffemodel, what the blocks compute, what `save` writes."""

import doctest
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from arrays import U32
from caffe_files import (
    EXAMPLE,
    apart_prototxt,
    blob,
    caffemodel,
    decode,
    field,
    in_place_prototxt,
    layer,
    mobilenet_v2,
    model_of,
    parameters,
    resnet50,
    size_of,
)

import fastbn
from fastbn import caffe, cli, reference
from fastbn.caffe import batch_norm, blobs, blocks, net, scale


@pytest.fixture
def files(tmp_path):
    """Writes files from text or bytes, and gives their paths."""

    def write(*contents):
        paths = []
        for k, content in enumerate(contents):
            path = tmp_path / f"{k}.{'prototxt' if isinstance(content, str) else 'caffemodel'}"
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def one(name="bn", options="", kind="BatchNorm", rest=""):
    """The text of one layer in place on a blob x."""
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "x" top: "x" {options} }} {rest}\n'


BATCH_NORM, SCALE = one(), one("scale", "scale_param { bias_term: true }", "Scale")
STATISTICS = [blob([2, 4]), blob([6, 8]), blob([2])]  # mean 1, 2; variance 3, 4
AFFINE = [blob([10, 20]), blob([100, 200])]
MODEL = caffemodel(layer("bn", "BatchNorm", STATISTICS), layer("scale", "Scale", AFFINE))


def data_of(layer_):
    return [b.data.tolist() for b in layer_.blobs]


# ---- the example that has to work as it stands


def test_the_example_trains_and_tests(files, rng):
    (path,) = files(EXAMPLE)
    net = caffe.load(path, phase="TRAIN")
    (block,) = net.blocks
    assert (block.name, block.relu, block.batch_norm.blobs, block.scale.bias_term) == ("bn1", False, [], True)
    sums = np.zeros((3, 5))
    for step in range(4):
        x = rng.normal(step, 2, size=(3, 5, 4, 4)).astype(np.float32)
        dy = rng.normal(size=x.shape).astype(np.float32)
        gamma, beta = (b.data.copy() for b in block.scale.blobs) if step else (np.ones(5), np.zeros(5))
        y, stats = reference.batch_norm(x, gamma, beta)
        gradients = reference.batch_norm_backward(dy, x, stats, gamma, beta)
        sums = 0.999 * sums + [stats.mean, stats.unbiased_var, np.ones(5)]
        given = x.copy()
        close = {"rtol": 16 * U32, "atol": 64 * U32}
        np.testing.assert_allclose(block(given, out=given), y, **close)
        np.testing.assert_allclose(block.backward(dy), gradients.dx, **close)
        for b, expected in zip(block.scale.blobs, (gradients.dgamma, gradients.dbeta), strict=True):
            np.testing.assert_allclose(b.diff, expected, rtol=1e-5, atol=1e-4)  # P1's 1e-6 of about 48 terms
            b.data -= 0.1 * b.diff
        block.scale.clear_diffs()
    np.testing.assert_allclose(block.batch_norm.blobs[0], sums[0], rtol=1e-6)
    np.testing.assert_allclose(block.batch_norm.blobs[1], sums[1], rtol=1e-6)

    net.phase = "TEST"
    (tested,) = net.blocks
    assert tested.batch_norm.use_global_stats
    assert tested.batch_norm is not block.batch_norm
    assert all(a is b for a, b in zip(tested.batch_norm.blobs, block.batch_norm.blobs, strict=True))
    gamma, beta = (b.data for b in tested.scale.blobs)
    expected = reference.normalize(x, sums[0] / sums[2], sums[1] / sums[2], gamma, beta)
    before = data_of(tested.batch_norm)
    np.testing.assert_allclose(tested(x), expected, **close)
    assert np.array_equal(tested.fused()(x), tested(x))
    assert data_of(tested.batch_norm) == before
    net.phase = "TRAIN"
    assert net.blocks[0].batch_norm is block.batch_norm


def test_random_layers_of_a_net_differ(files):
    random = 'scale_param { filler { type: "gaussian" } }'
    text = "".join(one(f"bn{k}") + one(f"scale{k}", random, "Scale") for k in range(2))
    first, second = caffe.load(*files(text), channels=3).blocks
    x = np.random.default_rng(0).normal(size=(4, 3))
    first(x), second(x)
    assert not np.array_equal(first.scale.blobs[0].data, second.scale.blobs[0].data)


@pytest.mark.parametrize("channels", [5, {"bn1": 5, "other": 3}])
def test_the_count_of_channels_by_argument(channels, files):
    block = caffe.load(*files(EXAMPLE), channels=channels).blocks[0]
    assert [b.shape for b in [*block.batch_norm.blobs, *block.scale.blobs]] == [(5,), (5,), (1,), (5,), (5,)]


def test_the_count_of_channels_from_the_caffemodel(files):
    model = caffemodel(layer("scale1", "Scale", AFFINE))
    block = caffe.load(*files(EXAMPLE, model)).blocks[0]
    assert (block.batch_norm.channels, data_of(block.scale)) == (2, [[10, 20], [100, 200]])
    with pytest.raises(ValueError, match=r"layer 'bn1': channels: expected 2, as in the file, got 3"):
        caffe.load(*files(EXAMPLE, caffemodel(layer("bn1", "BatchNorm", STATISTICS))), channels=3)
    with pytest.raises(ValueError, match="layer 'bn1': the number of channels is not known"):
        caffe.load(*files(EXAMPLE)).blocks[0].fused()


# ---- blobs


def test_a_byte_order_mark_is_no_part_of_the_text(files):
    assert len(caffe.load(*files("\ufeff" + BATCH_NORM)).blocks) == 1


def test_fillers_of_a_file(files):
    text = """scale_param { bias_term: true filler { type: "uniform" min: 2 max: 3 }
        bias_filler { type: "gaussian" mean: 1 std: 0.5 sparse: 2 variance_norm: AVERAGE } }"""
    (block,) = caffe.load(*files(BATCH_NORM + one("scale", text, "Scale"))).blocks
    assert block.scale.filler == caffe.Filler("uniform", min=2.0, max=3.0)
    assert block.scale.bias_filler == caffe.Filler("gaussian", mean=1.0, std=0.5, sparse=2, variance_norm="AVERAGE")


def test_blobs_are_matched_by_name_alone(files):
    model = caffemodel(
        layer("conv", "Convolution", [blob(np.ones((2, 2)))]),
        layer("bn", "whatever", STATISTICS),
        layer("scale", "", AFFINE),
        extra=field(2, field(4, "an old layer")),
    )
    (block,) = caffe.load(*files(BATCH_NORM + SCALE, model)).blocks
    assert data_of(block.batch_norm) == [[2, 4], [6, 8], [2]]
    assert data_of(block.scale) == [[10, 20], [100, 200]]
    expected = np.array([[2 / (3 + 1e-5) ** 0.5 * 10 + 100, 2 / (4 + 1e-5) ** 0.5 * 20 + 200]])
    np.testing.assert_allclose(block(np.array([[3.0, 4.0]])), expected, rtol=1e-14)


def test_layers_of_one_name_are_told_apart_by_type(files):
    """And of one name and type in a file the last one counts, as in Caffe."""
    model = caffemodel(
        layer("a", "BatchNorm", [blob([9, 9])] * 3), layer("a", "BatchNorm", STATISTICS), layer("a", "Scale", AFFINE)
    )
    paths = files(one("a") + one("a", "scale_param { bias_term: true }", "Scale"), model)
    net = caffe.load(*paths)
    (block,) = net.blocks
    assert (data_of(block.batch_norm)[0], data_of(block.scale)[0]) == ([2, 4], [10, 20])
    block.batch_norm.blobs[0].data, block.scale.blobs[1].data = [5, 6], [7, 8]
    net.save(paths[1])
    (again,) = caffe.load(*paths).blocks
    assert (data_of(again.batch_norm)[0], data_of(again.scale)) == ([5, 6], [[10, 20], [7, 8]])


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("double", [True, False], ids=["double", "float"])
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy shape", "shape"])
def test_every_way_to_store_a_blob(packed, double, legacy, files):
    def stored(values):
        shape = (1, 1, 1, len(values))
        return blob(values, legacy=shape if legacy else None, double=double, packed=packed)

    statistics, affine = ([stored(v) for v in a] for a in ([[0.1, 4], [6, 8], [2]], [[10, 20], [100, 0.2]]))
    model = caffemodel(layer("bn", "BatchNorm", statistics), layer("scale", "Scale", affine))
    (block,) = caffe.load(*files(BATCH_NORM + SCALE, model)).blocks
    dtype = np.float64 if double else np.float32
    assert {b.data.dtype for b in [*block.batch_norm.blobs, *block.scale.blobs]} == {np.dtype(dtype)}
    assert [b.shape for b in [*block.batch_norm.blobs, *block.scale.blobs]] == [(2,), (2,), (1,), (2,), (2,)]
    assert data_of(block.batch_norm)[0] == [dtype(0.1), 4]
    assert data_of(block.scale)[1] == [100, dtype(0.2)]


def test_double_data_goes_before_data(files):
    both = blob([7, 7], extra=field(8, np.array([1.0, 2.0]).tobytes()))
    model = caffemodel(layer("bn", "BatchNorm", [both, *STATISTICS[1:]]))
    (block,) = caffe.load(*files(BATCH_NORM, model)).blocks
    assert data_of(block.batch_norm)[0] == [1, 2]
    assert caffe.load(*files(BATCH_NORM, model), dtype=np.float32).blocks[0].batch_norm.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "shape", "legacy"),
    [
        ("num_axes: 2", (2, 3), (1, 1, 2, 3)),
        ("num_axes: -1", (2, 3, 4), (1, 2, 3, 4)),
        ("num_axes: 0", (), (1, 1, 1, 1)),
        ("axis: -3", (2,), (1, 1, 1, 2)),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_scales_along_other_axes(options, shape, legacy, old, files, rng):
    """Run one after the other; a legacy shape is that of x with ones in front."""
    values = rng.normal(size=shape).astype(np.float32)
    text = BATCH_NORM + one("scale", f"scale_param {{ {options} }}", "Scale")
    model = caffemodel(
        layer("bn", "BatchNorm", STATISTICS), layer("scale", "Scale", [blob(values, legacy=legacy if old else None)])
    )
    (block,) = caffe.load(*files(text, model)).blocks
    x, dy = rng.normal(size=(2, 3, 2, 3, 4)).astype(np.float32)
    factor = values.reshape(shape + (1,) * (3 - len(shape))) if shape else values
    close = {"rtol": 16 * U32, "atol": 16 * U32}
    np.testing.assert_allclose(block(x), reference.normalize(x, [1, 2], [3, 4]) * factor, **close)
    gradients = reference.batch_norm_backward(dy * factor, x, ([1, 2], [3, 4]), training=False)
    np.testing.assert_allclose(block.backward(dy), gradients.dx, **close)
    assert block.scale.blobs[0].shape == shape
    if options == "num_axes: 0":
        np.testing.assert_allclose(block.fused()(x), block(x), **close)
    else:
        with pytest.raises(ValueError, match="layer 'bn': its Scale has axis"):
            block.fused()


def test_blobs_in_the_definition_itself(files):
    """A caffemodel has everything; text can have blobs, too."""
    fields = field(3, "x") + field(4, "x") + field(139, field(1, 1) + field(3, 0.5))
    model = caffemodel(layer("bn", "BatchNorm", STATISTICS, extra=fields))
    (binary,) = caffe.load(*files(model)).blocks
    text = one(options="blobs { data: [2, 4] shape { dim: 2 } } blobs { data: 6 data: 8 shape { dim: 2 } } "
               "blobs { data: 2 shape { dim: 1 } }")  # fmt: skip
    (textual,) = caffe.load(*files(text)).blocks
    assert data_of(binary.batch_norm) == data_of(textual.batch_norm) == [[2, 4], [6, 8], [2]]
    assert (binary.batch_norm.eps, binary.batch_norm.use_global_stats) == (0.5, True)


# ---- parameters, rules, what follows what


def test_parameters_of_batch_norm(files):
    text = one("a") + one("b", "batch_norm_param { eps: 0.001 moving_average_fraction: 0.95 use_global_stats: false }")
    a, b = (block.batch_norm for block in caffe.load(*files(text)).blocks)
    assert (a.eps, a.moving_average_fraction, a.use_global_stats, a.phase) == (1e-5, 0.999, None, "TEST")
    assert (b.eps, b.moving_average_fraction, b.use_global_stats, b.phase) == (1e-3, 0.95, False, "TEST")


def test_the_phase_of_a_layer_goes_before_that_of_the_net(files):
    net = caffe.load(*files(one("a", "phase: TRAIN") + one("b")))
    assert [block.batch_norm.phase for block in net.blocks] == ["TRAIN", "TEST"]
    net.phase = "TRAIN"
    assert [block.batch_norm.phase for block in net.blocks] == ["TRAIN", "TRAIN"]
    with pytest.raises(ValueError, match="phase: expected"):
        net.phase = "EVAL"
    assert net.phase == "TRAIN"
    net.phase = "TEST"
    assert [block.batch_norm.phase for block in net.blocks] == ["TRAIN", "TEST"]


RULES = [  # rules, in TEST, in TRAIN, for a net with level 2 and stages a and b
    ("", True, True),
    ("include { phase: TEST }", True, False),
    ("exclude { phase: TEST }", False, True),
    ("include { phase: TEST } include { phase: TRAIN }", True, True),
    ("exclude { phase: TEST } exclude { phase: TRAIN }", False, False),
    ("include { }", True, True),
    ("exclude { }", False, False),
    ("include { min_level: 2 }", True, True),
    ("include { min_level: 3 }", False, False),
    ("include { max_level: 1 }", False, False),
    ("include { min_level: 1 max_level: 2 phase: TRAIN }", False, True),
    ('include { stage: "a" stage: "b" }', True, True),
    ('include { stage: "a" stage: "c" }', False, False),
    ('include { not_stage: "b" }', False, False),
    ('exclude { not_stage: "c" phase: TEST }', False, True),
    ('include { stage: "c" } include { stage: "a" phase: TRAIN }', False, True),
]


@pytest.mark.parametrize(("rules", "test", "train"), RULES)
def test_rules(rules, test, train, files):
    net = caffe.load(*files('state { level: 2 stage: "a" stage: "b" }' + one(options=rules)))
    assert len(net.blocks) == test
    net.phase = "TRAIN"
    assert len(net.blocks) == train


def test_a_rule_of_both_kinds_is_refused(files):
    with pytest.raises(ValueError, match="layer 'bn': expected include or exclude rules, got both"):
        caffe.load(*files(one(options="include { } exclude { }")))


def after(*layers):
    """A BatchNorm from x to y, and layers (type, bottoms, tops, options)."""
    text = 'layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" }'
    for kind, bottoms, tops, *options in layers:
        ends = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
        text += f'layer {{ name: "{kind}{"".join(tops)}" type: "{kind}" {" ".join([*ends, *options])} }}'
    return text


FOLLOWERS = [  # layers after the BatchNorm; is there a scale; is there a ReLU
    ([], False, False),
    ([("ReLU", "y", "y")], False, True),
    ([("ReLU", "y", "z")], False, True),
    ([("Scale", "y", "y"), ("ReLU", "y", "y")], True, True),
    ([("Scale", "y", "z"), ("ReLU", "z", "z")], True, True),
    ([("Convolution", "u", "v"), ("Scale", "y", "z"), ("Dropout", "v", "v"), ("ReLU", "z", "z")], True, True),
    ([("Scale", "y", "y"), ("Eltwise", "yx", "z"), ("ReLU", "z", "z")], True, False),
    ([("Scale", "y", "z"), ("Convolution", "y", "u")], False, False),  # the convolution reads the unscaled result
    ([("Scale", "y", "y"), ("ReLU", "y", "z"), ("Eltwise", "yu", "v")], True, False),
    ([("Scale", "yx", "y")], False, False),  # two bottoms
    ([("Scale", "x", "x")], False, False),  # another blob
    ([("Data", "", "y"), ("Scale", "y", "y"), ("ReLU", "y", "y")], False, False),  # y has been written anew
    ([("Scale", "y", "y"), ("ReLU", "y", "y", "relu_param { negative_slope: 0.1 }")], True, False),
    ([("Scale", "y", "y"), ("Scale", "y", "w"), ("ReLU", "w", "w")], True, False),
]


@pytest.mark.parametrize(("layers", "scale", "relu"), FOLLOWERS)
def test_what_follows(layers, scale, relu, files):
    (block,) = caffe.load(*files(after(*layers))).blocks
    assert (block.scale is not None, block.relu) == (scale, relu)


@pytest.mark.parametrize(
    ("layers", "by"),
    [
        ([("Scale", "yx", "y")], "by a Scale with two bottoms"),
        ([("Scale", "y", "z"), ("ReLU", "y", "u")], "and by others"),
    ],
)
def test_who_reads_the_result_of_a_layer_without_its_scale(layers, by, files):
    (block,) = caffe.load(*files(after(*layers))).blocks
    assert [by in note for note in block.notes if "read by" in note] == [True]


def test_a_second_top_is_written_too(files):
    assert caffe.load(*files(after(("Slice", "u", "vy"), ("Scale", "y", "y")))).blocks[0].scale is None


def test_oddities(files):
    layers = after(("ReLU", "y", "y", "relu_param { negative_slope: 0.1 }"))
    model = caffemodel(layer("bn", "BatchNorm", [blob([0, 1]), blob([-1, 1]), blob([-1])]))
    (block,) = caffe.load(*files(layers, model)).blocks
    assert [text.split(" ")[:2] for text in block.oddities()] == [
        ["followed", "by"],
        ["negative", "scale"],
        ["negative", "variance"],
    ]
    with pytest.raises(ValueError, match="layer 'bn': running_var: expected values >= 0, got -1"):
        block.fused()
    model = caffemodel(layer("bn", "BatchNorm", [blob([0, 1]), blob([1, 1]), blob([0])]))
    (block,) = caffe.load(*files(BATCH_NORM, model)).blocks
    assert block.oddities() == ["scale factor 0: mean and variance are taken as 0"]
    assert caffe.load(*files(BATCH_NORM)).blocks[0].oddities() == ["no blobs in the file"]
    assert caffe.load(*files(BATCH_NORM, MODEL)).blocks[0].oddities() == []


# ---- the fused layer


@pytest.mark.parametrize("weight", [0, 1, 3.7])
@pytest.mark.parametrize("shape", [(5, 7), (3, 7, 5), (2, 7, 3, 4), (2, 7, 2, 3, 2)], ids=str)
def test_fused_equals_the_pair_with_global_statistics(shape, weight, files, rng):
    mean, var, gamma, beta = rng.normal(size=7), rng.uniform(0.1, 2, 7), rng.normal(size=7), rng.normal(size=7)
    model = caffemodel(
        layer("bn", "BatchNorm", [blob(mean), blob(var), blob([weight])]),
        layer("scale", "Scale", [blob(gamma), blob(beta)]),
    )
    net = caffe.load(*files(one(options="batch_norm_param { eps: 0.01 }") + SCALE, model))
    (block,) = net.blocks
    x = rng.normal(size=shape).astype(np.float32)
    bn = block.fused()
    assert (type(bn), bn.training, bn.eps, bn.momentum) == (fastbn.BatchNorm, False, 0.01, 0.001)
    apart = block.scale(block.batch_norm(x))
    s = 1 / weight if weight else 0
    as32 = [a.astype(np.float32).astype(float) for a in (mean, var, gamma, beta)]
    expected = reference.normalize(x, as32[0] * np.float32(s), as32[1] * np.float32(s), *as32[2:], eps=0.01)
    close = {"rtol": 16 * U32, "atol": 64 * U32}
    np.testing.assert_allclose(bn(x), expected, **close)
    np.testing.assert_allclose(bn(x), apart, **close)
    assert np.array_equal(bn(x), block(x))
    dy = rng.normal(size=shape).astype(np.float32)
    assert np.array_equal(bn.backward(dy), block.backward(dy))
    net.phase = "TRAIN"
    assert not np.allclose(block(x), expected)


@pytest.mark.parametrize("num_axes", [0, 1])
def test_fused_has_the_scale_that_a_filler_made(num_axes, files):
    text = f'scale_param {{ num_axes: {num_axes} filler {{ type: "gaussian" }} }}'
    (block,) = caffe.load(*files(BATCH_NORM + one("scale", text, "Scale")), channels=2).blocks
    gamma = block.fused().gamma
    block(np.ones((1, 2), np.float32))
    assert np.array_equal(gamma, np.broadcast_to(block.scale.blobs[0].data, 2))
    assert np.array_equal(gamma, block.fused().gamma)


def test_without_a_scale_fused_has_no_parameters(files):
    (block,) = caffe.load(*files(BATCH_NORM, MODEL)).blocks
    assert sorted(block.fused().state_dict()) == ["num_batches_tracked", "running_mean", "running_var"]


def test_a_block_and_its_layers_do_the_same(files, rng):
    """In training, blobs and gradients included; gradients are accumulated."""
    nets = [caffe.load(*files(BATCH_NORM + SCALE, MODEL), phase="TRAIN", dtype=np.float64) for _ in range(2)]
    (one_pass,), (apart,) = nets[0].blocks, nets[1].blocks
    for _ in range(2):
        x, dy = rng.normal(size=(2, 4, 2, 3))
        close = {"rtol": 1e-12, "atol": 1e-12}
        np.testing.assert_allclose(one_pass(x), apart.scale(apart.batch_norm(x)), **close)
        np.testing.assert_allclose(one_pass.backward(dy), apart.batch_norm.backward(apart.scale.backward(dy)), **close)
    for a, b in zip(one_pass.scale.blobs, apart.scale.blobs, strict=True):
        np.testing.assert_allclose(a.diff, b.diff, **close)
    assert data_of(one_pass.batch_norm) == data_of(apart.batch_norm)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_block_without_a_scale(phase, files, rng):
    (block,) = caffe.load(*files(BATCH_NORM, MODEL), phase=phase).blocks
    x, dy = rng.normal(size=(2, 4, 2, 3)).astype(np.float32)
    y, dx = block(x), block.backward(dy)
    (other,) = caffe.load(*files(BATCH_NORM, MODEL), phase=phase).blocks
    assert np.array_equal(other.batch_norm(x), y)
    assert np.array_equal(other.batch_norm.backward(dy), dx)
    assert data_of(other.batch_norm) == data_of(block.batch_norm)


def test_a_scale_that_does_not_fit_changes_nothing(files):
    text = BATCH_NORM + one("scale", "scale_param { num_axes: 2 }", "Scale")
    model = caffemodel(layer("bn", "BatchNorm", STATISTICS), layer("scale", "Scale", [blob(np.ones((2, 3)))]))
    (block,) = caffe.load(*files(text, model), phase="TRAIN").blocks
    with pytest.raises(ValueError, match=r"blobs\[0\]: expected shape \(2, 4\)"):
        block(np.ones((3, 2, 4)))
    assert data_of(block.batch_norm) == [[2, 4], [6, 8], [2]]


def test_blocks_refuse_what_layers_refuse(files):
    (block,) = caffe.load(*files(BATCH_NORM + SCALE, MODEL)).blocks
    with pytest.raises(RuntimeError, match="backward: expected a forward"):
        block.backward(np.ones((1, 2)))
    with pytest.raises(ValueError, match="x: expected 2 channels"):
        block(np.ones((2, 3)))


# ---- forks


def test_nvidias_five_blobs(files, rng):
    """Averages with a third blob that is not divided by, then scale and bias; eps is at least 1e-5."""
    blobs = [blob([1, 2]), blob([3, 4]), blob([7]), *AFFINE]
    model = caffemodel(layer("bn", "BatchNorm", blobs))
    text = one(options="batch_norm_param { eps: 1e-7 moving_average_fraction: 0.75 scale_bias: true engine: CUDNN }")
    net = caffe.load(*files(text, model))
    (block,) = net.blocks
    assert (block.batch_norm.eps, data_of(block.scale)) == (1e-5, [[10, 20], [100, 200]])
    x = rng.normal(size=(4, 2, 3)).astype(np.float32)
    expected = reference.normalize(x, [1, 2], [3, 4], [10, 20], [100, 200])
    np.testing.assert_allclose(block(x), expected, rtol=16 * U32)
    net.phase = "TRAIN"
    block(x)
    stats = reference.batch_stats(x)
    mean, var = 0.75 * np.array([1, 2]) + 0.25 * stats.mean, 0.75 * np.array([3, 4]) + 0.25 * stats.var
    np.testing.assert_allclose(block.batch_norm.statistics(), [mean, var], rtol=4 * U32)

    net.save(path := files(b"")[0])
    (found,) = (v for k, v in decode(path.read_bytes()) if k == 100)
    written = [dict(decode(v)) for k, v in decode(found) if k == 7]
    assert len(written) == 5
    np.testing.assert_array_equal(np.frombuffer(written[1][5], "<f4"), var.astype(np.float32))
    assert np.frombuffer(written[4][5], "<f4").tolist() == [100, 200]


@pytest.mark.parametrize(("name", "expected"), [("scale_filler", [[3, 3], [0, 0]]), ("bias_filler", [[1, 1], [3, 3]])])
def test_a_filler_alone_makes_it_nvidias(name, expected, files):
    (block,) = caffe.load(*files(one(options=f"batch_norm_param {{ {name} {{ value: 3 }} }}")), channels=2).blocks
    assert data_of(block.scale) == expected


def test_nvidias_fresh_layer_copies_two_batches(files, rng):
    (block,) = caffe.load(*files(one(options="batch_norm_param { scale_filler { value: 3 } }")), phase="TRAIN").blocks
    for _ in range(2):
        block(x := rng.normal(size=(4, 2)))
        stats = reference.batch_stats(x)
        np.testing.assert_allclose(block.batch_norm.statistics(), [stats.mean, stats.var], rtol=4 * U32)
    assert data_of(block.scale) == [[3, 3], [0, 0]]
    block(rng.normal(9, size=(4, 2)))
    assert abs(block.batch_norm.statistics()[0] - stats.mean).max() < 0.02


def bn_text(rest=""):
    return one("bn", f"bn_param {{ slope_filler {{ value: 1 }} {rest} }}", "BN")


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1, 1), (2,)])
@pytest.mark.parametrize("style", ["variance", "invstd"])
def test_the_two_bn_layers_of_yjxiong(style, shape, files, rng):
    """Scale, bias, mean, and the variance or 1/sqrt(variance + eps)."""
    var = np.array([0.25, 4])
    fourth = var if style == "variance" else 1 / np.sqrt(var + 1e-3)
    blobs = [blob(v, shape) for v in ([10, 20], [100, 200], [1, 2], fourth)]
    model = caffemodel(layer("bn", "BN", blobs), extra=field(77, "kept"))
    paths = files(bn_text("eps: 0.001 momentum: 0.75"), model)
    net = caffe.load(*paths, bn=style)
    (block,) = net.blocks
    x = rng.normal(size=(4, 2, 3)).astype(np.float32)
    close = {"rtol": 32 * U32, "atol": 32 * U32 * 20}
    expected = reference.normalize(x, [1, 2], var, [10, 20], [100, 200], eps=1e-3)
    np.testing.assert_allclose(block(x), expected, **close)
    np.testing.assert_allclose(block.fused()(x), expected, **close)

    untouched = paths[1].read_bytes()
    net.save(paths[1])
    assert sorted(decode(paths[1].read_bytes())) == sorted(decode(untouched))
    net.phase = "TRAIN"
    y, stats = reference.batch_norm(x, [10, 20], [100, 200], eps=1e-3)
    np.testing.assert_allclose(block(x), y, **close)
    moved = 0.75 * np.array([1, 2]) + 0.25 * stats.mean, 0.75 * var + 0.25 * stats.var
    np.testing.assert_allclose(block.batch_norm.statistics(), moved, rtol=1e-6)
    net.save(paths[1])
    (again,) = caffe.load(*paths, bn=style).blocks
    np.testing.assert_allclose(again.batch_norm.statistics(), moved, rtol=1e-6)
    assert data_of(again.scale) == [[10, 20], [100, 200]]


def test_an_inverse_deviation_that_is_rounded_up(files):
    """1/sqrt(0 + eps) in float32 may be a little more than that: the variance is 0, not less."""
    invstd = np.nextafter(np.float32(1e-5**-0.5), np.float32(np.inf))
    model = caffemodel(layer("bn", "BN", [blob([v], (1, 1)) for v in (1, 0, 0, invstd)]))
    (block,) = caffe.load(*files(bn_text(), model), bn="invstd").blocks
    assert block.fused().running_var == 0


def test_a_fork_with_a_scale_of_its_own_behind_it(files):
    model = caffemodel(layer("bn", "BatchNorm", [*STATISTICS, *AFFINE]), layer("scale", "Scale", AFFINE))
    (block,) = caffe.load(*files(BATCH_NORM + SCALE, model)).blocks
    assert data_of(block.scale) == [[10, 20], [100, 200]]
    assert block.oddities() == ["has a scale, and is followed by the Scale 'scale', which is not in this block"]


def test_channels_of_a_fork_by_argument(files):
    (block,) = caffe.load(*files(bn_text()), bn="variance", channels=3).blocks
    assert (data_of(block.batch_norm), data_of(block.scale)) == ([[0] * 3, [0] * 3, [1]], [[1] * 3, [0] * 3])


def test_bn_has_to_be_named(files):
    model = caffemodel(layer("bn", "BN", [blob([v], (1, 1)) for v in (1, 0, 0, 400)]))
    with pytest.raises(ValueError, match=r'layer \'bn\': type BN: expected the argument bn="variance"'):
        caffe.load(*files(bn_text(), model))
    with pytest.raises(ValueError, match=r"layer 'bn': blobs\[3\]: expected inverse standard deviations of at most"):
        caffe.load(*files(bn_text(), model), bn="invstd")
    with pytest.raises(ValueError, match="bn: expected"):
        caffe.load(*files(bn_text(), model), bn="std")
    (frozen,) = caffe.load(*files(bn_text("frozen: true"), model), bn="variance", phase="TRAIN").blocks
    assert frozen.batch_norm.in_global_mode


# ---- saving


def test_save_changes_what_has_changed_and_nothing_else(files, rng):
    strange = field(900, b"\x00\xff") + field(137, b"\x0a\x05other")  # a number that means something else elsewhere
    conv = layer("conv", "Convolution", [blob(rng.normal(size=(2, 3)), extra=field(99, 7))], extra=strange)
    bn = layer("bn", "BatchNorm", [blob([2, 4], legacy=(1, 1, 1, 2)), *STATISTICS[1:]], extra=strange)
    content = caffemodel(conv, bn, layer("scale", "Scale", AFFINE), extra=field(2, b"\x22\x03old") + field(5, 1))
    paths = files(BATCH_NORM + SCALE, content)
    net = caffe.load(*paths)
    net.save(paths[1])
    assert sorted(decode(paths[1].read_bytes())) == sorted(decode(content))

    net.blocks[0].batch_norm.blobs[0].data = [3, 5]
    net.save(paths[1])
    saved, original = decode(paths[1].read_bytes()), decode(content)
    changed = [(a, b) for a, b in zip(sorted(saved), sorted(original), strict=True) if a != b]
    assert len(changed) == 1
    fields = decode(changed[0][0][1])
    blobs = [v for k, v in fields if k == 7]
    assert dict(decode(blobs[0])) == {5: np.array([3, 5], "<f4").tobytes(), 7: field(1, b"\x02")}
    assert blobs[1:] == STATISTICS[1:]
    assert {k: v for k, v in fields if k in (137, 900)} == {137: b"\x0a\x05other", 900: b"\x00\xff"}
    (again,) = caffe.load(*paths).blocks
    assert data_of(again.batch_norm) == [[3, 5], [6, 8], [2]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_save_without_a_caffemodel(dtype, files, rng, tmp_path):
    (path,) = files(EXAMPLE)
    net = caffe.load(path, phase="TRAIN", dtype=dtype)
    with pytest.raises(ValueError, match=r"^net: expected batch-norm layers with blobs to save, got none"):
        net.save(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    net.blocks[0](rng.normal(size=(4, 3, 2)).astype(dtype))
    net.save(tmp_path / "new")
    layers = [decode(v) for _, v in decode((tmp_path / "new").read_bytes())]
    assert [(dict(fields)[1], dict(fields)[2]) for fields in layers] == [(b"bn1", b"BatchNorm"), (b"scale1", b"Scale")]
    number, kind = (8, "<f8") if dtype == np.float64 else (5, "<f4")
    first = dict(decode(next(v for k, v in layers[0] if k == 7)))
    assert set(first) == {7, number}
    assert np.array_equal(np.frombuffer(first[number], kind), net.blocks[0].batch_norm.blobs[0])
    (again,) = caffe.load(path, tmp_path / "new").blocks
    assert data_of(again.batch_norm) == data_of(net.blocks[0].batch_norm)
    assert again.batch_norm.dtype == dtype


def test_a_file_of_doubles_saved_from_float32(files, tmp_path):
    doubles = [blob(values, double=True) for values in ([2, 4], [6, 8], [2])]
    paths = files(BATCH_NORM, caffemodel(layer("bn", "BatchNorm", doubles)))
    net = caffe.load(*paths, dtype=np.float32)
    net.blocks[0].batch_norm.blobs[0].data = [7, 8]
    net.save(tmp_path / "new")
    (again,) = caffe.load(paths[0], tmp_path / "new").blocks
    assert data_of(again.batch_norm) == [[7, 8], [6, 8], [2]]


def test_to_save_twice_is_to_save_once(files, tmp_path):
    net = caffe.load(*files(BATCH_NORM), channels=2)
    net.save(tmp_path / "a")
    net.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_saved_file_has_the_mode_of_any_new_file(mask, files, tmp_path):
    before = os.umask(mask)
    try:
        caffe.load(*files(BATCH_NORM, MODEL)).save(tmp_path / "new")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask


def test_save_writes_all_or_nothing(files, tmp_path, monkeypatch):
    paths = files(BATCH_NORM, MODEL)
    net = caffe.load(*paths)
    with pytest.raises(OSError, match="no-folder"):
        net.save(tmp_path / "no-folder" / "net.caffemodel")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        net.save(paths[1])
    assert paths[1].read_bytes() == MODEL
    assert sorted(tmp_path.iterdir()) == sorted(paths)


# ---- ResNet-50 and MobileNetV2


@pytest.mark.parametrize(
    ("parts", "prototxt", "size"),
    [
        (resnet50(), in_place_prototxt, (53, 26_560, 10_587_136)),
        (mobilenet_v2(), apart_prototxt, (52, 17_056, 6_678_112)),
    ],
    ids=["ResNet-50", "MobileNetV2"],
)
def test_published_nets(parts, prototxt, size, files):
    """Built in their published pattern with random numbers: loaded, fused and compared with the formula."""
    assert size_of(parts) == size
    net = caffe.load(*files(prototxt(parts), model_of(parts)))
    assert [block.name for block in net.blocks] == [part.bn for part in parts]
    assert [block.relu for block in net.blocks] == [part.relu for part in parts]
    rng = np.random.default_rng(0)
    for part, block in zip(parts, net.blocks, strict=True):
        (mean, var, weight), affine = parameters(part, rng)
        rng.normal(size=(2, 3, 1, 1))  # the convolution's
        x = np.random.default_rng(1).normal(size=(2, part.channels, 3, 3)).astype(np.float32)
        expected = reference.normalize(x, mean / weight.astype(float), var / weight.astype(float), *affine)
        bn = block.fused()
        np.testing.assert_allclose(bn(x), expected, rtol=16 * U32, atol=64 * U32)
        assert np.array_equal(bn(x), block(x))


# ---- the command


def test_the_command_lists_and_exports(files, capsys):
    odd = layer("odd", "BatchNorm", [blob([1]), blob([-2]), blob([2])])
    text = BATCH_NORM + SCALE + one("odd") + one("zero") + one("relu", kind="ReLU")
    model = MODEL + odd + layer("zero", "BatchNorm", [blob([1]), blob([1]), blob([0])])
    assert cli.main(["caffe", *map(str, files(text, model))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "channels", "eps", "mean", "variance", "scale", "shift", "ReLU"]
    assert " ".join(lines[1].split()) == "bn 2 1e-05 1 to 2 3 to 4 10 to 20 100 to 200 -"
    assert " ".join(lines[2].split()) == "odd 1 1e-05 0.5 to 0.5 -1 to -1 - - -"
    assert lines[3].split()[-1] == "yes"
    assert lines[4] == "3 batch-norm layers in phase TEST, 4 channels"
    assert lines[5:] == [
        "oddities:",
        "odd: negative variance in 1 channels, least -1",
        "zero: scale factor 0: mean and variance are taken as 0",
    ]


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
def test_a_table_of_which_only_the_head_is_read(files):
    """More lines than one write holds."""
    reading, writing = os.pipe()
    paths = files("".join(one(f"bn{k}") for k in range(2000)), MODEL)
    call = [sys.executable, "-m", "fastbn", "caffe", *map(str, paths)]
    with subprocess.Popen(call, stdout=writing, stderr=subprocess.PIPE, cwd=tempfile.gettempdir()) as running:
        os.close(writing)
        assert os.read(reading, 10).startswith(b"layer")
        os.close(reading)
        assert running.communicate(timeout=60)[1] == b""
    assert running.returncode == 1


def test_oddities_that_many_layers_share_take_one_line(files, capsys):
    assert cli.main(["caffe", *map(str, files("".join(one(f"bn{k}") for k in range(9)), MODEL))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "bn0, bn1, bn2, bn3 and 5 more: no blobs in the file"


def test_the_exported_state(files, tmp_path, capsys):
    paths, to = files(BATCH_NORM + SCALE, MODEL), tmp_path / "out.npz"
    assert cli.main(["caffe", *map(str, paths), "--to", str(to)]) == 0
    assert capsys.readouterr().out.endswith(f"written: {to}\n")
    with np.load(to) as state:
        assert {k: v.tolist() for k, v in state.items()} == {
            "bn.weight": [10, 20],
            "bn.bias": [100, 200],
            "bn.running_mean": [1, 2],
            "bn.running_var": [3, 4],
            "bn.num_batches_tracked": 0,
        }
        bn = fastbn.BatchNorm(2)
        bn.load_state_dict({key.removeprefix("bn."): value for key, value in state.items()})


@pytest.mark.parametrize(
    ("contents", "arguments", "message"),
    [
        ((), ["missing.prototxt"], "No such file"),
        (("layer {",), [], "0.prototxt: 1:"),
        ((MODEL,), [], "layer 'bn': expected one bottom and one top, got 0 and 0 (a file of blobs alone needs"),
        ((BATCH_NORM, b"\xa2\x06\x7f"), [], "1.caffemodel: the file: layer 0: expected 127 bytes"),
        ((one(kind="BN"),), [], "layer 'bn': type BN"),
        ((BATCH_NORM, BATCH_NORM), [], "1.prototxt: expected a caffemodel, got a text without blobs"),
        ((BATCH_NORM,), ["--to", "out.npz"], "layer 'bn': the number of channels is not known"),
        ((BATCH_NORM + BATCH_NORM, MODEL), ["--to", "out.npz"], "layer 'bn': two blocks of the net have this name"),
        (('layer { name: "r" type: "ReLU" bottom: "x" top: "x" }', MODEL), ["--to", "out.npz"], "got none"),
        ((one(), MODEL), ["--to", "nowhere/out.npz"], "No such file or directory: 'nowhere/out.npz'"),
        ((one(), MODEL), ["--to", "."], "Is a directory: '.'"),
    ],
)
def test_errors_of_the_command(contents, arguments, message, files, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["caffe", *map(str, files(*contents)), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastbn caffe: ")
    assert message in error
    assert not (tmp_path / "out.npz").exists()


def test_the_command_hands_on_its_options(monkeypatch):
    given = []
    monkeypatch.setattr(caffe, "load", lambda *args, **options: given.append((*args, options)))
    monkeypatch.setattr("fastbn.caffe.report.table", lambda _: "")
    for options in (["b.caffemodel", "--phase=TRAIN", "--bn=invstd"], ["--bn=variance"], []):
        assert cli.main(["caffe", "a.prototxt", *options]) == 0
    assert given == [
        ("a.prototxt", "b.caffemodel", "TRAIN", {"bn": "invstd"}),
        ("a.prototxt", None, "TEST", {"bn": "variance"}),
        ("a.prototxt", None, "TEST", {"bn": None}),
    ]


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
def test_nobody_reads_on(tmp_path):
    """`fastbn caffe ... | head -0` is no error of the net."""
    (tmp_path / "x").write_text(EXAMPLE)
    reading, writing = os.pipe()
    os.close(reading)
    call = [sys.executable, "-u", "-m", "fastbn", "caffe", str(tmp_path / "x")]
    with subprocess.Popen(call, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        os.close(writing)
        assert running.communicate(timeout=60)[1] == b""
    assert running.returncode == 1


@pytest.mark.parametrize("module", [batch_norm, blobs, blocks, net, scale], ids=lambda m: m.__name__)
def test_examples(module):
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)


def test_a_missing_extra_is_named(tmp_path):
    """The layers need NumPy alone; reading files says what to install."""
    (tmp_path / "x").write_text(EXAMPLE)
    code = f"""
import sys
sys.modules["google"] = sys.modules["google.protobuf"] = None
from fastbn import caffe, cli
import numpy as np
caffe.BatchNorm(1)(np.ones((2, 1)))
raise SystemExit(cli.main(["caffe", {str(tmp_path / "x")!r}]))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert 'pip install "fastbn[caffe]"' in found.stderr
