"""backward is the derivative of forward: five-point differences in float64, of functions and of layers.

f = sum(w*y) for fixed weights w has the gradient that backward gives for dy = w. With
f' = (f(-2h) - 8f(-h) + 8f(h) - f(2h))/(12h) and h = 1e-3:

- f is a sum of at most 72 terms below 10, each within some 10 roundings: an error below 72*10*10*2**-53 = 8e-13, and of
  f' below 18/12*8e-13/h = 1.2e-9;
- the difference formula itself is wrong by h**4/30*|f^(5)|; variances are above 0.1 here, so the fifth derivative is
  below 72*10*0.1**-2.5 = 2e5, and the error below 1e-8 (in fact 100 times smaller).
"""

import numpy as np
import pytest
from arrays import LAYOUTS

import fastbn

STEP, LIMIT = 1e-3, 1.2e-8
EPS = 0.1

shapes = pytest.mark.parametrize("shape", [(9, 4), (6, 3, 4), (2, 2, 3, 4), (2, 2, 2, 3, 2)], ids=str)
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-second"])


def derivative(f, array):
    """Gradient of the number f() by every value of an array, which is changed in place."""
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        value = array[index]
        at = []
        for k in (-2, -1, 1, 2):
            array[index] = value + k * STEP
            at.append(f())
        array[index] = value
        gradient[index] = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * STEP)
    return gradient


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=LIMIT)


def assert_gradients(found, f, x, gamma, beta):
    """Gradients of the number f()."""
    assert_close(found.dx, derivative(f, x))
    assert_close(found.dgamma, derivative(f, gamma))
    assert_close(found.dbeta, derivative(f, beta))


@pytest.fixture
def case(shape, layout):
    """x and w of a shape and layout, gamma and beta."""
    rng = np.random.default_rng(0)
    x, w = (LAYOUTS[layout](v) for v in rng.uniform(-1.5, 1.5, (2, *shape)))
    gamma, beta = rng.uniform(0.5, 1.5, (2, shape[1]))
    gamma[0] *= -1
    return x, w, gamma, beta


@layouts
@shapes
def test_batch_norm(case):
    x, w, gamma, beta = case

    def f():
        return (w * fastbn.batch_norm(x, gamma, beta, eps=EPS)[0]).sum()

    found = fastbn.batch_norm_backward(w, x, fastbn.batch_stats(x), gamma, beta, eps=EPS)
    assert_gradients(found, f, x, gamma, beta)


@layouts
@shapes
def test_normalize(case):
    x, w, gamma, beta = case
    mean, var = np.random.default_rng(1).uniform(0.2, 1, (2, len(gamma)))

    def f():
        return (w * fastbn.normalize(x, mean, var, gamma, beta, eps=EPS)).sum()

    found = fastbn.batch_norm_backward(w, x, (mean, var), gamma, beta, eps=EPS, training=False)
    assert_gradients(found, f, x, gamma, beta)


@layouts
@shapes
def test_parts_of_a_batch(case):
    """Statistics merged, sums added up: the derivative of all parts' results by all parts' values."""
    x, w, gamma, beta = case
    cut = len(x) // 2

    def stats():
        return fastbn.batch_stats(x[:cut]).merge(fastbn.batch_stats(x[cut:]))

    def f():
        merged = stats()
        parts = [fastbn.normalize(part, merged.mean, merged.var, gamma, beta, eps=EPS) for part in (x[:cut], x[cut:])]
        return (w * np.concatenate(parts)).sum()

    merged = stats()
    parts = [(w[:cut], x[:cut]), (w[cut:], x[cut:])]
    sums = sum(fastbn.backward_sums(*part, merged, gamma, beta, eps=EPS) for part in parts)
    found = [fastbn.backward_apply(*part, merged, sums, gamma, beta, eps=EPS) for part in parts]
    assert_close(np.concatenate([part.dx for part in found]), derivative(f, x))
    assert_close(found[0].dgamma, derivative(f, gamma))
    assert_close(found[1].dbeta, derivative(f, beta))


MODES = {
    "train": ({}, True),
    "eval": ({}, False),
    "global-train": ({"use_global_stats": True}, True),
    "global-eval": ({"use_global_stats": True}, False),
    "batch-eval": ({"use_global_stats": False}, False),
    "untracked-eval": ({"track_running_stats": False}, False),
    "momentum-none": ({"momentum": None}, True),
    "no-affine-train": ({"affine": False}, True),
    "no-affine-eval": ({"affine": False}, False),
}


@pytest.mark.parametrize("layout", ["contiguous"])
@shapes
@pytest.mark.parametrize("mode", MODES)
def test_layer(case, mode):
    x, w, gamma, beta = case
    options, training = MODES[mode]
    layer = fastbn.BatchNorm(len(gamma), eps=EPS, dtype=np.float64, **options).train(training)
    if layer.affine:
        layer.gamma, layer.beta = gamma, beta
    if layer.track_running_stats:
        layer.running_mean, layer.running_var = np.random.default_rng(1).uniform(0.2, 1, (2, len(gamma)))

    def f():
        return (w * layer(x)).sum()

    layer(x)
    dx = layer.backward(w)
    dgamma, dbeta = (None, None) if not layer.affine else (layer.dgamma.copy(), layer.dbeta.copy())
    assert_close(dx, derivative(f, x))
    if layer.affine:
        assert_close(dgamma, derivative(f, layer.gamma))
        assert_close(dbeta, derivative(f, layer.beta))


@pytest.mark.parametrize("layout", ["contiguous"])
@pytest.mark.parametrize("shape", [(5, 3, 4)], ids=str)
def test_two_layers(case):
    """A layer behind another: the first one's dy is the second one's dx."""
    x, w, gamma, beta = case
    first, second = (fastbn.BatchNorm1d(3, eps=EPS, dtype=np.float64) for _ in range(2))
    first.gamma, first.beta = gamma, beta

    def f():
        return (w * second(np.tanh(first(x)))).sum()

    f()
    hidden = np.tanh(first(x))
    dx = first.backward(second.backward(w) * (1 - hidden**2))
    dgamma, dbeta = first.dgamma.copy(), first.dbeta.copy()
    assert_close(dx, derivative(f, x))
    assert_close(dgamma, derivative(f, first.gamma))
    assert_close(dbeta, derivative(f, first.beta))
