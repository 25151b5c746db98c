"""The scripts in examples/: each runs, and what it computes is what the reference says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_folding import convolution

from fastbn import reference

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(shape, dtype=np.float64):
    """x, dy, gamma, beta. Sums of some 100 values of the order of 1: in float64 errors are below 1e-12."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 2, size=(2, *shape)).astype(dtype)
    return x, dy, *rng.normal(size=(2, shape[1])).astype(dtype)


def assert_close(found, expected, limit=1e-11):
    np.testing.assert_allclose(found, expected, rtol=limit, atol=limit)


def test_readmes_training_loop():
    """It runs as it stands there, and learns."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    error, wanted = names["error"], names["x"][:, 0]
    assert np.mean(error**2) < 0.1 * np.mean(wanted**2)


@pytest.mark.parametrize("name", EXAMPLES)
def test_runs_as_a_script(name, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / f"{name}.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
    assert ran.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_readme_lists_them_all():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in EXAMPLES if f"[{name}.py](examples/{name}.py)" not in readme] == []


@pytest.mark.parametrize("cuts", [[], [3], [2, 3, 7]], ids=str)
def test_micro_batches(cuts):
    e = example("micro_batches")
    x, dy, gamma, beta = arrays((8, 3, 4, 5))
    y, stats = e.forward(np.split(x, cuts), gamma, beta)
    expected, expected_stats = reference.batch_norm(x, gamma, beta, activation="relu")
    assert_close(np.concatenate(y), expected)
    dx, dgamma, dbeta = e.backward(np.split(dy, cuts), np.split(x, cuts), stats, gamma, beta)
    expected = reference.batch_norm_backward(dy, x, expected_stats, gamma, beta, activation="relu")
    assert_close(np.concatenate(dx), expected.dx)
    assert_close(dgamma, expected.dgamma)
    assert_close(dbeta, expected.dbeta)


def test_ghost_batches():
    e = example("ghost_batches")
    x, dy, gamma, beta = arrays((8, 3, 4, 5))
    y, stats = e.forward(x, gamma, beta, 3)
    dx, dgamma, dbeta = e.backward(dy, x, stats, gamma, beta, 3)
    total = [0, 0]
    assert len(stats) == 3
    for part, s in zip([slice(0, 3), slice(3, 6), slice(6, 8)], stats, strict=True):
        expected, expected_stats = reference.batch_norm(x[part], gamma, beta)
        assert_close(y[part], expected)
        assert_close(s.var, expected_stats.var)
        gradients = reference.batch_norm_backward(dy[part], x[part], expected_stats, gamma, beta)
        assert_close(dx[part], gradients.dx)
        total = [total[0] + gradients.dgamma, total[1] + gradients.dbeta]
    assert_close(dgamma, total[0])
    assert_close(dbeta, total[1])


def test_frozen_backbone():
    e = example("frozen_backbone")
    state = e.pretrained(np.random.default_rng(0), 3)
    bn = e.frozen(state)
    x, dy, *_ = arrays((2, 3, 4, 5), np.float32)
    given = [state[key] for key in ("running_mean", "running_var", "weight", "bias")]
    assert bn.training
    assert_close(bn(x), reference.normalize(x, *given), 1e-5)
    expected = reference.batch_norm_backward(dy, x, given[:2], *given[2:], training=False)
    assert_close(bn.backward(dy), expected.dx, 1e-5)
    assert_close(bn.dgamma, expected.dgamma, 1e-5)
    errors = e.fine_tune(bn, x, x / 2, 50, 1.0)
    assert errors[-1] < 1e-3 * errors[0]  # y can be x/2
    after = bn.state_dict()
    assert {key for key in state if not np.array_equal(state[key], after[key])} == {"weight", "bias"}


@pytest.mark.parametrize("method", ["pooled", "paper"])
def test_population_statistics(method):
    e = example("population_statistics")
    bn = e.recalibrated(method)
    expected = reference.population_stats(e.batches(np.random.default_rng(0), 40, 0.1), method=method)
    assert_close(bn.running_mean, expected.mean, 1e-6)
    assert_close(bn.running_var, expected.unbiased_var, 1e-6)
    # The difference between the methods is the drift: 40 means, each 0.1 further, with variance 0.01*(40**2 - 1)/12.
    assert abs(bn.running_var - (4 + (1.3325 if method == "pooled" else 0))).max() < 0.15


def test_residual_block():
    e = example("residual_block")
    rng = np.random.default_rng(0)
    x, dy, *_ = arrays((2, 3, 5, 4))
    block = e.Block(rng.normal(size=(3, 3, 3, 3)))
    block.bn.gamma, block.bn.beta = gamma, beta = rng.normal(size=(2, 3))

    def f(x, weight):
        return reference.batch_norm(convolution(x, weight, 1), gamma, beta, residual=x, activation="relu")[0]

    weight = block.convolution.weight
    y = block(x)
    assert_close(y, f(x, weight))
    assert 20 < (y == 0).sum() < 100
    dx = block.backward(dy)
    # Along random directions, which no kink crosses here: errors of h**4*f^(5)/30 and 1e-14/h.
    h = 1e-4
    for gradient, at in (
        (dx, lambda step: f(x + step, weight)),
        (block.convolution.dweight, lambda step: f(x, weight + step)),
    ):
        way = rng.normal(size=gradient.shape)
        far, near = ((dy * (at(k * h * way) - at(-k * h * way))).sum() for k in (2, 1))
        np.testing.assert_allclose((gradient * way).sum(), (8 * near - far) / (12 * h), rtol=1e-8)


def test_folded_inference():
    e = example("folded_inference")
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 3, 1, 1)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    bn = e.trained(rng, weight, bias)
    assert not bn.training
    x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    wide = convolution(x.astype(np.float64), np.pad(weight, [(0, 0), (0, 0), (1, 1), (1, 1)]), 1)
    expected = reference.normalize(
        wide + bias.astype(np.float64)[:, None, None], bn.running_mean, bn.running_var, bn.gamma, bn.beta, eps=bn.eps
    )
    # values up to 10, of some 5 float32 roundings each
    assert_close(e.convolution(x, *e.folded(bn, weight, bias)), expected, 5e-6)
    assert_close(bn(e.convolution(x, weight, bias)), expected, 5e-6)
