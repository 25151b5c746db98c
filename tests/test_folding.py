"""fold_batch_norm: a layer with folded weights gives what the layer and the normalisation behind it give.

The layers are written down here, in float64 NumPy: convolutions as sums over windows, their transposes as what each
input adds to its surroundings.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from arrays import U32, U64

import fastbn
from fastbn import reference

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
UNITS = {np.dtype(np.float64): U64, np.dtype(np.float32): U32, np.dtype(np.float16): 2.0**-11, BFLOAT16: 2.0**-8}
EPS = 1e-3


def by_group(x, weight, groups, layer):
    """layer(x, weight) of the channels and the weights of each group, side by side."""
    parts = zip(np.split(x, groups, 1), np.split(weight, groups), strict=True)
    return np.concatenate([layer(*part) for part in parts], axis=1)


def convolution(x, weight, groups):
    """(N, I, ...) and (O, I/groups, ...), padded with a zero on each side."""
    rest = range(2, x.ndim)

    def layer(x, weight):
        padded = np.pad(x, [(0, 0), (0, 0), *[(1, 1)] * len(rest)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=tuple(rest))
        inside = [1, *range(x.ndim, windows.ndim)]
        return np.moveaxis(np.tensordot(windows, weight, (inside, range(1, weight.ndim))), -1, 1)

    return by_group(x, weight, groups, layer)


def transposed(x, weight, groups):
    """(N, I, ...) and (I, O/groups, ...), with a stride of 2."""

    def layer(x, weight):
        size = [2 * (n - 1) + k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
        y = np.zeros((len(x), weight.shape[1], *size))
        for place in np.ndindex(weight.shape[2:]):
            part = tuple(slice(k, k + 2 * n - 1, 2) for k, n in zip(place, x.shape[2:], strict=True))
            added = np.tensordot(x, weight[(..., *place)], (1, 0))
            y[(slice(None), slice(None), *part)] += np.moveaxis(added, -1, 1)
        return y

    return by_group(x, weight, groups, layer)


# name: (layer, shape of x, shape of weight, options, number of output channels, terms that are added up for one output)
LAYERS = {
    "conv1d": (convolution, (2, 3, 8), (4, 3, 3), {}, 4, 9),
    "conv2d": (convolution, (2, 3, 6, 5), (4, 3, 3, 2), {}, 4, 18),
    "conv3d": (convolution, (2, 3, 4, 3, 4), (2, 3, 2, 3, 2), {}, 2, 36),
    "1x1": (convolution, (2, 3, 4, 4), (5, 3, 1, 1), {}, 5, 3),
    "grouped": (convolution, (2, 6, 5, 5), (4, 3, 3, 3), {"groups": 2}, 4, 27),
    "depthwise": (convolution, (2, 4, 5, 5), (8, 1, 3, 3), {"groups": 4}, 8, 9),
    "transposed": (transposed, (2, 3, 4, 3), (3, 5, 3, 3), {"axis": 1}, 5, 27),
    "transposed 1d": (transposed, (2, 3, 4), (3, 5, 2), {"axis": 1}, 5, 6),
    "transposed grouped": (transposed, (2, 6, 4, 3), (6, 2, 3, 2), {"axis": 1, "groups": 3}, 6, 12),
    "transposed depthwise": (transposed, (2, 4, 3, 3, 2), (4, 1, 2, 2, 2), {"axis": 1, "groups": 4}, 4, 8),
    "dense (out, in)": (lambda x, w, groups: x @ w.T, (7, 6), (4, 6), {}, 4, 6),
    "dense (in, out)": (lambda x, w, groups: x @ w, (7, 6), (6, 4), {"axis": 1}, 4, 6),
    "dense, axis -1": (lambda x, w, groups: x @ w, (7, 6), (6, 4), {"axis": -1}, 4, 6),
    "HWIO": (
        lambda x, w, groups: convolution(x, w.transpose(3, 2, 0, 1), groups), (2, 3, 5, 4), (3, 2, 3, 4),
        {"axis": -1}, 4, 18,
    ),
}  # fmt: skip
OPTIONAL = ("bias", "gamma", "beta")


def make(name, dtype=np.float64, without=()):
    """x, weight and the vectors of a layer, in float64 and rounded to dtype where they belong to the layer."""
    _, x_shape, shape, _, channels, _ = LAYERS[name]
    rng = np.random.default_rng(len(name))
    x, weight = rng.normal(size=x_shape), rng.normal(size=shape).astype(dtype)
    vectors = {
        "bias": rng.normal(size=channels).astype(dtype), "mean": rng.normal(size=channels),
        "var": rng.uniform(0.1, 3, channels), "gamma": rng.normal(size=channels), "beta": rng.normal(size=channels),
    }  # fmt: skip
    return x, weight, {key: None if key in without else v for key, v in vectors.items()}


def column(vector, x):
    return np.asarray(vector, np.float64).reshape(-1, *[1] * (x.ndim - 2))


def check(name, dtype, without=()):
    """Folded against unfolded.

    With u the rounding of dtype: each folded weight and bias rounds by u, and float64 some 10 times and with each
    addition, of no more than the sum of the absolute terms.
    """
    layer, _, _, options, _, terms = LAYERS[name]
    x, weight, v = make(name, dtype, without)
    before = weight.copy()
    found, bias = fastbn.fold_batch_norm(weight, **v, eps=EPS, **options)
    assert found.shape == weight.shape
    assert found.dtype == dtype
    assert bias.dtype == dtype
    assert np.array_equal(weight, before)
    assert not np.shares_memory(found, weight)

    groups = options.get("groups", 1)
    wide = weight.astype(np.float64)
    plain = layer(x, wide, groups)
    own = column(0 * v["mean"] if v["bias"] is None else v["bias"], x)
    expected = reference.normalize(plain + own, v["mean"], v["var"], v["gamma"], v["beta"], eps=EPS)
    given = layer(x, found.astype(np.float64), groups) + column(bias, x)

    scale = column(1 / np.sqrt(v["var"] + EPS) * (1 if v["gamma"] is None else v["gamma"]), x)
    shift = column(0 * v["mean"] if v["beta"] is None else v["beta"], x)
    size = layer(abs(x), abs(wide), groups) * abs(scale)
    size = size + (abs(own) + abs(column(v["mean"], x))) * abs(scale) + abs(shift)
    limit = (UNITS[np.dtype(dtype)] * 1.001 + (2 * terms + 10) * U64) * size
    assert (abs(given - expected) <= limit).all()


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_unfolded_pair(name, dtype):
    check(name, dtype)


@pytest.mark.parametrize("name", ["conv2d", "transposed grouped", "dense (in, out)"])
def test_without_what_is_optional(name):
    for n in range(1, 4):
        for without in itertools.combinations(OPTIONAL, n):
            check(name, np.float32, without)


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_reference(name, dtype):
    """The reference's float64, rounded."""
    _, weight, v = make(name, dtype)
    found = fastbn.fold_batch_norm(weight, **v, eps=EPS, **LAYERS[name][3])
    expected = reference.fold_batch_norm(weight, **v, eps=EPS, **LAYERS[name][3])
    for a, b in zip(found, expected, strict=True):
        assert b.dtype == np.float64
        assert (abs(a.astype(np.float64) - b) <= (UNITS[np.dtype(dtype)] + 3 * U64) * abs(b)).all()


def test_by_hand():
    """Scale = gamma/sqrt(var + eps) = 6/2 and 2/1; (1 - 3)*3 + 10 = 4 and (2 - 4)*2 + 20 = 16."""
    weight = np.array([[1, -2], [0.5, 4]], np.float32)
    vectors = {"mean": [3.0, 4], "var": [3.5, 0.5], "gamma": [6.0, 2], "beta": [10.0, 20], "eps": 0.5}
    found, bias = fastbn.fold_batch_norm(weight, np.array([1.0, 2.0]), **vectors)
    assert found.tolist() == [[3, -6], [1, 8]]
    assert bias.tolist() == [4, 16]
    found, _ = fastbn.fold_batch_norm(weight, np.array([1.0, 2.0]), **vectors, axis=1)
    assert found.tolist() == [[3, -4], [1.5, 8]]


def test_groups_of_a_transposed_convolution_by_hand():
    """Inputs 0, 1 belong to outputs 0, 1 and inputs 2, 3 to outputs 2, 3."""
    scale = np.array([1.0, 2, 3, 4])
    weight = np.arange(1.0, 9).reshape(4, 2)
    found, bias = fastbn.fold_batch_norm(weight, None, np.zeros(4), np.ones(4), scale, eps=0, axis=1, groups=2)
    assert found.tolist() == [[1, 4], [3, 8], [15, 24], [21, 32]]
    assert bias.tolist() == [0, 0, 0, 0]


def test_axes_are_counted_from_either_end():
    weight = np.arange(1.0, 13).reshape(3, 2, 2)
    for axis in range(3):
        v = np.arange(1.0, 1 + weight.shape[axis])
        folded, other = (fastbn.fold_batch_norm(weight, None, v, v, axis=a) for a in (axis, axis - 3))
        assert all(np.array_equal(a, b) for a, b in zip(folded, other, strict=True))


def test_types():
    """Of the weight, and of the bias where there is one; lists are float64; vectors of a normalisation may be both."""
    for w, b in itertools.product(UNITS, [None, *UNITS]):
        bias = None if b is None else np.ones(3, b)
        found = fastbn.fold_batch_norm(np.ones((3, 2), w), bias, np.ones(3, np.float32), np.ones(3))
        assert [a.dtype for a in found] == [w, w if b is None else b]
    weight, bias = fastbn.fold_batch_norm([[1.0], [2.0]], [1.0, 2.0], [0.0, 0.0], [1.0, 1.0], eps=0)
    assert weight.dtype == bias.dtype == np.float64
    assert weight.tolist() == [[1], [2]]


@pytest.mark.parametrize("dtype", list(UNITS)[1:], ids=str)
def test_rounded_once(dtype):
    """Next to half way between two numbers, nearer than float32 can tell from it: two roundings would go astray."""
    unit = UNITS[dtype]
    gamma = np.array([1 + unit + 2.0**-50, 1 + unit - 2.0**-50, 1 + unit, 1 + 3 * unit, -1 - unit - 2.0**-50])
    expected = [1 + 2 * unit, 1, 1, 1 + 4 * unit, -1 - 2 * unit]  # the third and fourth are half way: to even
    weight, bias = fastbn.fold_batch_norm(np.ones((5, 1), dtype), None, -np.ones(5), np.ones(5), gamma, eps=0)
    assert weight[:, 0].astype(np.float64).tolist() == expected
    assert bias.astype(np.float64).tolist() == expected


def test_every_bfloat16_is_the_nearest():
    """Random float64 of all magnitudes, against the neighbours of what was found."""
    rng = np.random.default_rng(0)
    gamma = rng.normal(size=4000) * 2.0 ** rng.integers(-150, 130, 4000)
    n = np.ones(gamma.size)
    found = fastbn.fold_batch_norm(np.ones((gamma.size, 1), BFLOAT16), None, 0 * n, n, gamma, eps=0)[0][:, 0]
    wide = found.astype(np.float64)
    finite = np.isfinite(wide)
    assert 0 < (~finite).sum() < 400
    largest = float(ml_dtypes.finfo(BFLOAT16).max)
    assert (abs(gamma[~finite]) >= largest * (1 + 2.0**-9)).all()
    error = abs(gamma - wide)
    for towards in (-np.inf, np.inf):
        neighbour = np.nextafter(found, BFLOAT16.type(towards)).astype(np.float64)
        assert (error <= abs(gamma - neighbour))[finite].all()


def test_a_constant_channel_gives_beta():
    """var = 0 and eps = 0: as everywhere, xhat is 0."""
    found = fastbn.fold_batch_norm(np.ones((2, 3)), np.array([5.0, 5]), [1.0, 1], [0.0, 4], [2.0, 2], [7.0, 7], eps=0)
    assert found[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert found[1].tolist() == [7, 11]


def test_what_a_type_cannot_hold_is_infinite_and_silent():
    weight = np.array([[60000, 1, np.nan]], np.float16).T
    found, bias = fastbn.fold_batch_norm(weight, None, [0.0, -1e300, 0], [1.0, 1, 1], [2.0, 1, 1], eps=0)
    np.testing.assert_array_equal(found[:, 0], [np.inf, 1, np.nan])
    assert bias.tolist() == [0, np.inf, 0]


def test_weights_of_any_strides():
    _, weight, v = make("grouped", np.float32)
    expected = fastbn.fold_batch_norm(weight, **v, groups=2)
    spread = np.repeat(weight, 2, axis=3)[..., ::2]
    read_only = weight[::-1].copy()[::-1]
    read_only.flags.writeable = False
    for given in (np.asfortranarray(weight), spread, read_only):
        found = fastbn.fold_batch_norm(given, **v, groups=2)
        assert [np.array_equal(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]


V3 = np.ones(3)
ERRORS = {
    "weight None": ({"weight": None}, TypeError, "^weight: expected an array, got None"),
    "weight int": ({"weight": np.ones((3, 2), int)}, TypeError, "^weight: expected dtype .*got int64"),
    "weight masked": ({"weight": np.ma.ones((3, 2))}, TypeError, "^weight: .*masked"),
    "weight 1-d": ({"weight": V3}, ValueError, r"^weight: expected 2 or more dimensions, .*got shape \(3,\)"),
    "no channel": ({"weight": np.ones((0, 2))}, ValueError, r"^weight: expected at least one output .*\(0, 2\)"),
    "byte order": ({"weight": np.ones((3, 2), ">f4")}, TypeError, "^weight: expected native byte order"),
    "axis 2": ({"axis": 2}, ValueError, r"^axis: expected -2 to 1 for weight with shape \(3, 2\), got 2"),
    "axis None": ({"axis": None}, TypeError, "^axis: expected an integer, got NoneType"),
    "axis True": ({"axis": True}, TypeError, "^axis: expected an integer, got a bool"),
    "axis 1": ({"axis": 1}, ValueError, r"^bias: expected shape \(2,\), a number per channel, got \(3,\)"),
    "groups 0": ({"groups": 0}, ValueError, "^groups: expected at least 1, got 0"),
    "groups 2": ({"groups": 2}, ValueError, r"^groups: expected a divisor of axis 0 of weight, .*\(3, 2\), got 2"),
    "groups 1.0": ({"groups": 1.0}, TypeError, "^groups: expected an integer, got float"),
    "groups True": ({"groups": True}, TypeError, "^groups: expected an integer, got a bool"),
    "groups, axis 2": (
        {"weight": np.ones((4, 2, 3)), "axis": 2, "groups": 2}, ValueError, "^groups: expected 1 with output .* axis 2",
    ),
    "groups, axis 1": ({"axis": 1, "groups": 3}, ValueError, r"^bias: expected shape \(6,\)"),
    "bias": ({"bias": np.ones(2)}, ValueError, r"^bias: expected shape \(3,\), a number per channel, got \(2,\)"),
    "bias int": ({"bias": np.ones(3, int)}, TypeError, "^bias: expected dtype .*got int64"),
    "mean None": ({"mean": None}, TypeError, "^mean: expected an array, got None"),
    "mean": ({"mean": np.ones(1)}, ValueError, r"^mean: expected shape \(3,\), .*got \(1,\)"),
    "var": ({"var": np.ones((3, 1))}, ValueError, r"^var: expected shape \(3,\), .*got \(3, 1\)"),
    "var < 0": ({"var": np.array([1.0, -2, 1])}, ValueError, "^var: expected variances >= 0, got -2.0 in channel 1"),
    "gamma": ({"gamma": np.ones(4)}, ValueError, r"^gamma: expected shape \(3,\)"),
    "gamma half": ({"gamma": np.ones(3, "f2")}, TypeError, "^gamma: expected dtype .*got float16"),
    "beta": ({"beta": 1.0}, ValueError, r"^beta: expected shape \(3,\), .*got \(\)"),
    "eps < 0": ({"eps": -1.0}, ValueError, "^eps: expected a number >= 0, got -1"),
    "eps nan": ({"eps": np.nan}, ValueError, "^eps: expected a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("row", ERRORS.values(), ids=ERRORS)
def test_errors(row):
    wrong, kind, text = row
    good = {"weight": np.ones((3, 2)), "bias": V3, "mean": V3, "var": V3, "gamma": V3, "beta": V3}
    fastbn.fold_batch_norm(**good)
    with pytest.raises(kind, match=text):
        fastbn.fold_batch_norm(**{**good, **wrong})
