"""Activations, residuals and training in place: right (P1) and the same bits (P2) in every combination.

The rows of the first tests come from a generator: each pair of options occurs together in at least one of them. What
is expected comes from the float64 reference and from numbers worked by hand. Run as a script, this file prints a digest
of all rows for the build of the kernels that FASTBN_ISA asks for.
"""

import hashlib
import itertools
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from arrays import (
    ORDERS,
    STRIDES,
    U32,
    U64,
    assert_stats,
    assert_within,
    channels_of,
    constant,
    dbeta_terms,
    dgamma_terms,
    differing,
    dx_terms,
    memory_of,
    name_of_choice,
    pairwise,
    placed,
    random_array,
    y_terms,
)
from test_bits import digest_of
from test_gradients import EPS as SMOOTH_EPS
from test_gradients import STEP, assert_close, derivative

import fastbn
from fastbn import _cpu, reference

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
HALF_UNIT = {np.dtype(np.float16): 2.0**-11, BFLOAT16: 2.0**-8}  # one rounding of a half type
LEAST = {np.dtype(np.float16): 2.0**-25, BFLOAT16: 2.0**-134}  # the same among subnormals, absolute
LEAST |= {np.dtype(np.float32): 2.0**-150, np.dtype(np.float64): 2.0**-1075}
EPS = 1e-3

# A slope of 0.25 multiplies without rounding, 0.01 does not, 1.5 is above 1.
ACTIVATIONS = {
    "none": {},
    "relu": {"activation": "relu"},
    "relu6": {"activation": "relu6"},
    "leaky-0.01": {"activation": "leaky_relu"},
    "leaky-0.25": {"activation": "leaky_relu", "negative_slope": 0.25},
    "leaky-0": {"activation": "leaky_relu", "negative_slope": 0.0},
    "leaky-1.5": {"activation": "leaky_relu", "negative_slope": 1.5},
}
OPTIONS = {
    "activation": ACTIVATIONS,
    "residual": [False, True],
    "training": [True, False],
    "dtype": DTYPES,
    "order": ORDERS,
    "strides": STRIDES,
    "channels": [1, 2, 3, 16, 21, 64, 130],
    "axis": [0, 1, 2, -1],
    "rest": [(), (1,), (37,), (5, 7), (2, 3, 4), (11, 13)],
    "samples": [1, 2, 9, 40],
    "others": ["same", *ORDERS],  # the order of dy, residual, y and out
    "gamma": ["float32", "float64", "none", "zero", "tiny"],
    "data": ["ordinary", "far", "outlier"],
    "threads": [1, 2, 3, 4],
}
ROWS = list(pairwise(OPTIONS))


def act_of(z, activation=None, negative_slope=0.01):
    """An activation, of arrays of any type."""
    if activation == "leaky_relu":
        return np.where(z < 0, z * z.dtype.type(negative_slope), z)
    y = z if activation is None else np.where(z < 0, z.dtype.type(0), z)
    return np.where(y > 6, z.dtype.type(6), y) if activation == "relu6" else y


def gradient_of(dy, y, activation=None, negative_slope=0.01):
    """dy*act', told by the result y."""
    if activation == "leaky_relu":
        return np.where(y > 0, dy, dy * dy.dtype.type(negative_slope))
    g = dy if activation is None else np.where(y <= 0, dy.dtype.type(0), dy)
    return np.where(y >= 6, dy.dtype.type(0), g) if activation == "relu6" else g


class Case:
    """The arrays of a row, (N, C, ...), and calls on them with their channels on the axis of the row."""

    def __init__(self, row):
        self.row, dtype = row, row["dtype"]
        shape = (row["samples"], row["channels"], *row["rest"])
        self.axis = row["axis"] if -len(shape) <= row["axis"] < len(shape) else 1
        x, dy, residual = (random_array(shape, np.float64, seed) for seed in range(3))
        if row["data"] == "far":
            x += 3e4
        elif row["data"] == "outlier":
            x[0, 0] = 1e4
        self.others = row["order"] if row["others"] == "same" else row["others"]
        self.x = placed(x.astype(dtype), row["order"], row["strides"])
        self.dy = placed(dy.astype(dtype), self.others)
        self.residual = placed(residual.astype(dtype), self.others) if row["residual"] else None
        rng = np.random.default_rng(shape[1])
        self.gamma, self.beta = rng.normal(1, 1, size=(2, shape[1])).astype(np.float32)
        self.gamma[::3] *= -2
        if row["gamma"] == "float64":
            self.gamma, self.beta = self.gamma.astype(np.float64), self.beta.astype(np.float64) + 1e-9
        elif row["gamma"] == "none":
            self.gamma = self.beta = None
        elif row["gamma"] == "zero":
            self.gamma[0] = 0
        elif row["gamma"] == "tiny":  # more than float32 can hold, so that the channel is computed in float64
            self.gamma[0] = 1e-42
        self.act = ACTIVATIONS[row["activation"]]
        self.fixed = rng.normal(size=shape[1]), rng.uniform(0.5, 2, shape[1])
        if row["data"] == "far":
            self.fixed[0][...] += 3e4
        self.reads_y = row["residual"] and bool(self.act)

    def call(self, function, *arrays, **options):
        """With the arrays moved to the axis of the row, and those of the result moved back."""
        there, back = (lambda a: np.moveaxis(a, 1, self.axis)), (lambda a: np.moveaxis(a, self.axis, 1))

        def moved(a, move):
            if isinstance(a, tuple) and not isinstance(a, (fastbn.BatchStats, fastbn.GradientSums)):
                return tuple(moved(b, move) for b in a)
            return move(a) if isinstance(a, np.ndarray) and a.ndim > 1 else a

        arrays, options = (moved(a, there) for a in arrays), {k: moved(a, there) for k, a in options.items()}
        found = function(*arrays, gamma=self.gamma, beta=self.beta, eps=EPS, axis=self.axis, **options)
        if isinstance(found, fastbn.Gradients):
            return fastbn.Gradients(*(moved(a, back) for a in found))
        return found if isinstance(found, fastbn.GradientSums) else moved(found, back)

    def forward(self, x=None, split=False, **options):
        """(y, stats)."""
        x = self.x if x is None else x
        options = {"residual": self.residual, **self.act} | options
        if self.row["training"] and not split:
            return self.call(fastbn.batch_norm, x, **options)
        stats = fastbn.batch_stats(x) if self.row["training"] else self.fixed
        return self.call(fastbn.normalize, x, mean=stats[-2], var=stats[-1], **options), stats

    def backward(self, y, stats, x=None, dy=None, split=False, **options):
        """Gradients, of which those that are not None."""
        x, dy = self.x if x is None else x, self.dy if dy is None else dy
        same = self.told_backward(y)
        same |= {k: options.pop(k) for k in list(options) if k in ("activation", "residual", "y")}
        if not split:
            return self.call(fastbn.batch_norm_backward, dy, x, stats, **same, **options)
        sums = self.call(fastbn.backward_sums, dy, x, stats, **same)
        return self.call(fastbn.backward_apply, dy, x, stats, sums, **same, **options)

    def told_backward(self, y):
        """The options that say what the forward was."""
        same = {"training": self.row["training"], "residual": self.row["residual"], **self.act}
        return same | ({"y": y} if self.reads_y else {})

    def sums(self):
        """GradientSums by name."""
        y, stats = self.forward()
        return self.call(fastbn.backward_sums, self.dy, self.x, stats, **self.told_backward(y))._asdict()

    def results(self, x=None, dy=None, y=None, split=False, out=None, **options):
        """Every result by name. `out` makes an array for a result that is to take it."""
        take = {} if out is None else {"out": out()}
        found, stats = self.forward(x, split, **options, **take)
        if out is not None:
            take["out"] = (out(), out()) if self.row["residual"] else out()
        told = found if y is None else y(found)
        gradients = self.backward(told, stats, x, dy, split, **take)
        named = {"y": found, "mean": stats[-2], "var": stats[-1], **gradients._asdict()}
        return {name: array for name, array in named.items() if array is not None}


def limit_of(expected, size, dtype, roundings, wide, stored=0):
    """The rounding that a result may have gone through.

    float32: so many of the sum of the absolute terms. float64: `wide` of it, and as many of the reference's own. Half
    types are computed in float32 and rounded once; `stored`: how often more values of this size were rounded to them.
    """
    if dtype == np.float64:
        return 2 * wide * U64 * size + 4 * LEAST[dtype]
    limit = roundings * U32 * size + 4 * LEAST[np.dtype(np.float32)]
    if dtype == np.float32:
        return limit
    return limit * 1.01 + HALF_UNIT[dtype] * (abs(expected) + 1.01 * stored * size) + 4 * LEAST[dtype]


def assert_fused_y(y, case, stats):
    """Four roundings of the sum of the absolute terms, times the slope where z is below 0."""
    mean, var, act = stats[-2], stats[-1], case.act
    options = {"eps": EPS, "residual": case.residual}
    z = channels_of(reference.normalize(case.x, mean, var, case.gamma, case.beta, **options))
    expected = channels_of(reference.normalize(case.x, mean, var, case.gamma, case.beta, **options, **act))
    size = y_terms(case.x, mean, var, case.gamma, case.beta, EPS)[1].astype(np.float64)
    if case.residual is not None:
        size += abs(channels_of(case.residual).astype(np.float64))
    slope = act.get("negative_slope", 0.01) if act.get("activation") == "leaky_relu" else 0 if act else 1
    around = 8 * U32 * size  # of the kink: both sides are right
    steepness = np.where(z > around, 1, np.where(z < -around, slope, max(1, slope)))
    assert y.dtype == case.x.dtype
    limit = limit_of(expected, size * steepness, y.dtype, 4, 10)
    assert_within(channels_of(y).astype(np.float64), expected, limit)


def assert_fused_gradients(found, case, y, stats):
    """All gradients, behind the mask of y as it was stored: y is held to the reference elsewhere.

    dresidual rounds dy*slope to float32, and half types round that; dx has it unrounded, and four roundings of its own.
    1e-6 for gradients of parameters (P1).
    """
    x, row = case.x, case.row
    expected = reference.batch_norm_backward(
        case.dy, x, stats, case.gamma, case.beta, eps=EPS, **case.act, residual=True, y=y, training=row["training"]
    )
    rounds = row["residual"] and row["activation"] in ("leaky-0.01", "leaky-1.5")
    g = expected.dresidual
    if row["residual"]:
        assert found.dresidual.dtype == x.dtype
        limit = limit_of(channels_of(g), abs(channels_of(g)), x.dtype, rounds, rounds)
        assert_within(channels_of(found.dresidual).astype(np.float64), channels_of(g), limit)
    else:
        assert found.dresidual is None

    count, (mean, var) = x.size // x.shape[1], stats[-2:]
    if row["training"]:
        _, size, full_size = dx_terms(g, x, (count, mean, var), case.gamma, EPS)
    else:
        size = full_size = abs(channels_of(expected.dx))
    size = full_size if x.dtype == np.float64 else size
    assert found.dx.dtype == x.dtype
    dx = channels_of(expected.dx)
    size = size.astype(np.float64)
    assert_within(channels_of(found.dx).astype(np.float64), dx, limit_of(dx, size, x.dtype, 4, 100))

    share = 100 * U64 * 2 if x.dtype == np.float64 else 1e-6
    for name, size in (("dgamma", dgamma_terms(g, x, mean, var, EPS)[1]), ("dbeta", dbeta_terms(g)[1])):
        value, parameter, true = getattr(found, name), getattr(case, name[1:]), getattr(expected, name)
        usual = np.float64 if x.dtype == np.float64 else np.float32
        assert value.dtype == (usual if parameter is None else parameter.dtype)
        limit = share * size.astype(np.float64) + U32 * abs(true) * (value.dtype == np.float32)
        assert_within(value.astype(np.float64), true, limit + 2 * LEAST[value.dtype])


def rows_of_any_length():
    """Planes of 16 to 32 values: what is left of a row after lines of 16 is another matter for each length."""
    usual = {"order": "planes", "strides": "whole", "others": "same", "channels": 5, "samples": 3, "axis": 1}
    usual |= {"gamma": "float32", "data": "ordinary", "threads": 1, "training": True}
    kinds = [("relu", np.float32), ("relu", np.float64), ("leaky-0.25", np.float32), ("leaky-0.25", BFLOAT16)]
    return [
        {**usual, "activation": name, "dtype": np.dtype(dtype), "residual": residual, "rest": (length,)}
        for length, (name, dtype), residual in itertools.product(range(16, 33), kinds, (False, True))
    ]


LENGTHS = rows_of_any_length()


@pytest.mark.parametrize("row", ROWS + LENGTHS, ids=name_of_choice)
def test_right(row):
    case = Case(row)
    arrays = [a for a in (case.x, case.dy, case.residual) if a is not None]
    before = [memory_of(a).copy() for a in arrays]
    with fastbn.num_threads(row["threads"]):
        y, stats = case.forward()
        found = case.backward(y, stats)
    if row["training"]:
        assert_stats(stats, case.x if case.x.dtype in (np.float32, np.float64) else case.x.astype(np.float32))
    assert_fused_y(y, case, stats)
    assert_fused_gradients(found, case, y, stats)
    for result in [a for a in (y, found.dx, found.dresidual) if a is not None]:
        assert np.moveaxis(result, 1, case.axis).strides == np.empty_like(np.moveaxis(case.x, 1, case.axis)).strides
    assert [memory_of(a).tobytes() for a in arrays] == [b.tobytes() for b in before]


@pytest.mark.parametrize("row", ROWS, ids=name_of_choice)
def test_the_same_bits(row):
    case = Case(row)
    with fastbn.num_threads(1):
        found = case.results()
        assert differing(case.results(split=True), found) == []
        assert differing(case.results(x=case.x.copy(order="K")), found) == []
        assert differing(case.results(y=lambda y: placed(y, row["order"], row["strides"])), found) == []
        assert differing(case.results(dy=placed(case.dy, row["order"], row["strides"])), found) == []
        zeros = np.zeros_like(case.dy)
        for order, strides in {(row["order"], "whole"), (case.others, row["strides"])}:
            new = case.results(out=lambda order=order, strides=strides: placed(zeros, order, strides, 48))
            assert differing(new, found) == []
    for threads in (2, 3, 4):
        with fastbn.num_threads(threads):
            assert differing(case.results(split=threads == 3), found) == []


@pytest.mark.parametrize("row", ROWS, ids=name_of_choice)
def test_fused_is_one_after_the_other(row):
    """The activation of y without one; the gradients of dy behind the mask. (Zeros may differ in sign.)"""
    case = Case(row)
    y, stats = case.forward()
    z, _ = case.forward(activation=None)
    leaky = case.act.get("activation") == "leaky_relu"
    one = act_of(z, **case.act)
    assert np.array_equal(y[z >= 0], one[z >= 0])
    if not leaky:
        assert np.array_equal(y, one)
    assert (y[z < 0] <= 0).all() or not case.act

    found = case.backward(y, stats)
    g = gradient_of(case.dy, y, **case.act)
    if row["residual"] and (not leaky or row["activation"] == "leaky-0.25"):
        assert np.array_equal(found.dresidual, g)
    half, float64 = row["dtype"] in HALF_UNIT, row["dtype"] == np.float64
    if leaky and (half or not (float64 if row["residual"] else row["activation"] == "leaky-0.25")):
        return  # there g is not rounded to the type of dy
    if row["residual"]:
        g = found.dresidual
    plain = case.backward(None, stats, dy=placed(g, case.others), activation=None, residual=False)
    for name in ("dx", "dgamma", "dbeta"):
        a, b = getattr(plain, name), getattr(found, name)
        assert np.array_equal(a, b), name


@pytest.mark.parametrize("row", ROWS[::3] + LENGTHS, ids=name_of_choice)
def test_written_over_an_argument(row):
    case = Case(row)
    found = case.results()
    stats = (found["mean"], found["var"])
    stats = fastbn.BatchStats(case.x.size // case.x.shape[1], *stats) if row["training"] else stats

    def copy_of_x():
        return placed(case.x, row["order"], row["strides"])

    x = copy_of_x()
    assert case.forward(x, out=x)[0].tobytes() == found["y"].tobytes()
    assert np.shares_memory(case.forward(x, out=x)[0], x)
    if row["residual"]:
        over = placed(case.residual, case.others)
        assert case.forward(residual=over, out=over)[0].tobytes() == found["y"].tobytes()
    for name, split in itertools.product(("x", "dy"), (False, True)):
        x, dy = copy_of_x(), placed(case.dy, case.others)
        over = {"x": x, "dy": dy}[name]
        out = (over, None) if row["residual"] else over
        new = case.backward(found["y"], stats, x, dy, split, out=out)
        assert over.tobytes() == found["dx"].tobytes(), name
        assert new.dgamma.tobytes() == found["dgamma"].tobytes()
        if row["residual"]:
            assert new.dresidual.tobytes() == found["dresidual"].tobytes()
            for other in (None, {"x": "dy", "dy": "x"}[name]):  # takes dx
                x, dy = copy_of_x(), placed(case.dy, case.others)
                places = {"x": x, "dy": dy, None: None}
                new = case.backward(found["y"], stats, x, dy, split, out=(places[other], places[name]))
                assert places[name].tobytes() == found["dresidual"].tobytes()
                assert new.dx.tobytes() == found["dx"].tobytes()


@pytest.mark.parametrize("row", ROWS[::3], ids=name_of_choice)
def test_only_what_is_asked(row):
    """The same bits, and None for the rest."""
    case = Case(row)
    y, stats = case.forward()
    whole = case.backward(y, stats)
    for need_dx, need_params, split in itertools.product([True, False], repeat=3):
        found = case.backward(y, stats, split=split, need_dx=need_dx, need_params=need_params)
        needed = {"dx": need_dx, "dgamma": need_params, "dbeta": need_params, "dresidual": row["residual"]}
        assert {name: a is not None for name, a in found._asdict().items()} == needed
        for name in [name for name in needed if needed[name]]:
            assert getattr(found, name).tobytes() == getattr(whole, name).tobytes(), (name, need_dx, need_params, split)


# ---- large arrays: several blocks of sums, threads that share channels, results past the cache

BIG = {
    "planes": ((5, 16, 30, 31), "planes"),
    "one channel": ((3, 1, 25000), "planes"),
    "streamed": ((3, 6, 239, 251), "planes"),
    "streamed, short rows": ((2000, 20, 27), "planes"),
    "streamed, rows of 14x14": ((60, 91, 196), "planes"),
    "rows": ((700, 130), "planes"),
    "two channels": ((40000, 2), "planes"),
    "channels-last": ((10, 140, 60), "channels-last"),
    "streamed rows": ((9000, 120), "planes"),
}


def big_row(name, activation, residual, dtype, training):
    (samples, channels, *rest), order = BIG[name]
    usual = {"strides": "whole", "axis": 1, "others": "same", "gamma": "float32", "data": "ordinary", "threads": 2}
    return usual | {
        "activation": activation, "residual": residual, "training": training, "dtype": np.dtype(dtype),
        "order": order, "channels": channels, "rest": tuple(rest), "samples": samples,
    }  # fmt: skip


BIG_ROWS = [
    big_row(name, activation, residual, dtype, (k + residual) % 2 == 0)
    for k, (name, (activation, dtype)) in enumerate(
        itertools.product(
            BIG, [("relu", np.float32), ("leaky-0.25", np.float64), ("relu6", np.float16), ("relu", BFLOAT16)]
        )
    )
    for residual in (False, True)
]


@pytest.mark.parametrize("row", BIG_ROWS, ids=name_of_choice)
def test_large(row):
    case = Case(row)
    y, stats = case.forward()
    if row["training"]:
        assert_stats(stats, case.x if case.x.dtype in (np.float32, np.float64) else case.x.astype(np.float32))
    assert_fused_y(y, case, stats)
    found = case.backward(y, stats)
    assert_fused_gradients(found, case, y, stats)
    results = case.results()
    with fastbn.num_threads(1):
        alone = case.results()
    assert differing(results, alone) == []
    with fastbn.num_threads(4):
        assert differing(case.results(split=True), alone) == []


# ---- builds of the kernels


def digest():
    """Which kernels ran, and a hash of every result of all rows."""
    hashes = {
        f"{k}: {name}": hashlib.sha256(array.tobytes()).hexdigest()
        for k, row in enumerate(ROWS + BIG_ROWS)
        for name, array in (Case(row).results() | Case(row).sums()).items()
    }
    return {"isa": fastbn.isa, "kernels": fastbn._dispatch.kernels.__name__, "hashes": hashes}


@pytest.mark.skipif(not _cpu.has_x86_64_v3(), reason="this CPU or operating system does not run x86-64-v3")
def test_builds(tmp_path):
    baseline, v3 = (digest_of(isa, tmp_path, __file__) for isa in ("baseline", "x86-64-v3"))
    assert (baseline["isa"], v3["isa"]) == ("baseline", "x86-64-v3")
    assert len(baseline["hashes"]) > 5 * len(ROWS)
    assert [name for name, bits in baseline["hashes"].items() if v3["hashes"][name] != bits] == []


# ---- kinks, NaN and infinity, worked by hand

# mean 3, var 3.5 and eps 0.5: xhat = (x - 3)/2; with gamma = 4 and beta = -2, z = 2*x - 8, in numbers that halves hold.
MEAN, VAR, GAMMA, BETA, HAND_EPS = 3.0, 3.5, 4.0, -2.0, 0.5
XS = [1.0, 4.0, 4.5, 7.0, 8.0, np.nan, np.inf, -np.inf, 3.984375, 4.03125]
ZS = [-6.0, 0, 1, 6, 8, np.nan, np.inf, -np.inf, -0.03125, 0.0625]
BY_HAND = {  # name: y, act'(z)
    "none": (ZS, [1] * 10),
    "relu": ([0, 0, 1, 6, 8, np.nan, np.inf, 0, 0, 0.0625], [0, 0, 1, 1, 1, 1, 1, 0, 0, 1]),
    "relu6": ([0, 0, 1, 6, 6, np.nan, 6, 0, 0, 0.0625], [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]),
    "leaky-0.25": (
        [-1.5, 0, 1, 6, 8, np.nan, np.inf, -np.inf, -0.0078125, 0.0625],
        [0.25, 0.25, 1, 1, 1, 0.25, 1, 0.25, 0.25, 1],
    ),
}
# Planes long and short, rows wide and narrow: 10 values of a channel after each other, over and over.
HAND_SHAPES = {
    "planes": ((3, 2, 50), None),
    "short planes": ((60, 3, 5), None),
    "rows": ((50, 70), None),
    "narrow rows": ((60, 2), None),
    "channels-last": ((3, 20, 50), "channels-last"),
    "one channel": ((20, 1), None),
    "gaps": ((3, 2, 50), "gaps"),
}


def by_hand(values, shape, order, dtype):
    """An array of a shape whose channels all hold these values, over and over."""
    n, c, *rest = shape
    each = np.resize(np.array(values, np.float64), (n, *rest))
    a = np.repeat(np.expand_dims(each, 1), c, axis=1).astype(dtype)
    if order == "gaps":
        return placed(a, "planes", "every second value")
    return placed(a, order or "planes")


@pytest.mark.parametrize("api", [fastbn, reference], ids=["fastbn", "reference"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", HAND_SHAPES)
@pytest.mark.parametrize("name", BY_HAND)
def test_kinks_and_nan(name, where, dtype, with_residual, api):
    """Derivatives at kinks and of NaN as in PyTorch. What is cut off is 0 even where dy is infinite or NaN."""
    shape, order = HAND_SHAPES[where]
    act = ACTIVATIONS[name]
    y, slopes = (by_hand(v, shape, order, np.float64) for v in BY_HAND[name])
    x = by_hand(XS, shape, order, dtype)
    residual = None
    if with_residual:  # z = 2*4 - 8 + residual
        x, residual = by_hand([4.0] * 10, shape, order, dtype), by_hand(ZS, shape, order, dtype)
    vectors = {"gamma": np.full(shape[1], GAMMA), "beta": np.full(shape[1], BETA), "eps": HAND_EPS}
    stats = np.full(shape[1], MEAN), np.full(shape[1], VAR)
    found = api.normalize(x, *stats, **vectors, **act, residual=residual)
    np.testing.assert_array_equal(found.astype(np.float64), y)
    options = {**vectors, **act, "training": False, "residual": with_residual, "y": found if with_residual else None}
    for values in (np.arange(1.0, 11), [np.inf] * 10, [np.nan] * 10):
        dy = by_hand(values, shape, order, dtype)
        with np.errstate(invalid="ignore"):
            expected = np.where(slopes == 0, 0, slopes * dy.astype(np.float64))
        gradients = api.batch_norm_backward(dy, x, stats, **options)
        np.testing.assert_array_equal(gradients.dx.astype(np.float64), 2 * expected)
        if with_residual:
            alone = api.batch_norm_backward(dy, x, stats, **options, need_dx=False)
            for dresidual in (gradients.dresidual, alone.dresidual):
                np.testing.assert_array_equal(dresidual.astype(np.float64), expected)
        if np.isfinite(values).all():
            sums = expected.sum(axis=tuple(k for k in range(expected.ndim) if k != 1))
            np.testing.assert_array_equal(gradients.dbeta, sums)
            assert type(gradients.dx) is np.ndarray


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", HAND_SHAPES)
@pytest.mark.parametrize("name", ["relu", "relu6", "leaky-0.25"])
def test_nan_of_a_channel_goes_through_and_stays_there(name, where, dtype):
    """Training: its statistics, y and dx are NaN, not 0; no other channel notices."""
    shape, order = HAND_SHAPES[where]
    x = placed(random_array(shape, dtype), "planes" if order in (None, "gaps") else order)
    dy = random_array(shape, dtype, seed=1)
    clean, clean_stats = fastbn.batch_norm(x, **ACTIVATIONS[name])
    expected = fastbn.batch_norm_backward(dy, x, clean_stats, **ACTIVATIONS[name])
    x[0, -1] = np.nan
    y, stats = fastbn.batch_norm(x, **ACTIVATIONS[name])
    assert np.isnan(y[:, -1].astype(np.float64)).all()
    assert y[:, :-1].tobytes() == clean[:, :-1].tobytes()
    found = fastbn.batch_norm_backward(dy, x, stats, **ACTIVATIONS[name])
    assert np.isnan(found.dx[:, -1].astype(np.float64)).all()
    assert found.dx[:, :-1].tobytes() == expected.dx[:, :-1].tobytes()
    assert np.isnan(found.dgamma[-1])


@pytest.mark.parametrize("shape", [(2, 3, 16), (40, 3)], ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.5])
def test_a_z_that_is_nan_is_not_taken_for_negative(slope, shape):
    """A product that overflows, and an infinity of the other sign: of the NaN that this makes some processors set the
    sign. What the slope makes of it may be finite, and is not y.
    """
    options = {"eps": 0.0, "activation": "leaky_relu", "negative_slope": slope}
    zeros, ones = np.zeros(3), np.ones(3)
    for sign in (-1, 1):
        x = np.full(shape, sign * 1e307)
        y = fastbn.normalize(x, zeros, ones, 1e3 * ones, -sign * np.inf * ones, **options)
        assert np.isnan(y).all()
        x = np.full(shape, sign * 3e37, np.float32)
        y = fastbn.normalize(x, zeros, ones, 1e3 * ones, residual=np.full_like(x, -sign * np.inf), **options)
        assert not np.isfinite(y).any()


@pytest.mark.parametrize("api", [fastbn, reference], ids=["fastbn", "reference"])
@pytest.mark.parametrize("where", HAND_SHAPES)
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_the_mask_is_that_of_the_stored_value(dtype, where, api):
    """beta = 6 - 2**-12 is stored as 6 in half types, where relu6 has no slope; in float32 it would have one.

    And 2**-30, which is 0 as float16 (not as bfloat16) and has no slope there.
    """
    shape, order = HAND_SHAPES[where]
    x = by_hand([0.0], shape, order, dtype)
    dy, channels, stats = x + dtype.type(1), shape[1], (np.zeros(shape[1]), np.ones(shape[1]))
    options = {"eps": 0, "training": False, "activation": "relu6"}
    dx = api.batch_norm_backward(dy, x, stats, None, np.full(channels, 6 - 2.0**-12), **options).dx
    assert (dx == 0).all()
    dx = api.batch_norm_backward(dy, x, stats, None, np.full(channels, 2.0**-30), **options).dx
    assert (dx == (dtype == BFLOAT16)).all()
    wide = x.astype(np.float32)
    dx = api.batch_norm_backward(wide + 1, wide, stats, None, np.full(channels, 6 - 2.0**-12), **options).dx
    assert (dx == 1).all()


# ---- residuals without an activation


def cancelling(y, slope, dtype, rng):
    """Gradients in (n, c, s) whose sums behind the slope are 1e-4 of their size at most; every second is 1e-6 of it."""
    dy = rng.standard_normal(y.shape).astype(dtype)
    dy[:, :, 1::2] *= dtype.type(1e-6 if dtype.itemsize > 2 else 1e-3)
    for c in range(y.shape[1]):
        for n, s in np.argwhere(y[:, c, ::2] > 0)[:4]:  # each of them makes good what the one before could not
            dy[n, c, 2 * s] = 0
            g = gradient_of(dy[:, c].astype(np.longdouble), y[:, c], "leaky_relu", np.longdouble(slope))
            dy[n, c, 2 * s] = -g.sum()
    return dy


@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("order", ["planes", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_behind_a_slope_that_cancel(dtype, order, with_residual):
    """A slope is as exact as all else (P1): rounded to float32, g leaves more behind than dx is, where dy is small."""
    rng = np.random.default_rng(3)
    slope = 0.3
    x, residual = (rng.standard_normal((6, 5, 300)).astype(dtype) for _ in range(2))
    x[:, :, 1::2] *= dtype.type(1e-3)
    if order == "channels-last":
        x = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    options = {"activation": "leaky_relu", "negative_slope": slope}
    y, stats = fastbn.batch_norm(x, **options, residual=residual if with_residual else None)
    dy = cancelling(y, slope, dtype, rng)
    found = fastbn.batch_norm_backward(dy, x, stats, **options, residual=with_residual, y=y if with_residual else None)
    g = gradient_of(dy.astype(np.longdouble), y, "leaky_relu", np.longdouble(slope))
    total, size = dbeta_terms(g)
    assert (abs(total) < 1e-4 * size).all()
    expected, size, full_size = (a.astype(np.float64) for a in dx_terms(g, x, stats, None, 1e-5))
    size = full_size if dtype == np.float64 else size
    assert_within(channels_of(found.dx).astype(np.float64), expected, limit_of(expected, size, dtype, 4, 100))
    assert_within(found.dbeta, total, (2e-15 if dtype == np.float64 else U32) * abs(g).sum())


@pytest.mark.parametrize("beta", [0.5, 30], ids=["near", "far"])
@pytest.mark.parametrize("slope", [1, 0.3, 1.5, 0.01])
@pytest.mark.parametrize("order", ["planes", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_from_y_alone_are_as_exact(dtype, order, slope, beta):
    """P1 for the x that y tells of, the smaller ones behind a slope included; with gradients that cancel, too."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((6, 5, 300)).astype(dtype)
    if order == "channels-last":
        x = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    gamma, beta = np.array([1, -0.5, 2, 1.25, -1]), beta * np.array([1, 1, -1, 0.5, -0.5])
    act = {} if slope == 1 else {"activation": "leaky_relu", "negative_slope": slope}
    y, stats = fastbn.batch_norm(x, gamma, beta, **act)
    small = (y == 0) | (abs(y.astype(np.float64)) < 1e-3)  # of half types these may be subnormal, and tell little of x
    y[small] = np.array(0.25, dtype)
    z = channels_of(y).astype(np.longdouble)
    z = np.where(z > 0, z, z / np.longdouble(slope))
    xhat = (z - beta[:, None]) / gamma[:, None].astype(np.longdouble)
    std = np.sqrt(stats.var[:, None] + np.longdouble(1e-5))
    wide_x = np.moveaxis((xhat * std).reshape(5, 6, 300), 0, 1)
    for dy in (rng.standard_normal(x.shape).astype(dtype), cancelling(y, slope, dtype, rng)):
        found = fastbn.batch_norm_backward(dy, None, stats, gamma, beta, y=y, **act)
        g = gradient_of(dy.astype(np.longdouble), y, "leaky_relu", np.longdouble(slope))
        about = (stats.count, np.zeros(5), stats.var)
        expected, size, full_size = (a.astype(np.float64) for a in dx_terms(g, wide_x, about, gamma, 1e-5))
        size = full_size if dtype == np.float64 else size
        assert_within(channels_of(found.dx).astype(np.float64), expected, limit_of(expected, size, dtype, 4, 100))
        for name, (total, size) in (("dbeta", dbeta_terms(g)), ("dgamma", dgamma_terms(g, wide_x, *about[1:], 1e-5))):
            assert_within(getattr(found, name), total, (1e-13 if dtype == np.float64 else 1e-6) * size)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "leaky_relu"])
@pytest.mark.parametrize("order", ["planes", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dresidual_is_the_same_without_dx(dtype, order, activation):
    """Whatever is computed beside it, and in which type: gamma has what float32 cannot hold."""
    x, dy, residual = (random_array((6, 5, 300), dtype, seed) for seed in range(3))
    if order == "channels-last":
        x = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    gamma = np.array([1, 1e-35, -2, 1e33, 0.5])
    for slope in (0.3, 1e-42) if activation == "leaky_relu" else (0.01,):
        options = {"activation": activation, "negative_slope": slope, "residual": True}
        with np.errstate(all="ignore"):
            y, stats = fastbn.batch_norm(x, gamma, **options | {"residual": residual})
            g = gradient_of(dy.astype(np.float64), y, activation, slope) if activation else dy
        sums = fastbn.backward_sums(dy, x, stats, gamma, y=y, **options)
        for training, need_params in itertools.product((True, False), (True, False)):
            more = {"training": training, "need_params": need_params}
            with_dx, without = (
                fastbn.batch_norm_backward(dy, x, stats, gamma, y=y, **options, **more, need_dx=need)
                for need in (True, False)
            )
            apart = fastbn.backward_apply(dy, x, stats, sums, gamma, y=y, **options, training=training)
            assert without.dx is None
            assert without.dresidual.tobytes() == with_dx.dresidual.tobytes() == apart.dresidual.tobytes()
        limit = limit_of(channels_of(g), abs(channels_of(g)), dtype, 2, 1)
        assert_within(channels_of(without.dresidual).astype(np.float64), channels_of(g), limit)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("shape", [(1450, 16, 49), (6, 8, 24000), (1450, 49, 16)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_dx_and_dresidual_past_the_cache(dtype, shape, activation):
    """Wherever they begin in their lines: expected is what parts give that stay in the cache."""
    axis = -1 if shape[-1] == 16 else 1
    shape = (shape[0] * (1 if dtype == np.float32 else 2), *shape[1:])
    x, dy, residual = (random_array(shape, dtype, seed) for seed in range(3))
    options = {"activation": activation, "negative_slope": 0.3, "axis": axis, "residual": True}
    y, stats = fastbn.batch_norm(x, **options | {"residual": residual})
    sums = fastbn.backward_sums(dy, x, stats, y=y, **options)
    part = slice(0, len(x) // 2)
    assert x[part].nbytes < constant("STREAM_FROM") <= x.nbytes
    halves = [
        fastbn.backward_apply(dy[p], x[p], stats, sums, y=y[p], **options) for p in (part, slice(part.stop, None))
    ]
    expected = [np.concatenate([getattr(half, name) for half in halves]) for name in ("dx", "dresidual")]
    for offsets in itertools.product((0, 4, 16, 62 if dtype == BFLOAT16 else 60), repeat=2):
        raw = [np.full(x.size + 128, 7, dtype) for _ in offsets]
        starts = [(-a.ctypes.data % 64 + k) // x.itemsize for a, k in zip(raw, offsets, strict=True)]
        out = tuple(a[k : k + x.size].reshape(shape) for a, k in zip(raw, starts, strict=True))
        fastbn.batch_norm_backward(dy, x, stats, y=y, **options, out=out)
        for a, k, result, right in zip(raw, starts, out, expected, strict=True):
            assert result.tobytes() == right.tobytes(), offsets
            assert (a[:k] == 7).all(), offsets
            assert (a[k + x.size :] == 7).all(), offsets


@pytest.mark.parametrize("axis", [2, 3], ids=["planes", "channels-last"])
def test_dx_and_dresidual_whose_lines_part_ways(axis):
    """As many axes and the same steps, but gaps elsewhere: the first values share lines, later ones do not."""
    shape = (4, 8, 16, 400, 6) if axis == 2 else (4, 8, 16, 2048)
    x, dy, residual = (random_array(shape, np.float32, seed) for seed in range(3))
    options = {"activation": "relu", "axis": axis, "residual": True}
    y, stats = fastbn.batch_norm(x, **options | {"residual": residual})
    expected = fastbn.batch_norm_backward(dy, x, stats, y=y, **options)
    assert x.nbytes >= constant("STREAM_FROM")
    inside, (a, b) = x[0, 0].size, shape[:2]
    steps = [(b * (inside + 1), inside + 1), (b * inside + 1, inside)]  # a gap behind each second axis, or each first
    out = []
    for step in steps:
        raw = np.zeros(a * b * (inside + 2), np.float32)
        start = -raw.ctypes.data % 64 // 4
        strides = tuple(4 * k for k in step) + x.strides[2:]
        out.append(np.lib.stride_tricks.as_strided(raw[start:], shape, strides))
    fastbn.batch_norm_backward(dy, x, stats, y=y, **options, out=tuple(out))
    assert np.array_equal(out[0], expected.dx)
    assert np.array_equal(out[1], expected.dresidual)


@pytest.mark.parametrize("slope", [1, 0.5])
@pytest.mark.parametrize("shape", [(2, 1), (64, 3, 20)], ids=str)
def test_gradients_from_y_alone_of_large_numbers(shape, slope):
    """Terms that float32 cannot hold, of a dx that it can."""
    x = np.where(np.arange(np.prod(shape)) % 2, 1.0, -1.0).reshape(shape).astype(np.float32)
    dy = x * np.where(x > 0, 1, np.float32(1 / slope)) * np.float32(2.0**40)
    act = {} if slope == 1 else {"activation": "leaky_relu", "negative_slope": slope}
    options = {"gamma": np.full(shape[1], 2.0**90), **act}
    y, stats = fastbn.batch_norm(x, **options)
    found = fastbn.batch_norm_backward(dy, None, stats, y=y, **options).dx
    expected = reference.batch_norm_backward(dy, None, stats, y=y, **options).dx
    assert np.isfinite(expected.astype(np.float32)).all()
    np.testing.assert_allclose(found, expected, rtol=2 * U32)


def test_gradients_from_y_alone_behind_a_steep_slope():
    """beta*slope and y are finite in float32; their difference is not."""
    rng, slope, beta = np.random.default_rng(0), 2.0**99, 2.4e8
    x = np.clip(rng.standard_normal((64, 1)) * 1e9, -2.4e9, 1.9e9).astype(np.float32)
    options = {"gamma": [2.56e8], "beta": [beta], "activation": "leaky_relu", "negative_slope": slope}
    y, stats = fastbn.batch_norm(x, **options)
    assert np.isfinite(y).all()
    assert np.float32(beta * slope) - np.float64(y.min()) > np.finfo(np.float32).max
    below = np.flatnonzero(y < 0)
    dy = np.zeros_like(x)
    dy[below[::2][: len(below) // 2], 0], dy[below[1::2], 0] = 2.0**-10, -(2.0**-10)
    found = fastbn.batch_norm_backward(dy, None, stats, y=y, **options).dx
    expected = reference.batch_norm_backward(dy, None, stats, y=y, **options).dx
    assert np.isfinite(expected.astype(np.float32)).all()
    assert_within(found, expected, 4 * U32 * abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_residual_alone(training, dtype):
    """dresidual is dy, in an array of its own; y is not needed; all else is as without a residual."""
    x, dy, residual = (random_array((6, 5, 9), dtype, seed) for seed in range(3))
    _, stats = fastbn.batch_norm(x, residual=residual)
    found = fastbn.batch_norm_backward(dy, x, stats, residual=True, training=training)
    plain = fastbn.batch_norm_backward(dy, x, stats, training=training)
    assert found.dresidual.tobytes() == dy.tobytes()
    assert not np.shares_memory(found.dresidual, dy)
    for name in ("dx", "dgamma", "dbeta"):
        assert getattr(found, name).tobytes() == getattr(plain, name).tobytes()
    over = dy.copy()
    found = fastbn.batch_norm_backward(over, x, stats, residual=True, training=training, out=(None, over))
    assert found.dresidual is over
    assert over.tobytes() == dy.tobytes()
    assert found.dx.tobytes() == plain.dx.tobytes()
    found = fastbn.batch_norm_backward(over, x, stats, residual=True, training=training, out=(over, None))
    assert found.dx is over
    assert over.tobytes() == plain.dx.tobytes()
    assert found.dresidual.tobytes() == dy.tobytes()


def test_results_and_statistics_may_come_in_lists():
    x, dy = np.random.default_rng(0).normal(size=(2, 6, 3, 5))
    stats = fastbn.batch_stats(x)
    expected = fastbn.batch_norm_backward(dy, x, stats, residual=True)
    out = [np.empty_like(x), np.empty_like(x)]
    fastbn.batch_norm_backward(dy, x, list(stats), residual=True, out=out)
    assert np.array_equal(out, [expected.dx, expected.dresidual])


def test_a_residual_that_is_x_itself():
    x = random_array((6, 5, 9))
    y, stats = fastbn.batch_norm(x, residual=x, activation="relu")
    assert y.tobytes() == fastbn.batch_norm(x, residual=x.copy(), activation="relu")[0].tobytes()
    over = x.copy()
    assert fastbn.batch_norm(over, residual=over, activation="relu", out=over)[0].tobytes() == y.tobytes()
    assert stats == fastbn.batch_stats(x)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
def test_no_values(shape):
    x = np.empty(shape, np.float32)
    for act, residual in itertools.product(ACTIVATIONS.values(), [None, x]):
        assert fastbn.normalize(x, np.ones(3), np.ones(3), **act, residual=residual).shape == shape
        options = {**act, "residual": residual is not None, "y": residual}
        found = fastbn.batch_norm_backward(x, x, fastbn.batch_stats(x), **options)
        assert found.dx.shape == shape
        assert np.array_equal(found.dbeta, np.zeros(3))
        assert (found.dresidual is None) == (residual is None)


# ---- gradients are derivatives: five-point differences in float64 (limits: test_gradients.py)

SMOOTH_SHAPES = [(9, 4), (6, 3, 4), (2, 2, 3, 4)]
MODES = list(itertools.product([True, False], [False, True], [False, True]))  # training, residual, split
modes = pytest.mark.parametrize(("training", "residual", "split"), MODES)


def away_from_kinks(forward, make):
    """Arrays whose z = forward(*arrays) is so far from 0 and 6 that no step of a difference gets there.

    A step of 2*STEP in x moves z by 2*STEP*gamma*invstd < 1.5/sqrt(0.1)*2*STEP < 10*STEP at most.
    """
    for seed in range(2000):
        arrays = make(np.random.default_rng(seed))
        z = forward(*arrays)
        if min(abs(z).min(), abs(z - 6).min()) > 10 * STEP and (z < 0).any() and (z > 0).any():
            return arrays
    raise AssertionError("no such arrays")


@modes
@pytest.mark.parametrize("shape", SMOOTH_SHAPES, ids=str)
@pytest.mark.parametrize("order", ["planes", "channels-last"])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_derivatives(name, order, shape, training, residual, split):
    act = ACTIVATIONS[name]
    fixed = np.random.default_rng(1).uniform(0.2, 1, (2, shape[1]))

    def forward(x, r, gamma, beta, **act):
        with_r = {"residual": r if residual else None, "eps": SMOOTH_EPS}
        if training:
            return fastbn.batch_norm(x, gamma, beta, **with_r, **act)[0]
        return fastbn.normalize(x, *fixed, gamma, beta, **with_r, **act)

    def make(rng):
        x, r = (placed(v, order) for v in rng.uniform(-1.5, 1.5, (2, *shape)))
        gamma, beta = rng.uniform(0.5, 1.5, shape[1]), rng.uniform(0.5, 1.5, shape[1])
        beta[-1] = 5.5  # so that relu6 has something to cut off
        gamma[0] *= -1
        return x, r, gamma, beta

    x, r, gamma, beta = away_from_kinks(forward, make)
    w = np.random.default_rng(2).uniform(-1.5, 1.5, shape)

    def f():
        return (w * forward(x, r, gamma, beta, **act)).sum()

    y = forward(x, r, gamma, beta, **act)
    stats = fastbn.batch_stats(x) if training else tuple(fixed)
    options = {
        "gamma": gamma, "beta": beta, "eps": SMOOTH_EPS, **act, "training": training, "residual": residual,
        "y": y if residual else None,
    }  # fmt: skip
    if split:
        found = fastbn.backward_apply(w, x, stats, fastbn.backward_sums(w, x, stats, **options), **options)
    else:
        found = fastbn.batch_norm_backward(w, x, stats, **options)
    assert_close(found.dx, derivative(f, x))
    assert_close(found.dgamma, derivative(f, gamma))
    assert_close(found.dbeta, derivative(f, beta))
    if residual:
        assert_close(found.dresidual, derivative(f, r))


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("mode", ["train", "eval", "global"])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_derivatives_of_layers(name, mode, residual):
    shape = (5, 3, 4)
    options = {"eps": SMOOTH_EPS, "dtype": np.float64, "use_global_stats": True if mode == "global" else None}
    layer = fastbn.BatchNorm1d(3, **options, **ACTIVATIONS[name]).train(mode != "eval")
    plain = fastbn.BatchNorm1d(3, **options).train(mode != "eval")
    for each in (layer, plain):
        each.running_mean, each.running_var = np.random.default_rng(1).uniform(0.2, 1, (2, 3))
        each.gamma, each.beta = np.random.default_rng(3).uniform(0.5, 1.5, (2, 3))
        each.momentum = 0.0

    def forward(x, r):
        return plain(x, residual=r if residual else None)

    x, r = away_from_kinks(forward, lambda rng: tuple(rng.uniform(-1.5, 1.5, (2, *shape))))
    w = np.random.default_rng(2).uniform(-1.5, 1.5, shape)

    def f():
        return (w * layer(x, residual=r if residual else None)).sum()

    f()
    found = layer.backward(w)
    dgamma, dbeta = layer.dgamma.copy(), layer.dbeta.copy()
    dx, dresidual = found if residual else (found, None)
    assert_close(dx, derivative(f, x))
    assert_close(dgamma, derivative(f, layer.gamma))
    assert_close(dbeta, derivative(f, layer.beta))
    if residual:
        assert_close(dresidual, derivative(f, r))


# ---- training in place: backward from y alone

IN_PLACE = ["none", "leaky-0.01", "leaky-0.25", "leaky-1.5"]
IN_PLACE_ROWS = list(
    pairwise(
        OPTIONS
        | {"activation": IN_PLACE, "residual": [False]}
        | {"gamma": ["float32", "float64", "none"], "data": ["ordinary", "far"]}
    )
)  # fmt: skip


def xhat_error(case, y, stats):
    """How far xhat = (z - beta)/gamma may be off: y was rounded, what is undone rounds again (P1 has no promise here).

    Rounded to 4 roundings of its terms by the forward; beta, slope, gamma and their operations, one each: 10 in all,
    and two of a half type, to which y and z are rounded (y among subnormals absolutely).
    """
    size = y_terms(case.x, stats[-2], stats[-1], case.gamma, case.beta, EPS)[1].astype(np.float64)
    gamma = 1 if case.gamma is None else abs(case.gamma.astype(np.float64))[:, None]
    unit = 20 * U64 if case.x.dtype == np.float64 else 10 * U32
    least = 2 * LEAST[case.x.dtype] / (case.act.get("negative_slope", 0.01) if case.act else 1)
    return ((unit + 2.02 * HALF_UNIT.get(case.x.dtype, 0)) * size + least) / gamma


@pytest.mark.parametrize("act", [{}, {"activation": "leaky_relu"}], ids=["none", "leaky"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_from_y_alone_of_constant_channels_without_eps(dtype, act):
    """As from x: all of x is its mean, so that sum_dy_xmu, dgamma and dx are 0; a channel beside it is not touched."""
    x = random_array((5, 2, 3), dtype, 0)
    x[:, 0] = 3
    dy = random_array((5, 2, 3), dtype, 1)
    y, stats = fastbn.batch_norm(x, eps=0, **act)
    sums = fastbn.backward_sums(dy, None, stats, y=y, eps=0, **act)
    assert sums.sum_dy_xmu[0] == 0
    for training in (True, False):
        given = stats if training else (stats.mean, stats.var)
        found = fastbn.batch_norm_backward(dy, None, given, y=y, eps=0, training=training, **act)
        assert not found.dx[:, 0].astype(np.float64).any()
        assert found.dgamma[0] == 0
        assert found.dbeta[0] == pytest.approx(
            float(dy[:, 0].astype(np.float64).sum() * (0.01 if act else 1)), rel=1e-6
        )
        assert np.isfinite(found.dx.astype(np.float64)).all()
        assert found.dx[:, 1].astype(np.float64).any()


def test_from_y_alone_with_a_tiny_gamma():
    """sqrt(var)/gamma is beyond float64, dgamma is not."""
    x, dy = np.random.default_rng(0).normal(size=(2, 50, 1))
    x *= 1e10
    gamma = np.array([1e-300])
    y, stats = fastbn.batch_norm(x, gamma)
    found = fastbn.batch_norm_backward(dy, None, stats, gamma, y=y)
    expected = fastbn.reference.batch_norm_backward(dy, x, stats, gamma)
    np.testing.assert_allclose(found.dgamma, expected.dgamma, rtol=1e-12)
    np.testing.assert_allclose(found.dx, expected.dx, rtol=1e-9)


LEAKY_LENGTHS = [row for row in LENGTHS if row["activation"] in IN_PLACE and not row["residual"]]


@pytest.mark.parametrize("row", IN_PLACE_ROWS + LEAKY_LENGTHS, ids=name_of_choice)
def test_in_place(row):
    case = Case(row)
    if row["gamma"] != "none":
        case.gamma[abs(case.gamma) < 0.1] = 0.1
    y, stats = case.forward()
    usual = case.backward(y, stats)
    x = placed(case.x, row["order"], row["strides"])
    over, found_stats = case.forward(x, out=x)
    assert np.shares_memory(over, x)
    assert over.tobytes() == y.tobytes()
    assert np.array_equal(found_stats[-2], stats[-2])

    same = {"training": row["training"], **case.act}
    found = case.call(fastbn.batch_norm_backward, case.dy, None, stats, y=over, **same)
    count, (mean, var) = case.x.size // case.x.shape[1], stats[-2:]
    off = xhat_error(case, y, stats)
    g = channels_of(gradient_of(case.dy.astype(np.float64), y.astype(np.float64), **case.act))
    # half types round g as well
    rounds = 1.01 * HALF_UNIT.get(case.x.dtype, 0) * (row["activation"] in ("leaky-0.01", "leaky-1.5"))
    # dgamma = sum(g*xhat)
    error = (abs(g) * off).sum(axis=1)
    dgamma, dbeta, dx = (a.astype(np.float64) for a in (usual.dgamma, usual.dbeta, channels_of(usual.dx)))
    size = dgamma_terms(gradient_of(case.dy, y, **case.act).astype(np.float64), case.x, mean, var, EPS)[1].astype(float)
    assert_within(found.dgamma, dgamma, error * (1 + rounds) + (2e-6 + rounds) * size)
    wide = 200 * U64 if case.x.dtype == np.float64 else 2e-6 + rounds
    assert_within(found.dbeta, dbeta, wide * abs(g).sum(axis=1) + abs(dbeta) * U32 * (found.dbeta.dtype == np.float32))
    # dx = scale*(g - mean(g) - xhat*dgamma/n)
    scale = abs((1 if case.gamma is None else case.gamma.astype(np.float64)) / np.sqrt(var + EPS))[:, None]
    xhat = (channels_of(case.x).astype(np.float64) - mean[:, None]) / np.sqrt(var + EPS)[:, None]
    limit = limit_of(dx, scale * (abs(g) + abs(g).mean(axis=1, keepdims=True)), case.x.dtype, 10, 200, stored=1)
    if row["training"]:
        limit += scale * (off * abs(dgamma)[:, None] + (abs(xhat) + off) * error[:, None]) / count
        limit += (10 * U32 + rounds) * scale * (abs(xhat * dgamma[:, None]) + abs(xhat) * size[:, None]) / count
    assert_within(channels_of(found.dx).astype(np.float64), dx, limit * 1.01)

    for threads in (1, 3):
        with fastbn.num_threads(threads):
            sums = case.call(fastbn.backward_sums, case.dy, None, stats, y=over, **same)
            new = case.call(fastbn.backward_apply, case.dy, None, stats, sums, y=over, **same)
            assert differing(new._asdict() | {"dresidual": new.dx}, found._asdict() | {"dresidual": found.dx}) == []
    for out in (placed(over, row["order"], row["strides"]), placed(case.dy, case.others)):
        is_y = np.array_equal(out, over)
        new = case.call(
            fastbn.batch_norm_backward, case.dy if is_y else out, None, stats, y=out if is_y else over, **same, out=out
        )
        assert out.tobytes() == found.dx.tobytes()


@pytest.mark.parametrize("api", [fastbn, reference], ids=["fastbn", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(20, 3), (4, 3, 30)], ids=str)
def test_in_place_with_numbers_that_are_exact(shape, dtype, api):
    """xhat = -1 or 1, gamma = 2, -4, 0.5 and beta = 1: y, and all that is undone, is exact in every type."""
    x = by_hand([2.0, 4.0, 2.0, 2.0, 4.0, 4.0], shape, None, dtype)
    x = x[: len(x) // 2 * 2]
    dy = by_hand([1.0, -2.0, 3.0, 0.5, 4.0], shape, None, dtype)
    gamma, beta = np.array([2.0, -4.0, 0.5]), np.ones(3)
    stats = fastbn.BatchStats(x.size // 3, np.full(3, 3.0), np.full(3, 0.75))
    for act in ({}, {"activation": "leaky_relu", "negative_slope": 0.25}):
        options = {"gamma": gamma, "beta": beta, "eps": 0.25, **act}
        y = api.normalize(x, stats.mean, stats.var, **options).astype(dtype)
        for training in (True, False):
            expected = api.batch_norm_backward(dy, x, stats, **options, training=training)
            found = api.batch_norm_backward(dy, None, stats, **options, training=training, y=y)
            for name in ("dx", "dgamma", "dbeta"):
                a, b = (np.asarray(getattr(g, name), np.float64) for g in (found, expected))
                np.testing.assert_allclose(a, b, rtol=HALF_UNIT.get(dtype, U32) * 4, atol=1e-12 if name == "dx" else 0)


def test_in_place_with_a_slope_whose_inverse_is_beyond_float64():
    x, gamma, slope = np.array([[-3.0], [1.0], [-1.0], [3.0]]) * 2.0**20, np.array([2.0**20]), 2.0**-1030
    options = {"activation": "leaky_relu", "negative_slope": slope}
    y, stats = fastbn.batch_norm(x, gamma, **options)
    usual, found = (fastbn.batch_norm_backward(x, a, stats, gamma, y=b, **options) for a, b in ((x, None), (None, y)))
    np.testing.assert_allclose(found.dgamma, usual.dgamma, rtol=1e-12)


REFUSED = {
    "relu": ({"activation": "relu"}, "relu keeps nothing of values below 0"),
    "relu6": ({"activation": "relu6"}, "relu6 keeps nothing of values below 0"),
    "leaky-0": ({"activation": "leaky_relu", "negative_slope": 0.0}, "leaky_relu with negative_slope 0 keeps nothing"),
    "leaky, 0 as float32": (
        {"activation": "leaky_relu", "negative_slope": 1e-50},
        "negative_slope 1e-50 keeps nothing",
    ),
    "gamma": ({}, "gamma is 0 in a channel"),
    "residual": ({}, "a residual was added"),
}


def test_a_slope_of_0_is_nothing_to_an_identity():
    x, dy = random_array((4, 3, 5)), random_array((4, 3, 5), seed=1)
    y, stats = fastbn.batch_norm(x)
    found = fastbn.batch_norm_backward(dy, None, stats, y=y, negative_slope=0)
    expected = reference.batch_norm_backward(dy, x, stats).dx
    bn = fastbn.BatchNorm1d(3, negative_slope=0)
    bn(x, out=x)
    for dx in (found.dx, bn.backward(dy)):
        np.testing.assert_allclose(dx, expected, atol=4 * U32 * 16)  # of terms below 16


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_undone_is_refused_before_x_is_lost(name):
    options, text = REFUSED[name]
    bn = fastbn.BatchNorm1d(3, **options)
    x, residual = random_array((4, 3, 5)), random_array((4, 3, 5), seed=1)
    bn(x)
    if name == "gamma":
        bn.gamma[1] = 0
    before, saved = x.copy(), pickle.dumps(bn)
    with pytest.raises(ValueError, match=f"^out: expected memory apart from x, since x cannot be had from y.*{text}"):
        bn(x, residual=residual if name == "residual" else None, out=x)
    assert x.tobytes() == before.tobytes()
    assert pickle.dumps(bn) == saved
    # inference has no backward to spoil
    bn.eval()(x, residual=residual if name == "residual" else None, out=x)
    with pytest.raises(RuntimeError, match=rf"^backward: the last forward wrote its result over x \(out=x\).*{text}"):
        bn.backward(residual)


@pytest.mark.parametrize("name", REFUSED)
def test_backward_from_y_alone_refuses_the_same(name):
    options, text = REFUSED[name]
    y = random_array((4, 3, 5))
    gamma = np.array([1.0, 0, 2]) if name == "gamma" else None
    for function, more in ((fastbn.batch_norm_backward, ()), (fastbn.backward_sums, ())):
        with pytest.raises(ValueError, match=f"^x: expected the input of the forward, since x cannot be had .*{text}"):
            function(y, None, fastbn.batch_stats(y), *more, gamma, **options, residual=name == "residual", y=y)


# ---- layers


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["planes", "channels-last"])
def test_layer_in_place(order, dtype, training, name):
    """bn(x, out=x) and then backward: what a layer with an x of its own gives, and what the functions give."""
    a, b = (fastbn.BatchNorm2d(4, dtype=dtype, **ACTIVATIONS[name]).train(training) for _ in range(2))
    for bn in (a, b):
        bn.gamma, bn.beta = [0.5, -1, 2, 1.5], [0, 1, -1, 0.5]
    x, dy = placed(random_array((3, 4, 5, 6), dtype), order), random_array((3, 4, 5, 6), dtype, seed=1)
    over = placed(x, order)
    y = a(x)
    assert b(over, out=over) is over
    assert over.tobytes() == y.tobytes()
    dx = a.backward(dy)
    found = b.backward(dy, out=dy.copy())
    limit = 2e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(found, dx, rtol=0, atol=limit)
    np.testing.assert_allclose(b.dgamma, a.dgamma, rtol=0, atol=10 * limit)
    np.testing.assert_allclose(b.dbeta, a.dbeta, rtol=0, atol=10 * limit)
    stats = fastbn.batch_stats(x) if training else (b.running_mean, b.running_var)
    options = {"gamma": b.gamma, "beta": b.beta, **ACTIVATIONS[name], "training": training}
    assert found.tobytes() == fastbn.batch_norm_backward(dy, None, stats, y=over, **options).dx.tobytes()
    assert [v.tobytes() for v in a.state_dict().values()] == [v.tobytes() for v in b.state_dict().values()]
    assert b.backward(dy).tobytes() == found.tobytes()  # again


def test_a_chain_of_layers_in_one_array():
    """Ten layers in place: one activation is kept, each layer's x is had from what the next one left."""
    x, dy = random_array((20, 6, 7)), random_array((20, 6, 7), seed=1)
    chains = [[fastbn.BatchNorm1d(6, activation="leaky_relu", negative_slope=0.5) for _ in range(10)] for _ in range(2)]
    y, over = x, x.copy()
    kept = []
    for usual, in_place in zip(*chains, strict=True):
        y = usual(y)
        kept.append(over.copy())
        assert in_place(over, out=over) is over
    assert over.tobytes() == y.tobytes()
    dx = dy
    last = chains[1][-1]
    for usual in reversed(chains[0]):
        dx = usual.backward(dx)
        if usual is chains[0][-1]:
            np.testing.assert_allclose(last.backward(dy), dx, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", ["planes", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_layer_is_the_functions(name, dtype, order):
    """With activation and residual, in training and evaluation, bit by bit; gradients as a pair."""
    act = ACTIVATIONS[name]
    x, dy, residual = (placed(random_array((4, 5, 3, 7), dtype, seed), order) for seed in range(3))
    bn = fastbn.BatchNorm2d(5, **act)
    bn.gamma, bn.beta = np.random.default_rng(0).normal(size=(2, 5))
    parameters = {"gamma": bn.gamma, "beta": bn.beta}
    for training, given in itertools.product([True, False], [None, residual]):
        bn.train(training)
        y = bn(x, residual=given)
        if training:
            expected, stats = fastbn.batch_norm(x, **parameters, **act, residual=given)
        else:
            stats = bn.running_mean, bn.running_var
            expected = fastbn.normalize(x, *stats, **parameters, **act, residual=given)
        assert y.tobytes() == expected.tobytes()
        told = {"residual": given is not None, "y": y if given is not None else None}
        expected = fastbn.batch_norm_backward(dy, x, stats, **parameters, **act, training=training, **told)
        found = bn.backward(dy)
        if given is None:
            assert found.tobytes() == expected.dx.tobytes()
        else:
            dx, dresidual = found
            assert dx.tobytes() == expected.dx.tobytes()
            assert dresidual.tobytes() == expected.dresidual.tobytes()
            dx, over = np.empty_like(x), dy.copy()
            again = bn.backward(over, out=(dx, over))
            assert again[0] is dx
            assert again[1] is over
            assert dx.tobytes() == expected.dx.tobytes()
            assert over.tobytes() == expected.dresidual.tobytes()
            over = x.copy()
            bn(over, residual=given)
            assert bn.backward(dy, out=(None, over))[1] is over
            assert over.tobytes() == expected.dresidual.tobytes()
            with pytest.raises(RuntimeError, match="x or y was overwritten"):
                bn.backward(dy)
            bn(x, residual=given)
        assert bn.dgamma.tobytes() == expected.dgamma.tobytes()
        assert bn.dbeta.tobytes() == expected.dbeta.tobytes()


def test_layer_options_are_shown_and_travel():
    bn = fastbn.BatchNorm(3, activation="leaky_relu", negative_slope=0.2)
    assert "activation=leaky_relu" in repr(bn)
    assert "negative_slope=0.2" in repr(bn)
    copy = pickle.loads(pickle.dumps(bn))
    x = random_array((5, 3))
    assert copy(x).tobytes() == bn(x).tobytes()
    assert bn.state_dict().keys() == fastbn.BatchNorm(3).state_dict().keys()


def test_layer_keeps_what_backward_reads():
    """Backward belongs to the last forward: with a residual a pair, without one an array."""
    bn = fastbn.BatchNorm(3, activation="relu")
    x, r, dy = (random_array((6, 3), seed=seed) for seed in range(3))
    bn(x, residual=r)
    pair = bn.backward(dy)
    bn(x)
    assert isinstance(bn.backward(dy), np.ndarray)
    bn(x, residual=r)
    again = bn.backward(dy)
    assert [a.tobytes() for a in again] == [a.tobytes() for a in pair]


if __name__ == "__main__":
    print(json.dumps(digest()))
