"""How much memory a call takes at its peak beyond what is there before it, as Linux counts it."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

from fastbn.bench.floor import forget_result

PROCESS = Path("/proc/self")


def peak_of(call: Callable[[], object]) -> int | None:
    """Bytes, the result's own included; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    forget_result()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that what was freed before is not taken again unseen
    except AttributeError:  # not glibc
        return None
    try:
        (PROCESS / "clear_refs").write_text("5")  # the peak is what there is now
    except OSError:
        return None
    before = status("VmHWM")
    call()
    return status("VmHWM") - before


def status(name: str) -> int:
    """Bytes, of this process."""
    lines = (PROCESS / "status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) << 10
