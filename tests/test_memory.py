"""Peak memory of a process, measured from outside: the arrays and next to nothing more."""

import os
import subprocess
import sys
import tempfile

import pytest

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
"""


def peak(what: str) -> int:
    """Largest resident size, in KiB, of a process that holds three arrays of 100 MB and does `what`."""
    child = subprocess.Popen([sys.executable, "-c", WORK, what], cwd=tempfile.gettempdir())
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    assert status == 0
    return usage.ru_maxrss


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_pass_with_out_takes_less_than_4_mb():
    arrays = peak("nothing")
    assert arrays > 3 * 100 * 1000
    assert peak("forward") < arrays + 4000
    assert peak("backward") < arrays + 4000
    assert peak("formula") > arrays + 90_000  # a temporary would show
