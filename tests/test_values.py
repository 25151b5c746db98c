"""Every function gives the right values: over shapes, memory layouts and dtypes (promise P1 of README)."""

import itertools

import numpy as np
import pytest
from arrays import (
    LARGE,
    LAYOUTS,
    SHAPES,
    WRITEABLE,
    assert_dx,
    assert_dx_of_constants,
    assert_parameter_gradients,
    assert_stats,
    assert_y,
    broadcasts,
    channels_of,
    memory_of,
    name_of,
    random_array,
)

import fastbn

EPS = 1e-3
DTYPES = [np.float32, np.float64]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=name_of)


def parameters(channels, dtype=np.float32):
    """Gamma and beta of both signs."""
    rng = np.random.default_rng(channels)
    return rng.normal(size=channels).astype(dtype), rng.normal(size=channels).astype(dtype)


def given_stats(x):
    """A mean and variance as a running average would have them: not those of x."""
    rng = np.random.default_rng(x.shape[1])
    return rng.normal(size=x.shape[1]), rng.uniform(0.5, 2, x.shape[1])


def check_forward(x):
    """batch_stats, batch_norm and normalize of x."""
    before = np.array(x)
    gamma, beta = parameters(x.shape[1])
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=EPS)
    assert_stats(stats, x)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, EPS)
    assert_stats(fastbn.batch_stats(x), x)
    assert y.strides == np.empty_like(x).strides
    mean, var = given_stats(x)
    y = fastbn.normalize(x, mean, var, gamma, beta, eps=EPS)
    assert_y(y, x, mean, var, gamma, beta, EPS)
    assert y.strides == np.empty_like(x).strides
    assert np.array_equal(x, before)


def check_backward(dy, x):
    """Gradients in training and with constant statistics."""
    before = np.array(x), np.array(dy)
    gamma, beta = parameters(x.shape[1])
    mean, var = given_stats(x)
    stats = fastbn.BatchStats(channels_of(x).shape[1], mean, var)
    dx, dgamma, dbeta, dresidual = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS)
    assert_dx(dx, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, mean, var, EPS)
    assert dx.strides == np.empty_like(x).strides
    assert dresidual is None
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, (mean, var), gamma, beta, eps=EPS, training=False)
    assert_dx_of_constants(dx, dy, var, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, mean, var, EPS)
    assert dx.strides == np.empty_like(x).strides
    assert np.array_equal(x, before[0])
    assert np.array_equal(dy, before[1])


# ---- shapes, layouts, dtypes


@layouts
@shapes
def test_forward(shape, layout):
    for dtype in DTYPES:
        check_forward(LAYOUTS[layout](random_array(shape, dtype)))


@layouts
@shapes
def test_backward(shape, layout):
    """With dy in the layout of x, and in one of the others: another one for each shape."""
    names = list(LAYOUTS)
    other = names[(names.index(layout) + 1 + SHAPES.index(shape)) % len(names)]
    for dtype in DTYPES:
        x, dy = random_array(shape, dtype), random_array(shape, dtype, seed=1)
        check_backward(LAYOUTS[other](dy), LAYOUTS[layout](x))
        check_backward(LAYOUTS[layout](dy), LAYOUTS[layout](x))


@pytest.mark.parametrize("shape", LARGE, ids=name_of)
def test_arrays_of_several_blocks(shape):
    check_forward(random_array(shape))
    check_backward(random_array(shape, seed=1), random_array(shape))


@dtypes
@pytest.mark.parametrize("length", range(15, 50))
def test_rows_of_any_length(length, dtype):
    """Loops take 16 values at a time; what is left of a row is another matter for each length. In place, too."""
    shape = (3, 40, length)
    x, dy = random_array(shape, dtype), random_array(shape, dtype, seed=1)
    check_forward(x)
    check_backward(dy, x)
    over, (y, stats) = x.copy(), fastbn.batch_norm(x)
    fastbn.batch_norm(over, out=over)
    assert np.array_equal(over, y)
    dx = fastbn.batch_norm_backward(dy, x, stats).dx
    assert np.array_equal(fastbn.batch_norm_backward(dy, x, stats, out=dy).dx, dx)


@pytest.mark.parametrize("length", [*range(2, 20), 49, 63, 95, 96, 196, 255, 257, 300])
def test_large_arrays_with_short_rows(length):
    """Results of 4 MiB and more go past the cache, whatever their rows, while sums are taken; nothing is left out."""
    shape = (1 + (1 << 20) // (61 * length), 61, length)
    x, dy = random_array(shape), random_array(shape, seed=1)
    gamma, beta = parameters(shape[1])
    y, dx = np.full((2, *shape), np.nan, np.float32)
    _, stats = fastbn.batch_norm(x, gamma, beta, eps=EPS, out=y)
    _, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS, out=dx)
    assert_stats(stats, x)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, EPS)
    assert_dx(dx, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, EPS)


@pytest.mark.parametrize("length", [5, 9, 15, 20])
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_large_arrays_of_many_small_channels(samples, length):
    """The same where all values of a channel stand together, and are fewer than a line holds, or a few lines."""
    channels = 1 + (1 << 20) // (samples * length)
    x, dy = (random_array((channels, samples, length), seed=seed).swapaxes(0, 1) for seed in (0, 1))
    gamma, beta = parameters(channels)
    y, dx = (np.full((channels, samples, length), np.nan, np.float32).swapaxes(0, 1) for _ in range(2))
    _, stats = fastbn.batch_norm(x, gamma, beta, eps=EPS, out=y)
    _, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS, out=dx)
    assert_stats(stats, x)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, EPS)
    assert_dx(dx, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, EPS)


@pytest.mark.parametrize("layout", ["channels-last", "every-second", "channels-last-gap", "gap-last-axis"])
def test_arrays_of_several_blocks_in_other_layouts(layout):
    x, dy = random_array(LARGE[0]), random_array(LARGE[0], seed=1)
    check_forward(LAYOUTS[layout](x))
    check_backward(dy, LAYOUTS[layout](x))


@dtypes
@pytest.mark.parametrize("shape", [(4, 3), (5, 3, 7), (2, 3, 40, 5), (600, 3)], ids=name_of)
def test_zero_strides(shape, dtype):
    x, dy = random_array(shape, dtype), random_array(shape, dtype, seed=1)
    for broadcast_x, broadcast_dy in itertools.product([x, *broadcasts(x)], [dy, *broadcasts(dy)]):
        check_forward(broadcast_x)
        check_backward(broadcast_dy, broadcast_x)


@dtypes
def test_one_value_per_channel_gives_beta(dtype):
    for shape in [(1, 4), (1, 4, 1, 1)]:
        x = random_array(shape, dtype)
        gamma, beta = parameters(4, dtype)
        y, stats = fastbn.batch_norm(x, gamma, beta)
        assert np.array_equal(y.ravel(), beta)
        assert np.array_equal(stats.mean, x.ravel())
        assert np.array_equal(stats.var, np.zeros(4))
        dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(np.ones_like(x), x, stats, gamma, beta)
        assert np.array_equal(dx, np.zeros(shape))
        assert np.array_equal(dgamma, np.zeros(4))
        assert np.array_equal(dbeta, np.ones(4))


# ---- vectors


def strided(v):
    return np.repeat(v, 2)[::2]


def backwards(v):
    return v[::-1].copy()[::-1]


def odd_address(v):
    return np.frombuffer(b"\0" + v.tobytes(), v.dtype, offset=1)


VECTORS = {
    "float32": lambda v: v,
    "float64": lambda v: v.astype(np.float64),
    "list": lambda v: v.tolist(),
    "tuple": lambda v: tuple(v.tolist()),
    "strided-float32": strided,
    "strided-float64": lambda v: strided(v.astype(np.float64)),
    "backwards-float32": backwards,
    "backwards-float64": lambda v: backwards(v.astype(np.float64)),
    "odd-address-float32": odd_address,
    "odd-address-float64": lambda v: odd_address(v.astype(np.float64)),
    "broadcast": lambda v: np.broadcast_to(v[:1], v.shape),
}


@dtypes
@pytest.mark.parametrize("vector", VECTORS)
def test_vectors_of_any_kind(vector, dtype):
    x, dy = random_array((6, 5, 4), dtype), random_array((6, 5, 4), dtype, seed=1)
    gamma, beta = map(VECTORS[vector], parameters(5))
    mean, var = (VECTORS[vector](v.astype(np.float32)) for v in given_stats(x))
    assert_y(fastbn.normalize(x, mean, var, gamma, beta, eps=EPS), x, mean, var, gamma, beta, EPS)
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=EPS)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, EPS)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS)
    assert_dx(dx, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, EPS)
    sums = fastbn.backward_sums(dy, x, (mean, var), gamma, beta, eps=EPS, training=False)
    dx, dgamma, dbeta, _ = fastbn.backward_apply(dy, x, (mean, var), sums, gamma, beta, eps=EPS, training=False)
    assert_dx_of_constants(dx, dy, var, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, mean, var, EPS)


@dtypes
def test_dtypes_of_parameter_gradients_are_those_of_the_parameters(dtype):
    x, dy = random_array((6, 5), dtype), random_array((6, 5), dtype, seed=1)
    stats = fastbn.batch_stats(x)
    f32, f64 = parameters(5)[0], parameters(5, np.float64)[0]
    for gamma, beta in itertools.product([None, f32, f64, f64.tolist()], repeat=2):
        gradients = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS)
        for gradient, parameter in ((gradients.dgamma, gamma), (gradients.dbeta, beta)):
            assert gradient.dtype == (dtype if parameter is None else np.asarray(parameter).dtype)
            assert gradient.shape == (5,)
        assert_parameter_gradients(gradients.dgamma, gradients.dbeta, dy, x, stats.mean, stats.var, EPS)


@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_without_gamma_or_beta(layout, dtype):
    x = LAYOUTS[layout](random_array((3, 5, 4, 6), dtype))
    dy = LAYOUTS[layout](random_array((3, 5, 4, 6), dtype, seed=1))
    for gamma, beta in itertools.product([None, parameters(5)[0]], [None, parameters(5)[1]]):
        y, stats = fastbn.batch_norm(x, gamma, beta, eps=EPS)
        assert_y(y, x, stats.mean, stats.var, gamma, beta, EPS)
        mean, var = given_stats(x)
        assert_y(fastbn.normalize(x, mean, var, gamma, beta, eps=EPS), x, mean, var, gamma, beta, EPS)
        dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS)
        assert_dx(dx, dy, x, stats, gamma, EPS)
        assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, EPS)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("eps", [0, 1e-30, 1e-5, 0.3, 1000, 1e60, np.float32(0.5)])
def test_eps(eps, layout):
    """eps in a sum with variances of the order of 1: from nothing to everything."""
    x, dy = (LAYOUTS[layout](random_array((7, 5, 9), seed=seed)) for seed in range(2))
    gamma, beta = parameters(5)
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=eps)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, eps)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=eps)
    assert_dx(dx, dy, x, stats, gamma, eps)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, eps)


def test_default_eps_is_that_of_pytorch():
    """A variance of 3e-5 and eps = 1e-5: y = xhat*sqrt(3/4)."""
    d = np.sqrt(3e-5)
    x = np.array([[-d], [d]])
    stats = fastbn.BatchStats(2, [0.0], [3e-5])
    expected = np.array([[-1], [1]]) * np.sqrt(0.75)
    np.testing.assert_allclose(fastbn.batch_norm(x)[0], expected, rtol=1e-14)
    np.testing.assert_allclose(fastbn.normalize(x, *stats[1:]), expected, rtol=1e-14)
    np.testing.assert_allclose(fastbn.batch_norm_backward(x, x, stats, training=False).dx, expected, rtol=1e-14)
    sums = fastbn.backward_sums(x, x, stats)
    np.testing.assert_allclose(fastbn.backward_apply(x, x, stats, sums).dgamma, 2 * d * np.sqrt(0.75), rtol=1e-14)


# ---- the two halves of a backward


@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-second", "channels-last-gap"])
def test_sums_and_apply_are_the_two_halves_of_backward(layout, dtype):
    x, dy = (LAYOUTS[layout](random_array((9, 5, 7, 3), dtype, seed=seed)) for seed in range(2))
    gamma, beta = parameters(5)
    stats = fastbn.batch_stats(x)
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta, eps=EPS)
    assert sums.sum_dy.dtype == sums.sum_dy_xmu.dtype == np.float64
    # eps = 1 and var = 0: dgamma is then sum_dy_xmu itself
    assert_parameter_gradients(sums.sum_dy_xmu, sums.sum_dy, dy, x, stats.mean, np.zeros(5), 1)
    dx, dgamma, dbeta, dresidual = fastbn.backward_apply(dy, x, stats, sums, gamma, beta, eps=EPS)
    assert_dx(dx, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, EPS)
    assert dresidual is None


@dtypes
def test_apply_takes_n_from_the_statistics_and_sums_as_given(dtype):
    """One part of a batch: the sums and the count are those of the whole."""
    x, dy = random_array((12, 5, 3), dtype), random_array((12, 5, 3), dtype, seed=1)
    gamma, _ = parameters(5)
    stats = fastbn.batch_stats(x)
    sums = fastbn.backward_sums(dy, x, stats)
    part = fastbn.backward_apply(dy[:4], x[:4], stats, sums, gamma, eps=EPS)
    assert_dx(part.dx, dy[:4], x[:4], stats, gamma, EPS, sums_of=(dy, x))
    assert_parameter_gradients(part.dgamma, part.dbeta.astype(dtype), dy, x, stats.mean, stats.var, EPS)


@pytest.mark.parametrize("training", [True, False], ids=["training", "constants"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_what_is_not_needed_is_none_and_the_rest_is_the_same(layout, training):
    x, dy = (LAYOUTS[layout](random_array((9, 5, 7), seed=seed)) for seed in range(2))
    gamma, beta = parameters(5)
    stats = fastbn.batch_stats(x)
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta, training=training)
    for backward, arguments in (
        (fastbn.batch_norm_backward, (dy, x, stats, gamma, beta)),
        (fastbn.backward_apply, (dy, x, stats, sums, gamma, beta)),
    ):
        for need_dx, need_params in itertools.product([True, False], repeat=2):
            dx, dgamma, dbeta, _ = backward(
                *arguments, eps=EPS, training=training, need_dx=need_dx, need_params=need_params
            )
            assert (dx is None) != need_dx
            assert (dgamma is None) != need_params
            assert (dbeta is None) != need_params
            if need_dx and training:
                assert_dx(dx, dy, x, stats, gamma, EPS)
            elif need_dx:
                assert_dx_of_constants(dx, dy, stats.var, gamma, EPS)
            if need_params:
                assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, EPS)


# ---- out=


@dtypes
@pytest.mark.parametrize("out_layout", WRITEABLE)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-second", "backwards"])
def test_out_of_any_layout_is_written_and_nothing_beside_it(layout, out_layout, dtype):
    shape = (3, 5, 4, 33)
    x, dy = (LAYOUTS[layout](random_array(shape, dtype, seed=seed)) for seed in range(2))
    gamma, beta = parameters(5)
    mean, var = given_stats(x)
    stats = fastbn.BatchStats(x.size // 5, mean, var)
    out = LAYOUTS[out_layout](np.zeros(shape, dtype))
    around = memory_of(out).tobytes()

    y, found = fastbn.batch_norm(x, gamma, beta, eps=EPS, out=out)
    assert y is out
    assert_stats(found, x)
    assert_y(out, x, found.mean, found.var, gamma, beta, EPS)
    assert fastbn.normalize(x, mean, var, gamma, beta, eps=EPS, out=out) is out
    assert_y(out, x, mean, var, gamma, beta, EPS)
    assert fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS, out=out).dx is out
    assert_dx(out, dy, x, stats, gamma, EPS)
    assert fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=EPS, training=False, out=out).dx is out
    assert_dx_of_constants(out, dy, var, gamma, EPS)
    sums = fastbn.backward_sums(dy, x, stats)
    assert fastbn.backward_apply(dy, x, stats, sums, gamma, beta, eps=EPS, out=out).dx is out
    assert_dx(out, dy, x, stats, gamma, EPS)

    out[...] = 0
    assert memory_of(out).tobytes() == around


@dtypes
@pytest.mark.parametrize("layout", WRITEABLE)
@pytest.mark.parametrize("shape", [(70, 5), (3, 5, 4, 33), (2, 2, 700)], ids=name_of)
def test_out_over_an_input(shape, layout, dtype):
    x, dy = random_array(shape, dtype), random_array(shape, dtype, seed=1)
    gamma, beta = parameters(shape[1])
    mean, var = given_stats(x)
    stats = fastbn.BatchStats(x.size // shape[1], mean, var)

    over = LAYOUTS[layout](x)
    y, found = fastbn.batch_norm(over, gamma, beta, eps=EPS, out=over)
    assert y is over
    assert_stats(found, x)
    assert_y(over, x, found.mean, found.var, gamma, beta, EPS)
    over = LAYOUTS[layout](x)
    fastbn.normalize(over, mean, var, gamma, beta, eps=EPS, out=over)
    assert_y(over, x, mean, var, gamma, beta, EPS)

    over = LAYOUTS[layout](dy)
    gradients = fastbn.batch_norm_backward(over, x, stats, gamma, beta, eps=EPS, out=over)
    assert_dx(over, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(gradients.dgamma, gradients.dbeta, dy, x, mean, var, EPS)
    over = LAYOUTS[layout](x)
    gradients = fastbn.batch_norm_backward(dy, over, stats, gamma, beta, eps=EPS, out=over)
    assert_dx(over, dy, x, stats, gamma, EPS)
    assert_parameter_gradients(gradients.dgamma, gradients.dbeta, dy, x, mean, var, EPS)
    over = LAYOUTS[layout](dy)
    fastbn.batch_norm_backward(over, x, stats, gamma, beta, eps=EPS, training=False, out=over)
    assert_dx_of_constants(over, dy, var, gamma, EPS)


def test_out_over_an_input_that_is_both_x_and_dy():
    x = random_array((6, 3, 40))
    stats = fastbn.batch_stats(x)
    over = x.copy()
    fastbn.batch_norm_backward(over, over, stats, eps=EPS, out=over)
    assert_dx(over, x, x, stats, None, EPS)


@pytest.mark.parametrize("offset", [0, 4, 16, 20, 60])
def test_large_out_at_any_address_is_written_and_nothing_beside_it(offset):
    """Large results go to memory in whole cache lines of 64 bytes; rows of 263*269 values start anywhere in one."""
    shape = (5, 3, 263, 269)
    x, dy = random_array(shape), random_array(shape, seed=1)
    gamma, beta = parameters(shape[1])
    memory = np.full(x.nbytes + 256, 7, np.uint8)
    start = -memory.ctypes.data % 64 + 64 + offset
    out = memory[start : start + x.nbytes].view(np.float32).reshape(shape)
    for result, expected in (  # without out=, held to the formulas above
        (lambda out: fastbn.batch_norm(x, gamma, beta, out=out)[0], fastbn.batch_norm(x, gamma, beta)[0]),
        (
            lambda out: fastbn.batch_norm_backward(dy, x, fastbn.batch_stats(x), gamma, beta, out=out).dx,
            fastbn.batch_norm_backward(dy, x, fastbn.batch_stats(x), gamma, beta).dx,
        ),
    ):
        out[...] = np.nan
        assert np.array_equal(result(out), expected)
        assert (memory[:start] == 7).all()
        assert (memory[start + x.nbytes :] == 7).all()


# ---- arrays that are no ndarrays, and arrays without values


class Wrapped:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_whatever_numpy_takes_as_an_array(tmp_path):
    x, dy = random_array((4, 3, 5)), random_array((4, 3, 5), seed=1)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    mapped[...] = x
    for given in (mapped, Wrapped(x)):
        y, stats = fastbn.batch_norm(given, eps=EPS)
        assert type(y) is np.ndarray
        assert_stats(stats, x)
        assert_y(y, x, stats.mean, stats.var, None, None, EPS)
        assert_dx(fastbn.batch_norm_backward(Wrapped(dy), given, stats, eps=EPS).dx, dy, x, stats, None, EPS)
    wide = x.astype(np.float64)
    assert_stats(fastbn.batch_stats(wide.tolist()), wide)
    mean, var = given_stats(x)
    assert_y(fastbn.normalize(wide.tolist(), mean, var, eps=EPS), wide, mean, var, None, None, EPS)


@dtypes
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 3, 4, 0)], ids=name_of)
def test_no_values(shape, dtype):
    x = np.empty(shape, dtype)
    stats = fastbn.batch_stats(x)
    assert stats.count == 0
    assert np.array_equal(stats.mean, np.zeros(3))
    assert np.array_equal(stats.var, np.zeros(3))
    with pytest.raises(ValueError, match="at least one value per channel"):
        fastbn.batch_norm(x)
    assert fastbn.normalize(x, np.ones(3), np.ones(3)).shape == shape
    for training in (True, False):
        dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(x, x, stats, training=training)
        assert dx.shape == shape
        assert dx.dtype == dtype
        assert np.array_equal(dgamma, np.zeros(3))
        assert np.array_equal(dbeta, np.zeros(3))
    sums = fastbn.backward_sums(x, x, stats)
    assert np.array_equal(sums, np.zeros((2, 3)))
    # An empty part of a batch that has values elsewhere: the sums are those of the others.
    total = fastbn.GradientSums([1.0, 2, 3], [4.0, 5, 6])
    part = fastbn.backward_apply(x, x, fastbn.BatchStats(7, np.zeros(3), np.full(3, 4.0)), total, eps=0)
    assert part.dx.shape == shape
    assert np.array_equal(part.dbeta, [1, 2, 3])
    assert np.array_equal(part.dgamma, [2, 2.5, 3])
