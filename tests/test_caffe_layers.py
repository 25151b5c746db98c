"""Caffe's layers: vectors worked out by hand, Caffe's own test cases with their tolerances, the float64 reference."""

import itertools
import tracemalloc

import numpy as np
import pytest
from arrays import U32, U64
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbn import caffe, reference
from fastbn.caffe.batch_norm import RunningAverage

DTYPES = [np.float32, np.float64]
SHAPES = [(6, 3), (4, 3, 5), (5, 2, 3, 4), (2, 3, 2, 3, 2)]


@pytest.fixture
def rng():
    return np.random.default_rng(1701)


def column(*values):
    return np.array(values, np.float64)[:, None]


def near(found, expected, roundings=4):
    """Within a few roundings of float64 of numbers that were worked out in decimals."""
    np.testing.assert_allclose(np.ravel(found), expected, rtol=roundings * 2 * U64, atol=0)


def blobs_of(layer):
    return [blob.data.tolist() for blob in layer.blobs]


@pytest.mark.parametrize(
    ("layer", "name", "value", "error"),
    [
        (caffe.BatchNorm, "eps", -1, ValueError),
        (caffe.BatchNorm, "moving_average_fraction", None, TypeError),
        (caffe.BatchNorm, "use_global_stats", "never", TypeError),
        (caffe.BatchNorm, "phase", "test", ValueError),
        (caffe.Scale, "axis", "a", TypeError),
        (caffe.Scale, "num_axes", -2, ValueError),
        (caffe.Scale, "bias_term", "no", TypeError),
        (caffe.Scale, "filler", 3, TypeError),
        (caffe.Bias, "filler", "gaussian", TypeError),
        (caffe.Bias, "num_axes", 1.5, TypeError),
    ],
)
def test_options_set_later_are_checked_as_in_the_constructor(layer, name, value, error):
    """Else a forward in place would overwrite x before it fails."""
    made = layer()
    before = getattr(made, name)
    for build in (lambda: setattr(made, name, value), lambda: layer(**{name: value})):
        with pytest.raises(error, match=rf"^{name}: expected .*got "):
            build()
    assert getattr(made, name) == before


# ---- BatchNorm: one channel by hand, eps 1e-5, fraction 0.999


def test_vectors_worked_out_by_hand():
    bn = caffe.BatchNorm(1, dtype=np.float64)
    assert blobs_of(bn) == [[0], [0], [0]]
    near(bn(column(1, 3)), [-0.9999950000374997, 0.9999950000374997])
    assert blobs_of(bn) == [[2], [2], [1]]
    # dx cancels to 5e-6 of its terms: roundings of terms near 1/2
    dx = bn.backward(column(1, 0)).ravel()
    np.testing.assert_allclose(dx, [4.999925000854692e-06, -4.999925000854692e-06], rtol=0, atol=4 * U64)
    near(bn(column(0, 4)), [-0.9999987500023437, 0.9999987500023437])
    for blob, expected in zip(bn.blobs, (3.998, 9.998, 1.999), strict=True):
        near(blob, [expected])
    before = blobs_of(bn)
    bn.phase = "TEST"
    near(bn(column(5)), [1.3414381439878984])
    near(bn.statistics(), [2.0, 5.001500750375187])
    near(bn.backward(column(1)), [0.44714604799596613])
    assert blobs_of(bn) == before


def test_a_batch_of_one_value():
    bn = caffe.BatchNorm(1, dtype=np.float64)
    assert bn(column(7)).tolist() == [[0.0]]
    assert blobs_of(bn) == [[7], [0], [1]]


@pytest.mark.parametrize(
    ("steps", "weight"), [(1, 1), (10, 9.955119790), (100, 95.20785289), (1000, 632.3045752), (10000, 999.9548267)]
)
def test_the_weight_after_many_steps(steps, weight):
    bn = caffe.BatchNorm(1, dtype=np.float64)
    for _ in range(steps):
        bn(column(1, 3))
    np.testing.assert_allclose(bn.blobs[2], [weight], rtol=1e-9)  # the digits that are known
    near(bn.statistics(), [2.0, 2.0], roundings=4 * steps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_0_means_statistics_of_0(dtype, rng):
    bn = caffe.BatchNorm(3, phase="TEST", dtype=dtype)
    bn.blobs[0].data, bn.blobs[1].data = 17, 19  # whatever the sums are
    x = rng.normal(size=(4, 3, 5)).astype(dtype)
    unit = U32 if dtype == np.float32 else U64
    np.testing.assert_allclose(bn(x), x * 316.22776601683796, rtol=8 * unit)
    np.testing.assert_allclose(bn.backward(x), x * 316.22776601683796, rtol=8 * unit)
    assert blobs_of(bn) == [[17] * 3, [19] * 3, [0]]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("use", [None, True, False])
def test_which_statistics_are_used(phase, use):
    """The phase decides, unless the field is there; blobs move in batch mode whatever the phase, never in global."""
    bn = caffe.BatchNorm(1, use_global_stats=use, phase=phase, dtype=np.float64)
    globally = phase == "TEST" if use is None else use
    y = bn(column(1, 3))
    assert (abs(y[0, 0]) > 100) == globally
    assert blobs_of(bn) == ([[0], [0], [0]] if globally else [[2], [2], [1]])


# ---- BatchNorm against the reference, in the modes that Caffe's tests leave out


def reference_blobs(batches, f):
    """The sums as the formulas of the docstring have them."""
    mean = var = weight = 0.0
    for x in batches:
        stats = reference.batch_stats(x)
        k = stats.count / (stats.count - 1) if stats.count > 1 else 1
        mean, var, weight = f * mean + stats.mean, f * var + k * stats.var, f * weight + 1
    return mean, var, weight


def tolerances(dtype):
    """4 roundings of y and dx for values of the size of a few, see P1; 8 for float64."""
    return {"rtol": 16 * U32, "atol": 16 * U32} if dtype == np.float32 else {"rtol": 64 * U64, "atol": 64 * U64}


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, in_place, rng):
    bn = caffe.BatchNorm(shape[1], eps=1e-3, moving_average_fraction=0.9, dtype=dtype)
    batches = [rng.normal(c, 2, size=shape).astype(dtype) for c in range(3)]
    close = tolerances(dtype)

    def forward_and_backward(x):
        dy = rng.normal(size=shape).astype(dtype)
        given_x, given_dy = x.copy(), dy.copy()
        y = bn(given_x, out=given_x if in_place else None)
        result = y.copy()
        if in_place:
            y[...] = np.nan  # a later layer in place
        dx = bn.backward(given_dy, out=given_dy if in_place else None)
        assert (y is given_x) == (dx is given_dy) == in_place
        return result, dy, dx

    for x in batches:
        y, dy, dx = forward_and_backward(x)
        expected, stats = reference.batch_norm(x, eps=1e-3)
        np.testing.assert_allclose(y, expected, **close)
        np.testing.assert_allclose(dx, reference.batch_norm_backward(dy, x, stats, eps=1e-3).dx, **close)
    for blob, expected in zip(bn.blobs, reference_blobs(batches, 0.9), strict=True):
        np.testing.assert_allclose(blob, np.broadcast_to(expected, blob.shape), **close)

    bn.phase = "TEST"
    before = blobs_of(bn)
    mean, var = (bn.blobs[k].data.astype(float) / bn.blobs[2].data.astype(float) for k in (0, 1))
    y, dy, dx = forward_and_backward(batches[0])
    np.testing.assert_allclose(y, reference.normalize(batches[0], mean, var, eps=1e-3), **close)
    expected = reference.batch_norm_backward(dy, batches[0], (mean, var), eps=1e-3, training=False).dx
    np.testing.assert_allclose(dx, expected, **close)
    assert blobs_of(bn) == before
    assert [blob.diff.any() for blob in bn.blobs] == [False] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_bits(dtype, rng):
    x, dy = rng.normal(size=(2, 4, 3, 5, 2)).astype(dtype)
    for phase in ("TRAIN", "TEST"):
        bn, other = (caffe.BatchNorm(3, phase=phase, dtype=dtype) for _ in range(2))
        bn(x), other(y := x.copy(), out=y)
        assert np.array_equal(bn.backward(dy), other.backward(dy))


def test_channels_are_taken_from_the_first_array():
    bn = caffe.BatchNorm()
    assert bn.blobs == []
    with pytest.raises(TypeError, match="x: "):
        bn(np.ones((2, 3), int))
    with pytest.raises(ValueError, match="out: "):
        bn(np.ones((2, 3)), out=np.ones((3, 2)))
    assert bn.blobs == []
    bn(np.ones((2, 3), np.float32))
    assert [blob.shape for blob in bn.blobs] == [(3,), (3,), (1,)]


def test_nan_goes_into_the_sums_as_in_caffe():
    bn = caffe.BatchNorm(2)
    y = bn(np.array([[np.nan, 1], [1, 3]], np.float32))
    assert np.isnan(y[:, 0]).all()
    assert np.isfinite(y[:, 1]).all()
    assert np.isnan(bn.blobs[0].data).tolist() == [True, False]
    assert bn.blobs[2].data == 1


def test_a_negative_variance():
    """What Caffe can take the root of is right; where it would give NaN, there is an error."""
    bn = caffe.BatchNorm(1, eps=0.75, phase="TEST", dtype=np.float64)
    bn.blobs[1].data, bn.blobs[2].data = -1, 2
    assert bn(column(3)).tolist() == [[6.0]]  # 3/sqrt(-0.5 + 0.75)
    bn.blobs[1].data = -2
    with pytest.raises(ValueError, match=r"blobs\[1\]: .* got -1 in channel 0"):
        bn(column(3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(3), r"x: expected 2 or more dimensions"),
        (np.ones((2, 4)), r"x: expected 3 channels"),
        (np.ones((0, 3)), r"x: expected at least one value"),
    ],
)
def test_wrong_arrays_change_nothing(x, message):
    bn = caffe.BatchNorm(3)
    with pytest.raises(ValueError, match=message):
        bn(x)
    assert blobs_of(bn) == [[0] * 3, [0] * 3, [0]]
    with pytest.raises(RuntimeError, match="backward: expected a forward"):
        bn.backward(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels: expected an integer"),
        ({"channels": 2.0}, ValueError, "channels: expected an integer"),
        ({"eps": -1}, ValueError, "eps: expected"),
        ({"eps": np.nan}, ValueError, "eps: expected"),
        ({"eps": "a"}, TypeError, "eps: expected a number, got str"),
        ({"moving_average_fraction": None}, TypeError, "moving_average_fraction: expected a number, got NoneType"),
        ({"moving_average_fraction": np.inf}, ValueError, "moving_average_fraction: expected"),
        ({"phase": "EVAL"}, ValueError, "phase: expected"),
        ({"phase": np.array(["TRAIN", "TEST"])}, ValueError, "phase: expected"),
        ({"use_global_stats": 2}, TypeError, "use_global_stats: expected"),
        ({"use_global_stats": np.array([1, 0])}, TypeError, "use_global_stats: expected"),
        ({"dtype": int}, TypeError, "dtype: expected"),
        ({"dtype": "foo"}, TypeError, "dtype: expected float32 or float64, got 'foo'"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        caffe.BatchNorm(**{"channels": 2} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "a"}, "axis: expected an integer, got str"),
        ({"axis": 1.5}, "axis: expected an integer, got float"),
        ({"num_axes": "a"}, "num_axes: expected an integer, got str"),
        ({"filler": {"value": "a"}}, "filler.value: expected a number, got str"),
        ({"dtype": "foo"}, "dtype: expected float32 or float64, got 'foo'"),
        ({"rng": "a"}, "rng: "),
    ],
)
@pytest.mark.parametrize("layer", [caffe.Scale, caffe.Bias])
def test_wrong_options_of_scale_and_bias(layer, options, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        layer(**options)


def test_read_only_blobs_are_refused_before_anything_changes():
    bn = caffe.BatchNorm(1)
    bn.blobs[1].data.flags.writeable = False
    x = np.array([[1], [3]], np.float32)
    with pytest.raises(ValueError, match=r"blobs\[1\]: expected writeable"):
        bn(x, out=x)
    assert x.ravel().tolist() == [1, 3]
    assert blobs_of(bn) == [[0], [0], [0]]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda blobs: blobs[:2],
        lambda blobs: [blobs[0], caffe.Blob([0.0, 0.0]), blobs[2]],
        lambda blobs: [*blobs[:2], caffe.Blob([0.0, 0.0])],
    ],
    ids=["two", "variance", "weight"],
)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_blobs_that_do_not_fit_are_refused_before_anything_changes(phase, wrong):
    bn = caffe.BatchNorm(1, phase=phase)
    bn.blobs = wrong(bn.blobs)
    before = blobs_of(bn)
    x = np.array([[1], [3]], np.float32)
    with pytest.raises(ValueError, match=r"^blobs: expected shapes \(C,\), \(C,\), \(1,\), got"):
        bn(x, out=x)
    assert x.ravel().tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"^blobs: expected shapes \(C,\), \(C,\), \(1,\), got"):
        bn.statistics()
    assert blobs_of(bn) == before


@pytest.mark.parametrize("layer", ["Scale", "Bias", "Block", "Block, apart"])
def test_read_only_diffs_are_refused_before_dx_is_written(layer):
    if layer.startswith("Block"):
        axis = 1 if layer == "Block" else 0
        scale = caffe.Scale(axis=axis, num_axes=1, bias_term=True)
        learned = caffe.Block("bn", caffe.BatchNorm(2), scale)
    else:
        learned = scale = getattr(caffe, layer)()
    x, out = np.arange(4, dtype=np.float32).reshape(2, 2), np.full((2, 2), 7, np.float32)
    learned(x)
    scale.blobs[-1].diff.flags.writeable = False
    with pytest.raises(ValueError, match=r"^blobs\[\d\]: expected writeable diff, got a read-only array"):
        learned.backward(x, out=out)
    assert (out == 7).all()
    assert not any(blob.diff.any() for blob in scale.blobs)


def test_blobs_that_were_exchanged():
    bn = caffe.BatchNorm(2, phase="TEST")
    bn.blobs[1] = caffe.Blob([1.0])
    with pytest.raises(ValueError, match=r"blobs: expected shapes \(C,\), \(C,\), \(1,\), got"):
        bn(np.ones((1, 2)))
    with pytest.raises(ValueError, match="channels: not known"):
        caffe.BatchNorm().statistics()


def test_what_layers_look_like():
    bn = caffe.BatchNorm(2, use_global_stats=True)
    options = "eps=1e-05, moving_average_fraction=0.999, use_global_stats=True, phase='TRAIN', dtype=float32"
    assert repr(bn) == f"caffe.BatchNorm(2, {options})"
    scale = caffe.Scale(bias_term=True)
    scale(np.ones((1, 2)))
    assert repr(scale) == "caffe.Scale(axis=1, num_axes=1, bias_term=True), blobs [(2,), (2,)]"
    assert repr(caffe.Bias(-1)) == "caffe.Bias(axis=-1, num_axes=1), blobs []"


def test_a_blob_is_an_array_and_its_gradient():
    blob = caffe.Blob([1, 2], np.float32)
    data, diff = blob.data, blob.diff
    blob.data, blob.diff = [3, 4], 5
    blob[0] = 7
    assert (blob.data is data, blob.diff is diff, len(blob), blob.shape) == (True, True, 2, (2,))
    assert (np.asarray(blob).tolist(), diff.tolist(), (np.asarray(blob, float) * 2).tolist()) == (
        [7, 4],
        [5, 5],
        [14, 8],
    )


# ---- Caffe's own cases: test_batch_norm_layer.cpp


def gaussian(rng, shape, dtype, mean=0, std=1):
    return rng.normal(mean, std, shape).astype(dtype)


@pytest.mark.parametrize("in_place", [False, True], ids=["TestForward", "TestForwardInplace"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "mean", "std"), [((5, 2, 3, 4), 0, 1), ((2, 3, 4, 5), -10, 5)], ids=["", "cuDNN"])
def test_upstream_forward(shape, mean, std, dtype, in_place, rng):
    x = gaussian(rng, shape, dtype, mean, std)
    y = caffe.BatchNorm(shape[1], dtype=dtype)(x, out=x if in_place else None)
    assert (abs(y.mean(axis=(0, 2, 3), dtype=float)) < 1e-3).all()
    assert (abs((y.astype(float) ** 2).mean(axis=(0, 2, 3)) - 1) < 1e-3).all()


def check_gradient(forward, backward, arrays, step, threshold):
    """Caffe's gradient checker: central differences; the loss is twice one output, for every output in turn.

    `forward()` reads `arrays`, which are changed in place; `backward(dy)` returns a gradient for each of them.
    """
    y = forward()
    computed = [np.zeros((y.size, a.size)) for a in arrays]
    for k in range(y.size):
        dy = np.zeros_like(y)
        dy.flat[k] = 2
        forward()
        for rows, gradient in zip(computed, backward(dy), strict=True):
            rows[k] = np.ravel(gradient)
    for a, found in zip(arrays, computed, strict=True):
        for i in range(a.size):
            value = a.flat[i]
            a.flat[i] = value + step
            above = 2 * forward().ravel().astype(float)
            a.flat[i] = value - step
            below = 2 * forward().ravel().astype(float)
            a.flat[i] = value
            estimated = (above - below) / (2 * step)
            scale = np.maximum(1, np.maximum(abs(found[:, i]), abs(estimated)))
            assert (abs(found[:, i] - estimated) <= threshold * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "mean", "std", "threshold"),
    [((5, 2, 3, 4), 0, 1, 1e-4), ((2, 3, 4, 5), -10, 5, 4e-4)],
    ids=["TestGradient", "cuDNN"],
)
def test_upstream_gradient(shape, mean, std, threshold, dtype, rng):
    """Blobs included: these are statistics, and their gradient is 0."""
    bn = caffe.BatchNorm(shape[1], dtype=dtype)
    x = gaussian(rng, shape, dtype, mean, std)
    blobs = [blob.data for blob in bn.blobs]

    def backward(dy):
        return [bn.backward(dy), *(blob.diff for blob in bn.blobs)]

    check_gradient(lambda: bn(x), backward, [x, *blobs], 1e-2, threshold)


# ---- Caffe's own cases: test_scale_layer.cpp

SHAPE = (2, 3, 4, 5)


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def bottoms(request, rng):
    """The fixture of Caffe's test: uniform numbers from 1 to 10."""
    shapes = {"x": SHAPE, "eltwise": SHAPE, "b0": (2, 3), "b1": (3, 4), "b2": (4, 5), "scalar": ()}
    return {name: np.array(rng.uniform(1, 10, shape), request.param) for name, shape in shapes.items()}


TWO_BOTTOMS = {  # case: second bottom, axis, how it lies along x
    "Eltwise": ("eltwise", 0, ...),
    "BroadcastBegin": ("b0", 0, (..., None, None)),
    "BroadcastMiddle": ("b1", 1, (None, ..., None)),
    "BroadcastEnd": ("b2", 2, ...),
    "Scale": ("scalar", 1, ...),
    "ScaleAxis2": ("scalar", 2, ...),
}
GAUSSIAN = {"type": "gaussian"}
WITH_PARAM = {  # case: options, how the blobs lie along x
    "EltwiseWithParam": ({"axis": 0, "num_axes": -1, "filler": GAUSSIAN}, ...),
    "BroadcastMiddleWithParam": ({"axis": 1, "num_axes": 2, "filler": GAUSSIAN}, (None, ..., None)),
    "BroadcastMiddleWithParamAndBias": (
        {"axis": 1, "num_axes": 2, "filler": GAUSSIAN, "bias_term": True, "bias_filler": GAUSSIAN},
        (None, ..., None),
    ),
}


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "InPlace"])
@pytest.mark.parametrize("case", TWO_BOTTOMS)
def test_upstream_scale_forward(case, in_place, bottoms):
    name, axis, along = TWO_BOTTOMS[case]
    x, s = bottoms["x"].copy(), bottoms[name]
    y = caffe.Scale(axis=axis)(x, s, out=x if in_place else None)
    np.testing.assert_allclose(y, bottoms["x"] * s[along], rtol=0, atol=1e-5)
    assert (y is x) == in_place


@pytest.mark.parametrize("case", WITH_PARAM)
def test_upstream_scale_forward_with_param(case, bottoms):
    options, along = WITH_PARAM[case]
    scale = caffe.Scale(**options, dtype=bottoms["x"].dtype)
    y = scale(bottoms["x"])
    w, *b = (blob.data[along] for blob in scale.blobs)
    assert w.std() > 0.3  # the filler's numbers
    np.testing.assert_allclose(y, bottoms["x"] * w + (b[0] if b else 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["Eltwise", "BroadcastMiddle"])
def test_upstream_scale_backward_in_place(case, bottoms, rng):
    name, axis, _ = TWO_BOTTOMS[case]
    x, s = bottoms["x"], bottoms[name]
    dy = gaussian(rng, SHAPE, x.dtype)
    apart, in_place = caffe.Scale(axis=axis), caffe.Scale(axis=axis)
    apart(x, s)
    dx, ds = apart.backward(dy)
    overwritten, top_diff = x.copy(), dy.copy()
    in_place(overwritten, s, out=overwritten)
    overwritten[...] = np.nan
    dx2, ds2 = in_place.backward(top_diff, out=top_diff)
    np.testing.assert_allclose(dx2, dx, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ds2, ds, rtol=0, atol=1e-5)


def check_scale_gradient(scale, x, second=None):
    """All gradients of a Scale: bottoms and blobs."""
    scale(x, second)
    blobs = [blob.data for blob in scale.blobs]

    def backward(dy):
        scale.clear_diffs()
        found = scale.backward(dy)
        return [*(found if second is not None else [found]), *(blob.diff.copy() for blob in scale.blobs)]

    arrays = [x, *([] if second is None else [second]), *blobs]
    check_gradient(lambda: scale(x, second), backward, arrays, 1e-2, 1e-3)


@pytest.mark.parametrize("case", TWO_BOTTOMS)
def test_upstream_scale_gradient(case, bottoms):
    name, axis, _ = TWO_BOTTOMS[case]
    check_scale_gradient(caffe.Scale(axis=axis), bottoms["x"], bottoms[name])


def test_upstream_scale_and_bias_gradient(bottoms):
    scale = caffe.Scale(bias_term=True, bias_filler=GAUSSIAN, dtype=bottoms["x"].dtype)
    check_scale_gradient(scale, bottoms["x"], bottoms["scalar"])


@pytest.mark.parametrize("case", ["EltwiseWithParam", "BroadcastMiddleWithParam"])
def test_upstream_scale_gradient_with_param(case, bottoms):
    check_scale_gradient(caffe.Scale(**WITH_PARAM[case][0], dtype=bottoms["x"].dtype), bottoms["x"])


# ---- results and blobs

RESULTS_IN_BLOBS = {
    "BatchNorm": (lambda: caffe.BatchNorm(3), [0, 1], ["data", "diff"]),
    "Scale": (lambda: caffe.Scale(axis=0, num_axes=-1, bias_term=True), [0, 1], ["data", "diff"]),
    "Scale of channels": (lambda: caffe.Scale(bias_term=True), [0, 1], ["data", "diff"]),
    "Bias": (lambda: caffe.Bias(axis=0, num_axes=-1), [0], ["data", "diff"]),
    "Block": (lambda: caffe.Block("b", caffe.BatchNorm(3), caffe.Scale(bias_term=True)), [0, 1], ["data", "diff"]),
}


@pytest.mark.parametrize("name", RESULTS_IN_BLOBS)
def test_results_stay_out_of_blobs(name):
    make, which, parts = RESULTS_IN_BLOBS[name]
    layer, x = make(), np.array([[1, 2, 3]], np.float32)
    layer(x)
    blobs = layer.scale.blobs if name == "Block" else layer.blobs
    before = [(blob.data.copy(), blob.diff.copy()) for blob in blobs]
    for k in which:
        for part in parts:
            out = getattr(blobs[k], part).reshape(1, 3)
            for call in (lambda out=out: layer(x, out=out), lambda out=out: layer.backward(x, out=out)):
                with pytest.raises(ValueError, match=r"^out: expected .* apart from "):
                    call()
    for blob, (data, diff) in zip(blobs, before, strict=True):
        assert np.array_equal(blob.data, data)
        assert np.array_equal(blob.diff, diff)
    layer.backward(x)  # that of the first forward still


def test_blobs_lose_no_mask():
    blob = caffe.Blob([1.0, 2.0])
    for part in ("data", "diff"):
        with pytest.raises(TypeError, match=f"^{part}: expected a plain array, got a masked array"):
            setattr(blob, part, np.ma.array([3.0, 4.0], mask=[1, 0]))
    assert blob.data.tolist() == [1, 2]


def test_bias_term_is_a_bool():
    with pytest.raises(TypeError, match=r"^bias_term: expected a bool, got str"):
        caffe.Scale(bias_term="no")


# ---- Scale and Bias: axes

ALLOWED = {  # facts of Caffe: for x of 100x3x40x60
    0: [(), (100,), (100, 3), (100, 3, 40), (100, 3, 40, 60)],
    1: [(), (3,), (3, 40), (3, 40, 60)],
    2: [(), (40,), (40, 60)],
    3: [(), (60,)],
}


def test_shapes_that_a_second_bottom_may_have():
    every = {shape for shapes in ALLOWED.values() for shape in shapes} | {(3, 60), (100, 40), (60, 40), (2,)}
    layer = {axis: caffe.Scale(axis=axis) for axis in range(-4, 4)}
    for axis, shape in itertools.product(layer, every):
        if shape in ALLOWED[axis % 4]:
            run = layer[axis].run((100, 3, 40, 60), shape)
            assert run.inside == shape
            assert shape == () or run.start == axis % 4
        else:
            with pytest.raises(ValueError, match=r"^expected .*shape"):
                layer[axis].run((100, 3, 40, 60), shape)


@pytest.mark.parametrize(
    ("axis", "num_axes", "inside"),
    [(1, 1, (3,)), (-3, 1, (3,)), (1, -1, (3, 4, 5)), (2, 0, ()), (0, 3, (2, 3, 4)), (-1, 1, (5,)), (-4, -1, SHAPE)],
)
def test_shapes_of_learned_blobs(axis, num_axes, inside):
    scale = caffe.Scale(axis, num_axes, bias_term=True)
    bias = caffe.Bias(axis, num_axes)
    scale(np.ones(SHAPE)), bias(np.ones(SHAPE))
    assert [blob.shape for blob in [*scale.blobs, *bias.blobs]] == [inside] * 3


@pytest.mark.parametrize(
    ("axis", "num_axes", "message"),
    [
        (4, 1, "axis: expected -4 to 3"),
        (-5, 1, "axis: expected"),
        (3, 2, "num_axes: expected at most 1, .*got 2"),
        (0, 5, "num_axes: expected at most 4, .*got 5"),
    ],
)
@pytest.mark.parametrize("kind", [caffe.Scale, caffe.Bias])
def test_axes_that_are_not_there(kind, axis, num_axes, message):
    layer = kind(axis, num_axes)
    with pytest.raises(ValueError, match=message):
        layer(np.ones(SHAPE))
    assert layer.blobs == []
    with pytest.raises(ValueError, match="num_axes: expected -1 or more"):
        kind(1, -2)


def test_fillers():
    """Nothing is 1 for a scale and 0 for a bias; an empty filler is a constant 0 for both."""
    x = np.ones(SHAPE, np.float32)
    for options, values in [
        ({}, [1]),
        ({"filler": {}}, [0]),
        ({"filler": {"value": 2.5}, "bias_term": True}, [2.5, 0]),
        ({"bias_term": True, "bias_filler": {"value": -1}}, [1, -1]),
    ]:
        scale = caffe.Scale(**options)
        scale(x)
        assert blobs_of(scale) == [[value] * 3 for value in values]
    scale = caffe.Scale(bias_term=True, filler={"value": 9}, bias_filler={"value": 2})
    assert scale(x, np.float32(3)).ravel()[0] == 3 + 2  # the filler does not count
    assert blobs_of(scale) == [2]
    bias = caffe.Bias()
    bias(x)
    assert blobs_of(bias) == [[0] * 3]


@pytest.mark.parametrize(
    ("filler", "low", "high", "std"),
    [
        ({"type": "uniform", "min": 2, "max": 4}, 2, 4, 2 / 12**0.5),
        ({"type": "gaussian", "mean": 3, "std": 0.5}, -np.inf, np.inf, 0.5),
        ({"type": "xavier"}, -((3 / 40) ** 0.5), (3 / 40) ** 0.5, 40**-0.5),
        ({"type": "xavier", "variance_norm": "FAN_OUT"}, -((3 / 200) ** 0.5), (3 / 200) ** 0.5, 200**-0.5),
        ({"type": "msra", "variance_norm": "AVERAGE"}, -np.inf, np.inf, (2 / 120) ** 0.5),
        ({"type": "gaussian", "sparse": 50}, -np.inf, np.inf, (50 / 200) ** 0.5),
    ],
    ids=lambda v: v.get("type") if isinstance(v, dict) else None,
)
def test_random_fillers(filler, low, high, std):
    """Shape (200, 40): fan_in 40, fan_out 200. 8000 numbers: their standard deviation is known within 5 %."""
    scale = caffe.Scale(0, 2, filler=filler)
    scale(np.ones((200, 40)))
    (blob,) = scale.blobs
    assert low <= blob.data.min() < blob.data.max() <= high
    assert abs(blob.data.std() / std - 1) < 0.05
    again = caffe.Scale(0, 2, filler=filler)
    again(np.ones((200, 40)))
    assert np.array_equal(again.blobs[0], blob)  # the same generator


@pytest.mark.parametrize("type", ["constant", "uniform", "gaussian", "xavier", "msra"])
def test_fillers_of_nothing(type):
    scale = caffe.Scale(1, 2, filler={"type": type, "sparse": 1})
    assert scale(np.ones((2, 0, 3))).shape == (2, 0, 3)
    assert scale.blobs[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("filler", "message"),
    [
        ({"type": "bilinear"}, "filler.type: "),
        ({"values": 1}, "unknown fields"),
        ({"values": 1, 2: 3}, "unknown fields"),
        ({"type": []}, "filler.type: "),
        ({"value": np.nan}, "filler.value"),
        ({"type": "uniform", "min": 2}, "min <= max"),
        ({"variance_norm": "FAN"}, "variance_norm"),
    ],
)
def test_wrong_fillers(filler, message):
    with pytest.raises(ValueError, match=message):
        caffe.Scale(filler=filler)
    with pytest.raises(TypeError, match="filler: expected"):
        caffe.Bias(filler=3)


def along(values, shape, start):
    """Values that lie along axes of a shape from `start` on."""
    return values.reshape((1,) * start + values.shape + (1,) * (len(shape) - start - values.ndim))


@st.composite
def scales(draw):
    """A shape, an axis, and how many axes."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    start = draw(st.integers(0, len(shape) - 1))
    axes = draw(st.integers(0, len(shape) - start))
    axis = start - len(shape) * draw(st.booleans())
    num_axes = -1 if start + axes == len(shape) and draw(st.booleans()) else axes
    return shape, axis, num_axes, start, shape[start : start + axes]


@settings(max_examples=60, deadline=None)
@given(
    case=scales(),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    two_bottoms=st.booleans(),
    in_place=st.booleans(),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 99),
)
def test_scale_and_bias_are_broadcast_arithmetic(case, dtype, bias, two_bottoms, in_place, order, seed):
    """Forward and backward in float64 NumPy, for any axes and memory order, one and two bottoms."""
    shape, axis, num_axes, start, inside = case
    rng = np.random.default_rng(seed)
    x, dy = (np.array(a, dtype, order=order) for a in rng.normal(size=(2, *shape)))
    scale = caffe.Scale(axis, num_axes, GAUSSIAN, bias, GAUSSIAN, dtype=dtype, rng=seed)
    second = rng.normal(size=inside).astype(dtype) if two_bottoms else None
    given_x = x.copy(order="K")
    y = scale(given_x, second, out=given_x if in_place else None)
    factor = (second if two_bottoms else scale.blobs[0].data).astype(float)
    shift = scale.blobs[-1].data.astype(float) if bias else np.zeros(inside)
    outside = tuple(k for k in range(len(shape)) if not start <= k < start + len(inside))
    unit = 64 * (U32 if dtype == np.float32 else U64)
    expected = x.astype(float) * along(factor, shape, start) + along(shift, shape, start)
    np.testing.assert_allclose(y, expected, rtol=unit, atol=unit * 4)
    for _ in range(2):
        dx = scale.backward(dy)
        dx, dsecond = dx if two_bottoms else (dx, None)
    dfactor, dshift = ((dy * a).sum(axis=outside, dtype=float) for a in (x.astype(float), 1.0))
    np.testing.assert_allclose(dx, dy * along(factor, shape, start), rtol=unit)
    close = {"rtol": unit, "atol": unit * dy.size}
    if two_bottoms:
        np.testing.assert_allclose(dsecond, dfactor, **close)  # overwritten
    else:
        np.testing.assert_allclose(scale.blobs[0].diff, 2 * dfactor, **close)  # accumulated
    if bias:
        np.testing.assert_allclose(scale.blobs[-1].diff, 2 * dshift, **close)
    assert (y.dtype, dx.dtype, y is given_x) == (dtype, dtype, in_place)

    layer = caffe.Bias(axis, num_axes, GAUSSIAN, dtype=dtype, rng=seed)
    y = layer(x, second)
    shift = (second if two_bottoms else layer.blobs[0].data).astype(float)
    np.testing.assert_allclose(y, x.astype(float) + along(shift, shape, start), rtol=unit, atol=unit)
    for _ in range(2):
        dx = layer.backward(dy)
        dx, dsecond = dx if two_bottoms else (dx, None)
    assert np.array_equal(dx, dy)
    assert not np.shares_memory(dx, dy)
    np.testing.assert_allclose(dsecond if two_bottoms else layer.blobs[0].diff / 2, dshift, **close)


@pytest.mark.parametrize("shape", [(3,), (4, 3, 5)], ids=["a channel", "everything"])
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("factor_dtype", DTYPES)
def test_gradients_of_scale_have_the_types_of_what_they_are_of(factor_dtype, x_dtype, shape):
    """That of a bias in float64 is not rounded to the type of a second bottom, nor a product to that of x."""
    axis = 1 if len(shape) == 1 else 0
    x, dy = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(x_dtype)
    scale = caffe.Scale(axis, len(shape), bias_term=True, dtype=np.float64)
    dfactor = scale.backward(dy, out=scale(x, np.ones(shape, factor_dtype)))[1]
    assert dfactor.dtype == factor_dtype
    outside = (0, 2) if axis else ()
    np.testing.assert_allclose(scale.blobs[0].diff, dy.sum(outside, dtype=float), rtol=1e-14)
    wide = caffe.Scale(axis, len(shape), dtype=np.float64)
    wide(x * x_dtype(1e20))
    wide.backward(dy * x_dtype(1e20))  # a product is more than float32 holds
    expected = 1e40 * (x.astype(float) * dy).sum(outside)
    np.testing.assert_allclose(wide.blobs[0].diff, expected, rtol=1e-5)


def test_wrong_bottoms():
    scale, x = caffe.Scale(bias_term=True), np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match=r"scale: expected the shape \(3, 4\)"):
        scale(x, np.ones((3, 5), np.float32))
    with pytest.raises(TypeError, match="scale: expected an array of float32 or float64, got int64"):
        scale(x, 2)
    with pytest.raises(TypeError, match=r"x: .* masked"):
        scale(np.ma.ones(SHAPE))
    with pytest.raises(RuntimeError, match="backward: expected a forward"):
        scale.backward(x)
    scale(x)
    with pytest.raises(ValueError, match=r"blobs\[0\]: expected shape \(4,\)"):
        scale(np.ones((2, 4)))
    turned = caffe.Scale(axis=1, num_axes=2)
    turned(np.ones((5, 2, 3)))
    with pytest.raises(ValueError, match=r"blobs\[0\]: expected shape \(3, 2\), .* got \(2, 3\)"):  # as many values
        turned(np.ones((5, 3, 2)))
    with pytest.raises(ValueError, match="blobs: expected 1, got 2"):
        scale(x, np.float32(2))
    with pytest.raises(ValueError, match="dy: expected the shape of x"):
        scale.backward(x[:1])
    assert [blob.diff.any() for blob in scale.blobs] == [False, False]
    for layer in (scale, caffe.Scale(0, -1), caffe.Scale(1, 2), caffe.Bias()):
        with pytest.raises(TypeError, match="out: expected"):
            layer(x, out=np.ones(SHAPE))
        with pytest.raises(TypeError, match="out: expected an array, got list"):
            layer(x, out=[])
        with pytest.raises(ValueError, match="out: expected"):
            layer(x, out=x[:1].copy())
        with pytest.raises(ValueError, match="out: expected a writeable"):
            layer(x, out=np.broadcast_to(np.float32(0), SHAPE))
    with pytest.raises(ValueError, match="bias: expected the shape"):
        caffe.Bias()(x, np.ones(2))


def test_a_scalar_bottom_goes_with_any_axis():
    assert caffe.Scale(axis=9)(np.ones(SHAPE), np.array(3.0)).max() == 3
    assert caffe.Bias(axis=9)(np.ones(SHAPE), np.array(3.0)).max() == 4


def test_a_factor_for_each_value_takes_no_memory_but_the_results():
    """The kernels would take vectors of float64 as long as x."""
    x = np.ones((1, 250_000), np.float32)
    scale = caffe.Scale(axis=0)
    scale(x[:, :2], x[:, :2])
    tracemalloc.start()
    y = scale(x, x)
    dx, ds = scale.backward(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * (y.nbytes + dx.nbytes + 2 * ds.nbytes)


# ---- out= of what runs along any axes

AXES = {"channels": (1, 1), "two axes": (1, 2), "first axis": (0, 1), "everything": (0, -1), "last axis": (2, 1)}


@pytest.mark.parametrize("layer", [caffe.Scale, caffe.Bias])
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_out_is_an_input_itself_or_apart(axes, layer):
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(3, 3, 4))
    x, dy, expected = whole[:2], rng.normal(size=(2, 3, 4)), whole[:2].copy()
    made = layer(*axes, {"type": "constant", "value": 2})
    y = made(x)
    into_itself = np.lib.stride_tricks.as_strided(np.zeros(24), (2, 3, 4), (0, 32, 8))
    for function, argument in [(made, x), (made.backward, dy)]:
        with pytest.raises(ValueError, match=r"^out: expected each value in a place of its own"):
            function(argument, out=into_itself)
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it"):
        made(x, out=whole[1:])
    assert np.array_equal(whole[:2], expected)
    apart = np.empty((4, 3, 2)).T
    assert made(x, out=apart) is apart
    assert np.array_equal(apart, y)
    assert np.array_equal(made(x, out=x), y)


@pytest.mark.parametrize("layer", [caffe.Scale, caffe.Bias])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_out_is_apart_from_the_second_bottom(axis, layer):
    """It would be read after it was written; and backward needs the factor."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    memory = np.ones(24)
    second = {0: memory.reshape(2, 3, 4), 1: memory[:3], 2: memory[:4]}[axis]
    before = memory.copy()
    with pytest.raises(ValueError, match=rf"^out: expected memory apart from {layer.__name__.lower()},"):
        layer(axis, 1 if axis else -1)(x, second, out=memory.reshape(2, 3, 4))
    assert np.array_equal(memory, before)


@pytest.mark.parametrize("axes", [(1, 1), (1, 2)])
def test_a_block_whose_backward_fails_stays_as_it_was(axes):
    block = caffe.Block("b", caffe.BatchNorm(3), caffe.Scale(*axes, bias_term=True))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    block(x)
    block.backward(x)
    before = [blob.diff.copy() for blob in block.scale.blobs]
    with pytest.raises(ValueError, match=r"^out: expected the shape of"):
        block.backward(x, out=np.zeros((4, 3, 4), np.float32))
    assert all(np.array_equal(blob.diff, diff) for blob, diff in zip(block.scale.blobs, before, strict=True))


def ordinary(shape=(6, 3, 5), order="C"):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(2, 3, size=shape).astype(np.float32), order=order) for _ in range(2)]


def same_gradients(layer, other):
    return all(np.array_equal(a.diff, b.diff) for a, b in zip(layer.blobs, other.blobs, strict=True))


def block(phase="TRAIN"):
    return caffe.Block("b", caffe.BatchNorm(3, phase=phase), caffe.Scale(bias_term=True))


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_backward_over_dy(axes):
    x, dy = ordinary((2, 3, 4))
    apart, over = (caffe.Scale(*axes, {"value": 2.0}, bias_term=True) for _ in range(2))
    apart(x), over(x)
    dx = apart.backward(dy)
    assert np.array_equal(over.backward(dy, out=dy), dx)
    assert same_gradients(apart, over)


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_dx_is_apart_from_x(axes):
    whole = np.arange(36.0).reshape(3, 3, 4)
    scale = caffe.Scale(*axes, dtype=np.float64)
    scale(whole[:2])
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it"):
        scale.backward(np.ones((2, 3, 4)), out=whole[1:])
    assert np.array_equal(whole.ravel(), np.arange(36))


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_block_in_place_has_the_gradients_of_one_apart(phase):
    x, dy = ordinary()
    apart, over = block(phase), block(phase)
    y, dx = apart(x), apart.backward(dy)
    assert np.array_equal(over(x, out=x), y)
    assert np.array_equal(over.backward(dy), dx)
    assert same_gradients(apart.scale, over.scale)


@pytest.mark.parametrize(
    "make", [caffe.Scale, lambda: caffe.Scale(0, -1), block, lambda: block("TEST")], ids=["1", "all", "TRAIN", "TEST"]
)
def test_backward_has_the_scale_of_its_forward(make):
    x, dy = ordinary()
    layer, changed = make(), make()
    layer(x), changed(x)
    getattr(changed, "scale", changed).blobs[0].data = 7
    assert np.array_equal(layer.backward(dy), changed.backward(dy))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("make", [caffe.Scale, lambda: caffe.BatchNorm(3)], ids=["Scale", "BatchNorm"])
def test_in_place_by_another_view_in_any_order(make, order):
    x, dy = ordinary(order=order)
    apart, over = make(), make()
    apart(x)
    dx = apart.backward(dy)
    over(x, out=x[...])
    found = over.backward(dy)
    assert np.array_equal(found, dx)
    assert found.strides == dx.strides == x.strides
    assert same_gradients(apart, over)


@pytest.mark.parametrize("layer", [caffe.Scale(0, -1, bias_term=True), caffe.Bias(0, -1), caffe.Bias()], ids=repr)
def test_gradients_beyond_float32_are_infinite_and_silent(layer):
    layer(np.ones((2, 3)))
    with np.errstate(all="raise"):
        layer.backward(np.full((2, 3), 1e200))
    assert np.isinf(layer.blobs[-1].diff).all()


def test_an_average_of_the_last_batch_alone_forgets_nan():
    bn = RunningAverage(1, moving_average_fraction=0.0)
    bn.blobs[0].data = np.nan
    bn(np.array([[1.0], [3.0]]))
    assert bn.blobs[0].data.tolist() == [2]


def test_memory_of_a_blob():
    mine = np.zeros(3, np.float32)
    blob = caffe.Blob(mine)
    blob.data = 1
    assert mine.tolist() == [0, 0, 0]
    assert np.shares_memory(np.asarray(blob), blob.data)
    assert not np.shares_memory(np.array(blob), blob.data)


def test_oddities_do_not_pile_up():
    noted = caffe.Block("b", caffe.BatchNorm(2), notes=["a note"])
    assert noted.oddities() == noted.oddities()
    assert noted.notes == ["a note"]


@pytest.mark.parametrize(("fraction", "momentum"), [(1.5, 0), (-0.5, 1), (0.75, 0.25)])
def test_fused_layers_have_a_momentum(fraction, momentum):
    assert caffe.Block("b", caffe.BatchNorm(2, moving_average_fraction=fraction)).fused().momentum == momentum


def test_results_are_laid_out_like_x():
    x = np.asfortranarray(np.ones((2, 3, 4, 5), np.float32))
    assert caffe.Scale(0, -1)(x).strides == x.strides


def test_blobs_are_of_real_numbers():
    assert caffe.Blob([1, 2]).data.dtype == caffe.Blob([1, 2]).diff.dtype == np.float64
    assert caffe.Blob(np.float32([1, 2])).data.dtype == caffe.Blob([1, 2], np.float32).data.dtype == np.float32
    for data, dtype, why in [
        ("abc", None, "^data: expected real numbers, got dtype <U3"),
        ([1j], None, "^data: expected real numbers, got dtype complex128"),
        ([[1], [1, 2]], None, "^data: expected an array, got list"),
        (np.ma.array([1.0]), None, "^data: .*masked"),
        ([1.0], np.int8, "^dtype: expected float32 or float64, got int8"),
    ]:
        with pytest.raises(TypeError, match=why):
            caffe.Blob(data, dtype)


@pytest.mark.parametrize("part", ["data", "diff"])
def test_what_a_blob_does_not_take_changes_nothing(part):
    blob = caffe.Blob([1.0, 2.0])
    before = getattr(blob, part).tolist()
    for values, error, why in [
        ([1, 2, 3], ValueError, r"expected shape \(2,\), got \(3,\)"),
        ("abc", TypeError, "expected real numbers, got dtype <U3"),
        ([1j, 2], TypeError, "expected real numbers, got dtype complex128"),
        (None, TypeError, "expected an array, got None"),
    ]:
        with pytest.raises(error, match=f"^{part}: {why}"):
            setattr(blob, part, values)
    small = caffe.Blob(np.ones(2, np.float32))
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        setattr(small, part, [1e300, 5])
    assert 5 not in getattr(small, part)
    getattr(blob, part).flags.writeable = False
    with pytest.raises(ValueError, match=f"^{part}: expected a writeable array"):
        setattr(blob, part, 3)
    assert getattr(blob, part).tolist() == before


def test_masks_are_not_dropped():
    masked = [np.ma.array([1.0], mask=[True]), np.ma.array([3.0])]
    with pytest.raises(TypeError, match=r"^x: .*masked"):
        caffe.BatchNorm()(masked)
