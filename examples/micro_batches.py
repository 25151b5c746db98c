"""Gradient accumulation: a batch that does not fit is taken in parts, and nothing tells it from one large batch.

Usual gradient accumulation normalises each part with the part's own statistics. Here the forward takes the statistics
of the parts, merges them, and only then normalises; the backward adds up the sums of the parts, and only then applies
them. Each half is a pass over all parts, so the parts must be there twice (or be read or computed twice).
"""

import numpy as np

import fastbn


def forward(parts, gamma, beta):
    """Results of all parts, normalised with the statistics of the whole batch."""
    first, *others = [fastbn.batch_stats(x) for x in parts]
    stats = first.merge(*others)
    return [fastbn.normalize(x, stats.mean, stats.var, gamma, beta, activation="relu") for x in parts], stats


def backward(dy_parts, parts, stats, gamma, beta):
    """dx of all parts, and dgamma and dbeta of the whole batch."""
    pairs = list(zip(dy_parts, parts, strict=True))
    sums = sum(fastbn.backward_sums(dy, x, stats, gamma, beta, activation="relu") for dy, x in pairs)
    found = [fastbn.backward_apply(dy, x, stats, sums, gamma, beta, activation="relu") for dy, x in pairs]
    return [part.dx for part in found], found[0].dgamma, found[0].dbeta


def main():
    """A batch of 48 in micro-batches of 20, 20 and 8, against the batch at once."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(0.5, 2, size=(2, 48, 16, 14, 14)).astype(np.float32)
    gamma, beta = rng.normal(size=(2, 16)).astype(np.float32)
    cuts = [20, 40]

    y, stats = forward(np.split(x, cuts), gamma, beta)
    dx, dgamma, dbeta = backward(np.split(dy, cuts), np.split(x, cuts), stats, gamma, beta)

    whole_y, whole_stats = fastbn.batch_norm(x, gamma, beta, activation="relu")
    whole = fastbn.batch_norm_backward(dy, x, whole_stats, gamma, beta, activation="relu")
    print("largest difference between micro-batches and one large batch")
    print(f"  y       {abs(np.concatenate(y) - whole_y).max():.1e}")
    print(f"  dx      {abs(np.concatenate(dx) - whole.dx).max():.1e}")
    print(f"  dgamma  {abs(dgamma - whole.dgamma).max():.1e} of {abs(whole.dgamma).max():.1f}")
    print(f"  dbeta   {abs(dbeta - whole.dbeta).max():.1e} of {abs(whole.dbeta).max():.1f}")


if __name__ == "__main__":
    main()
