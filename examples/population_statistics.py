"""Statistics for inference, by both methods: the same values pooled, or averaged as the paper does (Algorithm 2).

Running averages follow the last batches, while weights still change. With weights fixed, a pass over the data gives the
statistics of the population: "pooled" those of all values together, "paper" the mean of the batches' means and of their
unbiased variances, which leaves out how much the means of batches differ.
"""

import numpy as np

import fastbn


def batches(rng, number, drift):
    """Batches whose mean moves: each by `drift` further than the one before."""
    for k in range(number):
        yield rng.normal(k * drift, 2, size=(64, 3, 5)).astype(np.float32)


def recalibrated(method, drift=0.1):
    """A layer whose running statistics are those of 40 batches."""
    bn = fastbn.BatchNorm1d(3)
    bn.recalibrate(batches(np.random.default_rng(0), 40, drift), method=method)
    return bn


def main():
    """The running average, and both methods, for data whose mean drifts from 0 to 3.9."""
    running = fastbn.BatchNorm1d(3)
    for x in batches(np.random.default_rng(0), 40, 0.1):
        running(x)
    for name, bn in {"running": running, "pooled": recalibrated("pooled"), "paper": recalibrated("paper")}.items():
        print(f"{name:8} mean {bn.running_mean[0]:.3f}  variance {bn.running_var[0]:.3f}")
    print("of all values: mean 1.95, variance 4 + 1.33 for the drift, which the paper's method leaves out")


if __name__ == "__main__":
    main()
