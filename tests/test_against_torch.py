"""A second opinion: PyTorch in float64 on the CPU says the same, and a layer's state travels both ways.

Limits: both sides compute the same formulas in float64 on values of the order of 1, with sums of at most 2000 of them;
2000*2**-53 = 2e-13 of those sums. RTOL = ATOL = 1e-11 leaves room for gamma*invstd up to 50. Where fastbn computes in
float32, its four roundings of the sum of absolute terms are 4*2**-24 = 2.4e-7, of terms up to 20: 5e-6.
"""

import numpy as np
import pytest
from arrays import LAYOUTS, name_of, random_array

import fastbn

torch = pytest.importorskip("torch")

LIMITS = {np.float64: {"rtol": 1e-11, "atol": 1e-11}, np.float32: {"rtol": 1e-6, "atol": 5e-6}}

dtypes = pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: dtype.__name__)
shapes = pytest.mark.parametrize("shape", [(9, 5), (40, 3, 7), (4, 6, 5, 8), (3, 4, 2, 5, 3)], ids=name_of)
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels-last"])


def wide(array):
    """A float64 tensor of the same values, whose gradient will be asked for."""
    return torch.tensor(np.asarray(array, np.float64), requires_grad=True)


def assert_same(found, tensor, dtype):
    assert found.dtype == dtype
    np.testing.assert_allclose(found, tensor.detach().numpy(), **LIMITS[dtype])


@dtypes
@layouts
@shapes
def test_training(shape, layout, dtype):
    x, dy = (LAYOUTS[layout](random_array(shape, dtype, seed=seed)) for seed in range(2))
    gamma, beta = np.random.default_rng(0).normal(size=(2, shape[1])).astype(dtype)
    tx, tgamma, tbeta = map(wide, (x, gamma, beta))
    ty = torch.nn.functional.batch_norm(tx, None, None, tgamma, tbeta, training=True)
    ty.backward(wide(dy))

    y, stats = fastbn.batch_norm(x, gamma, beta)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta)
    assert_same(y, ty, dtype)
    assert_same(dx, tx.grad, dtype)
    axes = tuple(k for k in range(len(shape)) if k != 1)
    # Sums of n terms of the order of 1: n times the limit of one.
    n = x.size // shape[1]
    np.testing.assert_allclose(dgamma, tgamma.grad, atol=n * LIMITS[dtype]["atol"], rtol=0)
    np.testing.assert_allclose(dbeta, tbeta.grad, atol=n * LIMITS[dtype]["atol"], rtol=0)
    np.testing.assert_allclose(stats.mean, tx.detach().mean(dim=axes), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(stats.var, tx.detach().var(dim=axes, correction=0), rtol=1e-11)


@dtypes
@layouts
@shapes
def test_constant_statistics(shape, layout, dtype):
    x, dy = (LAYOUTS[layout](random_array(shape, dtype, seed=seed)) for seed in range(2))
    rng = np.random.default_rng(0)
    gamma, beta, mean = rng.normal(size=(3, shape[1])).astype(dtype)
    var = rng.uniform(0.5, 2, shape[1]).astype(dtype)
    tx, tgamma, tbeta = map(wide, (x, gamma, beta))
    running = wide(mean).detach(), wide(var).detach()
    ty = torch.nn.functional.batch_norm(tx, *running, tgamma, tbeta, training=False)
    ty.backward(wide(dy))

    assert_same(fastbn.normalize(x, mean, var, gamma, beta), ty, dtype)
    dx, dgamma, dbeta, _ = fastbn.batch_norm_backward(dy, x, (mean, var), gamma, beta, training=False)
    assert_same(dx, tx.grad, dtype)
    n = x.size // shape[1]
    np.testing.assert_allclose(dgamma, tgamma.grad, atol=n * LIMITS[dtype]["atol"], rtol=0)
    np.testing.assert_allclose(dbeta, tbeta.grad, atol=n * LIMITS[dtype]["atol"], rtol=0)


# ---- layers

PAIRS = {
    (8, 5): (fastbn.BatchNorm1d, torch.nn.BatchNorm1d),
    (8, 5, 6): (fastbn.BatchNorm1d, torch.nn.BatchNorm1d),
    (4, 5, 6, 7): (fastbn.BatchNorm2d, torch.nn.BatchNorm2d),
    (3, 5, 2, 3, 4): (fastbn.BatchNorm3d, torch.nn.BatchNorm3d),
}
OPTIONS = {
    "defaults": {},
    "eps-momentum": {"eps": 1e-3, "momentum": 0.3},
    "average-of-all": {"momentum": None},
    "no-affine": {"affine": False},
    "untracked": {"track_running_stats": False},
    "bare": {"affine": False, "track_running_stats": False},
}


def assert_same_state(layer, module):
    state, theirs = layer.state_dict(), module.state_dict()
    assert set(state) == set(theirs)
    for key, tensor in theirs.items():
        assert state[key].shape == tuple(tensor.shape)
        np.testing.assert_allclose(state[key], tensor.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", PAIRS, ids=name_of)
def test_layers_learn_alike(shape, options):
    """Steps of training with gradient descent, then evaluation, then training again: all of it the same."""
    ours, theirs = PAIRS[shape]
    layer = ours(5, dtype=np.float64, **OPTIONS[options])
    module = theirs(5, dtype=torch.float64, **OPTIONS[options])
    descent = torch.optim.SGD(module.parameters(), lr=0.1) if layer.affine else None
    for step, training in enumerate([True, True, True, False, False, True]):
        layer.train(training)
        module.train(training)
        x, dy = random_array(shape, np.float64, seed=step), random_array(shape, np.float64, seed=step + 100)
        tx = wide(x)
        ty = module(tx)
        assert_same(layer(x), ty, np.float64)
        if descent:
            descent.zero_grad()
        ty.backward(wide(dy))
        assert_same(layer.backward(dy), tx.grad, np.float64)
        if descent:
            np.testing.assert_allclose(layer.dgamma, module.weight.grad, rtol=1e-11, atol=1e-9)
            np.testing.assert_allclose(layer.dbeta, module.bias.grad, rtol=1e-11, atol=1e-9)
            descent.step()
            for _, value, gradient in layer.parameters():
                value -= 0.1 * gradient
        assert_same_state(layer, module)


@pytest.mark.parametrize("options", OPTIONS)
def test_state_travels_both_ways(options):
    x = random_array((8, 5, 6))
    made = fastbn.BatchNorm1d(5, **OPTIONS[options])
    for _ in range(3):
        made(x)
    if made.affine:
        made.gamma, made.beta = np.random.default_rng(0).normal(size=(2, 5))

    module = torch.nn.BatchNorm1d(5, **OPTIONS[options])
    module.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in made.state_dict().items()})
    again = fastbn.BatchNorm1d(5, **OPTIONS[options])
    again.load_state_dict(module.state_dict())
    for key, value in made.state_dict().items():
        assert again.state_dict()[key].dtype == value.dtype
        assert np.array_equal(again.state_dict()[key], value)
    y = module.eval()(torch.from_numpy(x))
    np.testing.assert_allclose(again.eval()(x), y.detach().numpy(), **LIMITS[np.float32])
    assert np.array_equal(again(x), made.eval()(x))
