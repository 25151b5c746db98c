"""fastbn: batch normalization for NumPy on the CPU, at the speed of memory, exact, the same bits on every machine.

The way of a call, always in this direction::

    functional.py  names, docs ──> _core.pyx ──> table of C functions ──> _kernels/ (one build per instruction set)
    layers.py      state             checks, views, threads                 loops on pointers, without the GIL

    statistics.py   BatchStats, GradientSums, Gradients: what calls hand on
    folding.py      a normalisation folded into the layer before it, for inference
    reference.py    the float64 definition of everything, for tests and for reading
    _explain.py     conversions and error texts         _dispatch.py   which build of the kernels runs, and why
    _threads.py     what a number of threads means      _integers.py   what counts as an integer
    caffe/          Caffe's layers and files, an optional part      _cpu.pyx   what the CPU is, its floating-point mode
    optional.py     what such parts check and compute by themselves
    cli.py, commands.py, demo/, bench/  the command `fastbn`

What every result promises: statistics are carried in float64; bits depend on values, shape and memory order of x alone,
not on threads, instruction set, alignment or `out=` (except for the payload and sign of NaN, and for a backward from y
alone, which agrees to rounding); nothing is written where an argument is wrong; there is no full-size temporary.
"""

from __future__ import annotations

from importlib import metadata as _metadata

try:
    from fastbn import _threads  # first: it says how OpenMP's threads wait
except ModuleNotFoundError as _error:
    if _error.name not in ("fastbn._core", "fastbn._cpu"):
        raise
    raise ImportError(
        f"fastbn's compiled modules are not in {__path__[0]}. If that is a source checkout, Python found it before the "
        "installed package: run from another folder, use the `fastbn` and `pytest` commands, or install with "
        "`pip install -e .`"
    ) from _error

from fastbn import _core, _dispatch, reference
from fastbn._threads import get_num_threads, num_threads, set_num_threads
from fastbn.folding import fold_batch_norm
from fastbn.functional import (
    backward_apply,
    backward_sums,
    batch_norm,
    batch_norm_backward,
    batch_stats,
    normalize,
    population_stats,
)
from fastbn.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.statistics import BatchStats, Gradients, GradientSums

__version__ = _metadata.version("fastbn")
isa = _dispatch.isa
_threads.start()


def show_config() -> None:
    """Print version, kernels in use and why, OpenMP, threads, compiler and flags.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.show_config()  # doctest: +ELLIPSIS
    fastbn ...
    """
    from fastbn import _cpu

    openmp = ("none: serial build", "yes, one thread after a fork", "yes, safe with fork")[_core.openmp()]
    for name, value in {
        "fastbn": __version__,
        "kernels": f"{isa} ({_dispatch.reason})",
        "OpenMP": openmp,
        "threads": get_num_threads(),
        "compiler": _cpu.compiler(),
        "build": _core.build(),
    }.items():
        print(f"{name:9}{value}")


__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchStats",
    "GradientSums",
    "Gradients",
    "__version__",
    "backward_apply",
    "backward_sums",
    "batch_norm",
    "batch_norm_backward",
    "batch_stats",
    "fold_batch_norm",
    "get_num_threads",
    "isa",
    "normalize",
    "num_threads",
    "population_stats",
    "reference",
    "set_num_threads",
    "show_config",
]
