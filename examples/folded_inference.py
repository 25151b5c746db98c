"""Inference without normalisation: a trained BatchNorm is folded into the convolution before it.

`fold_batch_norm` gives new weights and a bias; the normalisation then costs nothing, and the convolution as much as
before. For a grouped or transposed convolution or a dense layer see its `axis` and `groups`.
"""

import numpy as np

import fastbn


def convolution(x, weight, bias):
    """1x1: (N, I, H, W) and (O, I, 1, 1)."""
    y = np.moveaxis(np.tensordot(x, weight[:, :, 0, 0], (1, 1)), -1, 1)
    return np.ascontiguousarray(y) + bias[:, None, None]


def trained(rng, weight, bias):
    """A layer whose running statistics and parameters belong behind this convolution."""
    bn = fastbn.BatchNorm2d(len(bias), eps=1e-3)
    bn.gamma, bn.beta = rng.normal(1, 0.3, size=(2, len(bias)))
    for _ in range(50):
        bn(convolution(rng.normal(size=(16, weight.shape[1], 6, 6)).astype(np.float32), weight, bias))
    return bn.eval()


def folded(bn, weight, bias):
    """Weight and bias of a convolution that does what the given one and bn do."""
    return fastbn.fold_batch_norm(weight, bias, bn.running_mean, bn.running_var, bn.gamma, bn.beta, eps=bn.eps)


def main():
    """The pair and the one layer that it becomes."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 5, 1, 1)).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32)
    bn = trained(rng, weight, bias)
    x = rng.normal(size=(4, 5, 6, 6)).astype(np.float32)
    pair = bn(convolution(x, weight, bias))
    one = convolution(x, *folded(bn, weight, bias))
    print(f"largest value {abs(pair).max():.2f}, largest difference {abs(pair - one).max():.1e}")


if __name__ == "__main__":
    main()
