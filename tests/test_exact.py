"""Promise P1: statistics as exact as float64 allows, whatever the values and their order."""

import numpy as np
import pytest
from arrays import (
    EXACT,
    HARD,
    LAYOUTS,
    U32,
    U64,
    assert_dx,
    assert_dx_of_constants,
    assert_parameter_gradients,
    assert_stats,
    assert_y,
    channels_of,
    exact_channel,
    from_channels,
    hard_channel,
    mixture,
    random_array,
    true_stats,
    walsh,
)

import fastbn

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
epsilons = pytest.mark.parametrize("eps", [0, 1e-5], ids=["eps-0", "eps-1e-5"])

# How n values of a channel, a multiple of 5, become an array: in planes, of long and short rows, and in rows (N, C).
ORDERS = {
    "planes": lambda channels: from_channels(channels, (5, len(channels), channels.shape[1] // 5), channels.dtype),
    "short-rows": lambda channels: from_channels(channels, (channels.shape[1] // 5, len(channels), 5), channels.dtype),
    "one-sample": lambda channels: from_channels(channels, (1, len(channels), channels.shape[1]), channels.dtype),
    "rows": lambda channels: from_channels(channels, (channels.shape[1], len(channels)), channels.dtype),
    "channels-last": lambda channels: LAYOUTS["channels-last"](ORDERS["planes"](channels)),
    "every-second": lambda channels: LAYOUTS["every-second"](ORDERS["planes"](channels)),
}
orders = pytest.mark.parametrize("order", ORDERS)


def check_all(x, eps):
    """Forward and backward of x against the formulas."""
    rng = np.random.default_rng(x.shape[1])
    gamma, beta = rng.normal(size=(2, x.shape[1])).astype(np.float32)
    dy = random_array(x.shape, x.dtype, seed=1)
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=eps)
    assert_stats(stats, x)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, eps)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=eps)
    assert_dx(dx, dy, x, stats, gamma, eps)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, eps)


# ---- hard data


@orders
@pytest.mark.parametrize("name", HARD)
def test_hard_data(name, order):
    """One channel beside an ordinary one, short (a chunk is 512 values) and long."""
    for n in (20, 500, 7000):
        for dtype in (np.float32, np.float64):
            ordinary = channels_of(random_array((n, 1), dtype))
            x = ORDERS[order](np.concatenate([hard_channel(name, n, dtype)[None], ordinary]))
            for eps in (0, 1e-5):
                check_all(x, eps)


@epsilons
@dtypes
@orders
def test_hard_channels_side_by_side(order, dtype, eps):
    """A channel that needs a second look leaves its neighbours alone."""
    check_all(ORDERS[order](mixture(3000, dtype)), eps)


@dtypes
@pytest.mark.parametrize("order", ["planes", "short-rows", "rows", "channels-last"])
@pytest.mark.parametrize(
    "name", ["offset-1e5", "outlier-first", "outliers-first", "black-first", "binarised", "two-valued-1e4", "ascending"]
)
def test_hard_data_of_several_blocks(name, order, dtype):
    n = 150_000
    x = ORDERS[order](np.stack([hard_channel(name, n, dtype), hard_channel("offset-1", n, dtype)]))
    assert_stats(fastbn.batch_stats(x), x)


@dtypes
@orders
def test_gradients_of_a_layer_in_evaluation_whose_input_is_at_the_running_mean(order, dtype):
    """x - mean is 1e-11 of x, far less than the given standard deviation: the difference must be taken exactly."""
    values = np.array([1, 0.1, -1e4, 1e20]).astype(dtype)
    x = ORDERS[order](np.repeat(values[:, None], 3000, axis=1))
    mean, var = values.astype(np.float64) * (1 + 1e-11), np.square(values, dtype=np.float64)
    dy = random_array(x.shape, dtype, seed=1)
    for eps in (0, 1e-5):
        _, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, (mean, var), mean, mean, eps=eps, training=False)
        assert_parameter_gradients(dgamma, dbeta, dy, x, mean, var, eps)


@dtypes
@orders
def test_hard_channels_in_place(order, dtype):
    """What is summed twice is still normalised once, and read before it is written over."""
    x = ORDERS[order](mixture(3000, dtype))
    gamma, beta = np.random.default_rng(0).normal(size=(2, x.shape[1])).astype(np.float32)
    over = x.copy(order="K")
    y, stats = fastbn.batch_norm(over, gamma, beta, out=over)
    assert_stats(stats, x)
    assert_y(y, x, stats.mean, stats.var, gamma, beta, 1e-5)
    dy = random_array(x.shape, dtype, seed=1)
    for which in range(2):
        arguments = [dy.copy(), x.copy(order="K")]
        dx = fastbn.batch_norm_backward(*arguments, stats, gamma, beta, out=arguments[which]).dx
        assert_dx(dx, dy, x, stats, gamma, 1e-5)


@dtypes
@orders
@pytest.mark.parametrize("x_name", ["offset-1", "offset-1e3", "offset-1e5", "outlier-first", "binarised"])
def test_hard_gradients(x_name, order, dtype):
    """Gradients of all sizes, signs and orders, or of one value alone, meet ordinary and hard x."""
    n = 3000
    dys = np.concatenate([mixture(n, dtype), np.eye(2, n, 17, dtype), -np.eye(1, n, dtype=dtype)])
    x = ORDERS[order](np.stack([hard_channel(x_name, n, dtype)] * len(dys)))
    dy = ORDERS[order](dys)
    gamma = np.random.default_rng(0).normal(size=len(dys))
    stats = fastbn.batch_stats(x)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, gamma)
    assert_dx(dx, dy, x, stats, gamma, 1e-5)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, 1e-5)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, gamma, training=False)
    assert_dx_of_constants(dx, dy, stats.var, gamma, 1e-5)
    assert_parameter_gradients(dgamma, dbeta, dy, x, stats.mean, stats.var, 1e-5)


def test_hard_data_of_the_largest_number_of_blocks():
    """More than 64 blocks of 32*512 values, two-valued: every addition rounds the same way."""
    n = 1_300_000
    values = np.full(n, 0.1, np.float32)
    values[::3] = 0.7
    x = values.reshape(13, 1, -1)
    # Counted: n0 values of 0.1, n1 of 0.7. The mean and variance of two numbers.
    n1 = len(values[::3])
    low, step = float(np.float32(0.1)), float(np.float32(0.7)) - float(np.float32(0.1))
    stats = fastbn.batch_stats(x)
    assert abs(stats.mean[0] - (low + step * n1 / n)) < 1e-6 * step * 0.47
    assert abs(stats.var[0] / (step**2 * n1 * (n - n1) / n**2) - 1) < 1e-6


@orders
def test_y_of_data_far_from_zero_keeps_its_digits(order):
    """With abs(mean)/std = 1e5, y from x and the truth about x, not from the statistics that the call returned.

    Their errors (1e-6 of std at most, in fact 1e-11) come on top of the four roundings.
    """
    x = ORDERS[order](np.stack([hard_channel("offset-1e5", 5000), hard_channel("two-valued-1e4", 5000)]))
    mean, var = true_stats(x)
    y = channels_of(fastbn.batch_norm(x, eps=0)[0])
    xhat = (channels_of(x) - mean[:, None]) / np.sqrt(var)[:, None]
    assert (abs(y - xhat) <= 4 * U32 * abs(xhat) + 1e-9).all()


# ---- constant channels


@epsilons
@dtypes
@orders
@pytest.mark.parametrize("n", [5, 15, 20, 700, 40000])
def test_constant_channels_give_beta_exactly(n, order, dtype, eps):
    constants = np.array([0, -0.0, 1, 0.1, -7.3, 1e5 + 0.1, 1e30, -3e38, 1e-38, 1e-45, 255, 1 / 3]).astype(dtype)
    x = ORDERS[order](np.repeat(constants[:, None], n, axis=1))
    rng = np.random.default_rng(0)
    gamma, beta = rng.normal(size=(2, len(constants))).astype(dtype)
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=eps)
    assert np.array_equal(stats.mean, constants)
    assert np.array_equal(stats.var, np.zeros(len(constants)))
    assert np.array_equal(channels_of(y), np.repeat(beta[:, None], n, axis=1))
    dx, dgamma, _, _ = fastbn.batch_norm_backward(x, x, stats, gamma, beta, eps=eps)
    assert np.array_equal(dgamma, np.zeros(len(constants)))
    assert np.isfinite(dx).all()
    if eps == 0:
        assert np.array_equal(dx, np.zeros(x.shape))


@dtypes
@orders
@pytest.mark.parametrize("gamma", [1.7e308, -1.7e308])
@pytest.mark.parametrize("activation", [None, "relu6", "leaky_relu"])
def test_constant_channels_give_beta_whatever_gamma_is(activation, gamma, order, dtype):
    """gamma/sqrt(eps) is beyond float64."""
    x = ORDERS[order](np.array([[3.0] * 40, [-7.0] * 40], dtype))
    y, stats = fastbn.batch_norm(x, np.array([gamma, 1]), np.array([2.5, -1.5]), activation=activation)
    beta = {None: -1.5, "relu6": 0, "leaky_relu": np.array(-1.5 * 0.01, dtype)}[activation]
    assert np.array_equal(channels_of(y), np.repeat(np.array([[2.5], [beta]], dtype), 40, axis=1))
    assert np.array_equal(fastbn.normalize(x, *stats[1:], np.array([1, gamma])), np.zeros(x.shape))


def test_a_scale_beyond_float64_gives_no_wrong_number():
    """Of a channel that is not constant: what overflows on the way is infinite, and not some other number."""
    x, gamma = np.array([[0.0, 0.0], [0.01, 0.01]]), np.array([1.7e308, -1.7e308])
    y, z = fastbn.batch_norm(x, gamma)[0], fastbn.reference.batch_norm(x, gamma)[0]
    assert np.array_equal(np.sign(y), np.sign(z))
    assert (np.isinf(y) | np.isclose(y, z, rtol=1e-12)).all()


# ---- exact answers


@dtypes
@orders
@pytest.mark.parametrize("name", EXACT)
def test_exact_statistics(name, order, dtype):
    """Mean and variance are representable, and so are all sums: nothing may be rounded."""
    _, mean, var = EXACT[name]
    for n in (840, 840 * 25):
        x = ORDERS[order](np.stack([exact_channel(name, n).astype(dtype), exact_channel("ramp", n).astype(dtype)]))
        stats = fastbn.batch_stats(x)
        assert stats.count == n
        assert stats.mean.tolist() == [mean, 3]
        assert stats.var.tolist() == [var, 4]


@dtypes
@orders
def test_exact_y(order, dtype):
    """invstd is a power of two, and so is all else but x."""
    n = 4 * 840
    channels = np.stack(
        [exact_channel("far-signs", n), 0.5 * exact_channel("one-of-four", n), exact_channel("ramp", n)]
    )
    x = ORDERS[order](channels.astype(dtype))
    y, _ = fastbn.batch_norm(x[:, :1], [2.0], [1.0], eps=0)
    assert np.array_equal(channels_of(y)[0], np.tile([-1.0, 3], n // 2))
    y, _ = fastbn.batch_norm(x[:, 1:2], [-3.0], [0.5], eps=2.0**-6)  # var = 3/64, 1/sqrt(4/64) = 4; mean = 1/8
    assert np.array_equal(channels_of(y)[0], np.tile([-4.0, 2, 2, 2], n // 4))
    y, _ = fastbn.batch_norm(x[:, 2:], eps=0)
    assert np.array_equal(channels_of(y)[0], np.tile(np.arange(-3, 4) / 2, n // 7))
    mean, var = np.array([2.0**20, 0, 1]), np.array([0.25, 1, 16])
    y = fastbn.normalize(x, mean, var, [1.0, 2, 4], [0.0, 1, -1], eps=0)
    expected = [np.tile([-0.25, 0.25], n // 2), np.tile([2.0, 1, 1, 1], n // 4), np.tile(np.arange(7) - 2.0, n // 7)]
    assert np.array_equal(channels_of(y), expected)


@dtypes
@orders
@pytest.mark.parametrize("n", [20, 840, 40000])
def test_exact_gradients(n, order, dtype):
    """With signs s, r that are orthogonal to each other and to 1: x = m + d*s, dy = a + b*s + c*r.

    Then xhat = s, sum(dy) = n*a, sum(dy*xhat) = n*b, and dx = gamma/d*(dy - a - s*b) = gamma/d*c*r.
    """
    s, r = walsh(n)
    m, d = np.array([0, 2.0**10, -3]), np.array([1, 2.0**-8, 4])
    a, b, c = np.array([3, 1, -5]), np.array([-2, 7, 0.5]), np.array([1, 0.25, -6])
    gamma = np.array([1, 0.5, -3])
    x = ORDERS[order]((m[:, None] + d[:, None] * s).astype(dtype))
    dy = ORDERS[order]((a[:, None] + b[:, None] * s + c[:, None] * r).astype(dtype))
    y, stats = fastbn.batch_norm(x, gamma, a.astype(float), eps=0)
    assert stats.mean.tolist() == m.tolist()
    assert stats.var.tolist() == (d * d).tolist()
    assert np.array_equal(channels_of(y), gamma[:, None] * s + a[:, None])
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, eps=0)
    assert dbeta.tolist() == (n * a).tolist()
    assert dgamma.tolist() == (n * b).tolist()
    assert np.array_equal(channels_of(dx), (gamma / d * c)[:, None] * r)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, eps=0, training=False)
    assert dbeta.tolist() == (n * a).tolist()
    assert dgamma.tolist() == (n * b).tolist()
    assert np.array_equal(channels_of(dx), (gamma / d)[:, None] * channels_of(dy))


@pytest.mark.parametrize("order", ["planes", "rows"])
def test_sums_are_exact_beyond_53_bits(order):
    """Squares of 44 bits, added 2**22 times: a sum of 66 bits whose parts all count (compensated sums).

    The sum is a power of two times the square, so the variance is the square itself.
    """
    widest = 2.0**22 - 1
    values = np.tile([-widest, widest], 2**21)
    shape = (4, 1, 2**20) if order == "planes" else (2**22, 1)
    x = from_channels(values[None], shape)
    if order == "rows":
        x = np.repeat(x, 2, axis=1)
    stats = fastbn.batch_stats(x)
    assert stats.mean.tolist() == [0] * x.shape[1]
    assert stats.var.tolist() == [widest**2] * x.shape[1]


# ---- the ends of the range


@orders
def test_finite_float32_never_gives_a_statistic_that_is_not_finite(order):
    largest = float(np.finfo(np.float32).max)
    n = 20_000
    s, r = walsh(n)
    channels = np.stack([largest * s, largest * np.sign(s + r + 0.5), np.full(n, largest), np.append(-largest, s[1:])])
    x = ORDERS[order](channels.astype(np.float32))
    y, stats = fastbn.batch_norm(x, eps=0)
    assert_stats(stats, x)
    assert np.isfinite(stats.mean).all()
    assert np.isfinite(stats.var).all()
    assert_y(y, x, stats.mean, stats.var, None, None, 0)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(x, x, stats, np.ones(4), np.ones(4), eps=0)
    assert np.isfinite(dx).all()
    assert_parameter_gradients(dgamma, dbeta, x, x, stats.mean, stats.var, 0)


@pytest.mark.parametrize("order", ["planes", "rows"])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e37])
def test_gradients_at_the_ends_of_the_range(scale, order):
    """x and dy of any size, alike or opposite: no factor of the formula leaves float32's range by itself."""
    x = (ORDERS[order](channels_of(random_array((600, 3), np.float64))) * scale).astype(np.float32)
    for dy_scale in (1e-30, 1, 1e30):
        dy = (random_array(x.shape, np.float64, seed=1) * dy_scale).astype(np.float32)
        for gamma in (np.array([1.0, 1e-35, 1e35]), np.array([1.0, 1e-20, 1e30], np.float32)):
            for eps in (0, 1e-5):
                y, stats = fastbn.batch_norm(x, gamma, eps=eps)
                assert_stats(stats, x)
                assert_y(y, x, stats.mean, stats.var, gamma, None, eps)
                gradients = fastbn.batch_norm_backward(dy, x, stats, gamma.astype(float), np.ones(3), eps=eps)
                assert_dx(gradients.dx, dy, x, stats, gamma, eps)
                assert_parameter_gradients(gradients.dgamma, gradients.dbeta, dy, x, stats.mean, stats.var, eps)


@pytest.mark.parametrize("order", ["planes", "rows"])
def test_given_statistics_at_the_ends_of_the_range(order):
    x = ORDERS[order](channels_of(random_array((40, 6))))
    mean = np.array([0, 1e30, -3e38, 1e300, 1e-300, 5])
    var = np.array([1e-80, 1, 1e60, 1e10, 0, 1e300])
    beta = np.array([0, 1e38, 1, 0, 1e-42, 3])
    y = fastbn.normalize(x, mean, var, None, beta, eps=0)
    assert_y(y, x, mean, var, None, beta, 0)


@pytest.mark.parametrize("order", ["planes", "short-rows", "one-sample", "rows"])
@pytest.mark.parametrize("place", [0, 3, 63, 64, 100, 129])
def test_one_of_many_channels_at_the_end_of_the_range(place, order):
    """Its factor overflows in float32, 1e40, and its results do not; those of all others are ordinary."""
    scale, gamma = np.ones((130, 1)), np.ones(130)
    scale[place], gamma[place] = 1e-8, 1e32
    x = ORDERS[order]((channels_of(random_array((40, 130), np.float64)) * scale).astype(np.float32))
    dy = ORDERS[order]((channels_of(random_array((40, 130), np.float64, seed=1)) * scale).astype(np.float32))
    y, stats = fastbn.batch_norm(x, gamma, eps=0)
    assert_y(y, x, stats.mean, stats.var, gamma, None, 0)
    assert_y(fastbn.normalize(x, stats.mean, stats.var, gamma, eps=0), x, stats.mean, stats.var, gamma, None, 0)
    assert_dx(fastbn.batch_norm_backward(dy, x, stats, gamma, eps=0).dx, dy, x, stats, gamma, 0)


@pytest.mark.parametrize("order", ["planes", "rows"])
def test_a_result_beyond_float32_is_infinite_and_not_nan(order):
    """(0 - mean)*gamma overflows. The mean's rounding to float32, times gamma, does too, with the other sign."""
    x = np.zeros_like(ORDERS[order](np.zeros((2, 20), np.float32)))
    y = fastbn.normalize(x, [1e30, -1e30], [3.0, 3.0], [1e30, 1e30], eps=0)
    assert np.array_equal(channels_of(y), np.repeat([[-np.inf], [np.inf]], 20, axis=1))
    stats = fastbn.BatchStats(20, [1e30, -1e30], [1.0, 1.0])
    dy = np.full_like(x, 1.5)  # sum(dy*xmu) = -20*1.5*mean, and dx = -xmu*that/20: mean**2 with the sign of -1
    dx = fastbn.batch_norm_backward(dy, x, stats, eps=0).dx
    assert np.array_equal(channels_of(dx), np.full((2, 20), -np.inf))


@pytest.mark.parametrize("order", ["planes", "rows"])
def test_terms_beyond_float32_that_leave_a_result_within(order):
    """dy*gamma*invstd overflows, and what is taken from it does; so do the terms of y before a residual."""
    x = ORDERS[order](np.tile(np.float32([1e20, -1e20]), (1, 10)))
    dy = ORDERS[order](np.tile(np.float32([3e38, -3e38, 2.9e38, -2.9e38]), (1, 5)))
    stats, gamma = fastbn.batch_stats(x), np.array([1.2e20])
    assert_dx(fastbn.batch_norm_backward(dy, x, stats, gamma, eps=0).dx, dy, x, stats, gamma, 0)

    residual = ORDERS[order](np.tile(np.float32([-2e38, 2e38]), (1, 10)))
    y = fastbn.normalize(x, stats.mean, stats.var, [4e38], eps=0, residual=residual)
    np.testing.assert_allclose(channels_of(y), np.tile([2e38, -2e38], (1, 10)), rtol=4 * U32 * 3)


# ---- sums that cancel


@pytest.mark.parametrize("order", ["planes", "rows"])
@pytest.mark.parametrize("mean", [0, 3, 10, 1e3, 6e4])
def test_sums_that_cancel_far_from_zero(mean, order):
    """dy as it comes from another normalization: orthogonal to 1 and to xhat, but for its rounding.

    Where dy is 0, dx is what is left of the sums, which so little is left of: their errors must be those of float64.
    """
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((6, 1000))).astype(np.float32)
    dy = rng.standard_normal(x.shape)
    dy[:, ::7] = 0
    for c in range(len(x)):
        live = np.flatnonzero(dy[c])
        basis = np.stack([np.ones(live.size), (x[c, live] - x[c].mean(dtype=float)) / x[c].std(dtype=float)], axis=1)
        for _ in range(2):
            dy[c, live] -= basis @ np.linalg.lstsq(basis, dy[c, live])[0]
    x, dy = ORDERS[order](x), ORDERS[order](dy.astype(np.float32))
    stats = fastbn.batch_stats(x)
    assert_dx(fastbn.batch_norm_backward(dy, x, stats, eps=0).dx, dy, x, stats, None, 0)


@pytest.mark.parametrize("columns", [1, 5])
def test_float64_whose_roundings_all_go_one_way(columns):
    """Terms of half a unit of the sum each, and more of them than fold in between: the bound, nearly reached."""
    dy = np.full((4096, columns), 0.999 * U64)
    dy[:16] = 1
    x = np.random.default_rng(0).standard_normal(dy.shape)
    if columns == 1:
        x, dy = x.reshape(1, 1, -1), dy.reshape(1, 1, -1)
    stats = fastbn.batch_stats(x)
    found = fastbn.batch_norm_backward(dy, x, stats, np.ones(columns), np.ones(columns))
    assert_parameter_gradients(found.dgamma, found.dbeta, dy, x, stats.mean, stats.var, 1e-5, usual=False)
    assert_dx(found.dx, dy, x, stats, None, 1e-5, usual=False)
    small = np.full(4096, 0.9999 * U64**0.5)
    small[17::2] *= -1
    small[:16] = np.tile([1.0, -1.0], 8)
    x = np.repeat(small[:, None], columns, axis=1)
    x = x.reshape(1, 1, -1) if columns == 1 else x
    assert_stats(fastbn.batch_stats(x), x, usual=False)


# ---- NaN and infinity

INFECTIONS = {
    "nan": [np.nan],
    "inf": [np.inf],
    "-inf": [-np.inf],
    "inf-inf": [np.inf, -np.inf],
    "inf-nan": [np.inf, np.nan],
}


def infected(order, where, values, dtype, n=700):
    """Four ordinary channels, and x with `values` from position `where` on in channel 1 of a copy."""
    channels = np.array(channels_of(random_array((n, 4), dtype)))
    sick = channels.copy()
    sick[1, where : where + len(values)] = values
    return ORDERS[order](channels), ORDERS[order](sick)


@dtypes
@orders
@pytest.mark.parametrize("where", [0, 3, 300, 697])
@pytest.mark.parametrize("infection", INFECTIONS)
def test_nan_and_infinity_stay_in_their_channel(infection, where, order, dtype):
    healthy, sick = infected(order, where, INFECTIONS[infection], dtype)
    gamma, beta = np.random.default_rng(0).normal(size=(2, 4))
    dy = random_array(healthy.shape, dtype, seed=1)
    others = [0, 2, 3]

    y, stats = fastbn.batch_norm(healthy, gamma, beta)
    sick_y, sick_stats = fastbn.batch_norm(sick, gamma, beta)
    assert np.array_equal(channels_of(sick_y)[others], channels_of(y)[others])
    assert np.array_equal(np.array(sick_stats[1:])[:, others], np.array(stats[1:])[:, others])
    # As IEEE has it: one infinity is the mean, but infinity less infinity and the variance are NaN.
    assert np.array_equal(sick_stats.mean[1], sum(INFECTIONS[infection]), equal_nan=True)
    assert np.isnan(sick_stats.var[1])
    assert np.isnan(channels_of(sick_y)[1]).all()

    right = fastbn.batch_norm_backward(dy, healthy, stats, gamma, beta)
    gradients = fastbn.batch_norm_backward(dy, sick, stats, gamma, beta)
    assert np.array_equal(channels_of(gradients.dx)[others], channels_of(right.dx)[others])
    assert np.array_equal(gradients.dgamma[others], right.dgamma[others])
    assert np.array_equal(gradients.dbeta, right.dbeta)
    reference = fastbn.reference.batch_norm_backward(dy, sick, stats, gamma, beta)
    assert np.array_equal(gradients.dgamma[1], reference.dgamma[1], equal_nan=True)
    assert_same_kind(channels_of(gradients.dx)[1], channels_of(reference.dx)[1])

    gradients = fastbn.batch_norm_backward(sick, healthy, stats, gamma, beta)
    right = fastbn.batch_norm_backward(healthy, healthy, stats, gamma, beta)
    assert np.array_equal(channels_of(gradients.dx)[others], channels_of(right.dx)[others])
    reference = fastbn.reference.batch_norm_backward(sick, healthy, stats, gamma, beta)
    assert np.array_equal(gradients.dgamma[1], reference.dgamma[1], equal_nan=True)
    assert np.array_equal(gradients.dbeta[1], reference.dbeta[1], equal_nan=True)
    assert_same_kind(channels_of(gradients.dx)[1], channels_of(reference.dx)[1])


def assert_same_kind(found, expected):
    """The same NaN and infinities, and finite values beside them."""
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    odd = ~np.isfinite(expected)
    assert np.array_equal(found[odd], expected[odd], equal_nan=True)


@dtypes
@orders
@pytest.mark.parametrize("infection", INFECTIONS)
def test_with_given_statistics_nan_and_infinity_stay_in_their_value(infection, order, dtype):
    healthy, sick = infected(order, 350, INFECTIONS[infection], dtype)
    mean, var = np.random.default_rng(0).uniform(0.5, 1, (2, 4))
    touched = channels_of(healthy) != channels_of(sick)
    for with_values in (
        lambda x: fastbn.normalize(x, mean, var, -np.ones(4)),
        lambda x: (
            fastbn.batch_norm_backward(x, healthy, (mean, var), -np.ones(4), training=False, need_params=False).dx
        ),
    ):
        found, right = channels_of(with_values(sick)), channels_of(with_values(healthy))
        assert np.array_equal(found[~touched], right[~touched])
        # gamma is -1
        assert np.array_equal(found[touched], -channels_of(sick)[touched], equal_nan=True)


@pytest.mark.parametrize("order", ["planes", "rows"])
@pytest.mark.parametrize("vector", ["mean", "var", "gamma", "beta"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_spoil_their_channel_alone(value, vector, order):
    if vector == "var" and value == -np.inf:
        value = np.inf
    x = ORDERS[order](channels_of(random_array((40, 4))))
    vectors = dict(zip(["mean", "var", "gamma", "beta"], np.random.default_rng(0).uniform(0.5, 1, (4, 4)), strict=True))
    right = channels_of(fastbn.normalize(x, **vectors))
    vectors[vector][1] = value
    found = channels_of(fastbn.normalize(x, **vectors))
    assert np.array_equal(found[[0, 2, 3]], right[[0, 2, 3]])
    expected = channels_of(fastbn.reference.normalize(x, **vectors))[1]
    if vector == "var" and value == np.inf:
        assert np.array_equal(found[1], np.full(40, np.float32(vectors["beta"][1])))
    else:
        assert np.array_equal(found[1], expected, equal_nan=True)
