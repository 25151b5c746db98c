"""Which build of the kernels runs: found out once, at import, and never silently. And what the CPU is slow at.

FASTBN_ISA forces one; a forced one that is unknown, not built or not supported here is an ImportError.
"""

import importlib
import importlib.util
import os
import platform

from fastbn import _cpu

# Best first: name, module, whether this CPU and operating system run it.
BUILDS = [
    ("x86-64-v3", "fastbn._kernels.x86_64_v3", _cpu.has_x86_64_v3),
    ("baseline", "fastbn._kernels.baseline", lambda: True),
]


def _built(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _choose(forced: str | None) -> tuple[str, str, str]:
    """Name, module and reason of the build to use."""
    for name, module, runs in BUILDS:
        if forced is not None and forced != name:
            continue
        if not _built(module):
            missing = f"this installation of fastbn has no {name} kernels"
        elif not runs():
            missing = f"this CPU or operating system does not run {name} ({platform.machine()})"
        else:
            return name, module, "the best that this CPU runs" if forced is None else "forced by FASTBN_ISA"
        if forced is not None:
            raise ImportError(f"FASTBN_ISA={forced}: {missing}")
    if forced is None:
        raise ImportError("this installation of fastbn has no kernels at all: install it again")
    names = ", ".join(name for name, _, _ in BUILDS)
    raise ImportError(f"FASTBN_ISA={forced!r} is not a build of the kernels; there are {names}")


isa, _module, reason = _choose(os.environ.get("FASTBN_ISA") or None)
kernels = importlib.import_module(_module)
streams_slowly = _cpu.streams_slowly()
