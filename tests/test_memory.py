"""Peak memory of a process, as the kernel counts it: the arrays and next to nothing more."""

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
