"""A frozen backbone: fine-tuning with the statistics of the first training, where new batches are too small.

`use_global_stats=True` normalises with the running statistics even in training, and they never move; gamma and beta
still learn. As a function that is `normalize` with `batch_norm_backward(..., training=False)`: mean and variance are
constants, and dx = gamma*invstd*dy.
"""

import numpy as np

import fastbn


def pretrained(rng, channels):
    """The state of a layer that has seen many large batches."""
    bn = fastbn.BatchNorm2d(channels)
    for _ in range(100):
        bn(rng.normal(3, 2, size=(32, channels, 4, 4)).astype(np.float32))
    return bn.state_dict()


def frozen(state):
    """A layer with this state, whose statistics stay as they are."""
    bn = fastbn.BatchNorm2d(len(state["weight"]), use_global_stats=True)
    bn.load_state_dict(state)
    return bn


def fine_tune(bn, x, target, steps, rate):
    """Fit gamma and beta to a target: mean square errors before each step."""
    errors = []
    for _ in range(steps):
        error = bn(x) - target
        errors.append(float((error**2).mean()))
        bn.backward(2 * error / error.size)
        for _, value, gradient in bn.parameters():
            value -= rate * gradient
    return errors


def main():
    """Two samples, far too few for statistics of their own."""
    rng = np.random.default_rng(0)
    bn = frozen(pretrained(rng, 4))
    before = bn.state_dict()
    x = rng.normal(3, 2, size=(2, 4, 4, 4)).astype(np.float32)
    errors = fine_tune(bn, x, target=x / 2, steps=50, rate=1.0)
    after = bn.state_dict()
    print(f"mean square error {errors[0]:.3f} -> {errors[-1]:.1e}")
    for key in before:
        print(f"  {key:20} {'as it was' if np.array_equal(before[key], after[key]) else 'has learned'}")


if __name__ == "__main__":
    main()
