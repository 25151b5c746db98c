"""Where the derivative of an activation changes: at the value of x at which y, as stored, does (gates.pxi).

Expected values come from y of the forward, which other tests hold to the reference: backward never computes it, but
compares x with what it has found once a channel. All values of half types; of others many near each change.
"""

import ml_dtypes
import numpy as np
import pytest

import fastbn

DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
EPS = 1e-5
SLOPE = 0.25
NAMES = ["relu", "relu6", "leaky_relu"]
# mean, var, gamma, beta
CHANNELS = [
    (0, 1, 1, 0),
    (0.3, 1.7, 0.9, -0.4),
    (0.3, 1.7, -0.9, -0.4),
    (-2, 0.01, 3, 5.9),
    (1e4, 1e-4, 1.1, 0.2),  # float32 has few values near the mean
    (1e-4, 1e-9, -1.3, 0.7),
    (3, 4, 1e-6, 1e-6),  # many x have the same z
    (3, 4, -1e-6, 6),
    (0, 1, 1e-30, 0),  # z is subnormal
    (0, 1, 1e31, 1),  # float32 does not hold what comes between
    (0, 1, -1e31, 1e33),
    (1e31, 1, 1, -1),
    (0, 1, 1, np.inf),  # one x at most has a z that is not infinite
    (0, 1, 1, -np.inf),
    (0, 1, np.nan, 0),
    (0.5, 2, 0, 0),  # all z are the same
    (0.5, 2, 0, 1),
    (0.5, 2, 0, -1),
    (0.5, 2, -0.0, 6),
]
MEAN, VAR, GAMMA, BETA = np.array(CHANNELS, np.float64).T


def values_of(channel, dtype):
    """All values of a half type; of another one random bits, and those near where z is 0 or 6."""
    bits = np.dtype(f"u{dtype.itemsize}")
    if dtype.itemsize == 2:
        return np.arange(2**16).astype(bits).view(dtype)
    mean, var, gamma, beta = channel
    pieces = [np.random.default_rng(5).integers(0, np.iinfo(bits).max, 1000, bits).view(dtype)]
    pieces.append(np.array([0, -0.0, np.inf, -np.inf, np.nan, 6], dtype))
    for bound in (0, 6):
        with np.errstate(all="ignore"):
            near = np.array(mean + (bound - beta) * np.sqrt(var + EPS) / gamma, dtype)
        near = near if np.isfinite(near) else dtype.type(1)
        magnitude = np.abs(near).view(bits).astype(np.int64) + np.arange(-500, 500)
        pieces.append(np.abs(magnitude).astype(bits).view(dtype) * np.sign(near + dtype.type(1e-30)))
    return np.concatenate(pieces)


def arrays_of(dtype, order):
    """x of all channels, (1, C, values)."""
    x = np.stack([values_of(channel, dtype) for channel in CHANNELS])
    # z of an infinite x is NaN where gamma is 0: backward does not tell it from the others there.
    with np.errstate(invalid="ignore"):
        x[(GAMMA == 0)[:, None] & np.isinf(x)] = 1
    return x[None] if order == "planes" else x.T.copy().T[None]


@pytest.mark.parametrize("order", ["planes", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_change_where_y_does(name, dtype, order):
    x = arrays_of(dtype, order)
    dy = np.ones_like(x)
    act = {"activation": name, "negative_slope": SLOPE}
    given = {"gamma": GAMMA, "beta": BETA, "eps": EPS}
    y = np.asarray(fastbn.normalize(x, MEAN, VAR, **given, **act), np.float64)
    below = SLOPE if name == "leaky_relu" else 0
    with np.errstate(invalid="ignore"):
        passes = y > 0 if name == "leaky_relu" else ~(y <= 0)
    if name == "relu6":
        passes &= ~(y >= 6)
    # A y that has become 0 in rounding tells nothing of the sign of z, of which it is a quarter.
    unsure = (y == 0) & (name == "leaky_relu")
    got = fastbn.batch_norm_backward(dy, x, (MEAN, VAR), **given, **act, training=False)
    above, under = (
        fastbn.batch_norm_backward(np.full_like(x, v), x, (MEAN, VAR), **given, training=False).dx for v in (1, below)
    )
    expected = np.where(passes, above, under)
    same = (got.dx == expected) | (np.isnan(got.dx) & np.isnan(expected)) | unsure
    assert same.all(), x[~same][:5]
    certain = ~unsure.any(axis=(0, 2))
    weights = np.where(passes, 1.0, below).sum(axis=(0, 2))
    np.testing.assert_array_equal(np.asarray(got.dbeta, np.float64)[certain], weights[certain])
    assert certain.sum() > len(CHANNELS) / 3
    assert 0 < passes.sum() < passes.size
