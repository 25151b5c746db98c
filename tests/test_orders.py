"""Every memory order, axis and kind of strides: right (P1), and the same bits whatever does not count (P2).

The rows of the tests come from a generator: each pair of options occurs together in at least one of them.
"""

import ml_dtypes
import numpy as np
import pytest
from arrays import (
    ORDERS,
    STRIDES,
    assert_dx,
    assert_parameter_gradients,
    assert_stats,
    assert_y,
    differing,
    memory_of,
    name_of_choice,
    pairwise,
    placed,
    random_array,
)

import fastbn
from fastbn import reference

EPS = 1e-3

OPTIONS = {
    "order": ORDERS,
    "strides": STRIDES,
    "dtype": [np.float32, np.float64],
    "channels": [1, 2, 3, 8, 16, 21, 64, 100, 150],
    "axis": [0, 1, 2, -1],
    "rest": [(), (1,), (37,), (5, 7), (2, 3, 4), (23, 29)],
    "samples": [1, 2, 9, 40],
    "others": ["same", *ORDERS],  # the order of dy and out
    "offset": [0, 16, 1],  # of the first byte, from a multiple of 64
    "data": ["ordinary", "far", "constant", "outlier"],
}


ROWS = list(pairwise(OPTIONS))


class Example:
    """The arrays of a row, (N, C, ...), and the axis to which their channels are moved for a call."""

    def __init__(self, row):
        shape = (row["samples"], row["channels"], *row["rest"])
        self.axis = row["axis"] if -len(shape) <= row["axis"] < len(shape) else 1
        values, gradient = random_array(shape, row["dtype"]), random_array(shape, row["dtype"], seed=1)
        if row["data"] == "far":
            values += row["dtype"](3e4)
        elif row["data"] == "constant":
            values[:, 0] = 0.1
        elif row["data"] == "outlier":
            values[0, 0] = 1e6
        self.x = placed(values, row["order"], row["strides"], row["offset"])
        self.others = row["order"] if row["others"] == "same" else row["others"]
        self.dy = placed(gradient, self.others, offset=row["offset"])
        rng = np.random.default_rng(shape[1])
        self.gamma, self.beta = rng.normal(size=(2, shape[1])).astype(np.float32)

    def moved(self, a):
        """An array with its channels on the axis of the call: the same memory."""
        return np.moveaxis(a, 1, self.axis)

    def results(self, x=None, dy=None, axis=None, out=None):
        """Every result, by name, as arrays (N, C, ...) again. `out` gives an array for a result that is to take it."""
        x, dy = self.x if x is None else x, self.dy if dy is None else dy
        axis = self.axis if axis is None else axis

        def call(function, *arrays, **options):
            arrays = [np.moveaxis(a, 1, axis) if isinstance(a, np.ndarray) and a.ndim > 1 else a for a in arrays]
            if out is not None:
                options["out"] = np.moveaxis(out(), 1, axis)
            return function(*arrays, eps=EPS, axis=axis, **options)

        y, stats = call(fastbn.batch_norm, x, self.gamma, self.beta)
        whole = call(fastbn.batch_norm_backward, dy, x, stats, self.gamma, self.beta)
        constant = call(fastbn.batch_norm_backward, dy, x, stats, self.gamma, self.beta, training=False)
        inference = call(fastbn.normalize, x, stats.mean, stats.var, self.gamma, self.beta)
        found = {"y": y, "inference": inference, "dx": whole.dx, "constant dx": constant.dx}
        found = {name: np.moveaxis(a, axis, 1) for name, a in found.items()}
        return {**found, "mean": stats.mean, "var": stats.var, "dgamma": whole.dgamma, "dbeta": whole.dbeta}


@pytest.mark.parametrize("row", ROWS, ids=name_of_choice)
def test_right_and_the_same_bits(row):
    e = Example(row)
    before = memory_of(e.x).copy(), memory_of(e.dy).copy()
    found = e.results()

    # right
    stats = fastbn.BatchStats(e.x.size // e.x.shape[1], found["mean"], found["var"])
    assert_stats(stats, e.x)
    assert_y(found["y"], e.x, stats.mean, stats.var, e.gamma, e.beta, EPS)
    assert_dx(found["dx"], e.dy, e.x, stats, e.gamma, EPS)
    assert_parameter_gradients(found["dgamma"], found["dbeta"], e.dy, e.x, stats.mean, stats.var, EPS)
    for name in ("y", "dx"):
        assert e.moved(found[name]).strides == np.empty_like(e.moved(e.x)).strides

    # the same bits
    assert found["inference"].tobytes() == found["y"].tobytes()  # split
    assert differing(e.results(axis=1), found) == []
    assert differing(e.results(x=e.x.copy(order="K")), found) == []
    assert differing(e.results(dy=placed(e.dy, row["order"], row["strides"])), found) == []
    zeros = np.zeros_like(e.dy)
    for order, strides in {(row["order"], "whole"), (e.others, row["strides"])}:
        new = e.results(out=lambda order=order, strides=strides: placed(zeros, order, strides, 48))
        assert differing(new, found) == []
    for threads in (1, 3):
        with fastbn.num_threads(threads):
            assert differing(e.results(), found) == []
    assert np.array_equal(memory_of(e.x), before[0])
    assert np.array_equal(memory_of(e.dy), before[1])


@pytest.mark.parametrize("row", ROWS[::5], ids=name_of_choice)
def test_written_over_an_argument(row):
    e = Example(row)
    found = e.results()
    stats = fastbn.BatchStats(e.x.size // e.x.shape[1], found["mean"], found["var"])
    for name, call in {
        "y": lambda x, dy, **o: fastbn.batch_norm(x, e.gamma, e.beta, out=x, **o)[0],
        "inference": lambda x, dy, **o: fastbn.normalize(x, stats.mean, stats.var, e.gamma, e.beta, out=x, **o),
        "dx": lambda x, dy, **o: fastbn.batch_norm_backward(dy, x, stats, e.gamma, e.beta, out=dy, **o).dx,
        "constant dx": lambda x, dy, **o: (
            fastbn.batch_norm_backward(dy, x, stats, e.gamma, e.beta, training=False, out=x, **o).dx
        ),
    }.items():
        x = placed(e.x, row["order"], row["strides"], row["offset"])
        dy = placed(e.dy, e.others, offset=row["offset"])
        before = memory_of(x).copy()
        result = np.moveaxis(call(e.moved(x), e.moved(dy), axis=e.axis, eps=EPS), e.axis, 1)
        assert result.tobytes() == found[name].tobytes(), name
        if name != "dx":
            x[...] = e.x
        assert memory_of(x).tobytes() == before.tobytes(), name  # nothing else was written


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4, np.int8(-1), np.int8(-4), np.array(2)], ids=repr)
def test_axis(axis):
    """The axis that the reference means, for functions and layers."""
    x, dy = random_array((4, 5, 6, 7)), random_array((4, 5, 6, 7), seed=1)
    channels = x.shape[int(axis)]
    gamma, beta = np.random.default_rng(0).normal(size=(2, channels)).astype(np.float32)
    y, stats = fastbn.batch_norm(x, gamma, beta, axis=axis)
    expected, expected_stats = reference.batch_norm(x, gamma, beta, axis=int(axis))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(stats.mean, expected_stats.mean, rtol=1e-6, atol=1e-6)
    dx = fastbn.batch_norm_backward(dy, x, stats, gamma, axis=axis).dx
    np.testing.assert_allclose(
        dx, reference.batch_norm_backward(dy, x, expected_stats, gamma, axis=int(axis)).dx, rtol=0, atol=1e-5
    )
    assert fastbn.population_stats([x, x], axis=axis).count == 2 * stats.count
    bn = fastbn.BatchNorm(channels, axis=axis)
    bn.gamma, bn.beta = gamma, beta
    assert np.array_equal(bn(x), y)
    assert np.array_equal(bn.backward(dy), dx)
    bn.eval()
    assert np.array_equal(bn(x), fastbn.normalize(x, bn.running_mean, bn.running_var, gamma, beta, axis=axis))
    bn.recalibrate([x])
    np.testing.assert_allclose(bn.running_mean, expected_stats.mean, rtol=1e-5, atol=1e-6)


def test_axes_of_length_1_do_not_count():
    x = random_array((6, 5, 7))
    expected = fastbn.batch_norm(x)[0]
    for shape, axis in [((6, 5, 1, 7), 1), ((1, 6, 5, 7), 2), ((6, 1, 5, 7, 1), 2)]:
        assert fastbn.batch_norm(x.reshape(shape), axis=axis)[0].tobytes() == expected.tobytes()


def test_planes_with_channels_between():
    """(A, B, C, D) with the channels on axis 2 is (A*B, C, D) with the channels on axis 1."""
    x = random_array((3, 4, 5, 66))
    expected = fastbn.batch_norm(x.reshape(12, 5, 66))[0]
    assert fastbn.batch_norm(x, axis=2)[0].tobytes() == expected.tobytes()
    assert fastbn.batch_norm(x.transpose(0, 2, 1, 3))[0].transpose(0, 2, 1, 3).tobytes() == expected.tobytes()


def test_short_rows_whose_samples_have_two_steps():
    """(A, B, C, D), some B left out: from one row of a channel to the next it is not always the same way."""
    whole = random_array((2, 3, 8, 5, 49), np.float32)
    x, dy = whole[0][:, ::3], whole[1][:, ::3]
    plain_x, plain_dy = x.reshape(9, 5, 49), dy.reshape(9, 5, 49)
    stats = fastbn.batch_stats(x, axis=2)
    assert_stats(stats, plain_x)
    expected = fastbn.batch_norm_backward(plain_dy, plain_x, fastbn.batch_stats(plain_x))
    for array, same in zip(fastbn.batch_norm_backward(dy, x, stats, axis=2), expected, strict=True):
        assert array is same is None or array.tobytes() == same.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("length", range(2, 16))
def test_tiny_planes(length, dtype):
    """Those of some channels are gathered together, in parts of several sizes: just as values with gaps between them,
    which are copied one by one.
    """
    x, dy, residual = (random_array((70, 21, length), np.float32, seed=k).astype(dtype) for k in range(3))
    gamma, beta = np.random.default_rng(0).normal(size=(2, 21)).astype(np.float32)

    def with_gaps(a):
        apart = np.zeros((70, 21, 2 * length), dtype)[..., ::2]
        apart[...] = a
        return apart

    def results(x, dy, residual):
        act = {"activation": "relu"}
        y, stats = fastbn.batch_norm(x, gamma, beta)
        joined = fastbn.batch_norm(x, gamma, beta, residual=residual, **act)[0]
        whole = fastbn.batch_norm_backward(dy, x, stats, gamma, beta)
        both = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, residual=True, y=joined, **act)
        found = {"y": y, "mean": stats.mean, "var": stats.var, "joined": joined, "dx": whole.dx}
        found |= {"dgamma": whole.dgamma, "dbeta": whole.dbeta, "dx of both": both.dx, "dresidual": both.dresidual}
        found["inference"] = fastbn.normalize(x, stats.mean, stats.var, gamma, beta)
        return found

    found = results(x, dy, residual)
    assert differing(results(with_gaps(x), with_gaps(dy), with_gaps(residual)), found) == []
    assert differing(results(x, with_gaps(dy), residual), found) == []
    own = x.copy()
    assert fastbn.batch_norm(own, gamma, beta, out=own)[0].tobytes() == found["y"].tobytes()
    if dtype in (np.float32, np.float64):
        stats = fastbn.BatchStats(70 * length, found["mean"], found["var"])
        assert_stats(stats, x)
        assert_y(found["y"], x, stats.mean, stats.var, gamma, beta, 1e-5)


def test_tiny_rows_with_gaps_of_channels_far_apart():
    """Large ones, whose next values are not asked for: it would be all that stands between two channels, row by row."""
    x = np.moveaxis(random_array((4, 600_000, 3))[:, ::2], 0, 1)
    expected, stats = fastbn.batch_norm(x.copy(order="K"))
    y, same = fastbn.batch_norm(x)
    assert y.tobytes() == expected.tobytes()
    assert (same.mean.tobytes(), same.var.tobytes()) == (stats.mean.tobytes(), stats.var.tobytes())
    assert_stats(same, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiny_planes_of_an_x_that_is_not_read(dtype):
    """Its order decides how a call goes; what is read and written may have longer rows, which are not gathered."""
    rng = np.random.default_rng(12)
    x = rng.normal(size=(2, 6, 24, 3, 3)).astype(dtype)
    dy = rng.normal(size=(2, 24, 6, 3, 3)).astype(dtype).transpose(0, 2, 1, 3, 4)
    gamma = rng.normal(size=24).astype(dtype)
    stats = fastbn.batch_stats(x, axis=2)
    options = {"axis": 2, "training": False, "need_params": False}
    expected = reference.batch_norm_backward(dy, x, stats, gamma, axis=2, training=False).dx
    for over in (dy.copy(order="K"), np.full(dy.shape, 7, dtype), None):
        given = over if over is not None and (over == dy).all() else dy
        dx = fastbn.batch_norm_backward(given, x, stats, gamma, out=over, **options).dx
        np.testing.assert_allclose(dx, expected, rtol=4 * np.finfo(dtype).eps)  # two products, and the factor's own
    both = fastbn.batch_norm_backward(dy, x, stats, gamma, residual=True, need_dx=False, axis=2)
    assert both.dresidual.tobytes() == dy.tobytes()
