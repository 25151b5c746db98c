"""Arrays for all tests, what is true of them, and how near to it a result has to come.

SHAPES, LARGE        ranks 2 to 5; LARGE ones need several blocks of sums per channel
LAYOUTS, broadcasts  ways to lie in memory; LAYOUTS keep the values
ORDERS, STRIDES      ways to lie in memory that go with each other: `placed`
constant             what decides which way a call goes
pairwise             choices of options in which each pair of values stands together
HARD, mixture        channels on which batch normalisation tends to lose digits (promise P1)
EXACT, walsh         channels whose statistics and gradients are known without rounding
true_..., y_terms .. the formulas in extended precision, with the sum of their absolute terms
assert_...           the limits of promise P1, and where they come from
"""

import itertools
import math
import re
from pathlib import Path

import numpy as np

# ---- shapes

SHAPES = [
    *[(2, 1), (1, 3), (2, 3), (7, 5), (64, 1), (33, 130), (131, 300), (600, 3)],
    *[(2, 3, 1), (1, 2, 16), (3, 2, 5), (5, 3, 17), (2, 2, 512), (3, 2, 513), (2, 3, 1041), (1, 1, 2)],
    *[
        (2, 3, 4, 5),
        (1, 3, 7, 7),
        (5, 130, 1, 1),
        (3, 3, 15, 17),
        (2, 4, 16, 16),
        (2, 2, 23, 29),
        (2, 300, 3, 2),
        (9, 37, 5, 5),
    ],
    *[(2, 3, 2, 3, 5), (1, 2, 1, 1, 7), (3, 1, 4, 1, 5)],
]
# Longer than a fold, and all but (90, 37, 7, 7) than a block of sums (32*512 values in planes; 16384/C rows, at least
# 256). (13, 1, 257, 331) has the largest number of blocks. The results of the last three are written past the cache,
# and those of a channel begin with its last rows.
LARGE = [
    (3, 2, 131, 101),
    (40001, 3),
    (2000, 40),
    (90, 37, 7, 7),
    (5, 3, 263, 269),
    (13, 1, 257, 331),
    (7, 3, 211, 239),
]


def name_of(shape):
    return "x".join(map(str, shape))


# ---- layouts: the same values, elsewhere in memory

# What stands in the gaps of an array: it would spoil any result that read it.
GAP = np.nan


def _in_order(a, axes):
    """A copy with `axes` from the outermost to the innermost in memory."""
    return a.transpose(axes).copy().transpose(np.argsort(axes))


def _within(a, before, after, step=1):
    """A copy that is a slice of a larger array, with `before` and `after` places unused on each axis."""
    large = np.full([b + step * n + f for b, n, f in zip(before, a.shape, after, strict=True)], GAP, a.dtype)
    view = large[tuple(slice(b, b + step * n, step) for b, n in zip(before, a.shape, strict=True))]
    view[...] = a
    return view


def _gap(a, axis):
    places = [3 * (k == axis % a.ndim) for k in range(a.ndim)]
    return _within(a, [p // 3 for p in places], places)


def _backwards(a, axes):
    view = a[tuple(slice(None, None, -1 if k in axes else 1) for k in range(a.ndim))].copy()
    return view[tuple(slice(None, None, -1 if k in axes else 1) for k in range(a.ndim))]


def _at(a, offset):
    """A copy `offset` bytes behind a multiple of 64."""
    memory = np.full(a.nbytes + 128, 0xFF, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _last(a):
    """Axes with the channels innermost."""
    return [0, *range(2, a.ndim), 1]


def _channels_last(a, change):
    """A copy with the channels innermost, changed as an array of shape (N, ..., C)."""
    return np.moveaxis(change(np.moveaxis(a, 1, -1)), -1, 1)


def _read_only(a):
    view = a.copy()
    view.flags.writeable = False
    return view


LAYOUTS = {
    "contiguous": lambda a: np.array(a, order="C"),
    "fortran": lambda a: np.array(a, order="F"),
    "channels-last": lambda a: _in_order(a, _last(a)),
    "channels-first": lambda a: _in_order(a, [1, 0, *range(2, a.ndim)]),
    "samples-last": lambda a: _in_order(a, [*range(1, a.ndim), 0]),
    "transposed-planes": lambda a: _in_order(a, [0, 1, *range(2, a.ndim)[::-1]]),
    "gap-samples": lambda a: _gap(a, 0),
    "gap-channels": lambda a: _gap(a, 1),
    "gap-last-axis": lambda a: _gap(a, -1),
    "every-second": lambda a: _within(a, [0] * a.ndim, [1] * a.ndim, step=2),
    "backwards": lambda a: _backwards(a, range(a.ndim)),
    "backwards-channels": lambda a: _backwards(a, [1]),
    "backwards-last-axis": lambda a: _backwards(a, [a.ndim - 1]),
    "odd-address": lambda a: _at(a, 1),
    "offset-16": lambda a: _at(a, 16),
    "offset-32": lambda a: _at(a, 32),
    "offset-64": lambda a: _at(a, 64),
    "read-only": _read_only,
    "channels-last-gap": lambda a: _channels_last(a, lambda b: _gap(b, -1)),
    "channels-last-gap-samples": lambda a: _channels_last(a, lambda b: _gap(b, 0)),
    "channels-last-backwards": lambda a: _channels_last(a, lambda b: _backwards(b, range(b.ndim))),
    "channels-last-every-second": lambda a: _channels_last(a, lambda b: _within(b, [0] * b.ndim, [1] * b.ndim, 2)),
    "channels-last-odd-address": lambda a: _channels_last(a, lambda b: _at(b, 3)),
}
WRITEABLE = [name for name in LAYOUTS if name != "read-only"]


def broadcasts(a):
    """Arrays with zero strides, made of parts of `a`: along the samples, the channels, the last axis, and all axes."""
    for axes in ([0], [1], [a.ndim - 1], range(a.ndim)):
        part = a[tuple(slice(1) if k in axes else slice(None) for k in range(a.ndim))]
        yield np.broadcast_to(part, a.shape)


def memory_of(a):
    """The whole array of which `a` is a view."""
    while a.base is not None:
        a = a.base
    return a


# ---- orders and strides, to be combined

# Axes from the outermost in memory to the innermost, of an array (N, C, ...) of `ndim` axes.
ORDERS = {
    "planes": lambda ndim: range(ndim),
    "channels-last": lambda ndim: [0, *range(2, ndim), 1],
    "channels-first": lambda ndim: [1, 0, *range(2, ndim)],
    "samples-last": lambda ndim: [*range(1, ndim), 0],
    "channels-between": lambda ndim: [0, *range(2, ndim - 1), 1, ndim - 1] if ndim > 2 else range(ndim),
    "fortran": lambda ndim: range(ndim)[::-1],
}

# What is taken of a larger array: a slice for each axis of (N, C, ...), and how much larger that is.
STRIDES = {
    "whole": lambda shape: ([slice(None)] * len(shape), shape),
    "first channels": lambda shape: (
        [slice(None), slice(shape[1]), *[slice(None)] * (len(shape) - 2)],
        (shape[0], 2 * shape[1] + 5, *shape[2:]),
    ),
    "every second sample": lambda shape: (
        [slice(None, None, 2), *[slice(None)] * (len(shape) - 1)],
        (2 * shape[0], *shape[1:]),
    ),
    "backwards": lambda shape: ([slice(None, None, -1)] * len(shape), shape),
    "channels backwards": lambda shape: ([slice(None), slice(None, None, -1), ...], shape),
    "last axis cut": lambda shape: ([..., slice(2, 2 + shape[-1])], (*shape[:-1], shape[-1] + 4)),
    "every second value": lambda shape: ([..., slice(None, None, 2)], (*shape[:-1], 2 * shape[-1])),
}


def placed(values, order, strides="whole", offset=0):
    """A copy of an array (N, C, ...) in another order, cut out of a larger array full of NaN."""
    part, larger = STRIDES[strides](values.shape)
    axes = list(ORDERS[order](values.ndim))
    raw = np.empty(int(np.prod(larger)) * values.itemsize + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    memory = raw[start : start + int(np.prod(larger)) * values.itemsize].view(values.dtype)
    memory[...] = np.nan
    view = memory.reshape([larger[axis] for axis in axes]).transpose(np.argsort(axes))[tuple(part)]
    view[...] = values
    return view


# ---- combinations


def pairwise(options, seed=0):
    """Choices, as few as a greedy search finds, in which each pair of values of two options stands together."""
    names, rng = list(options), np.random.default_rng(seed)
    places = {name: list(range(len(options[name]))) for name in names}
    left = {((a, i), (b, j)) for a, b in itertools.combinations(names, 2) for i in places[a] for j in places[b]}

    def pairs(choice):
        return set(itertools.combinations([(name, choice[name]) for name in names], 2))

    while left:
        first = dict(min(left))
        tries = [{name: int(rng.choice(places[name])) for name in names} | first for _ in range(30)]
        best = max(tries, key=lambda choice: len(pairs(choice) & left))
        left -= pairs(best)
        yield {name: list(options[name])[best[name]] for name in names}


def name_of_choice(row):
    """What pytest calls a choice."""
    return "-".join(getattr(value, "__name__", str(value)).replace(" ", "") for value in row.values())


def differing(a, b):
    """Names of the results whose bytes differ."""
    assert a.keys() == b.keys()
    return [name for name in a if a[name].tobytes() != b[name].tobytes()]


def constant(name):
    """A number in _core.pyx or in a kernel file that decides which way a call goes, as it stands there."""
    package = Path(__file__).parents[1] / "fastbn"
    kernels = ("table.pxd", "places.pxi", "plane_plan.pxi", "row_table.pxi")
    source = "".join(file.read_text() for file in (package / "_core.pyx", *(package / "_kernels" / k for k in kernels)))
    return eval(re.search(rf"^(?:cdef Py_ssize_t|   ) {name} = ([\d< ]+)", source, re.MULTILINE).group(1))


# ---- channels side by side


def channels_of(x):
    """The values of an array as (C, values)."""
    x = np.moveaxis(np.asarray(x), 1, 0)
    return x.reshape(len(x), x.size // len(x))


def from_channels(channels, shape, dtype=np.float32):
    """The contiguous array of a shape (N, C, ...) whose channels are `channels`, (C, values)."""
    n, c, *rest = shape
    return np.moveaxis(np.asarray(channels).reshape(c, n, *rest), 0, 1).astype(dtype, order="C")


def random_array(shape, dtype=np.float32, seed=0):
    """Ordinary values: each channel has its own mean and spread, of the order of 1."""
    rng = np.random.default_rng([seed, *shape])
    per_channel = (1, -1) + (1,) * (len(shape) - 2)
    x = rng.normal(size=shape)
    spread, mean = rng.uniform(0.5, 2, shape[1]), rng.normal(size=shape[1])
    return (x * spread.reshape(per_channel) + mean.reshape(per_channel)).astype(dtype)


# ---- hard data: name -> values of one channel, in float64, to be rounded to the dtype of the test

HARD = {
    "offset-1": lambda rng, n: rng.normal(1, 1, n),
    "offset-1e3": lambda rng, n: rng.normal(-1e3, 1, n),
    "offset-1e5": lambda rng, n: rng.normal(1e5, 1.1, n),
    "offset-1e5-uniform": lambda rng, n: -rng.uniform(1e5, 1e5 + 4, n),
    "outlier-first": lambda rng, n: np.append(1e6, rng.normal(size=n - 1)),
    "outlier-first-1e20": lambda rng, n: np.append(-1e20, rng.normal(size=n - 1)),
    "outliers-first": lambda rng, n: np.append(rng.normal(1e6, 1, 16), rng.normal(size=n - 16)),
    "outlier-last": lambda rng, n: np.append(rng.normal(1e3, 1, n - 1), 1e7),
    "black-first": lambda rng, n: np.where(np.arange(n) < n // 3, 0, rng.normal(100, 1, n)),
    "black-but-last": lambda rng, n: np.append(np.full(n - 1, 0.1), 1),
    "binarised": lambda rng, n: (rng.random(n) < 0.13) * 1.0,
    "two-valued": lambda rng, n: np.where(rng.random(n) < 0.5, 0.1, 0.7),
    "two-valued-1e4": lambda rng, n: np.where(rng.random(n) < 0.3, 1e4, 1e4 + 0.3),
    "ascending": lambda rng, n: np.sort(rng.normal(size=n)),
    "descending": lambda rng, n: np.sort(rng.normal(1e3, 1, size=n))[::-1],
    "constant-0": lambda rng, n: np.zeros(n),
    "constant": lambda rng, n: np.full(n, 0.1),
    "constant-3e38": lambda rng, n: np.full(n, -3e38),
    "constant-1e-45": lambda rng, n: np.full(n, 1e-45),
    "std-1e-30": lambda rng, n: rng.normal(0, 1e-30, n),
    "std-1e-38": lambda rng, n: rng.normal(0, 1e-38, n),
    "std-1e-38-offset": lambda rng, n: rng.normal(1e-34, 1e-38, n),
    "values-1e30": lambda rng, n: rng.normal(1e30, 1e30, n),
    "values-3e38": lambda rng, n: rng.uniform(1e38, 3.4e38, n),
    "alternating-3e38": lambda rng, n: np.where(np.arange(n) % 2, 3e38, -3e38),
    "signs-3e38": lambda rng, n: rng.choice([-3e38, 3e38], n),
    "all-magnitudes": lambda rng, n: rng.normal(size=n) * 10 ** rng.uniform(-30, 30, n),
    "sparse": lambda rng, n: np.where(rng.random(n) < 0.01, rng.normal(3, 1, n), 0),
}


def hard_channel(name, n, dtype=np.float32):
    """n values of a hard channel."""
    return HARD[name](np.random.default_rng([n, *name.encode()]), n).astype(dtype)


def mixture(n, dtype=np.float32):
    """All hard channels side by side, (C, n)."""
    return np.stack([hard_channel(name, n, dtype) for name in HARD])


# ---- exact answers: name -> (pattern, mean, biased variance); any repetition of the pattern has the same statistics


def exact_channel(name, n):
    """n values (a multiple of 840) in float64, all of them float32 numbers."""
    pattern = np.asarray(EXACT[name][0], np.float64)
    assert n % len(pattern) == 0
    return np.tile(pattern, n // len(pattern))


EXACT = {
    "signs": ([-1, 1], 0, 1),
    "far-signs": ([2.0**20 - 0.125, 2.0**20 + 0.125], 2.0**20, 2.0**-6),  # neighbours at a distance of 2 float32 steps
    "ramp": ([0, 1, 2, 3, 4, 5, 6], 3, 4),  # (7*7 - 1)/12
    "one-of-four": ([1, 0, 0, 0], 0.25, 0.1875),  # p*(1 - p)
    "outlier": ([5 * 2.0**20, 0, 0, 0, 0], 2.0**20, 2.0**42),  # p*(1 - p)*5**2 = 4
    "largest": ([-(2.0**127), 2.0**127], 0, 2.0**254),
    "smallest": ([3 * 2.0**-149, 2.0**-149], 2.0**-148, 2.0**-298),
    "constant": ([0.1015625], 0.1015625, 0),
}


def walsh(n):
    """Signs (s, r) of length n, a multiple of 4, with sum(s) = sum(r) = sum(s*r) = 0."""
    i = np.arange(n)
    return np.where(i % 2, -1.0, 1.0), np.where(i // 2 % 2, -1.0, 1.0)


# ---- the formulas in extended precision, and the sums of their absolute terms; arrays as (C, values), vectors as (C,)

# 64 or more bits of precision on Linux; where it is float64 the limits below still have room for its roundings.
Wide = np.longdouble


def true_stats(x):
    """Mean and biased variance."""
    x = channels_of(x).astype(Wide)
    mean = x[:, 0] + (x - x[:, :1]).mean(axis=1)
    mean += (x - mean[:, None]).mean(axis=1)
    return mean, ((x - mean[:, None]) ** 2).mean(axis=1)


def _column(vector, missing):
    return Wide(missing) if vector is None else np.asarray(vector, Wide)[:, None]


def _xhat(x, mean, var, eps):
    v = _column(var, 0) + Wide(eps)
    invstd = np.where(v == 0, 0, 1 / np.sqrt(np.where(v == 0, 1, v)))
    return (channels_of(x).astype(Wide) - _column(mean, 0)) * invstd, invstd


def y_terms(x, mean, var, gamma, beta, eps):
    """y = xhat*gamma + beta, and its sum of absolute terms."""
    xhat, _ = _xhat(x, mean, var, eps)
    first, second = xhat * _column(gamma, 1), _column(beta, 0)
    return first + second, abs(first) + abs(second)


def dbeta_terms(dy):
    """Sum of dy, and of its absolute values."""
    dy = channels_of(dy).astype(Wide)
    return dy.sum(axis=1), abs(dy).sum(axis=1)


def dgamma_terms(dy, x, mean, var, eps):
    """Sum of dy*xhat, and of its absolute values."""
    products = channels_of(dy).astype(Wide) * _xhat(x, mean, var, eps)[0]
    return products.sum(axis=1), abs(products).sum(axis=1)


def dx_terms(dy, x, stats, gamma, eps, sums_of=None):
    """dx = gamma*invstd*(dy - dbeta/n - xhat*dgamma/n), the sum of its absolute terms, and that with sums of absolutes.

    The sums are taken over sums_of = (dy, x) where x is but a part of the batch.
    """
    count, mean, var = stats
    xhat, invstd = _xhat(x, mean, var, eps)
    scale, dy_ = _column(gamma, 1) * invstd, channels_of(dy).astype(Wide)
    all_dy, all_x = (dy, x) if sums_of is None else sums_of
    dbeta, dbeta_size = (v[:, None] / count for v in dbeta_terms(all_dy))
    dgamma, dgamma_size = (v[:, None] / count for v in dgamma_terms(all_dy, all_x, mean, var, eps))
    size = abs(scale) * (abs(dy_) + abs(dbeta) + abs(xhat * dgamma))
    return scale * (dy_ - dbeta - xhat * dgamma), size, abs(scale) * (abs(dy_) + dbeta_size + abs(xhat) * dgamma_size)


# ---- limits

U32, U64 = 2.0**-24, 2.0**-53  # one rounding, relative
TINY32, TINY64 = Wide(2) ** -150, Wide(2) ** -1075  # one rounding among subnormals, absolute


def assert_within(found, expected, limit):
    """Every abs(found - expected) <= limit. What is not finite must be equal."""
    found, expected = np.asarray(found).astype(Wide), np.asarray(expected, Wide)
    assert found.shape == expected.shape
    limit = np.broadcast_to(np.asarray(limit, Wide), expected.shape)
    finite = np.isfinite(expected)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    error = np.zeros(expected.shape, Wide)
    np.subtract(found, expected, out=error, where=finite)
    good = np.where(finite, abs(error) <= limit, same)
    if good.all():
        return
    worst = tuple(np.argwhere(~good)[0])
    raise AssertionError(
        f"{(~good).sum()} of {good.size} values are off, first at {tuple(map(int, worst))}: "
        f"{found[worst]!r}, expected {expected[worst]!r} within {limit[worst]!r}"
    )


def assert_stats(stats, x, usual=True):
    """Statistics of x: P1.

    float32: error of the mean below 1e-6 std, of the variance below 1e-6 var; constant channels exactly.

    float64, with u = 2**-53: sums of d = x - pivot round d (u), d*d (3u with those of d), and are added up 256 times in
    a lane and 4 times across lanes before sums are compensated: 264u of the sum of absolute terms. The pivot is good:
    E[d]**2 <= E[d**2]/2, so E[d**2] <= 2*var, E|d| <= sqrt(2)*std, abs(E[d]) <= std. Then var = E[d**2] - E[d]**2 is
    within (264*2 + 2*264*sqrt(2))*u < 1300u of var, and mean = pivot + E[d] within 264*sqrt(2)*u < 380u of std, and 2u
    of itself. That is where all roundings go one way: `usual` data, whose roundings do not, stay within 200u and 64u.
    """
    mean, var = true_stats(x)
    assert stats.count == channels_of(x).shape[1]
    assert type(stats.count) is int
    assert stats.mean.dtype == stats.var.dtype == np.float64
    if x.dtype == np.float32:
        assert_within(stats.mean, mean, 1e-6 * np.sqrt(var))
        assert_within(stats.var, var, 1e-6 * var)
    else:
        of_std, of_var = (64, 200) if usual else (380, 1300)
        assert_within(stats.mean, mean, U64 * (of_std * np.sqrt(var) + 2 * abs(mean)))
        assert_within(stats.var, var, U64 * of_var * var)
    constant = (channels_of(x) == channels_of(x)[:, :1]).all(axis=1)
    assert np.array_equal(stats.var[constant], np.zeros(constant.sum()))
    assert np.array_equal(stats.mean[constant], channels_of(x)[constant, 0])


def assert_y(y, x, mean, var, gamma, beta, eps):
    """Y of given statistics: P1.

    float32: 4 roundings of the sum of the absolute terms; among subnormals the product and beta round absolutely.

    float64, with u = 2**-53: invstd has var + eps, the root and the quotient (2.5u), mul one more, x - mean, the
    product and the sum one each: 6.5u of abs(xhat*gamma); beta has the sum alone. 8u of the sum of the absolute terms.
    """
    expected, size = y_terms(x, mean, var, gamma, beta, eps)
    limit = 4 * U32 * size + 2 * TINY32 if x.dtype == np.float32 else 8 * U64 * size + 2 * TINY64
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    assert_within(channels_of(y), rounded(expected, x.dtype), limit)


def assert_dx(dx, dy, x, stats, gamma, eps, sums_of=None, usual=True):
    """dx in training: P1.

    float32: 4 roundings of the sum of the absolute terms; among subnormals each of the three terms rounds absolutely.

    float64, with u = 2**-53: the sums are within 262u of those of absolute terms (a difference, a product, and 260
    additions before a sum is compensated, see assert_stats); the factor of xhat has 12.5u, with the difference, the
    product and two additions 16.5u: 279u of the sum of absolute terms with the absolute terms of the sums in it. A
    third of that is enough for `usual` data.
    """
    expected, size, full_size = dx_terms(dy, x, stats, gamma, eps, sums_of)
    limit = 4 * U32 * size + 3 * TINY32
    if x.dtype == np.float64:
        limit = (96 if usual else 288) * U64 * full_size + 3 * TINY64
    assert dx.dtype == x.dtype
    assert dx.shape == x.shape
    assert_within(channels_of(dx), rounded(expected, x.dtype), limit)


def assert_dx_of_constants(dx, dy, var, gamma, eps):
    """dx = gamma*invstd*dy: two roundings in float32; in float64 also those of invstd (2.5): 5."""
    invstd = y_terms(np.ones((1, len(var))), np.zeros(len(var)), var, None, None, eps)[0]
    expected = _column(gamma, 1) * invstd * channels_of(dy)
    limit = 2 * U32 * abs(expected) + TINY32 if dy.dtype == np.float32 else 5 * U64 * abs(expected) + TINY64
    assert dx.dtype == dy.dtype
    assert dx.shape == dy.shape
    assert_within(channels_of(dx), rounded(expected, dy.dtype), limit)


def assert_parameter_gradients(dgamma, dbeta, dy, x, mean, var, eps, usual=True):
    """dgamma, dbeta: within 1e-6 of the sum of absolute terms (P1), and rounded to their own dtype.

    For float64 x with u = 2**-53: 262u as in assert_dx, and 3.5u for invstd and its product. 270u; `usual` data 80u.
    """
    share = 1e-6 if x.dtype == np.float32 else (80 if usual else 270) * U64
    for found, (expected, size) in (
        (dgamma, dgamma_terms(dy, x, mean, var, eps)),
        (dbeta, dbeta_terms(dy)),
    ):
        rounding = U32 * abs(expected) + TINY32 if found.dtype == np.float32 else U64 * abs(expected) + TINY64
        assert_within(found, rounded(expected, found.dtype), share * size + rounding)


def rounded(expected, dtype):
    """Expected values with infinity where the dtype has no number: beyond its largest by half a step or more."""
    largest = Wide(np.finfo(dtype).max)
    edge = largest * (1 + Wide(np.finfo(dtype).epsneg) / 2)
    over = abs(expected) >= edge
    return np.where(over, np.copysign(Wide(math.inf), expected), expected)
