"""Ghost batches (Hoffer et al. 2017): a large batch is normalised in small parts, each with its own statistics.

The noise of small batches, which regularises, at the speed of a large one. Results go into slices of one array; the
parameters see all parts, so their gradients add up. For inference the parts' statistics are averaged as batches are
(`population_stats`).
"""

import numpy as np

import fastbn


def slices(n, size):
    """The ghost batches of n samples."""
    return [slice(start, start + size) for start in range(0, n, size)]


def forward(x, gamma, beta, size):
    """Y, and the statistics of each ghost batch."""
    y = np.empty_like(x)
    stats = [fastbn.batch_norm(x[part], gamma, beta, out=y[part])[1] for part in slices(len(x), size)]
    return y, stats


def backward(dy, x, stats, gamma, beta, size):
    """dx, dgamma, dbeta."""
    dx = np.empty_like(x)
    parts = zip(slices(len(x), size), stats, strict=True)
    found = [fastbn.batch_norm_backward(dy[part], x[part], s, gamma, beta, out=dx[part]) for part, s in parts]
    return dx, sum(g.dgamma for g in found), sum(g.dbeta for g in found)


def main():
    """A batch of 64 in ghost batches of 16."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3, 2, size=(2, 64, 8, 7, 7)).astype(np.float32)
    gamma, beta = rng.normal(size=(2, 8)).astype(np.float32)

    y, stats = forward(x, gamma, beta, 16)
    dx, dgamma, dbeta = backward(dy, x, stats, gamma, beta, 16)
    whole = fastbn.batch_norm(x, gamma, beta)[0]
    population = fastbn.population_stats(stats, method="paper")
    print(f"{len(stats)} ghost batches, means of channel 0: {', '.join(f'{s.mean[0]:.4f}' for s in stats)}")
    print(f"largest difference to one batch of 64: {abs(y - whole).max():.2f}")
    print(f"dx {dx.shape}, dgamma {dgamma.shape}, dbeta {dbeta.shape}")
    print(f"for inference: mean {population.mean[0]:.4f}, variance {population.unbiased_var[0]:.4f}")


if __name__ == "__main__":
    main()
