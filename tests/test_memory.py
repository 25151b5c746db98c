"""Peak memory of a process, as the kernel counts it: the arrays and next to nothing more."""

import functools
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pytest

import fastbn
from fastbn import reference

WORK = """
import sys, numpy as np, fastbn
shape = (32, 256, 56, 56)
x, dy, out = (np.ones(shape, np.float32) for _ in range(3))
x[0] = 2
stats = fastbn.BatchStats(x.size // 256, np.ones(256), np.ones(256))
if sys.argv[1] == "forward":
    fastbn.batch_norm(x, out=out)
elif sys.argv[1] == "backward":
    fastbn.batch_norm_backward(dy, x, stats, out=out)
elif sys.argv[1] == "formula":
    out[...] = x - x.mean((0, 2, 3), keepdims=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak(what: str) -> int:
    """Largest resident size, in KiB, of a process that holds three arrays of 100 MB and does `what`.

    (Not ru_maxrss: a child begins with its parent's.)
    """
    command = [sys.executable, "-c", WORK, what]
    return int(subprocess.run(command, cwd=tempfile.gettempdir(), check=True, capture_output=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the count is of Linux")
def test_a_pass_with_out_takes_less_than_4_mb():
    arrays = peak("nothing")
    assert arrays > 3 * 100 * 1000
    assert peak("forward") < arrays + 4000
    assert peak("backward") < arrays + 4000
    assert peak("formula") > arrays + 90_000  # a temporary would show


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
@pytest.mark.parametrize("shape", [(128, 4096), (3, 20_001), (600, 5000), (2, 33_000, 3)], ids=str)
def test_many_channels(shape, dtype):
    """Scratch under 1 MiB beside the vectors of results, and the results right, in whatever parts they come."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gamma, beta = rng.standard_normal((2, shape[1]))
    stats = fastbn.batch_stats(x)
    out = np.empty_like(x)
    options = {"activation": "leaky_relu", "negative_slope": 0.25}

    def scratch_of(call):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - vectors

    with fastbn.num_threads(1):
        vectors = 2 * gamma.nbytes
        assert scratch_of(lambda: fastbn.batch_norm(x, gamma, beta, **options, out=out)) < 1 << 20
        vectors = 0
        assert scratch_of(lambda: fastbn.normalize(x, *stats[1:], gamma, beta, **options, out=out)) < 1 << 20
        vectors = 4 * gamma.nbytes
        backward = functools.partial(fastbn.batch_norm_backward, dy, x, stats, gamma, beta, **options)
        assert scratch_of(lambda: backward(out=out)) < 1 << 20
    y, _ = fastbn.batch_norm(x, gamma, beta, **options)
    expected, _ = reference.batch_norm(x, gamma, beta, **options)
    close = {"rtol": 2e-3, "atol": 2e-5} if dtype == np.float16 else {"rtol": 0, "atol": 2e-5}
    np.testing.assert_allclose(y.astype(float), expected, **close)
    expected, found = reference.batch_norm_backward(dy, x, stats, gamma, beta, **options), backward()
    for name in ("dx", "dgamma", "dbeta"):
        a, b = (getattr(g, name).astype(float) for g in (found, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-3 if dtype == np.float16 else 1e-6) * abs(b).max())
    with fastbn.num_threads(3):
        for name, a in backward()._asdict().items():
            assert a is None or a.tobytes() == getattr(found, name).tobytes(), name
