"""What a number of threads means. Nobody else reads thread variables, affinity or quotas.

A call uses one thread or the whole team, never a number between: changing the size of a team costs up to a millisecond.
The team is what `set_num_threads` or FASTBN_NUM_THREADS said; else what OpenMP would use (OMP_NUM_THREADS,
threadpoolctl), but no more than the processors that this process may run on, or that OpenMP's threads are bound to, and
than its cgroup's quota pays for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from fastbn._integers import as_integer


@contextmanager
def _short_waits() -> Iterator[None]:
    """Load libgomp inside this block, and its waiting threads spin for some 10 us before they sleep, not for ms.

    NumPy's matrix product leaves OpenBLAS's threads spinning for a while. A team of libgomp's that spins too, as it
    does by default, leaves no processor for a thread that has work: a layer after a matmul took ten times as long.
    What the user has set stays. libgomp reads the variable once, when it is loaded.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


with _short_waits():
    import fastbn._core as _core

SERIAL, UNSAFE_WITH_FORK = 0, 1


def set_num_threads(n: int) -> None:
    """Use n threads for large arrays, in the whole process. Results do not depend on it.

    Parameters
    ----------
    n : int
        1 to 1024. A build without OpenMP always uses 1.

    Raises
    ------
    TypeError, ValueError
        n is not an integer, or not 1 to 1024.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.set_num_threads(1)
    >>> fastbn.get_num_threads()
    1
    """
    _core.set_threads(_checked(n, "n"), _granted())


def get_num_threads() -> int:
    """How many threads the next large call will use.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.get_num_threads() >= 1
    True
    """
    return _core.get_threads()


def num_threads(n: int) -> AbstractContextManager[None]:
    """Use n threads inside a ``with`` block (in the whole process), then what was set before.

    Parameters
    ----------
    n : int
        As in `set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        As in `set_num_threads`.

    Examples
    --------
    >>> import fastbn
    >>> with fastbn.num_threads(1):
    ...     fastbn.get_num_threads()
    1
    """
    return _threads_inside(_checked(n, "n"))  # checked by the call, not when the block is entered


@contextmanager
def _threads_inside(threads: int) -> Iterator[None]:
    before = _core.chosen_threads()
    _core.set_threads(threads, _granted())
    try:
        yield
    finally:
        _core.set_threads(before, _granted())


def _checked(n: object, name: str) -> int:
    threads = as_integer(name, n)
    if not 1 <= threads <= 1024:
        raise ValueError(f"{name}: expected 1 to 1024 threads, got {threads}")
    return threads


def _granted() -> int:
    """Processors that this process may use: affinity or OpenMP's binding, and the cgroup's quota rounded up."""
    try:
        processors = _core.bound_processors() or len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        processors = os.cpu_count() or 1
    return max(1, math.ceil(min(processors, _cgroup_quota())))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processors' worth of time that the cgroup and all around it grant (version 2; of version 1 the root's), or
    infinity.
    """
    inside = next((line[4:] for line in _text(own).splitlines() if line.startswith("0::/")), "")
    group = root / inside
    quotas = [_text(folder / "cpu.max") for folder in (group, *group.parents) if folder.is_relative_to(root)]
    if not any(quotas):
        quotas = [_text(root / "cpu/cpu.cfs_quota_us") + " " + _text(root / "cpu/cpu.cfs_period_us")]
    return min(_share(quota) for quota in quotas)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # not there, or no text
        return ""


def _share(quota: str) -> float:
    """What a quota and its period come to, infinity where there is no limit."""
    try:
        time, period = map(float, quota.split())
        share = time / period
    except (ValueError, ZeroDivisionError):  # "max", or nothing
        return math.inf
    return share if share > 0 else math.inf


def _from_environment() -> int:
    """FASTBN_NUM_THREADS, 0 where it is not set."""
    text = os.environ.get("FASTBN_NUM_THREADS", "")
    if not text:
        return 0
    try:
        return _checked(int(text), "FASTBN_NUM_THREADS")
    except ValueError:
        raise ValueError(f"FASTBN_NUM_THREADS: expected 1 to 1024 threads, got {text!r}") from None


def start() -> None:
    """Take the numbers from environment and machine, and make forks safe. Called once, at import."""
    _core.set_threads(_from_environment(), _granted())
    if not hasattr(os, "register_at_fork") or _core.openmp() == SERIAL:
        return
    if _core.openmp() == UNSAFE_WITH_FORK:
        os.register_at_fork(after_in_child=_core.stay_alone)
    else:
        os.register_at_fork(before=_core.pause_threads)
