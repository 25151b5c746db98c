"""Print how far results are from the truth: fastbn, the plain NumPy formula in float32, and PyTorch where it is there.

    python tools/accuracy.py [--average] [--rows]

A row for each kind of data: ordinary ones, then the hard ones of tests/arrays.py. A cell has the largest error of each
library, or with --average the mean one, in units of 2**-24 (one float32 rounding): that of the mean in standard
deviations, of the variance relative to it, of y, dx, dgamma, dbeta relative to the sum of the absolute terms of their
formulas (less 3/2 of the spacing of subnormal numbers). Truth is computed in extended precision. 2e7 is an error of
100 %, inf a result that is not finite. Promise P1 in these units: 17 for mean, var, dgamma, dbeta (1e-6); 4 for y, dx.

Data are float32, 4 channels of 8*784 values, as planes (8, 4, 28, 28), or with --rows as (6272, 4).
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import fastbn

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from arrays import (
    HARD,
    TINY32,
    Wide,
    channels_of,
    dbeta_terms,
    dgamma_terms,
    dx_terms,
    from_channels,
    true_stats,
    y_terms,
)

try:
    import torch
except ModuleNotFoundError:
    torch = None

UNIT = 2.0**-24
EPS = 1e-5
QUANTITIES = ["mean", "var", "y", "dx", "dgamma", "dbeta"]
ORDINARY = {
    "normal": lambda rng, n: rng.normal(size=n),
    "relu": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "pixels": lambda rng, n: rng.integers(0, 256, n) / 255,
}


def with_fastbn(x, dy, gamma, beta):
    """(mean, var, y, dx, dgamma, dbeta)."""
    y, (count, mean, var) = fastbn.batch_norm(x, gamma, beta, eps=EPS)
    gradients = fastbn.batch_norm_backward(dy, x, (count, mean, var), gamma, beta, eps=EPS)
    return mean, var, y, gradients.dx, gradients.dgamma, gradients.dbeta


def with_numpy(x, dy, gamma, beta):
    """The same, by the formulas as one writes them, in float32."""
    axes = tuple(k for k in range(x.ndim) if k != 1)
    column = (1, -1) + (1,) * (x.ndim - 2)
    g, b, n = gamma.reshape(column), beta.reshape(column), np.float32(x.size // x.shape[1])
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    invstd = 1 / np.sqrt(var + np.float32(EPS))
    xhat = (x - mean) * invstd
    dbeta, dgamma = dy.sum(axis=axes, keepdims=True), (dy * xhat).sum(axis=axes, keepdims=True)
    dx = g * invstd * (dy - dbeta / n - xhat * dgamma / n)
    return mean.ravel(), var.ravel(), xhat * g + b, dx, dgamma.ravel(), dbeta.ravel()


def with_torch(x, dy, gamma, beta):
    """The same, by PyTorch in float32. With momentum 1 its running statistics are those of the batch."""
    tensors = [torch.from_numpy(v).requires_grad_() for v in (x, gamma, beta)]
    n = x.size // x.shape[1]
    mean, var = torch.zeros(len(gamma)), torch.zeros(len(gamma))
    y = torch.nn.functional.batch_norm(tensors[0], mean, var, *tensors[1:], training=True, momentum=1, eps=EPS)
    y.backward(torch.from_numpy(dy))
    gradients = [t.grad.numpy() for t in tensors]
    return mean.numpy(), var.numpy() * np.float64((n - 1) / n), y.detach().numpy(), *gradients


LIBRARIES = {"fastbn": with_fastbn, "NumPy": with_numpy, **({"PyTorch": with_torch} if torch else {})}


def relative(found, expected, size, statistic):
    """The largest (or mean) error relative to `size`, in units of one rounding; 0/0 is 0."""
    error = abs(np.asarray(found).astype(Wide) - expected)
    error = np.where(np.isnan(error), np.inf, error)
    if np.asarray(found).dtype == np.float32:
        error = np.maximum(error - 3 * TINY32, 0)
    ratios = np.where(error == 0, 0, error / size) / UNIT
    return float(statistic(ratios))


def errors(library, x, dy, gamma, beta, statistic):
    """A number for each of QUANTITIES."""
    mean, var = true_stats(x)
    dx, dx_size, _ = dx_terms(dy, x, (x.size // x.shape[1], mean, var), gamma, EPS)
    truth = [
        (mean, np.sqrt(var)),
        (var, var),
        y_terms(x, mean, var, gamma, beta, EPS),
        (dx, dx_size),
        dgamma_terms(dy, x, mean, var, EPS),
        dbeta_terms(dy),
    ]
    found = [v if v.ndim == 1 else channels_of(v) for v in LIBRARIES[library](x, dy, gamma, beta)]
    return [relative(f, *t, statistic) for f, t in zip(found, truth, strict=True)]


def short(number):
    """At most five characters."""
    if number == 0 or number >= 1e4 or number < 1e-3:
        return f"{number:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("0e0", "0").replace("e+", "e")
    return f"{number:.2g}" if number < 100 else f"{number:.0f}"


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--average", action="store_true", help="mean errors instead of the largest")
    parser.add_argument("--rows", action="store_true", help="(N, C) instead of (N, C, H, W)")
    options = parser.parse_args()
    statistic = np.mean if options.average else np.max
    shape = (6272, 4) if options.rows else (8, 4, 28, 28)
    which = "mean" if options.average else "largest"
    print(f"{which} error in units of 2**-24, x {shape} float32: {' / '.join(LIBRARIES)}\n")
    width = 5 * len(LIBRARIES) + 4
    print(f"{'data':20}", *(f"{name:{width}}" for name in QUANTITIES))
    for name, make in {**ORDINARY, **HARD}.items():
        rng = np.random.default_rng([*name.encode()])
        x = from_channels([make(rng, 6272) for _ in range(4)], shape)
        dy = rng.normal(size=shape).astype(np.float32)
        gamma, beta = rng.normal(size=(2, 4)).astype(np.float32)
        with np.errstate(all="ignore"):
            results = [errors(library, x, dy, gamma, beta, statistic) for library in LIBRARIES]
        cells = ["/".join(map(short, quantity)) for quantity in zip(*results, strict=True)]
        print(f"{name:20}", *(f"{cell:{width}}" for cell in cells))


if __name__ == "__main__":
    main()
