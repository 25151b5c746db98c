"""The reference, by which others are judged, against numbers worked by hand and against the paper's own formulas."""

import numpy as np
import pytest
from arrays import hard_channel

from fastbn import BatchStats, reference

# Channel 0 holds 1, 2, 3, 6: mean 3, deviations -2, -1, 0, 3, variance (4 + 1 + 0 + 9)/4 = 3.5.
# Channel 1 holds 2, 2, 2, 6: mean 3, deviations -1, -1, -1, 3, variance (1 + 1 + 1 + 9)/4 = 3.
X = np.array([[[1, 2], [2, 2]], [[3, 6], [2, 6]]], np.float32)
# With eps = 0.5: 1/sqrt(4) = 1/2 in channel 0. With eps = 1: 1/sqrt(4) = 1/2 in channel 1.
MEAN, VAR = [3, 3], [3.5, 3]
DY = np.array([[[4, 0], [1, 2]], [[0, 8], [3, 6]]], np.float32)


def test_statistics():
    count, mean, var = reference.batch_stats(X)
    assert count == 4
    assert mean.tolist() == MEAN
    assert var.tolist() == VAR
    assert mean.dtype == var.dtype == np.float64


def test_statistics_of_nothing():
    count, mean, var = reference.batch_stats(np.empty((0, 2, 3)))
    assert (count, mean.tolist(), var.tolist()) == (0, [0, 0], [0, 0])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_axis(axis):
    stats = reference.batch_stats(np.moveaxis(X, 1, axis), axis=axis)
    assert stats.mean.tolist() == MEAN
    assert stats.var.tolist() == VAR


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_channels_on_any_axis_are_those_of_axis_1(axis):
    """Of x, dy and what is added; also where another axis is as long."""
    x, dy, residual = np.random.default_rng(0).normal(size=(3, 3, 3, 3))
    options = {"gamma": [2.0, -1.0, 3.0], "beta": [0.0, 1.0, -1.0], "activation": "relu"}
    y, stats = reference.batch_norm(x, **options, residual=residual)
    gradients = reference.batch_norm_backward(dy, x, stats, **options, residual=True, y=y)

    def moved(a):
        return np.moveaxis(a, 1, axis)

    found = reference.batch_norm(moved(x), **options, residual=moved(residual), axis=axis)
    np.testing.assert_allclose(found[0], moved(y), atol=1e-14)
    np.testing.assert_allclose(found[1].mean, stats.mean, atol=1e-14)
    back = reference.batch_norm_backward(moved(dy), moved(x), stats, **options, residual=True, y=moved(y), axis=axis)
    np.testing.assert_allclose(back.dx, moved(gradients.dx), atol=1e-13)
    np.testing.assert_allclose(back.dgamma, gradients.dgamma, atol=1e-13)
    np.testing.assert_array_equal(back.dresidual, moved(gradients.dresidual))


def test_normalize():
    # (x - 3)/2*10 + 1, with eps = 0.5, in channel 0
    y = reference.normalize(X, MEAN, VAR, [10, 0], [1, 7], eps=0.5)
    assert y[:, 0].tolist() == [[-9, -4], [1, 16]]
    assert y[:, 1].tolist() == [[7, 7], [7, 7]]
    # (x - 3)/2, with eps = 1, in channel 1
    assert reference.normalize(X, MEAN, VAR, eps=1)[:, 1].tolist() == [[-0.5, -0.5], [-0.5, 1.5]]
    assert y.dtype == np.float64


def test_batch_norm_is_normalize_with_the_batch_statistics():
    y, stats = reference.batch_norm(X, [10, 0], [1, 7], eps=0.5)
    assert y[:, 0].tolist() == [[-9, -4], [1, 16]]
    assert stats.mean.tolist() == MEAN
    assert stats.var.tolist() == VAR


def test_backward():
    # Channel 0, eps = 0.5: dy = 4, 0, 0, 8; sum 12; sum(dy*xmu) = -8 + 0 + 0 + 24 = 16; dgamma = 16/2 = 8.
    # dx = 6/2*(dy - 12/4 - xhat*8/4) with xhat = -1, -1/2, 0, 3/2: dy - 3 + 2, + 1, + 0, - 3 = 3, -2, -3, 2; times 3.
    stats = BatchStats(4, MEAN, VAR)
    sums = reference.backward_sums(DY, X, stats)
    # Channel 1: dy = 1, 2, 3, 6; sum 12; sum(dy*xmu) = -1 - 2 - 3 + 18 = 12.
    assert sums.sum_dy.tolist() == [12, 12]
    assert sums.sum_dy_xmu.tolist() == [16, 12]
    dx, dgamma, dbeta, dresidual = reference.batch_norm_backward(DY, X, stats, [6, 1], eps=0.5)
    assert dx[:, 0].tolist() == [[9, -6], [-9, 6]]
    assert dgamma[0] == 8
    assert dbeta.tolist() == [12, 12]
    assert dresidual is None
    # Channel 1, eps = 1: dgamma = 6; dx = 1/2*(dy - 3 - xhat*6/4), xhat = -1/2, -1/2, -1/2, 3/2.
    dx, dgamma, _, _ = reference.batch_norm_backward(DY, X, stats, eps=1)
    assert dx[:, 1].tolist() == [[-0.625, -0.125], [0.375, 0.375]]
    assert dgamma[1] == 6


def test_backward_of_constant_statistics():
    dx, dgamma, dbeta, _ = reference.batch_norm_backward(DY, X, (MEAN, VAR), [6, 1], eps=0.5, training=False)
    assert dx[:, 0].tolist() == [[12, 0], [0, 24]]  # 6/2*dy
    assert dgamma[0] == 8
    assert dbeta.tolist() == [12, 12]


def test_apply_takes_count_and_sums_from_the_whole_batch():
    # Channel 0 of the first sample alone, of a batch of 8 with sums 16, 16: dx = 1/2*(dy - 2 - xhat*8/8).
    sums = np.array([16, 0]), np.array([16, 0])
    dx, dgamma, dbeta, _ = reference.backward_apply(DY[:1], X[:1], BatchStats(8, MEAN, VAR), sums, eps=0.5)
    assert dx[:, 0].tolist() == [[1.5, -0.75]]
    assert (dgamma[0], dbeta[0]) == (8, 16)
    assert dx.dtype == dgamma.dtype == dbeta.dtype == np.float64
    assert not np.shares_memory(dbeta, sums[0])


def test_what_is_not_needed_is_none():
    stats = BatchStats(4, MEAN, VAR)
    dx, dgamma, dbeta, _ = reference.batch_norm_backward(DY, X, stats, need_dx=False)
    assert dx is None
    assert dbeta.tolist() == [12, 12]
    dx, dgamma, dbeta, _ = reference.batch_norm_backward(DY, X, stats, eps=1, need_params=False)
    assert dgamma is None
    assert dbeta is None
    assert dx[:, 1].tolist() == [[-0.625, -0.125], [0.375, 0.375]]


def test_out_has_its_own_dtype():
    out = np.empty_like(X)
    assert reference.normalize(X, MEAN, VAR, [10, 0], [1, 7], eps=0.5, out=out) is out
    assert out[:, 0].tolist() == [[-9, -4], [1, 16]]
    out = np.empty_like(X)
    assert reference.batch_norm_backward(DY, X, BatchStats(4, MEAN, VAR), [6, 1], eps=0.5, out=out).dx is out
    assert out[:, 0].tolist() == [[9, -6], [-9, 6]]


def test_a_constant_channel_gives_beta():
    x = np.full((3, 1, 5), 0.1, np.float32)
    for eps in (0, 1e-5):
        y, stats = reference.batch_norm(x, [3], [0.7], eps=eps)
        assert stats.mean[0] == np.float32(0.1)
        assert stats.var[0] == 0
        assert (y == 0.7).all()
    assert (reference.batch_norm_backward(x, x, stats, eps=0).dx == 0).all()
    # A third of 0.1 + 0.1 + 0.1 is not 0.1 in float64.
    _, mean, var = reference.batch_stats(np.full((3, 1), 0.1))
    assert (mean[0], var[0]) == (0.1, 0)


def test_what_is_not_finite_stays_so():
    _, mean, var = reference.batch_stats(np.array([[np.inf], [1.0]]))  # first, where sums are taken around it
    assert mean[0] == np.inf
    assert np.isnan(var[0])
    assert np.isnan(reference.normalize(np.ones((2, 1)), [0.0], [np.nan])).all()
    out = np.empty((2, 1), np.float32)
    assert (reference.normalize(np.full((2, 1), 1e300), [0.0], [1.0], out=out) == np.inf).all()  # and does not warn


def test_population():
    # Batches 1, 3 and 5, 9, 10. Means 2 and 8; unbiased variances 2 and (9 + 1 + 4)/2 = 7.
    batches = [np.array([[1.0], [3.0]]), np.array([[5.0], [9.0], [10.0]])]
    paper = reference.population_stats(batches, method="paper")
    assert paper.count == 5
    assert paper.mean.tolist() == [5]
    np.testing.assert_allclose(paper.unbiased_var, [4.5], rtol=1e-15)
    # All five: mean 28/5 = 5.6; sum of squares 216 - 5*5.6**2 = 59.2.
    pooled = reference.population_stats(batches)
    assert pooled.count == 5
    np.testing.assert_allclose(pooled.mean, [5.6], rtol=1e-15)
    np.testing.assert_allclose(pooled.var, [59.2 / 5], rtol=1e-15)


@pytest.mark.parametrize("method", ["pooled", "paper"])
def test_population_leaves_out_empty_batches(method):
    batches = [np.array([[1.0], [3.0]]), np.empty((0, 1)), np.array([[5.0], [7.0]])]
    count, mean, var = reference.population_stats(batches, method=method)
    assert (count, mean) == (4, 4)
    np.testing.assert_allclose(var, [5.0 if method == "pooled" else 2 * 3 / 4], rtol=1e-15)
    assert reference.population_stats(batches[1:2]).count == 0


def test_population_of_other_axes_and_single_values():
    # Channels first: 1 and 3, then 8 alone. Mean 12/3 = 4, variance (9 + 1 + 16)/3.
    count, mean, var = reference.population_stats([np.array([[1.0, 3.0]]), np.array([[8.0]])], axis=0)
    assert (count, mean) == (3, 4)
    np.testing.assert_allclose(var, [26 / 3], rtol=1e-15)


def test_what_is_infinite_does_not_warn():
    infinite = np.full((2, 1), np.inf)
    assert np.isnan(reference.population_stats([infinite, infinite]).var)
    weight, _ = reference.fold_batch_norm([[np.inf]], None, [0.0], [1.0], [0.0])
    assert np.isnan(weight)


def test_folding():
    # 1/sqrt(3.5 + 0.5) = 1/2, times gamma = 4: the scale is 2. (5 - 3)*2 - 2 = 2.
    weight, bias = reference.fold_batch_norm([[7.0]], [5.0], [3.0], [3.5], [4.0], [-2.0], eps=0.5)
    assert (weight.tolist(), bias.tolist()) == ([[14]], [2])
    # Two groups of one input and two outputs each: their scales are gamma, 1 and 2 of the first, 3 and 4 of the other.
    weight, _ = reference.fold_batch_norm(
        np.ones((2, 2)), None, np.zeros(4), np.full(4, 0.5), [1, 2, 3, 4], eps=0.5, axis=1, groups=2
    )
    assert weight.tolist() == [[1, 2], [3, 4]]


def test_an_axis_of_a_folded_weight_counts_from_the_end_too():
    weight = np.arange(4.0 * 2 * 3).reshape(4, 2, 3)
    of = None, np.zeros(4), np.arange(1.0, 5), np.arange(4.0)
    for a, b in zip(*(reference.fold_batch_norm(weight, *of, axis=k, groups=2) for k in (0, -3)), strict=True):
        assert np.array_equal(a, b)


def test_population_of_statistics_is_that_of_their_arrays():
    batches = [np.array([[1.0], [3.0]]), np.array([[5.0], [9.0], [10.0]])]
    for method in ("pooled", "paper"):
        of_arrays = reference.population_stats(batches, method=method)
        of_stats = reference.population_stats([reference.batch_stats(b) for b in batches], method=method)
        assert of_stats.count == 5
        np.testing.assert_allclose(of_stats.mean, of_arrays.mean, rtol=1e-15)
        np.testing.assert_allclose(of_stats.var, of_arrays.var, rtol=1e-15)


# ---- activations and residuals

# One channel with mean 3, var 3.5 and eps 0.5: xhat = (x - 3)/2. With gamma = 4 and beta = -2, z = 2*x - 8.
Z_OF = {"mean": [3.0], "var": [3.5], "gamma": [4.0], "beta": [-2.0], "eps": 0.5}
XS = np.array([[1.0, 4.0, 4.5, 7.0, 8.0, np.nan]]).T  # z = -6, 0, 1, 6, 8, NaN
ACTIVATIONS = {  # name: y, act'(z)
    None: ([-6, 0, 1, 6, 8, np.nan], [1, 1, 1, 1, 1, 1]),
    "relu": ([0, 0, 1, 6, 8, np.nan], [0, 0, 1, 1, 1, 1]),
    "relu6": ([0, 0, 1, 6, 6, np.nan], [0, 0, 1, 0, 0, 1]),
    "leaky_relu": ([-1.5, 0, 1, 6, 8, np.nan], [0.25, 0.25, 1, 1, 1, 0.25]),
}
activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)


@activations
def test_activations(activation):
    """The kinks, and NaN, with PyTorch's derivatives; what is cut off is 0 even where dy is infinite."""
    y, slopes = ACTIVATIONS[activation]
    options = {"activation": activation, "negative_slope": 0.25}
    np.testing.assert_array_equal(reference.normalize(XS, **Z_OF, **options)[:, 0], y)
    stats, rest = (Z_OF["mean"], Z_OF["var"]), {k: Z_OF[k] for k in ("gamma", "beta", "eps")}
    dy = np.arange(10.0, 70, 10)[:, None]
    found = reference.batch_norm_backward(dy, XS, stats, **rest, **options, training=False)
    np.testing.assert_array_equal(found.dx[:, 0], 2 * dy[:, 0] * slopes)
    assert found.dbeta[0] == (dy[:, 0] * slopes).sum()
    assert found.dresidual is None
    found = reference.batch_norm_backward(np.full_like(dy, np.inf), XS, stats, **rest, **options, training=False)
    np.testing.assert_array_equal(found.dx[:, 0], np.where(slopes, np.inf, 0))


def test_a_slope_above_1():
    """z = -6 and 1: y = -12 and 1, dx = 2*dy*2 and 2*dy."""
    options = {**Z_OF, "activation": "leaky_relu", "negative_slope": 2.0}
    x = np.array([[1.0], [4.5]])
    assert reference.normalize(x, **options)[:, 0].tolist() == [-12, 1]
    stats = options.pop("mean"), options.pop("var")
    dx = reference.batch_norm_backward(np.ones((2, 1)), x, stats, **options, training=False).dx
    assert dx[:, 0].tolist() == [4, 2]


@activations
def test_residuals(activation):
    """z = 2*x - 8 is -6 in all places, and the residual makes it what it was in the test above."""
    y, slopes = ACTIVATIONS[activation]
    options = {"activation": activation, "negative_slope": 0.25}
    x, residual = np.ones((6, 1)), np.array([[0, 6, 7, 12, 14, np.nan]]).T
    found = reference.normalize(x, **Z_OF, **options, residual=residual)
    np.testing.assert_array_equal(found[:, 0], y)
    stats, rest = (Z_OF["mean"], Z_OF["var"]), {k: Z_OF[k] for k in ("gamma", "beta", "eps")}
    dy = np.arange(10.0, 70, 10)[:, None]
    dx, dgamma, dbeta, dresidual = reference.batch_norm_backward(
        dy, x, stats, **rest, **options, residual=True, y=found, training=False
    )
    np.testing.assert_array_equal(dresidual[:, 0], dy[:, 0] * slopes)
    np.testing.assert_array_equal(dx, 2 * dresidual)
    assert dbeta[0] == dresidual.sum()
    assert dgamma[0] == -dresidual.sum()  # xhat = -1
    assert not np.shares_memory(dresidual, dy)


def test_gradients_behind_an_activation_are_those_of_what_it_lets_through():
    """Channel 0 of test_backward with gamma = 6 and beta = 3: z = 3*(x - 3) + 3 = -3, 0, 3, 12."""
    stats = BatchStats(4, MEAN, VAR)
    dy = DY.copy()
    dy[0, 0] = 5, 7  # of x = 1, 2, where relu cuts off: dy = 0, 0, 0, 8 in what follows
    found = reference.batch_norm_backward(dy, X, stats, [6, 6], [3, 3], eps=0.5, activation="relu")
    # sum 8, sum(dy*xmu) = 24, dgamma = 12: dx = 3*(dy - 2 - xhat*12/4), xhat = -1, -1/2, 0, 3/2.
    assert found.dx[:, 0].tolist() == [[3, -1.5], [-6, 4.5]]
    assert (found.dgamma[0], found.dbeta[0]) == (12, 8)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_kinks_are_looked_for_in_what_half_types_hold(name):
    """gamma = 1, beta = 6 - 2**-12: stored in 8 or 11 bits that is 6, where relu6 has no slope; in float32 it has."""
    half = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name) if name == "bfloat16" else name)
    options = {"gamma": [1.0], "beta": [6 - 2.0**-12], "activation": "relu6", "training": False}
    for dtype, slope in ((half, 0), (np.dtype(np.float32), 1)):
        x = np.zeros((2, 1), dtype)
        assert reference.batch_norm_backward(x + dtype.type(1), x, ([0.0], [1.0]), eps=0, **options).dx[0, 0] == slope
        # read from a y that the reference has not rounded
        y = reference.normalize(x, [0.0], [1.0], [1.0], [6 - 2.0**-12], eps=0, activation="relu6", residual=x)
        found = reference.batch_norm_backward(
            x + dtype.type(1), x, ([0.0], [1.0]), eps=0, **options, residual=True, y=y
        )
        assert found.dresidual[0, 0] == slope
    # Half types are computed in float32: there this is 2**-25, half way, and goes to 0; at once it would be 2**-24.
    assert reference._stored(np.array([2.0**-25 * (1 + 2.0**-40)]), np.zeros(1, np.float16))[0] == 0


def test_from_y_alone():
    """After an in-place forward: the gradients are those from x, also for negative gamma and below the kink."""
    x, dy, gamma, beta = (np.random.default_rng(0).normal(size=s) for s in [(5, 3, 4), (5, 3, 4), 3, 3])
    for activation in (None, "leaky_relu"):
        options = {"activation": activation, "negative_slope": 0.25, "eps": 0.1}
        y, stats = reference.batch_norm(x, gamma, beta, **options)
        for training in (True, False):
            expected = reference.batch_norm_backward(dy, x, stats, gamma, beta, **options, training=training)
            found = reference.batch_norm_backward(dy, None, stats, gamma, beta, **options, training=training, y=y)
            for a, b in zip(found[:3], expected[:3], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        constant = reference.batch_norm_backward(dy, None, stats._replace(var=0 * stats.var), y=0 * y, eps=0)
        assert (constant.dx == 0).all()


def test_out_of_a_backward_with_a_residual_is_a_pair():
    x, dy = np.random.default_rng(0).normal(size=(2, 5, 3))
    stats = reference.batch_stats(x)
    expected = reference.batch_norm_backward(dy, x, stats, residual=True)
    assert np.array_equal(expected.dresidual, dy)
    dx, over = np.empty_like(x), dy.copy()
    found = reference.batch_norm_backward(over, x, stats, residual=True, out=(dx, over))
    assert found.dx is dx
    assert found.dresidual is over
    assert np.array_equal(dx, expected.dx)
    assert np.array_equal(over, dy)
    found = reference.batch_norm_backward(over, x, stats, residual=True, out=(over, None))
    assert np.array_equal(over, expected.dx)
    assert np.array_equal(found.dresidual, dy)
    over = x.copy()
    found = reference.batch_norm_backward(dy, over, stats, residual=True, out=(dx, over))
    assert np.array_equal(dx, expected.dx)
    assert np.array_equal(over, dy)


# ---- the paper (Ioffe and Szegedy 2015)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3, 2, size=(2, 7, 4, 5))
    return x, dy, rng.normal(size=4), rng.normal(size=4)


def test_normalised_values_have_mean_0_and_mean_square_1(batch):
    """Section 3, neglecting eps. Sums of 35 values of the order of 1: errors of the order of 35*2**-53 = 4e-15."""
    xhat, _ = reference.batch_norm(batch[0], eps=0)
    np.testing.assert_allclose(xhat.sum(axis=(0, 2)), 0, atol=1e-13)
    np.testing.assert_allclose((xhat**2).mean(axis=(0, 2)), 1, rtol=1e-14)


def test_scaling_the_weights_changes_nothing(batch):
    """Section 3.3: BN((a*W)u) = BN(W*u) and the gradient of u is the same; that of a*W is 1/a of that of W."""
    rng = np.random.default_rng(1)
    u, w, dy = rng.normal(size=(9, 6)), rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    a = 8.0  # a power of two: the same digits, so equality is ==
    (y1, stats1), (y2, stats2) = (reference.batch_norm(u @ weight, eps=0) for weight in (w, a * w))
    assert np.array_equal(y1, y2)
    dx1 = reference.batch_norm_backward(dy, u @ w, stats1, eps=0).dx
    dx2 = reference.batch_norm_backward(dy, u @ (a * w), stats2, eps=0).dx
    assert np.array_equal(dx1 @ w.T, dx2 @ (a * w).T)
    assert np.array_equal(u.T @ dx1, a * (u.T @ dx2))


def test_backward_is_the_chain_rule_of_the_paper(batch):
    """The six formulas of section 3 before they are simplified. All values are of the order of 1: errors near 1e-15."""
    x, dy, gamma, beta = batch
    eps, m, axes = 1e-3, x.size // 4, (0, 2)
    g = gamma[:, None]
    mu = x.mean(axis=axes, keepdims=True)
    var = ((x - mu) ** 2).mean(axis=axes, keepdims=True)
    xhat = (x - mu) / np.sqrt(var + eps)
    dxhat = dy * g
    dvar = (dxhat * (x - mu) * (-1 / 2) * (var + eps) ** (-3 / 2)).sum(axis=axes, keepdims=True)
    dmu = (dxhat * (-1 / np.sqrt(var + eps))).sum(axis=axes, keepdims=True)
    dmu = dmu + dvar * (-2 * (x - mu)).sum(axis=axes, keepdims=True) / m
    dx = dxhat / np.sqrt(var + eps) + dvar * 2 * (x - mu) / m + dmu / m

    stats = reference.batch_stats(x)
    gradients = reference.batch_norm_backward(dy, x, stats, gamma, beta, eps=eps)
    np.testing.assert_allclose(gradients.dx, dx, rtol=0, atol=1e-13)
    np.testing.assert_allclose(gradients.dgamma, (dy * xhat).sum(axis=axes), rtol=0, atol=1e-13)
    np.testing.assert_allclose(gradients.dbeta, dy.sum(axis=axes), rtol=0, atol=1e-13)


# ---- the reference on hard data, against integers that Python adds without rounding


@pytest.mark.parametrize("name", ["offset-1e5", "outlier-first", "black-first", "binarised", "descending"])
def test_reference_keeps_its_digits_on_hard_data(name):
    x = hard_channel(name, 500)
    ratios = [value.as_integer_ratio() for value in x.tolist()]
    unit = max(denominator for _, denominator in ratios)  # a power of two
    integers = [numerator * (unit // denominator) for numerator, denominator in ratios]
    n, total, squares = len(integers), sum(integers), sum(i * i for i in integers)
    mean, var = total / (n * unit), (n * squares - total * total) / (n * n * unit * unit)
    stats = reference.batch_stats(x[:, None])
    assert abs(stats.mean[0] - mean) <= 1e-10 * np.sqrt(var)  # 2**-53 of abs(mean) <= 1e5*std
    assert abs(stats.var[0] - var) <= 1e-10 * var
