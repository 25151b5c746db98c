"""What a layer does with its parameters, running statistics, modes and state.

Expected numbers are worked out by hand or by NumPy's own mean and var, never by the functions under test.
"""

import contextlib
import copy
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest

import fastbn
from fastbn import _core
from fastbn import reference as ref

LAYERS = [fastbn.BatchNorm, fastbn.BatchNorm1d, fastbn.BatchNorm2d, fastbn.BatchNorm3d]
SHAPES = {"BatchNorm1d": [(5, 3), (5, 3, 4)], "BatchNorm2d": [(5, 3, 4, 2)], "BatchNorm3d": [(5, 3, 4, 2, 3)]}
ALL_SHAPES = [shape for shapes in SHAPES.values() for shape in shapes]
KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
ARRAYS = ["gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var", "num_batches_tracked"]

# Two channels, by hand: mean 2 and 30, biased variance 1 and 100, unbiased 2 and 200.
X = np.array([[1.0, 20.0], [3.0, 40.0]])
X2 = np.array([[5.0, 0.0], [9.0, 0.0]])  # mean 7 and 0, biased variance 4 and 0, unbiased 8 and 0


def data(shape=(6, 3, 5), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(2, 3, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)


def state(bn):
    """Bytes of everything that lasts."""
    return {name: getattr(bn, name).tobytes() for name in ARRAYS if getattr(bn, name) is not None}


def near(a, b, tolerance=2e-6):
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


# ---- construction


def test_a_new_layer():
    bn = fastbn.BatchNorm(3)
    expected = {"gamma": 1, "beta": 0, "dgamma": 0, "dbeta": 0, "running_mean": 0, "running_var": 1}
    for name, value in expected.items():
        array = getattr(bn, name)
        assert (array.dtype, array.tolist()) == (np.float32, [value] * 3), name
    assert bn.num_batches_tracked.shape == ()
    assert bn.num_batches_tracked.dtype == np.int64
    assert bn.num_batches_tracked == 0
    assert bn.training is True
    assert (bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats) == (3, 1e-5, 0.1, True, True)
    assert bn.use_global_stats is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "float32", "f8", np.dtype(np.float64), float])
def test_dtype_is_that_of_all_vectors(dtype):
    bn = fastbn.BatchNorm(3, dtype=dtype)
    assert bn.dtype == np.dtype(dtype)
    assert {getattr(bn, name).dtype for name in ARRAYS[:-1]} == {np.dtype(dtype)}


@pytest.mark.parametrize("features", [1, np.int64(4), np.array(2)], ids=repr)
def test_num_features_is_any_integer(features):
    bn = fastbn.BatchNorm(features)
    assert type(bn.num_features) is int
    assert bn.gamma.shape == (int(features),)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fastbn.BatchNorm(3), "BatchNorm(3, eps=1e-05, momentum=0.1)"),
        (fastbn.BatchNorm1d(3, 1e-3, None), "BatchNorm1d(3, eps=0.001, momentum=None)"),
        (fastbn.BatchNorm2d(3, affine=False), "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=False)"),
        (
            fastbn.BatchNorm3d(3, track_running_stats=False, dtype="f8", use_global_stats=False),
            "BatchNorm3d(3, eps=1e-05, momentum=0.1, track_running_stats=False, dtype=float64, use_global_stats=False)",
        ),
        (
            fastbn.BatchNorm(3, axis=-1, activation="leaky_relu", negative_slope=0.25),
            "BatchNorm(3, eps=1e-05, momentum=0.1, axis=-1, activation=leaky_relu, negative_slope=0.25)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_repr(layer, text):
    assert repr(layer) == text


def test_axes_that_an_array_can_have():
    assert [fastbn.BatchNorm(3, axis=axis).axis for axis in (-64, 63)] == [-64, 63]
    for axis in (-65, 64):
        with pytest.raises(ValueError, match=r"^axis: expected one that an array can have"):
            fastbn.BatchNorm(3, axis=axis)


def test_options_are_kept_as_plain_values():
    bn = fastbn.BatchNorm(
        3, np.float32(0.5), np.float32(0.25), np.True_, 1, axis=np.int8(1), negative_slope=np.array(0.125),
        use_global_stats=np.False_,
    )  # fmt: skip
    options = bn.eps, bn.momentum, bn.negative_slope, bn.axis, bn.affine, bn.track_running_stats, bn.use_global_stats
    assert options == (0.5, 0.25, 0.125, 1, True, True, False)
    assert [type(option) for option in options] == [float] * 3 + [int] + [bool] * 3


@pytest.mark.parametrize("layer", LAYERS)
def test_rank(layer):
    taken = SHAPES.get(layer.__name__, ALL_SHAPES)
    for shape in [(5,), *ALL_SHAPES, (5, 3, 1, 1, 1, 1)]:
        x, _ = data(shape)
        if shape in taken or (layer is fastbn.BatchNorm and len(shape) > 1):
            assert layer(3)(x).shape == shape
        else:
            bn = layer(3)
            with pytest.raises(ValueError, match=r"^x: .*dimensions"):
                bn(x)
            assert bn.num_batches_tracked == 0


# ---- values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("own", [np.float32, np.float64], ids=["layer float32", "layer float64"])
@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
def test_forward_and_backward_in_both_modes(shape, own, dtype):
    x, dy = data(shape, dtype)
    bn = fastbn.BatchNorm(3, eps=1e-3, dtype=own)
    bn.gamma, bn.beta = [1.5, -2.0, 0.25], [0.5, 0.0, -3.0]
    running = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    for training in (True, False):
        bn.train(training)
        bn.running_mean, bn.running_var = running
        stats = ref.batch_stats(x) if training else running
        y = bn(x)
        dx = bn.backward(dy)
        expected = ref.batch_norm_backward(dy, x, stats, bn.gamma, eps=1e-3, training=training)
        assert (y.dtype, dx.dtype) == (dtype, dtype)
        assert near(y, ref.normalize(x, *stats[-2:], bn.gamma, bn.beta, eps=1e-3), 1e-5)
        assert near(dx, expected.dx, 1e-5)
        assert near(bn.dgamma, expected.dgamma, 1e-5)
        assert near(bn.dbeta, expected.dbeta, 1e-5)


def test_by_hand():
    bn = fastbn.BatchNorm(2, eps=1e-12, momentum=0.25, dtype=np.float64)
    bn.gamma, bn.beta = [2.0, 3.0], [1.0, 0.0]
    assert near(bn(X), [[-1.0, -3.0], [3.0, 3.0]])
    assert near(bn.running_mean, [0.5, 7.5])  # 0.75*0 + 0.25*(2, 30)
    assert near(bn.running_var, [1.25, 50.75])  # 0.75*1 + 0.25*(2, 200)
    assert bn.num_batches_tracked == 1
    # Two values: x - mean is -1, 1 and -10, 10; dy - mean(dy) is a multiple of it, so dx is 0.
    assert near(bn.backward([[1.0, 0.0], [2.0, 5.0]]), np.zeros((2, 2)))
    assert near(bn.dbeta, [3.0, 5.0])
    assert near(bn.dgamma, [1.0, 5.0])
    bn.eval()
    assert near(bn(X), (X - [0.5, 7.5]) / np.sqrt([1.25, 50.75]) * [2, 3] + [1, 0])
    assert near(bn.backward(X), X * [2, 3] / np.sqrt([1.25, 50.75]))


def test_eps_is_used():
    bn = fastbn.BatchNorm(2, eps=3.0, dtype=np.float64)
    assert near(bn(X)[:, 0], [-0.5, 0.5])
    assert near(bn.backward([[1.0, 1.0], [0.0, 0.0]])[:, 0], [0.1875, -0.1875])  # (0.5 - 0.5/4)/2, by the formula


def test_one_value_per_channel_in_a_list():
    bn = fastbn.BatchNorm(3, use_global_stats=False).eval()
    bn.beta = [1.0, 2.0, 3.0]
    assert bn([[7.0, 8.0, 9.0]]).tolist() == [[1.0, 2.0, 3.0]]


def test_out_is_what_comes_back():
    x, dy = data()
    bn, other = fastbn.BatchNorm(3), fastbn.BatchNorm(3)
    out, dx = np.empty_like(x), np.empty_like(x)
    expected = other(x), other.backward(dy)
    assert bn(x, out=out) is out
    assert bn.backward(dy, out=dx) is dx
    assert np.array_equal(out, expected[0])
    assert np.array_equal(dx, expected[1])
    over = dy.copy()
    assert bn.backward(over, out=over) is over
    assert np.array_equal(over, expected[1])
    bn.eval()
    plain = bn(x)
    assert bn(x, out=x) is x
    assert np.array_equal(x, plain)


def test_what_backward_needs_is_of_its_forward():
    """eps, activation and slope of a layer may be changed between the two; the gradient is that of the forward."""
    x, dy = data()
    a, b = (fastbn.BatchNorm1d(3, activation="leaky_relu", negative_slope=0.5) for _ in range(2))
    a(x)
    b(x)
    b.eps, b.activation, b.negative_slope, b.axis = 2.0, None, 0.1, -1
    assert np.array_equal(a.backward(dy), b.backward(dy))
    assert np.array_equal(a.dgamma, b.dgamma)


# ---- x stays as it was where out=x cannot work


def resized(name, *shape):
    def change(bn):
        getattr(bn, name).resize(shape)

    return change


def readonly(name):
    return lambda bn: getattr(bn, name).setflags(write=False)


def cast(name, dtype):
    def change(bn):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since NumPy 2.5; it does so all the same
            getattr(bn, name).dtype = dtype

    return change


SPOILT = {
    **{f"{name} read-only": readonly(name) for name in ("running_mean", "running_var", "num_batches_tracked")},
    **{f"{name} too short": resized(name, 2) for name in ("running_mean", "running_var")},
    **{f"{name} of float64": cast(name, np.float64) for name in ("running_mean", "running_var")},
    **{f"{name} of two axes": resized(name, 2, 2) for name in ("running_mean", "running_var")},
    "num_batches_tracked of float64": cast("num_batches_tracked", np.float64),
    "num_batches_tracked of the other byte order": cast("num_batches_tracked", np.dtype(np.int64).newbyteorder()),
    "num_features": lambda bn: setattr(bn, "num_features", 5),
    "momentum text": lambda bn: setattr(bn, "momentum", "a"),
    "momentum nan": lambda bn: setattr(bn, "momentum", np.nan),
    "momentum 5.0": lambda bn: setattr(bn, "momentum", 5.0),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_layer_leaves_x(how):
    """What someone resized, cast or locked is found before x is overwritten, and never written past its end."""
    bn = fastbn.BatchNorm1d(4, activation="leaky_relu")
    SPOILT[how](bn)
    x, before = data((6, 4))[0], state(bn)
    over = x.copy()
    name = "x" if how == "num_features" else how.split()[0]
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected "):
        bn(over, out=over)
    assert np.array_equal(over, x)
    assert state(bn) == before


@pytest.mark.parametrize("name", ["dgamma", "dbeta"])
def test_spoilt_gradients(name):
    bn = fastbn.BatchNorm1d(4)
    x, dy = data((6, 4))
    bn(x)
    getattr(bn, name).resize(3)
    before, over = state(bn), dy.copy()
    with pytest.raises(ValueError, match=rf"^{name}: expected the layer's array as it was made, of shape \(4,\)"):
        bn.backward(over, out=over)
    assert np.array_equal(over, dy)
    assert state(bn) == before


@pytest.mark.parametrize("use", [None, True, False])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_out_over_x_in_training_and_evaluation(activation, use):
    """In training, with any statistics, x would be lost for backward; in evaluation there need be no backward."""
    bn = fastbn.BatchNorm1d(3, activation=activation, use_global_stats=use)
    x, dy = data()
    over = x.copy()
    with pytest.raises(ValueError, match=r"^out: expected memory apart from x"):
        bn(over, out=over)
    assert np.array_equal(over, x)
    bn.eval()
    y = bn(x)
    assert bn(over, out=over) is over
    assert np.array_equal(over, y)
    with pytest.raises(RuntimeError, match=r"^backward: the last forward wrote its result over x"):
        bn.backward(dy)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}, {"use_global_stats": False}])
def test_nothing_in_nothing_out(options, shape):
    """In evaluation, whatever the statistics; a layer in training has no batch to normalise."""
    bn = fastbn.BatchNorm(3, **options).eval()
    x = np.empty(shape, np.float32)
    bn.dgamma, bn.dbeta = 1, 1
    assert bn(x).shape == shape
    assert bn.backward(x).shape == shape
    assert not bn.dgamma.any()
    assert not bn.dbeta.any()
    with pytest.raises(ValueError, match=r"^x: expected (at least|more than) one value per channel"):
        bn.train()(x)


# ---- momentum and what moves


@pytest.mark.parametrize(
    ("momentum", "mean", "var"),
    [
        (0.1, [0.9 * 0.2 + 0.7, 0.9 * 3.0], [0.9 * (0.9 + 0.2) + 0.8, 0.9 * (0.9 + 20)]),
        (1.0, [7.0, 0.0], [8.0, 0.0]),
        (1, [7.0, 0.0], [8.0, 0.0]),
        (0.0, [0.0, 0.0], [1.0, 1.0]),
        (np.float32(0.5), [0.5 * 1 + 3.5, 0.5 * 15], [0.5 * 1.5 + 4, 0.5 * 100.5]),
        (None, [4.5, 15.0], [5.0, 100.0]),
    ],
    ids=repr,
)
def test_momentum_is_the_weight_of_the_new_value(momentum, mean, var):
    bn = fastbn.BatchNorm(2, momentum=momentum, dtype=np.float64)
    bn(X)
    bn(X2)
    assert near(bn.running_mean, mean)
    assert near(bn.running_var, var)
    assert bn.num_batches_tracked == 2


def test_momentum_none_is_the_plain_average_of_all_batches():
    bn = fastbn.BatchNorm(3, momentum=None, dtype=np.float64)
    bn.running_mean = 1e6  # the first batch replaces whatever was there
    batches = [data((4 + i, 3), np.float64, seed=i)[0] for i in range(7)]
    for x in batches:
        bn(x)
    assert near(bn.running_mean, np.mean([x.mean(axis=0) for x in batches], axis=0), 1e-9)
    assert near(bn.running_var, np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0), 1e-12)
    bn.reset_running_stats()
    bn(batches[0])
    assert near(bn.running_mean, batches[0].mean(axis=0), 1e-12)


def test_momentum_is_taken_at_each_call():
    bn = fastbn.BatchNorm(2, momentum=0.5, dtype=np.float64)
    bn.momentum = 1.0
    bn(X)
    assert near(bn.running_mean, [2.0, 30.0])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
@pytest.mark.parametrize("use", [None, True, False], ids=lambda use: f"use_global_stats={use}")
def test_which_statistics_are_used_and_when_they_move(use, tracked, training):
    if use and not tracked:
        with pytest.raises(ValueError, match=r"^use_global_stats: "):
            fastbn.BatchNorm(2, track_running_stats=False, use_global_stats=True)
        return
    bn = fastbn.BatchNorm(2, track_running_stats=tracked, use_global_stats=use, dtype=np.float64).train(training)
    if tracked:
        bn.running_mean, bn.running_var = [1.0, 2.0], [4.0, 9.0]
    batch = {None: training or not tracked, True: False, False: True}[use]
    moves = tracked and training and batch
    before = state(bn)
    y, dx = bn(X), bn.backward(X2)
    mean, var = ([2.0, 30.0], [1.0, 100.0]) if batch else ([1.0, 2.0], [4.0, 9.0])
    assert near(y, (X - mean) / np.sqrt(np.add(var, 1e-5)))
    assert near(dx, ref.batch_norm_backward(X2, X, (2, np.array(mean), np.array(var)), training=batch).dx, 1e-9)
    changed = {name for name, bits in state(bn).items() if bits != before[name]}
    assert changed == {"dgamma", "dbeta"} | ({"running_mean", "running_var", "num_batches_tracked"} if moves else set())


@pytest.mark.parametrize(
    ("training", "use", "expected"), [(True, True, X[:1]), (False, None, X[:1]), (False, False, 0)]
)
@pytest.mark.parametrize("kind", [list, np.array])
def test_one_value_per_channel_where_running_statistics_stay(kind, training, use, expected):
    """Then no variance of it is asked for. (Lists and arrays are checked in different places.)"""
    bn = fastbn.BatchNorm(2, eps=1e-12, use_global_stats=use, dtype=np.float64).train(training)
    assert near(bn(kind(X[:1].tolist())), expected + np.zeros((1, 2)))


def test_gamma_and_beta_learn_with_global_statistics():
    bn = fastbn.BatchNorm(2, use_global_stats=True, dtype=np.float64)
    assert bn.training
    y = bn(X)
    bn.backward([[1.0, 1.0], [1.0, 0.0]])
    assert near(bn.dbeta, [2.0, 1.0])
    assert near(bn.dgamma, [4.0, 20.0], 1e-5)  # running mean 0, variance 1
    for _, value, gradient in bn.parameters():
        value -= 0.5 * gradient
    assert near(bn(X), y * [-1.0, -9.0] + [-1.0, -0.5], 1e-4)


def test_an_untracked_layer_has_no_running_statistics():
    bn = fastbn.BatchNorm(2, track_running_stats=False)
    assert bn.running_mean is bn.running_var is bn.num_batches_tracked is None
    assert sorted(bn.state_dict()) == ["bias", "weight"]
    bn.reset_running_stats()
    bn.load_state_dict({"weight": [1, 2], "bias": [3, 4]})
    assert bn.beta.tolist() == [3, 4]
    assert near(bn(X), bn.eval()(X))


@pytest.mark.parametrize("name", ["gamma", "beta", "dgamma", "dbeta"])
@pytest.mark.parametrize("pair", [False, True])
def test_results_of_backward_do_not_stand_in_parameters(name, pair):
    """Where x has a value per channel, dx has as many numbers as a parameter."""
    bn, x = fastbn.BatchNorm(2).eval(), np.array([[1, 2]], np.float32)
    bn(x, residual=x if pair else None)
    before = [value.copy() for value in (bn.gamma, bn.beta, bn.dgamma, bn.dbeta)]
    taken = getattr(bn, name).reshape(1, 2)
    with pytest.raises(ValueError, match=rf"^out: expected memory apart from {name}, got "):
        bn.backward(x, out=(np.empty_like(x), taken) if pair else taken)
    for value, was in zip((bn.gamma, bn.beta, bn.dgamma, bn.dbeta), before, strict=True):
        assert np.array_equal(value, was)


def test_a_layer_without_affine_parameters():
    x, dy = data()
    bn = fastbn.BatchNorm(3, affine=False)
    assert bn.gamma is bn.beta is bn.dgamma is bn.dbeta is None
    assert bn.parameters() == []
    assert sorted(bn.state_dict()) == ["num_batches_tracked", "running_mean", "running_var"]
    assert near(bn(x), ref.batch_norm(x)[0], 1e-5)
    assert near(bn.backward(dy), ref.batch_norm_backward(dy, x, ref.batch_stats(x)).dx, 1e-5)
    assert near(bn.eval()(x), ref.normalize(x, bn.running_mean, bn.running_var), 1e-5)
    assert near(bn.backward(dy), dy / np.sqrt(bn.running_var[:, None] + 1e-5), 1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("affine", [True, False])
def test_affine_set_later_changes_nothing(affine, training):
    """As in PyTorch: what a layer has was decided when it was made."""
    x, dy = data()
    bn, other = (fastbn.BatchNorm(3, affine=affine).train(training) for _ in range(2))
    for layer in (bn, other):
        layer.running_mean, layer.running_var = [2.0, 3.0, 4.0], [1.0, 4.0, 9.0]
    other.affine = not affine
    for step in range(2):
        assert np.array_equal(other(x), bn(x)), step
        assert np.array_equal(other.backward(dy), bn.backward(dy)), step
        other.affine = affine if step else not affine
    assert state(other) == state(bn)
    assert len(other.parameters()) == (2 if affine else 0)


def test_statistics_are_no_longer_tracked():
    """As in PyTorch: they stay as they are, and evaluation uses them."""
    bn = fastbn.BatchNorm(2, dtype=np.float64)
    bn.running_mean, bn.running_var = [1.0, 2.0], [4.0, 9.0]
    bn.track_running_stats = False
    assert near(bn(X), (X - [2.0, 30.0]) / [1.0, 10.0], 1e-5)
    assert (bn.running_mean.tolist(), bn.running_var.tolist(), int(bn.num_batches_tracked)) == ([1, 2], [4, 9], 0)
    assert near(bn.eval()(X), (X - [1.0, 2.0]) / [2.0, 3.0], 1e-5)
    bn.reset_running_stats()
    assert (bn.running_mean.tolist(), bn.running_var.tolist()) == ([0, 0], [1, 1])


def test_statistics_that_were_never_there_are_not_tracked():
    bn = fastbn.BatchNorm(2, track_running_stats=False, dtype=np.float64)
    bn.track_running_stats = True
    for layer in (bn, bn.eval()):
        assert near(layer(X), (X - [2.0, 30.0]) / [1.0, 10.0], 1e-5)
    bn.reset_running_stats()
    with pytest.raises(ValueError, match=r"^batches: this layer has no running statistics"):
        bn.recalibrate([X])
    bn.use_global_stats = True
    with pytest.raises(ValueError, match=r"^use_global_stats: True needs running statistics"):
        bn(X)


@pytest.mark.parametrize("eps", [0.0, -1e-5, np.nan, "1e-5", None, True])
def test_eps_set_later_is_checked(eps):
    bn = fastbn.BatchNorm(2, dtype=np.float64)
    with pytest.raises((TypeError, ValueError), match=r"^eps: expected"):
        bn.eps = eps
    assert bn.eps == 1e-5
    bn.eps = np.float32(0.5)
    assert near(bn(X), (X - [2.0, 30.0]) / np.sqrt([1.5, 100.5]))


def test_train_and_eval():
    bn = fastbn.BatchNorm(2)
    assert bn.eval() is bn
    assert bn.training is False
    assert bn.train() is bn
    assert bn.training is True
    assert bn.train(False).training is False
    assert bn.train(mode=True).training is True


# ---- few values


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
def test_one_value_per_channel(shape):
    x, dy = data(shape)
    bn = fastbn.BatchNorm(3)
    bn.beta = [1.0, 2.0, 3.0]
    before = state(bn)
    with pytest.raises(ValueError, match=r"^x: expected more than one value per channel in training"):
        bn(x)
    assert state(bn) == before
    with pytest.raises(RuntimeError):
        bn.backward(dy)
    assert near(bn.eval()(x), x / np.sqrt(1 + 1e-5) + bn.beta.reshape([3] + [1] * (x.ndim - 2)), 1e-5)
    assert bn.backward(dy).shape == shape
    batch = fastbn.BatchNorm(3, use_global_stats=False).eval()
    batch.beta = [1.0, 2.0, 3.0]
    assert batch(x).ravel().tolist() == [1.0, 2.0, 3.0]
    terms = 2 * abs(dy) / np.sqrt(1e-5)  # of dy - mean(dy) = 0; see P1
    assert (abs(batch.backward(dy)) <= 4 * np.finfo(np.float32).eps * terms).all()


def test_two_values_per_channel_are_enough():
    bn = fastbn.BatchNorm(1, momentum=1.0)
    bn(np.array([[1.0], [2.0]]))
    assert bn.running_var.tolist() == [0.5]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
def test_no_value(shape):
    x = np.zeros(shape, np.float32)
    bn = fastbn.BatchNorm(3)
    before = state(bn)
    with pytest.raises(ValueError, match=r"^x: expected at least one value per channel"):
        bn(x)
    assert state(bn) == before
    assert bn.eval()(x).shape == shape
    bn.dgamma, bn.dbeta = 7, 7
    assert bn.backward(x).shape == shape
    assert (bn.dgamma.tolist(), bn.dbeta.tolist()) == ([0, 0, 0], [0, 0, 0])


# ---- NaN, infinity, and what a dtype cannot hold

BAD = {
    "nan": (lambda x: x.__setitem__((2, 1, 3), np.nan), np.float32),
    "inf": (lambda x: x.__setitem__((2, 1, 3), np.inf), np.float32),
    "-inf": (lambda x: x.__setitem__((0, 1, 0), -np.inf), np.float32),
    "mean out of range": (lambda x: x.__setitem__((slice(None), 1), 1e40), np.float64),
    "variance out of range": (lambda x: x.__setitem__((0, 1, 0), 1e25), np.float64),
}


@pytest.mark.parametrize(("spoil", "dtype"), BAD.values(), ids=BAD)
def test_a_channel_that_is_not_finite_keeps_its_running_statistics(spoil, dtype):
    x, _ = data(dtype=dtype)
    good = x.copy()
    spoil(x)
    bn, other = fastbn.BatchNorm(3), fastbn.BatchNorm(3)
    bn.running_mean, bn.running_var = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    other.load_state_dict(bn.state_dict())
    with pytest.warns(RuntimeWarning, match=r"running statistics .* float32: 1$") as caught:
        y = bn(x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    expected = other(good)
    for array, like in ((bn.running_mean, other.running_mean), (bn.running_var, other.running_var)):
        assert array[[0, 2]].tolist() == like[[0, 2]].tolist()
    assert (bn.running_mean[1], bn.running_var[1]) == (2.0, 5.0)
    assert bn.num_batches_tracked == 1
    assert np.array_equal(y[:, [0, 2]], expected[:, [0, 2]])
    assert np.isfinite(bn.backward(np.ones_like(x))[:, [0, 2]]).all()


@pytest.mark.parametrize(("spoil", "dtype"), BAD.values(), ids=BAD)
def test_a_warning_that_is_an_error_comes_before_any_change(spoil, dtype):
    x, dy = data(dtype=dtype)
    bn = fastbn.BatchNorm(3)
    y = bn(x)
    bn.backward(dy)
    before = state(bn)
    bad = x.copy()
    spoil(bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning):
            bn(bad)
    assert state(bn) == before
    assert np.array_equal(bn.backward(dy), fastbn_backward_of(bn, x, dy))  # the saved forward is still the good one
    assert np.array_equal(fastbn.BatchNorm(3)(x), y)


def test_where_a_warning_is_an_error_out_is_written_and_backward_wants_a_forward():
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    bn(x)
    before = state(bn)
    x[0, 0] = np.nan  # the saved one: it will be overwritten
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning):
            bn(x, out=x)
    assert state(bn) == before
    with pytest.raises(RuntimeError, match="backward"):
        bn.backward(dy)


def fastbn_backward_of(bn, x, dy):
    """dx of a layer like this one after a forward of x."""
    other = copy.deepcopy(bn)
    other(x)
    return other.backward(dy)


def test_where_a_warning_is_an_error_the_y_before_may_be_lost():
    """It stood in the same `out`, which is written before the warning is given."""
    x, dy = data()
    bn, out = fastbn.BatchNorm(3, activation="relu"), np.empty_like(x)
    bn(x, residual=dy, out=out)
    x[0, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning):
            bn(x, residual=dy, out=out)
    with pytest.raises(RuntimeError, match=r"^backward: expected a forward before it"):
        bn.backward(dy)


def test_where_a_warning_is_an_error_backward_belongs_to_the_forward_before():
    """Nothing that it has kept was written over."""
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    bn(x)
    expected = fastbn_backward_of(bn, x, dy)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning):
            bn(np.full_like(x, np.nan), out=np.empty_like(x))
    np.testing.assert_array_equal(bn.backward(dy), expected)


def test_a_first_forward_with_out_warns():
    """There is no earlier one whose arrays could stand in out."""
    x, dy = data()
    x[0, 1, 0] = np.nan
    bn, out = fastbn.BatchNorm(3), np.empty_like(x)
    with pytest.warns(RuntimeWarning, match="running statistics stay"):
        assert bn(x, out=out) is out
    assert np.isnan(bn.backward(dy)).any(axis=(0, 2)).tolist() == [False, True, False]


def test_the_warning_names_the_channels():
    x, _ = data((4, 30))
    x[0, ::2] = np.nan
    bn = fastbn.BatchNorm(30)
    with pytest.warns(RuntimeWarning, match=r": 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, \.\.\.$"):
        bn(x)
    x[0, ::2] = 0
    x[1, [3, 17]] = np.inf
    with pytest.warns(RuntimeWarning, match=r": 3, 17$"):
        bn(x)
    assert np.isfinite(bn.running_mean).all()


@pytest.mark.parametrize(("odd", "rest"), [(10, ""), (11, ", ...")])
def test_the_warning_names_ten_channels(odd, rest):
    x, _ = data((4, 30))
    x[0, :odd] = np.nan
    with pytest.warns(RuntimeWarning, match=rf": 0, 1, 2, 3, 4, 5, 6, 7, 8, 9{rest}$"):
        fastbn.BatchNorm(30)(x)


def test_the_warning_is_given_at_each_call():
    x, _ = data()
    x[0, 0, 0] = np.nan
    bn = fastbn.BatchNorm(3)
    for _ in range(3):
        with pytest.warns(RuntimeWarning, match=r": 0$"):
            bn(x)
    assert bn.num_batches_tracked == 3


def test_a_float64_layer_holds_more():
    x, _ = data(dtype=np.float64)
    x[:, 1] *= 1e30
    bn = fastbn.BatchNorm(3, momentum=1.0, dtype=np.float64)
    bn(x)
    assert near(bn.running_var, x.var(axis=(0, 2), ddof=1), 1e-9)


def test_evaluation_does_not_warn():
    x, _ = data()
    x[0, 0, 0] = np.nan
    bn = fastbn.BatchNorm(3).eval()
    y = bn(x)
    assert np.isnan(y).sum() == 1
    fastbn.BatchNorm(3, track_running_stats=False)(x)
    fastbn.BatchNorm(3, use_global_stats=False).eval()(x)
    fastbn.BatchNorm(3, use_global_stats=True)(x)


# ---- what a layer keeps


def test_backward_overwrites_gradients():
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    bn(x)
    bn.dgamma, bn.dbeta = 1e6, 1e6
    first = bn.backward(dy)
    gradients = bn.dgamma.copy(), bn.dbeta.copy()
    expected = ref.batch_norm_backward(dy, x, ref.batch_stats(x))
    assert near(gradients[0], expected.dgamma, 1e-5)
    assert near(gradients[1], expected.dbeta, 1e-5)
    assert np.array_equal(bn.backward(dy), first)
    assert np.array_equal((bn.dgamma, bn.dbeta), gradients)
    assert near(bn.backward(2 * dy), 2 * expected.dx, 1e-5)
    assert near(bn.dbeta, 2 * expected.dbeta, 1e-5)


@pytest.mark.parametrize(
    ("options", "over", "kept"),
    [
        ({}, "dy", True),
        ({}, "other", True),
        ({}, "x", False),
        ({}, "y", True),  # is not read
        ({"residual": True, "activation": "relu"}, "x", False),
        ({"residual": True, "activation": "relu"}, "dy", True),
        ({"in place": True}, "x", False),
    ],
    ids=str,
)
def test_backward_over_what_the_forward_kept(options, over, kept):
    """A second backward from what the first has overwritten would be wrong."""
    x, dy = data()
    with_residual = "residual" in options
    bn = fastbn.BatchNorm(3, activation=options.get("activation"))
    y = bn(x, residual=dy.copy() if with_residual else None, out=x if "in place" in options else None)
    expected = np.array(bn.backward(dy))
    out = {"x": x, "y": y, "dy": dy, "other": np.empty_like(x)}[over]
    same_dy = dy.copy()
    for position in range(2 if with_residual and over == "dy" else 1):
        pair = (out, None) if position == 0 else (None, out)
        assert np.array_equal(np.array(bn.backward(dy, out=pair if with_residual else out)), expected)
        dy[...] = same_dy
    if kept:
        assert np.array_equal(np.array(bn.backward(same_dy)), expected)
    else:
        with pytest.raises(RuntimeError, match=r"^backward: expected a forward before it"):
            bn.backward(same_dy)


@pytest.mark.parametrize(
    ("activation", "with_residual", "kept"),
    [
        (None, False, "x"),
        ("leaky_relu", False, "x"),
        (None, True, "x"),
        ("leaky_relu", True, "xy"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_layer_holds_on_to_no_more_than_backward_reads(mode, activation, with_residual, kept):
    """The memory of other arrays is free again when the caller lets go of them (P4)."""
    bn = getattr(fastbn.BatchNorm(3, activation=activation), mode)()
    arrays = {"x": data()[0]}
    if with_residual:
        arrays["residual"] = data(seed=1)[0]
    arrays["y"] = bn(arrays["x"], residual=arrays.get("residual"))
    held = {name: weakref.ref(a) for name, a in arrays.items()}
    del arrays
    assert {name for name, a in held.items() if a() is not None} == set(kept)


@pytest.mark.parametrize("layer", LAYERS)
def test_backward_before_forward(layer):
    with pytest.raises(RuntimeError, match=r"^backward: expected a forward before it, there was none"):
        layer(3).backward(np.ones((5, 3)))


def test_backward_belongs_to_the_last_forward():
    small, dy = data((4, 3))
    large, dy_large = data((5, 3, 7), seed=1)
    bn = fastbn.BatchNorm(3)
    bn(small)
    bn(large)
    assert near(bn.backward(dy_large), ref.batch_norm_backward(dy_large, large, ref.batch_stats(large)).dx, 1e-5)
    before = state(bn)
    with pytest.raises(ValueError, match=r"^dy: expected the shape of x, \(5, 3, 7\), got \(4, 3\)"):
        bn.backward(dy)
    assert state(bn) == before
    bn(small)
    assert near(bn.backward(dy), ref.batch_norm_backward(dy, small, ref.batch_stats(small)).dx, 1e-5)
    bn.eval()(large)
    assert near(bn.backward(dy_large), dy_large / np.sqrt(bn.running_var[:, None] + 1e-5), 1e-5)


def test_a_forward_that_fails_keeps_the_one_before():
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    bn(x)
    expected = bn.backward(dy)
    for wrong in (x[:, :2], x.astype(int), x[:0], None):
        with pytest.raises((TypeError, ValueError)):
            bn(wrong)
    assert np.array_equal(bn.backward(dy), expected)


def test_changes_after_the_forward_do_not_reach_its_backward():
    """Mode, parameters and running statistics at the time of the forward count."""
    x, dy = data()
    for training in (True, False):
        bn = fastbn.BatchNorm(3).train(training)
        bn(x)
        expected = bn.backward(dy), bn.dgamma.copy()
        bn.train(not training)
        bn.gamma, bn.beta = 7, 7
        bn.running_mean, bn.running_var = 7, 7
        assert np.array_equal(bn.backward(dy), expected[0])
        assert np.array_equal(bn.dgamma, expected[1])


def test_inputs_stay_as_they_were():
    x, dy = data()
    before = x.tobytes(), dy.tobytes()
    bn = fastbn.BatchNorm(3)
    bn(x)
    bn.backward(dy)
    bn.recalibrate([x])
    bn.eval()(x)
    assert (x.tobytes(), dy.tobytes()) == before


# ---- arrays that stay


def test_arrays_are_the_same_objects_for_life():
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    arrays = {name: getattr(bn, name) for name in ARRAYS}

    def stay():
        return all(getattr(bn, name) is array for name, array in arrays.items())

    uses = {
        "forward": lambda: bn(x),
        "backward": lambda: bn.backward(dy),
        "eval": lambda: bn.eval()(x),
        "recalibrate": lambda: bn.recalibrate([x]),
        "load_state_dict": lambda: bn.load_state_dict({**bn.state_dict(), "weight": [4.0, 5.0, 6.0]}),
        "reset_running_stats": bn.reset_running_stats,
        "assignment": lambda: [setattr(bn, name, 2) for name in ARRAYS],
    }
    for name, use in uses.items():
        use()
        assert stay(), name
    bn.gamma *= 2
    bn.beta += [1.0, 2.0, 3.0]
    bn.running_var /= 2
    bn.num_batches_tracked += 3
    bn.gamma = bn.gamma[::-1]
    assert stay()
    assert [arrays[name].tolist() for name in ("gamma", "beta", "running_var")] == [[4] * 3, [3, 4, 5], [1] * 3]
    assert arrays["num_batches_tracked"] == 5


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("gamma", [1, 2], ValueError, r"^gamma: expected shape \(3,\), got \(2,\)"),
        ("beta", np.ma.masked_array([1.0, 2, 3], [0, 1, 0]), TypeError, "^beta: .*masked array"),
        ("gamma", [1j, 2, 3], TypeError, "^gamma: expected float32, got complex128"),
        ("dgamma", [1e300, 2, 3], ValueError, "^dgamma: expected values in the range of float32"),
        ("running_mean", np.nan, ValueError, "^running_mean: expected finite values"),
        ("running_var", [1, 2, -3], ValueError, "^running_var: expected values >= 0, got -3"),
        ("num_batches_tracked", -1, ValueError, "^num_batches_tracked: expected values >= 0"),
    ],
)
def test_wrong_assignment(name, value, error, message):
    bn = fastbn.BatchNorm(3)
    before = getattr(bn, name).copy()
    with pytest.raises(error, match=message):
        setattr(bn, name, value)
    np.testing.assert_array_equal(getattr(bn, name), before)


def test_batches_are_counted_no_further_than_they_can_be():
    bn = fastbn.BatchNorm(1, momentum=None)
    bn.num_batches_tracked = most = np.iinfo(np.int64).max
    bn(np.array([[1.0], [3.0]]))
    assert bn.num_batches_tracked == most
    assert 0 <= bn.running_mean[0] < 1e-18


def test_assignment_to_a_read_only_array():
    bn = fastbn.BatchNorm(3)
    bn.gamma.flags.writeable = False
    with pytest.raises(ValueError, match=r"^gamma: .*read-only"):
        bn.gamma = 2


def test_one_value_in_a_list_is_not_one_for_all():
    with pytest.raises(ValueError, match=r"^gamma: expected shape \(3,\), got \(1,\)"):
        fastbn.BatchNorm(3).gamma = [2.0]


def test_assignment_copies():
    bn = fastbn.BatchNorm(3)
    mine = np.array([1.0, 2.0, 3.0], np.float32)
    bn.gamma = mine
    mine[:] = 9
    assert bn.gamma.tolist() == [1.0, 2.0, 3.0]
    bn.beta = 0.5
    assert bn.beta.tolist() == [0.5] * 3


def test_parameters_are_for_optimisers():
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    (gamma_name, gamma, dgamma), (beta_name, beta, dbeta) = bn.parameters()
    assert (gamma_name, beta_name) == ("gamma", "beta")
    assert (gamma is bn.gamma, dgamma is bn.dgamma, beta is bn.beta, dbeta is bn.dbeta) == (True,) * 4
    y = bn(x)
    bn.backward(dy)
    gamma -= 0.1 * dgamma
    beta -= 0.1 * dbeta
    expected = ref.batch_norm_backward(dy, x, ref.batch_stats(x))
    assert near(bn.gamma, 1 - 0.1 * expected.dgamma, 1e-5)
    assert near(bn(x), y * bn.gamma[:, None] + bn.beta[:, None], 1e-5)


def test_reset_running_stats():
    bn = fastbn.BatchNorm(2)
    bn.gamma = 5
    bn(X)
    assert bn.reset_running_stats() is None
    assert (bn.running_mean.tolist(), bn.running_var.tolist()) == ([0, 0], [1, 1])
    assert bn.num_batches_tracked == 0
    assert bn.gamma.tolist() == [5, 5]


# ---- state


def trained(**options):
    bn = fastbn.BatchNorm(3, **options)
    x, dy = data()
    bn.gamma, bn.beta = [1.0, -2.0, 3.0], [4.0, 5.0, -6.0]
    bn(x)
    bn.backward(dy)
    return bn


def test_state_dict_has_the_names_of_pytorch():
    bn = trained()
    found = bn.state_dict()
    assert list(found) == KEYS
    for key, name in zip(KEYS, ["gamma", "beta", *KEYS[2:]], strict=True):
        assert type(found[key]) is np.ndarray
        assert found[key].dtype == getattr(bn, name).dtype
        assert found[key].shape == getattr(bn, name).shape
        assert np.array_equal(found[key], getattr(bn, name))
        assert not np.shares_memory(found[key], getattr(bn, name))


def test_state_dict_round_trip_through_savez():
    bn = trained()
    file = io.BytesIO()
    np.savez(file, **bn.state_dict())
    file.seek(0)
    other = fastbn.BatchNorm(3)
    with np.load(file) as loaded:
        assert other.load_state_dict(loaded) is None
    for key, array in bn.state_dict().items():
        assert other.state_dict()[key].tobytes() == array.tobytes()


def test_load_state_dict_copies_in():
    d = trained().state_dict()
    bn = fastbn.BatchNorm(3)
    bn.load_state_dict(d)
    d["weight"][:] = 77
    d["num_batches_tracked"][...] = 77
    assert bn.gamma.tolist() == [1.0, -2.0, 3.0]
    assert bn.num_batches_tracked == 1


def test_load_state_dict_takes_what_other_libraries_give():
    bn = fastbn.BatchNorm(3, dtype=np.float64)
    d = {"weight": [1, 2, 3], "bias": np.float32([4, 5, 6]), "running_mean": (7.5, 8, 9), "running_var": range(3)}
    bn.load_state_dict({**d, "num_batches_tracked": np.int32(3)})
    assert bn.running_mean.tolist() == [7.5, 8, 9]
    assert bn.running_var.tolist() == [0, 1, 2]
    assert bn.num_batches_tracked == 3
    assert bn.num_batches_tracked.dtype == np.int64
    bn.load_state_dict(d)  # as older files of PyTorch
    assert bn.num_batches_tracked == 0
    bn.load_state_dict({**d, "weight": np.arange(3.0).astype(">f8")})
    assert bn.gamma.tolist() == [0, 1, 2]


@pytest.mark.parametrize("key", KEYS)
def test_load_state_dict_with_an_error_changes_nothing(key):
    """Whichever key is wrong, those before and after it are not loaded."""
    bn = trained()
    before = state(bn)
    good = {"weight": [9.0] * 3, "bias": [9.0] * 3, "running_mean": [9.0] * 3, "running_var": [9.0] * 3}
    good["num_batches_tracked"] = 9
    for wrong in ([1.0, 2.0], "text", None):
        with pytest.raises((TypeError, ValueError), match=f"^{key}: "):
            bn.load_state_dict({**good, key: wrong})
        assert state(bn) == before
    if key != "num_batches_tracked":
        with pytest.raises(KeyError, match=key):
            bn.load_state_dict({k: v for k, v in good.items() if k != key})
        assert state(bn) == before
    bn.load_state_dict(good)
    assert bn.beta.tolist() == [9.0] * 3


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, copy.copy, *(lambda bn, p=p: pickle.loads(pickle.dumps(bn, p)) for p in (2, 5))],
    ids=["deepcopy", "copy", "pickle 2", "pickle 5"],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_copies(layer, clone):
    bn = layer(3, eps=0.5, momentum=None, dtype=np.float64, use_global_stats=False).eval()
    x, dy = data(SHAPES.get(layer.__name__, [(4, 3)])[0])
    bn.train()(x)
    bn.backward(dy)
    other = clone(bn)
    assert type(other) is layer
    assert repr(other) == repr(bn)
    assert state(other) == state(bn)
    assert other.training is True
    with pytest.raises(RuntimeError, match="expected a forward"):
        other.backward(dy)
    assert np.array_equal(other(x), bn(x))
    assert state(other) == state(bn)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))], ids=["deepcopy", "pickle"]
)
def test_deep_copies_share_nothing(clone):
    bn = trained()
    other = clone(bn)
    before = state(bn)
    for name in ARRAYS:
        setattr(other, name, 3)
    assert state(bn) == before


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_copies_of_a_layer_in_evaluation_are_in_evaluation(clone):
    assert clone(fastbn.BatchNorm(3).eval()).training is False
    assert clone(fastbn.BatchNorm(3)).training is True


def test_pickles_hold_no_data():
    bn = fastbn.BatchNorm(3)
    bn(np.arange(30_000, dtype=np.float32).reshape(1000, 3, 10))
    assert len(pickle.dumps(bn)) < 5000
    bn.backward(np.ones((1000, 3, 10), np.float32))  # pickling did not make it forget


def test_pickles_with_buffers_elsewhere():
    """Protocol 5 hands over memory that may be anyone's, and immutable: it is never written to."""
    bn = trained()
    buffers = []
    data_of_bn = pickle.dumps(bn, 5, buffer_callback=buffers.append)
    memory = [bytes(buffer.raw()) for buffer in buffers]
    before = [bytes(bytearray(part)) for part in memory]
    other = pickle.loads(data_of_bn, buffers=memory)
    assert state(other) == state(bn)
    x, dy = data()
    with contextlib.suppress(ValueError):  # either it is read-only or it has copies
        other(x)
        other.backward(dy)
    other = pickle.loads(data_of_bn, buffers=memory)
    with contextlib.suppress(ValueError):
        other.recalibrate([x])
    assert memory == before


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
def test_read_only_running_statistics_are_not_written(name):
    x, _ = data()
    bn = trained()
    getattr(bn, name).flags.writeable = False
    before = state(bn)
    for move in (
        lambda: bn(x),
        lambda: bn.recalibrate([x]),
        lambda: bn.load_state_dict(fastbn.BatchNorm(3).state_dict()),
    ):
        with pytest.raises(ValueError, match="read-only"):
            move()
        assert state(bn) == before


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
def test_reset_of_a_read_only_array_changes_nothing(name):
    bn = trained()
    getattr(bn, name).flags.writeable = False
    before = state(bn)
    with pytest.raises(ValueError, match=f"^{name}: .*read-only"):
        bn.reset_running_stats()
    assert state(bn) == before


# ---- recalibrate


def test_recalibrate_pooled():
    """Batches of any size, arrays or statistics: the statistics of all values together, unbiased."""
    batches = [data((n, 3, 2), np.float64, seed=n)[0] for n in (4, 1, 9)]
    values = np.concatenate(batches)
    expected = values.mean(axis=(0, 2)), values.var(axis=(0, 2), ddof=1)
    stats = [fastbn.BatchStats(2 * len(b), b.mean(axis=(0, 2)), b.var(axis=(0, 2))) for b in batches]
    for given in (batches, iter(batches), tuple(stats), [stats[0], batches[1], stats[2]]):
        bn = fastbn.BatchNorm(3, dtype=np.float64)
        bn.gamma = 5
        bn(batches[0])
        assert bn.recalibrate(given) is None
        assert near(bn.running_mean, expected[0], 1e-12)
        assert near(bn.running_var, expected[1], 1e-12)
        assert bn.num_batches_tracked == 3
        assert bn.gamma.tolist() == [5] * 3


def test_recalibrate_paper():
    bn = fastbn.BatchNorm(2, dtype=np.float64)
    bn.recalibrate([X, X2], method="paper")
    assert near(bn.running_mean, [4.5, 15.0])
    assert near(bn.running_var, [5.0, 100.0])  # means of the unbiased (2, 200) and (8, 0)
    assert bn.num_batches_tracked == 2


def test_two_values_are_a_population():
    bn = fastbn.BatchNorm(1)
    bn.recalibrate([np.array([[1.0]]), np.array([[3.0]])])
    assert (bn.running_mean, bn.running_var) == (2, 2)


@pytest.mark.parametrize("method", ["pooled", "paper"])
def test_recalibrate_wants_variances(method):
    bn = trained()
    before = state(bn)
    batches = [fastbn.BatchStats(20, [0.0] * 3, [1.0] * 3), fastbn.BatchStats(20, [0.0] * 3, [1.0, -1e-9, 1.0])]
    with pytest.raises(ValueError, match=r"^batches\[1\]: expected variances >= 0, got -1e-09 in channel 1"):
        bn.recalibrate(batches, method=method)
    with pytest.raises(ValueError, match=r"^batches\[1\]: expected variances >= 0"):
        fastbn.population_stats(batches, method=method)
    assert state(bn) == before


def test_recalibrate_does_not_touch_the_saved_forward():
    x, dy = data()
    bn = fastbn.BatchNorm(3)
    bn(x)
    expected = bn.backward(dy)
    bn.recalibrate([x[:3]])
    assert np.array_equal(bn.backward(dy), expected)


def test_recalibrate_warns_before_any_change():
    x, _ = data()
    bad = x.copy()
    bad[0, 2, 0] = np.nan
    bn = trained()
    before = state(bn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            bn.recalibrate([x, bad])
    assert state(bn) == before
    with pytest.warns(RuntimeWarning, match=r": 2$") as caught:
        bn.recalibrate([x, bad])
    assert caught[0].filename == __file__
    assert near(bn.running_mean[:2], x.mean(axis=(0, 2))[:2], 1e-5)
    assert bn.running_mean[2].tobytes() == before["running_mean"][8:]


def test_recalibrate_then_evaluate():
    """Algorithm 2 of the paper on one batch: the evaluation is the training forward, but for n/(n - 1)."""
    x, _ = data((40, 3, 5), np.float64)
    bn = fastbn.BatchNorm(3, dtype=np.float64)
    y = bn(x)
    bn.recalibrate([x])
    assert near(bn.eval()(x), y * np.sqrt(199 / 200), 1e-5)


def test_recalibrate_refuses_before_it_reads():
    bn, read = fastbn.BatchNorm2d(3), []
    batches = (read.append(k) or np.ones((2, 3, 2, 2)) for k in range(5))
    with pytest.raises(ValueError, match=r'^method: expected "pooled" or "paper", got \'other\''):
        bn.recalibrate(batches, method="other")
    assert read == []
    with pytest.raises(ValueError, match=r"^batches\[0\]: BatchNorm2d expected 4 dimensions, got shape \(8, 3\)"):
        bn.recalibrate([np.ones((8, 3))])
    bn.recalibrate([fastbn.batch_stats(np.ones((8, 3)))])
    assert bn.running_mean.tolist() == [1, 1, 1]


def test_the_dtype_cannot_be_set_later():
    """The arrays stay the same objects, so theirs cannot change."""
    bn = fastbn.BatchNorm(3)
    with pytest.raises(AttributeError, match="dtype"):
        bn.dtype = np.float64
    assert bn.dtype == np.float32


@pytest.mark.parametrize("flag", [1, np.bool_(True), np.int64(1), np.uint8(1)])
def test_flags_may_be_numbers_of_any_kind(flag):
    bn = fastbn.BatchNorm(3).eval()
    assert bn.train(flag).training is True
    with pytest.raises(ValueError, match=r"^mode: expected a bool, got 2"):
        bn.train(np.int64(2))


def test_an_unknown_activation_is_named_in_place_too():
    bn, x = fastbn.BatchNorm(3), np.ones((4, 3))
    bn.activation = "bogus"
    with pytest.raises(ValueError, match=r"^activation: .*'bogus'"):
        bn(x, out=x)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("training", "no", TypeError),
        ("training", None, TypeError),
        ("training", 2, ValueError),
        ("use_global_stats", "False", TypeError),
        ("use_global_stats", 1, TypeError),
        ("track_running_stats", "False", TypeError),
        ("axis", 1.0, TypeError),
        ("axis", 64, ValueError),
        ("num_features", 3.0, TypeError),
        ("num_features", 0, ValueError),
        ("negative_slope", "x", TypeError),
        ("negative_slope", 1j, TypeError),
        ("negative_slope", 10**400, ValueError),
        ("eps", 0, ValueError),
    ],
)
def test_options_set_later_are_checked_as_in_the_constructor(name, value, error):
    bn = fastbn.BatchNorm(3, activation="leaky_relu")
    before = getattr(bn, name)
    with pytest.raises(error, match=rf"^{name}: expected .*got "):
        setattr(bn, name, value)
    assert getattr(bn, name) is before
    setattr(bn, name, before)


@pytest.mark.parametrize(
    ("dtype", "samples"), [(np.float32, 1), (np.float16, 2), (np.float64, 1)], ids=["float32", "float16", "float64"]
)
@pytest.mark.parametrize("name", ["gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var"])
def test_results_stay_out_of_the_arrays_of_the_layer(name, dtype, samples):
    """Also where x is of a narrower type: more of its values stand in as many bytes."""
    x = np.arange(3 * samples).reshape(samples, 3).astype(dtype)
    bn = fastbn.BatchNorm(3, use_global_stats=False, dtype=np.float64 if dtype == np.float64 else np.float32)
    bn.eval()(x)
    before = {**bn.state_dict(), "dgamma": bn.dgamma.copy(), "dbeta": bn.dbeta.copy()}
    out = getattr(bn, name).view(dtype).reshape(x.shape)
    for call in (lambda: bn(x, out=out), lambda: bn.backward(x, out=out), lambda: bn.backward(x, out=(out, None))):
        with pytest.raises(ValueError, match=rf"^out: expected memory apart from {name}, got "):
            call()
    after = {**bn.state_dict(), "dgamma": bn.dgamma, "dbeta": bn.dbeta}
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_results_stay_out_of_the_number_of_batches():
    bn, x = fastbn.BatchNorm(1), np.array([[1], [3]], np.float32)
    with pytest.raises(ValueError, match=r"^out: expected memory apart from num_batches_tracked"):
        bn(x, out=bn.num_batches_tracked.reshape(1).view(np.float32).reshape(2, 1))
    assert bn.num_batches_tracked == 0


def test_a_negative_running_variance_is_named():
    bn = fastbn.BatchNorm(3).eval()
    bn.running_var[1] = -1
    with pytest.raises(ValueError, match=r"^running_var: expected variances >= 0, got -1.0 in channel 1"):
        bn(np.ones((4, 3), np.float32))


def test_vectors_that_changed_meanwhile_are_not_copied():
    for others in ((np.ones(2), None, None), (None, None, np.ones((3, 1)))):
        with pytest.raises(RuntimeError, match="an array has changed"):
            _core.copies(np.ones(3), *others)


@pytest.mark.parametrize("key", ["running_mean", "gamma", "num_batches_tracked"])
def test_what_does_not_fit_is_said(key):
    bn = fastbn.BatchNorm(3)
    with pytest.raises(ValueError, match=rf"^{key}: expected .*in the range of .*, got "):
        setattr(bn, key, np.uint64(2**63) if key == "num_batches_tracked" else [1.0, 1e300, 2.0])
