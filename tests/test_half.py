"""float16 and bfloat16 are storage: widened exactly, computed as float32, rounded to the nearest."""

import os
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
import pytest
from arrays import assert_parameter_gradients, assert_stats, constant

import fastbn
from fastbn import _cpu, reference

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SHAPES = {"planes": (4, 5, 6, 7), "short rows": (6, 3, 3), "rows": (50, 9), "long": (2, 3, 5000)}
BUILDS = ["baseline"] + ["x86-64-v3"] * _cpu.has_x86_64_v3()


def laid_out(a, order):
    """A copy in NCHW, or with the channels innermost."""
    return (
        np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if order == "channels innermost" else a.copy()
    )


def make(shape, dtype, order="C"):
    rng = np.random.default_rng(0)
    x, dy = (laid_out(rng.normal(1, 3, size=shape).astype(dtype), order) for _ in range(2))
    gamma, beta = rng.normal(size=(2, shape[1]))
    return x, dy, gamma, beta


def every_value(dtype):
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def same(a, b):
    """Equal bits, or both NaN."""
    bits = f"u{a.itemsize}"
    return bool(((a.view(bits) == b.view(bits)) | (np.isnan(a.astype("f4")) & np.isnan(b.astype("f4")))).all())


CONVERSIONS = """
import sys, warnings, numpy as np, ml_dtypes, fastbn
from test_half import HALVES, every_value, same, through
for dtype in HALVES:
    values = every_value(dtype)
    assert same(through(values), values), dtype
    wide = values.astype("f4")
    bits = wide[np.isfinite(wide)].view("u4").astype(np.int64)
    steps = (-(2**12), -1, 0, 1, 2**12 - 1, 2**12, 2**12 + 1, 2**15 - 1, 2**15, 2**15 + 1)
    near = [(bits + step).astype("u4").view("f4") for step in steps]
    near = np.concatenate([*near, np.array([np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, 3.4e38, 1e-45], "f4")])
    near[near == 0] = 0  # 0 + -0 is 0
    with np.errstate(all="ignore"):
        expected = near.astype(dtype)
    got = np.empty(near.size, dtype)
    for start in range(0, near.size, 1000):
        part = near[start : start + 1000]
        # x = 0, so that y is beta: what is rounded is the float32
        mean, var = np.zeros(part.size), np.ones(part.size)
        y = fastbn.normalize(np.zeros((1, part.size), dtype), mean, var, None, part, eps=0)
        got[start : start + 1000] = y[0]
    assert same(got, expected), dtype
print("ok")
"""


def through(values):
    """Values that are read and written by a kernel which does not change them: y = (x - 0)*1 + 0."""
    zero = np.zeros(1)
    y = fastbn.normalize(values.reshape(1, 1, -1), zero, zero + 1, eps=0)
    rows = fastbn.normalize(np.stack([values, values]), np.zeros(values.size), np.ones(values.size), eps=0)
    # -0 + 0 is 0
    assert same(rows[1], y[0, 0])
    return np.where(values == 0, values, y[0, 0])


@pytest.mark.parametrize("isa", BUILDS)
def test_every_value(isa):
    """All 65,536 values, and the float32 around the middle between two of them, as NumPy and ml_dtypes convert them."""
    environment = {**os.environ, "FASTBN_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)}
    ran = subprocess.run(
        [sys.executable, "-c", CONVERSIONS], env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "ok\n"


@pytest.mark.parametrize("order", ["C", "channels innermost"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_as_float32_and_rounded(dtype, shape, order):
    """Exactly what float32 gives, rounded once: the statistics and the order of additions are the same."""
    x, dy, gamma, beta = make(shape, dtype, order)
    wide_x, wide_dy = (laid_out(a.astype("f4"), order) for a in (x, dy))
    y, stats = fastbn.batch_norm(x, gamma, beta)
    wide_y, wide_stats = fastbn.batch_norm(wide_x, gamma, beta)
    assert stats == wide_stats
    assert y.dtype == dtype
    assert y.strides == np.empty_like(x).strides
    assert same(y, wide_y.astype(dtype))
    assert same(fastbn.normalize(x, stats.mean, stats.var, gamma, beta), y)
    for training in (True, False):
        got = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, training=training)
        expected = fastbn.batch_norm_backward(wide_dy, wide_x, stats, gamma, beta, training=training)
        assert same(got.dx, expected.dx.astype(dtype))
        assert got.dgamma.tobytes() == expected.dgamma.tobytes()
        assert got.dbeta.tobytes() == expected.dbeta.tobytes()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("order", ["C", "channels innermost"])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (20, 1, 60, 61)], ids=[*SHAPES, "a channel for all threads"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_slope_is_not_rounded(dtype, shape, order, in_place, training):
    """Behind a residual, and from y alone, dy*slope is float32's in dx and in the sums; dresidual rounds it."""
    x, dy, gamma, beta = make(shape, dtype, order)
    wide_x, wide_dy = (laid_out(a.astype("f4"), order) for a in (x, dy))
    gamma = np.where(gamma == 0, 1, gamma)
    options = {"activation": "leaky_relu", "negative_slope": 0.3}
    residual = None if in_place else dy
    y, stats = fastbn.batch_norm(x, gamma, beta, residual=residual, **options)
    options |= {"training": training, "residual": not in_place}
    expected = fastbn.batch_norm_backward(
        wide_dy, None if in_place else wide_x, stats, gamma, beta, y=laid_out(y.astype("f4"), order), **options
    )

    def agrees(got, *names):
        for name in names:
            a, b = getattr(got, name), getattr(expected, name)
            assert same(a, b.astype(dtype)) if a.dtype == dtype else a.tobytes() == b.tobytes(), name

    names = ["dx", "dgamma", "dbeta"] + ["dresidual"] * (not in_place)
    given = (None if in_place else x), stats, gamma, beta
    for threads in (1, 2, 3):
        with fastbn.num_threads(threads):
            agrees(fastbn.batch_norm_backward(dy, *given, y=y, **options), *names)
    agrees(fastbn.batch_norm_backward(dy, *given, y=y, need_params=False, **options), "dx", *names[3:])
    agrees(fastbn.batch_norm_backward(dy, *given, y=y, need_dx=False, **options), *names[1:])
    over = dy.copy("K")
    agrees(fastbn.batch_norm_backward(over, *given, y=y, out=over if in_place else (over, None), **options), *names)
    if not in_place:
        over = dy.copy("K")
        agrees(fastbn.batch_norm_backward(over, *given, y=y, out=(None, over), **options), *names)
        over = dy.copy("K")
        apart = {"need_dx": False, "need_params": False, "out": (None, over)}
        agrees(fastbn.batch_norm_backward(over, *given, y=y, **options | apart), "dresidual")
    sums = fastbn.backward_sums(dy, *given, y=y, **options)
    agrees(fastbn.backward_apply(dy, *given[:2], sums, *given[2:], y=y, **options), "dx", *names[3:])


@pytest.mark.parametrize("order", ["C", "channels innermost"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_values(dtype, shape, order):
    """Against the reference, on the values as stored: one rounding of the half type and four of float32."""
    x, dy, gamma, beta = make(shape, dtype, order)
    y, stats = fastbn.batch_norm(x, gamma, beta)
    unit = 2.0**-11 if dtype == np.float16 else 2.0**-8
    wide, wide_dy = x.astype("f8"), dy.astype("f8")
    expected, expected_stats = reference.batch_norm(wide, gamma, beta)
    np.testing.assert_allclose(stats.mean, expected_stats.mean, rtol=0, atol=1e-6 * np.sqrt(expected_stats.var).max())
    np.testing.assert_allclose(stats.var, expected_stats.var, rtol=1e-6)
    np.testing.assert_allclose(y.astype("f8"), expected, rtol=unit * 1.01, atol=1e-5)
    got = fastbn.batch_norm_backward(dy, x, stats, gamma, beta)
    expected = reference.batch_norm_backward(wide_dy, wide, expected_stats, gamma, beta)
    np.testing.assert_allclose(got.dx.astype("f8"), expected.dx, rtol=unit * 1.01, atol=1e-5)
    np.testing.assert_allclose(got.dgamma, expected.dgamma, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_strides_out_and_threads(dtype):
    """Misaligned and strided arrays, out= over x and dy, threads: always the same bits."""
    x, dy, gamma, beta = make((40, 6, 40, 41), dtype)
    y, stats = fastbn.batch_norm(x, gamma, beta)
    dx = fastbn.batch_norm_backward(dy, x, stats, gamma, beta).dx
    raw = np.zeros(x.nbytes + 1, np.uint8)
    odd = raw[1:].view(dtype).reshape(x.shape)
    odd[...] = x
    spread = np.zeros((*x.shape, 3), dtype)[..., 1]
    for threads in (1, 2, 3):
        with fastbn.num_threads(threads):
            for buffer in (odd, spread, x[::-1].copy()[::-1]):
                buffer[...] = x
                assert same(fastbn.batch_norm(buffer, gamma, beta)[0].copy(), y)
                assert same(fastbn.batch_norm(buffer, gamma, beta, out=buffer)[0].copy(), y)
                buffer[...] = dy
                assert same(fastbn.batch_norm_backward(buffer, x, stats, gamma, beta, out=buffer).dx.copy(), dx)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_overflow_subnormal_nan(dtype):
    """What the half type cannot hold becomes infinite, and touches no other channel; statistics stay finite."""
    top = float(ml_dtypes.finfo(dtype).max)
    x = np.array([[top, 1, np.nan], [-top, 2, 1]], np.float64).astype(dtype)
    y, stats = fastbn.batch_norm(x, np.array([1e30, 1, 1]))
    assert np.isfinite(stats.var[:2]).all()
    expected = [np.inf, -np.inf] if dtype == np.float16 else [1e30, -1e30]
    np.testing.assert_allclose(y[:, 0].astype("f8"), expected, rtol=2.0**-8)
    assert np.isfinite(y[:, 1].astype("f4")).all()
    assert np.isnan(y[:, 2].astype("f4")).all()
    tiny = np.array([[1], [3]], np.uint16).view(dtype)  # subnormal numbers
    assert fastbn.batch_stats(tiny).mean[0] == tiny.astype("f8").mean()
    constant = np.full((7, 1, 3), 0.1).astype(dtype)
    assert fastbn.batch_stats(constant).var[0] == 0


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_layer(dtype):
    """A layer's parameters stay float32, whatever x is; gradients of gamma and beta too."""
    x, dy, _, _ = make((4, 5, 6, 7), dtype)
    bn = fastbn.BatchNorm2d(5)
    y = bn(x)
    dx = bn.backward(dy)
    assert y.dtype == dx.dtype == dtype
    assert bn.dgamma.dtype == bn.running_mean.dtype == np.float32
    np.testing.assert_allclose(bn.running_mean, 0.1 * x.astype("f8").mean((0, 2, 3)), rtol=1e-6)
    assert bn.eval()(x).dtype == dtype


def test_gradients_are_float32():
    x, dy, _, _ = make((4, 5), np.float16)
    got = fastbn.batch_norm_backward(dy, x, fastbn.batch_stats(x))
    assert got.dgamma.dtype == got.dbeta.dtype == np.float32


def test_ml_dtypes_is_not_imported():
    """It comes with the caller's array, or not at all."""
    code = "import sys, numpy, fastbn; fastbn.batch_stats(numpy.ones((2, 2), 'f2')); print('ml_dtypes' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tempfile.gettempdir(), capture_output=True, text=True)
    assert ran.stdout == "False\n"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("offset", [0, 2, 16, 30, 32, 34, 48, 62])
@pytest.mark.parametrize("shape", [(70_000, 31), (18, 130_000, 1), (20, 8, 14_000)], ids=str)
def test_large_out_at_any_address(shape, offset, dtype):
    """Results of 4 MiB and more go past the cache in whole lines, of which a half type has 32 values."""
    x = np.random.default_rng(offset).normal(size=shape).astype(dtype)
    memory = np.full(x.nbytes + 192, 7, np.uint8)
    start = -memory.ctypes.data % 64 + 64 + offset
    out = memory[start : start + x.nbytes].view(dtype).reshape(shape)
    out[...] = np.nan
    fastbn.batch_norm(x, activation="relu", out=out)
    expected = fastbn.reference.batch_norm(x.astype(np.float64), activation="relu")[0]
    # half a unit in the last place, and what float32 arithmetic may round differently
    unit = 2.0 ** (-11 if dtype == np.float16 else -8)
    assert (np.abs(out.astype(np.float64) - expected) <= 1.001 * unit * expected + 1e-5).all()
    assert (memory[:start] == 7).all()
    assert (memory[start + x.nbytes :] == 7).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(720, 61, 49), (1440, 61, 49), (180, 61, 196)], ids=str)
def test_large_arrays_with_short_rows(shape, dtype):
    """Their sums are taken while results of other channels go past the cache; of the first, smaller ones, by way of it
    in the forward.
    """
    x, dy = np.random.default_rng(0).normal(size=(2, *shape)).astype(dtype)
    past = constant("SHORT_HALVES_STREAM_FROM" if shape[0] == 1440 else "STREAM_FROM")
    assert past <= x.nbytes < 2 * past
    y, stats = fastbn.batch_norm(x)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats)
    wide_x, wide_dy = x.astype(np.float32), dy.astype(np.float32)
    assert_stats(stats, wide_x)
    assert_parameter_gradients(dgamma, dbeta, wide_dy, wide_x, stats.mean, stats.var, 1e-5)
    unit = 2.0 ** (-11 if dtype == np.float16 else -8)
    expected_y = reference.batch_norm(wide_x.astype(np.float64))[0]
    expected_dx = reference.batch_norm_backward(wide_dy, wide_x, stats).dx
    for found, expected in ((y, expected_y), (dx, expected_dx)):
        assert (np.abs(found.astype(np.float64) - expected) <= 1.001 * unit * abs(expected) + 1e-5).all()


@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (60, 40, 31, 31), (40, 64, 30, 30), (500, 40), (9, 3)])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_nan_of_any_bits_stays_nan(dtype, shape):
    """All bits of the NaN set, in gamma: rounding it up like a number would make 0 of it."""
    full = np.array([0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    gamma, beta, zeros = (np.resize(full, shape[1]), np.resize(full[::-1], shape[1]), np.zeros(shape[1], "f4"))
    ones = zeros + 1
    out = np.empty_like(x)
    for mean, scale, shift in [(zeros, gamma, zeros), (zeros, ones, beta), (gamma, ones, zeros)]:
        assert np.isnan(fastbn.normalize(x, mean, ones, scale, shift, out=out).astype("f4")).all()
    assert np.isnan(fastbn.batch_norm(x, gamma, zeros, out=out)[0].astype("f4")).all()
    assert np.isnan(fastbn.batch_norm_backward(x, x, (zeros, ones), gamma, training=False).dx.astype("f4")).all()
    behind_a_slope = {"activation": "leaky_relu", "training": False, "residual": True, "y": x}
    assert np.isnan(fastbn.batch_norm_backward(x, x, (zeros, ones), gamma, **behind_a_slope).dx.astype("f4")).all()


@pytest.mark.parametrize(("dtype", "half"), [(ml_dtypes.bfloat16, 2.0**-8), (np.float16, 2.0**-11)], ids=["b", "f"])
@pytest.mark.parametrize("length", [7, 49, 64, 300])
def test_ties_go_to_even(length, dtype, half):
    """Results halfway between two values of the type, between an even and an odd one either way."""
    steps = np.arange(2 * 3 * length).reshape(2, 3, length) % 100
    x = (1 + 2 * half * steps).astype(dtype)
    y = fastbn.normalize(x, np.zeros(3), np.ones(3), beta=np.full(3, half), eps=0)
    expected = (1 + 2 * half * (steps + steps % 2)).astype(dtype)  # by hand: an odd number of steps is rounded up
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "int4"])
def test_other_types_of_ml_dtypes_are_refused(name):
    """They are shorter than what would be read of bfloat16."""
    x = np.ones((4, 3)).astype(getattr(ml_dtypes, name))
    for call in (fastbn.batch_stats, fastbn.batch_norm, fastbn.BatchNorm(3)):
        with pytest.raises(TypeError, match=rf"^x: expected dtype float16, bfloat16, .* got {name}"):
            call(x)
