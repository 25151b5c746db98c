"""The end of a residual block: convolution - batch normalisation - add - ReLU, forward and backward.

Normalisation, residual and ReLU are one pass over memory each way. Behind the ReLU the backward needs y, which the next
layer keeps anyway, to see what was cut off; it gives the gradient of the residual besides that of its own input.
"""

import numpy as np

import fastbn


def windows(x):
    """The 3x3 surroundings of each place, zeros beyond the border: (N, C, H, W, 3, 3)."""
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


class Convolution:
    """3x3, without a bias: beta takes its part."""

    def __init__(self, weight):
        self.weight = weight  # (O, I, 3, 3)
        self.dweight = np.zeros_like(weight)

    def __call__(self, x):
        self.x = x
        return np.ascontiguousarray(np.moveaxis(np.tensordot(windows(x), self.weight, ([1, 4, 5], [1, 2, 3])), -1, 1))

    def backward(self, dy):
        """dx; writes dweight."""
        self.dweight[...] = np.tensordot(dy, windows(self.x), ([0, 2, 3], [0, 2, 3]))
        turned = self.weight[:, :, ::-1, ::-1]
        return np.ascontiguousarray(np.moveaxis(np.tensordot(windows(dy), turned, ([1, 4, 5], [0, 2, 3])), -1, 1))


class Block:
    """y = relu(bn(convolution(x)) + x)."""

    def __init__(self, weight):
        self.convolution = Convolution(weight)
        self.bn = fastbn.BatchNorm2d(len(weight), dtype=weight.dtype, activation="relu")

    def __call__(self, x):
        return self.bn(self.convolution(x), residual=x)

    def backward(self, dy):
        """dx."""
        dz, dresidual = self.bn.backward(dy)
        return self.convolution.backward(dz) + dresidual


def main():
    """Gradient descent on y of two blocks, to show that gradients arrive."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 10, 10)).astype(np.float32)
    target = np.maximum(0, np.roll(x, 1, axis=3))
    blocks = [Block(rng.normal(0, 0.1, size=(6, 6, 3, 3)).astype(np.float32)) for _ in range(2)]
    for step in range(61):
        y = x
        for block in blocks:
            y = block(y)
        error = y - target
        if step % 20 == 0:
            print(f"step {step:2}: mean square error {float((error**2).mean()):.3f}")
        dy = 2 * error / error.size
        for block in reversed(blocks):
            dy = block.backward(dy)
            block.convolution.weight -= 2 * block.convolution.dweight
            for _, value, gradient in block.bn.parameters():
                value -= 2 * gradient


if __name__ == "__main__":
    main()
