"""Caffe's files from strangers: damage gives an error with layer and field, no crash, no memory beyond the file's."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from caffe_files import (
    apart_prototxt,
    blob,
    caffemodel,
    field,
    in_place_prototxt,
    layer,
    mobilenet_v2,
    model_of,
    resnet50,
    varint,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastbn import caffe

TEXT = """
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" }
layer { name: "scale" type: "Scale" bottom: "x" top: "x" scale_param { bias_term: true } }
"""
STATISTICS = [blob([2, 4]), blob([6, 8]), blob([2])]
AFFINE = [blob([10, 20]), blob([100, 200])]


def load(tmp_path, prototxt=TEXT, model=None, **options):
    paths = []
    for name, content in (("net.prototxt", prototxt), ("net.caffemodel", model)):
        if content is not None:
            paths.append(tmp_path / name)
            paths[-1].write_bytes(content.encode() if isinstance(content, str) else content)
    return caffe.load(*paths, **options)


def dims(*lengths):
    return field(7, field(1, b"".join(varint(n) for n in lengths)))


def raw(values):
    return np.asarray(values, "<f4").tobytes()


BROKEN_BLOBS = {  # what stands first among the BatchNorm's blobs, and the error
    "wrong shape": (blob([2, 4], (3,)), r"blobs\[0\].data: expected the values of shape \(3,\), got 2"),
    "two axes": (blob([2, 4], (1, 2)), r"blobs\[0\].shape: expected 1 axes, got shape \(1, 2\)"),
    "another legacy shape": (blob([2, 4], legacy=(1, 2, 1, 1)), r"blobs\[0\].shape: expected 1 axes"),
    "no shape": (field(5, raw([2, 4])), r"blobs\[0\].data: expected the values of shape \(\), got 2"),
    "another count of channels": (blob([2, 4, 5]), r"blobs: expected C values each"),
    "no channel": (blob([]), r"blobs: expected C values each"),
    "NaN": (blob([2, np.nan]), r"blobs\[0\].data: expected finite values, got nan at 1"),
    "infinity in doubles": (blob([np.inf, 1], double=True), r"blobs\[0\].double_data: .* got inf at 0"),
    "no values": (dims(2), r"blobs\[0\].data: expected the values of shape \(2,\), got 0"),
    "wrong wire type": (dims(2) + field(5, 3), r"blobs\[0\].data: .* got 0"),
    "more values promised than there are": (dims(10**12) + field(5, raw([1])), r"shape \(1000000000000,\), got 1"),
    "a product beyond 64 bits": (dims(2**32, 2**32) + field(5, raw([1])), r"4294967296\), got 1"),
    "a negative length": (dims(-2) + field(5, raw([1, 2])), r"shape \(-2,\), got 2"),
    "two negative lengths": (dims(-1, -2) + field(5, raw([1, 2])), r"shape \(-1, -2\), got 2"),
    "many axes": (dims(*[1] * 5000) + field(5, raw([1])), r"blobs\[0\].shape: expected at most 32 axes, got 5000"),
}


@pytest.mark.parametrize("case", BROKEN_BLOBS)
def test_blobs(case, tmp_path):
    first, message = BROKEN_BLOBS[case]
    model = caffemodel(layer("bn", "BatchNorm", [first, *STATISTICS[1:]]))
    with pytest.raises(ValueError, match=rf"^layer 'bn': {message}" if message[0] == "b" else message):
        load(tmp_path, model=model)


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_counts_of_blobs(count, tmp_path):
    """Three for a BatchNorm (or NVIDIA's five), two for a Scale with a bias."""
    blobs = [blob([1, 2])] * count
    with pytest.raises(ValueError, match=f"layer 'bn': blobs: expected 3, got {count}"):
        load(tmp_path, model=caffemodel(layer("bn", "BatchNorm", blobs)))
    with pytest.raises(ValueError, match=f"layer 'scale': blobs: expected 2, got {count}"):
        load(tmp_path, model=caffemodel(layer("scale", "Scale", blobs)))


def test_blobs_of_a_scale_that_do_not_fit(tmp_path):
    model = caffemodel(layer("bn", "BatchNorm", STATISTICS), layer("scale", "Scale", [blob([1, 2, 3])] * 2))
    with pytest.raises(ValueError, match=r"layer 'scale': blobs\[0\]: expected shape \(2,\)"):
        load(tmp_path, model=model)


BROKEN_BN = {  # the fourth blob of a BN, and the error with bn="invstd"
    "zero": ([1, 0], r"blobs\[3\]: expected inverse standard deviations > 0"),
    "negative": ([1, -1], r"blobs\[3\]: expected inverse standard deviations > 0"),
    "too small": ([1, 1e-300], r"blobs: expected values in the range of float64, got up to inf"),
    "too large": ([1, 400], r"blobs\[3\]: expected inverse standard deviations of at most"),
}


@pytest.mark.parametrize("case", BROKEN_BN)
def test_blobs_of_bn(case, tmp_path):
    values, message = BROKEN_BN[case]
    text = TEXT.replace("BatchNorm", "BN")
    model = caffemodel(layer("bn", "BN", [blob(v, double=True) for v in ([1, 1], [0, 0], [0, 0], values)]))
    with pytest.raises(ValueError, match=f"layer 'bn': {message}"):
        load(tmp_path, text, model, bn="invstd")
    square = caffemodel(layer("bn", "BN", [blob(np.ones((2, 2)))] * 4))
    with pytest.raises(ValueError, match=r"layer 'bn': blobs\[0\].shape: expected one axis of channels"):
        load(tmp_path, text, square, bn="variance")


def test_doubles_beyond_float32(tmp_path):
    model = caffemodel(layer("bn", "BatchNorm", [blob([1e300], double=True)] * 2 + [blob([1])]))
    with pytest.raises(ValueError, match="layer 'bn': blobs: expected values in the range of float32, got up to 1e"):
        load(tmp_path, model=model, dtype=np.float32)
    assert load(tmp_path, model=model).blocks[0].batch_norm.statistics()[0] == 1e300


BROKEN_BINARIES = {
    "a length beyond the end": (varint(802) + b"\x7f", r"the file: layer 0: expected 127 bytes, 0 are left"),
    "an enormous length": (varint(802) + varint(2**63), "the file: layer 0: expected 9223372036854775808 bytes"),
    "cut in a layer": (
        layer("a", "x") + layer("bn", "BatchNorm", STATISTICS)[:20],
        r"the file: layer 1 'bn': expected 62 bytes, 17 are left",
    ),
    "cut in a number": (field(1, "a") + varint(802)[:1], "the file: ends or is damaged at byte 4"),
    "no field at all": (b"\x07\x00", "the file: has no valid field at byte 0"),
    "a number that does not end": (field(1, "a") + b"\xff" * 20, "the file: ends or is damaged at byte 13"),
    "a layer cut inside": (
        layer("a", "x") + layer("bn", "BatchNorm", extra=varint(58) + b"\x09"),
        r"layer 1 'bn': blobs: expected 9 bytes, 0 are left",
    ),
    "a blob cut inside": (
        layer("bn", "BatchNorm", [STATISTICS[0], varint(42) + b"\x20"]),
        r"layer 0 'bn': blobs\[1\]: data: expected 32 bytes, 0 are left",
    ),
    "half a float": (
        layer("bn", "BatchNorm", [field(5, b"abcde")]),
        r"layer 0 'bn': blobs\[0\]: data: 5 bytes are no whole number of values",
    ),
    "nested groups": (b"\x8b\x01" * 100_000, "net.caffemodel: "),
    "an empty file": (b"", "expected a prototxt or caffemodel, got an empty file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\x00" * 50, "expected a prototxt or caffemodel, got an HDF5 file"),
}


@pytest.mark.parametrize("case", BROKEN_BINARIES)
def test_binaries(case, tmp_path):
    content, message = BROKEN_BINARIES[case]
    with pytest.raises(ValueError, match=f"net.caffemodel: .*{message.removeprefix('net.caffemodel: ')}"):
        load(tmp_path, model=content)
    with pytest.raises(ValueError, match=r"net\.prototxt: "):
        load(tmp_path, content)


def bn(options):
    return f'layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "x" {options} }}'


BROKEN_TEXTS = {
    "cut": (TEXT[:40], r"net.prototxt: \d+:\d+"),
    "nested": ("layer { a { " * 20_000, r"net.prototxt: "),
    "unknown and nested": ("a { " * 20_000 + "}" * 20_000, r"net.prototxt: messages are nested too deeply"),
    "a number twice": (bn("batch_norm_param { eps: 1 eps: 2 }"), r"net.prototxt: 1:\d+ .*eps"),
    "a word for a number": (bn("batch_norm_param { eps: small }"), r"net.prototxt: 1:\d+"),
    "a number that is too large": (bn("include { min_level: 99999999999999999999 }"), r"net.prototxt: 1:\d+"),
    "a phase that is none": (bn("include { phase: VALIDATE }"), r"net.prototxt: 1:\d+.*VALIDATE"),
    "an unknown escape": (bn(r'top: "\onv1"'), r"net.prototxt: .*invalid escape sequence '\\o'"),
    "a very long line": ("x" * 100_000 + " {", "net.prototxt: "),
    "NaN": (bn("batch_norm_param { eps: nan }"), "layer 'bn': eps: expected a finite number, got nan"),
    "too large a float": (bn("batch_norm_param { eps: 1e99 }"), "layer 'bn': eps: expected a finite number"),
    "negative eps": (bn("batch_norm_param { eps: -1 }"), "layer 'bn': eps: expected a number >= 0, got -1"),
    "an infinite fraction": (bn("batch_norm_param { moving_average_fraction: inf }"), "layer 'bn': moving_average_fr"),
    "no bottom": ('layer { name: "bn" type: "BatchNorm" top: "x" }', "layer 'bn': expected one bottom and one top"),
    "two tops": (bn('top: "y"'), "layer 'bn': expected one bottom and one top, got 1 and 2"),
    "wrong axes": (TEXT.replace("bias_term: true", "num_axes: -2"), "layer 'scale': num_axes: expected -1 or more"),
    "two layers of a name": (
        bn("") + bn("batch_norm_param { scale_bias: true }"),
        "layer 'bn': two layers of this name store different blobs",
    ),
    "a filler": (
        TEXT.replace("bias_term: true", 'filler { type: "bilinear" }'),
        "layer 'scale': filler.type: expected one of constant",
    ),
}


@pytest.mark.parametrize("case", BROKEN_TEXTS)
def test_texts(case, tmp_path):
    text, message = BROKEN_TEXTS[case]
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, text)
    assert len(str(error.value)) < 1000


def test_what_is_not_known_is_skipped(tmp_path):
    text = (
        '# a comment\nname: "net" solver { a: [1, 2] c { b: "c" } } debug_info: true\n'
        'layers { name: "old" type: CONVOLUTION blobs_lr: 1 }\n'
        'layer { name: "c" type: "Convolution" convolution_param { num_output: 64 weight_filler { type: "msra" } } }\n'
        + bn("batch_norm_param { engine: CUDNN } strange_param < a: 1 b { } > loss_weight: 1")
        + TEXT.splitlines()[2]
    )
    (block,) = load(tmp_path, text).blocks
    assert (block.name, block.scale is not None) == ("bn", True)


def test_names_that_are_not_utf8(tmp_path):
    model = caffemodel(layer(b"b\xe9", b"BatchNorm", STATISTICS, extra=field(3, b"\xff") + field(4, b"\xff")))
    net = load(tmp_path, model)
    assert [block.name for block in net.blocks] == ["b\\xe9"]
    net.save(tmp_path / "again")
    assert caffe.load(tmp_path / "again").blocks[0].batch_norm.channels == 2
    assert load(tmp_path, "# caf\xe9\n".encode("latin-1") + TEXT.encode()).blocks


def test_no_memory_for_what_is_only_promised(tmp_path):
    """Not for lengths, nor for shapes, nor for counts of channels that a text tells."""
    promised = dims(2**40) + varint(42) + varint(2**31) + raw([1, 2])
    models = [
        caffemodel(layer("bn", "BatchNorm", [dims(2**40) + field(5, raw([1, 2]))] * 3)),
        caffemodel(layer("bn", "BatchNorm", [promised] * 3)),
        varint(802) + varint(2**31) + b"\x00" * 1000,
        caffemodel(*[varint(802) + b"\x00"] * 2000),
    ]
    load(tmp_path, model=caffemodel())  # what is made once
    for model in models:
        tracemalloc.start()
        with contextlib.suppress(ValueError):
            load(tmp_path, model=model)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 500_000 + 200 * len(model)


def test_many_layers_take_linear_time(tmp_path):
    """BatchNorms that all read and write one blob, or never write it: no loop over pairs."""
    one = 'layer { name: "%d" type: "BatchNorm" bottom: "x" top: "%s" }\n'
    assert len(load(tmp_path, "".join(one % (k, "x") for k in range(3000))).blocks) == 3000
    assert len(load(tmp_path, "".join(one % (k, "y") for k in range(3000))).blocks) == 3000


# ---- fuzz

SMALL_RESNET, SMALL_MOBILENET = resnet50()[:4], mobilenet_v2()[:3]
REAL = [
    (in_place_prototxt(SMALL_RESNET), model_of([p._replace(channels=3) for p in SMALL_RESNET])),
    (apart_prototxt(SMALL_MOBILENET), model_of([p._replace(channels=2) for p in SMALL_MOBILENET])),
    (TEXT, caffemodel(layer("bn", "BatchNorm", STATISTICS), layer("scale", "Scale", AFFINE))),
    (TEXT.replace("BatchNorm", "BN"), caffemodel(layer("bn", "BN", [blob([1.5, 2], double=True)] * 4))),
]


@st.composite
def mutated(draw, content):
    """Content with bytes changed, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8) | st.integers(0, len(data)))
        what = draw(st.sampled_from(["change", "cut", "double", "insert", "end"]))
        if what == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del data[at : at + length]
        elif what == "double":
            data[at:at] = data[at : at + length]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=6))
        else:
            del data[at:]
    return bytes(data)


@st.composite
def strange_files(draw):
    """A text and a model of which one or both are damaged, or noise."""
    text, model = draw(st.sampled_from(REAL))
    which = draw(st.sampled_from(["text", "model", "both", "noise"]))
    text = draw(mutated(text.encode())) if which in ("text", "both") else text.encode()
    model = draw(mutated(model)) if which in ("model", "both") else model
    return (draw(st.binary(max_size=200)), model) if which == "noise" else (text, model)


def use(net):
    """What a user may do with a net: nothing but a ValueError may come of it."""
    for phase in ("TEST", "TRAIN"):
        net.phase = phase
        for block in net.blocks:
            channels = block.batch_norm.channels or 2
            block.oddities()
            if channels > 1000:
                continue
            with contextlib.suppress(ValueError):
                block(np.ones((2, channels, 2), np.float32))
            with contextlib.suppress(ValueError):
                block.fused()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=strange_files(), bn=st.sampled_from([None, "variance", "invstd"]), dtype=st.sampled_from([None, "f4"]))
def test_mutated_files(files, bn, dtype, tmp_path):
    """A net that can be used, or a ValueError with a text of a bounded length; and what is loaded can be saved."""
    text, model = files
    said = "all is well"
    try:
        net = load(tmp_path, text, model, bn=bn, dtype=dtype)
        net.save(tmp_path / "saved")
        load(tmp_path, text, (tmp_path / "saved").read_bytes(), bn=bn)
        use(net)
    except ValueError as error:
        said = str(error)
    assert 5 < len(said) < 2000
