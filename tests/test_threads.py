"""What a number of threads means, and that threads, forks and Python's own threads go together."""

import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import fastbn
from fastbn import _core, _cpu, _threads

PARALLEL = _core.openmp() > 0
needs_openmp = pytest.mark.skipif(not PARALLEL, reason="a serial build of fastbn")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")

LARGE = (8, 16, 1000)


@pytest.fixture(autouse=True)
def _settings_stay():
    before = _core.chosen_threads()
    yield
    _core.set_threads(before, _threads._granted())


def python(script, folder, timeout=60, **environment):
    """The output of a Python script that runs far from the checkout. A script that hangs is a failure."""
    names = (
        "FASTBN_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT",
        "OMP_WAIT_POLICY",
    )  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=folder, env={**clean, **environment}, timeout=timeout,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def printed(script, folder, **options):
    ran = python(script, folder, **options)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


# ---- set, get, with


@needs_openmp
@pytest.mark.parametrize("n", [1, 3, np.int64(2), 1024])
def test_set_and_get(n):
    assert fastbn.set_num_threads(n) is None
    assert fastbn.get_num_threads() == n
    assert type(fastbn.get_num_threads()) is int


@pytest.mark.parametrize(
    ("n", "error", "text"),
    [
        (0, ValueError, "n: expected 1 to 1024 threads, got 0"),
        (-1, ValueError, "n: .*got -1"),
        (1025, ValueError, "n: .*got 1025"),
        (2**70, ValueError, "n: "),
        (True, TypeError, "n: expected an integer, got a bool"),
        (2.0, TypeError, "n: expected an integer, got float"),
        ("2", TypeError, "n: expected an integer, got str"),
        (None, TypeError, "n: expected an integer, got NoneType"),
    ],
    ids=repr,
)
def test_wrong_numbers(n, error, text):
    fastbn.set_num_threads(1)
    with pytest.raises(error, match=text):
        fastbn.set_num_threads(n)
    with pytest.raises(error, match=text):
        fastbn.num_threads(n)  # before a block is entered
    assert _core.chosen_threads() == 1


@needs_openmp
def test_num_threads_nests_and_restores():
    fastbn.set_num_threads(4)
    with fastbn.num_threads(2):
        assert fastbn.get_num_threads() == 2
        with fastbn.num_threads(3):
            assert fastbn.get_num_threads() == 3
        assert fastbn.get_num_threads() == 2
    assert fastbn.get_num_threads() == 4
    with pytest.raises(KeyError), fastbn.num_threads(1):
        raise KeyError
    assert fastbn.get_num_threads() == 4


@needs_openmp
def test_num_threads_is_a_decorator_too():
    fastbn.set_num_threads(2)
    assert fastbn.num_threads(3)(fastbn.get_num_threads)() == 3
    assert fastbn.get_num_threads() == 2


@needs_openmp
def test_num_threads_restores_that_nothing_was_set():
    _core.set_threads(0, 5)
    with fastbn.num_threads(3):
        pass
    assert _core.chosen_threads() == 0
    with threadpoolctl.threadpool_limits(1, "openmp"):
        assert fastbn.get_num_threads() == 1


@needs_openmp
def test_after_a_block_as_many_threads_as_before():
    _core.set_threads(0, _threads._granted())
    before = fastbn.get_num_threads()
    with fastbn.num_threads(before + 2):
        assert fastbn.get_num_threads() == before + 2
    assert fastbn.get_num_threads() == before


def test_settings_are_those_of_the_process():
    fastbn.set_num_threads(3)
    seen = []
    thread = threading.Thread(target=lambda: (seen.append(fastbn.get_num_threads()), fastbn.set_num_threads(2)))
    thread.start()
    thread.join()
    assert seen == [3]
    assert fastbn.get_num_threads() == 2


@needs_openmp
def test_limit_of_threadpoolctl():
    _core.set_threads(0, 5)
    with threadpoolctl.threadpool_limits(4, "openmp"):
        assert fastbn.get_num_threads() == 4
        with threadpoolctl.threadpool_limits(1, "openmp"):
            assert fastbn.get_num_threads() == 1
    with threadpoolctl.threadpool_limits(9, "openmp"):
        assert fastbn.get_num_threads() == 5  # what the machine grants
        fastbn.set_num_threads(7)
        assert fastbn.get_num_threads() == 7  # what was asked for


# ---- environment

NUMBER = "import fastbn; print(fastbn.get_num_threads())"


@needs_openmp
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, _threads._granted()),
        ({"FASTBN_NUM_THREADS": ""}, _threads._granted()),
        ({"FASTBN_NUM_THREADS": "3"}, 3),
        ({"FASTBN_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1000"}, _threads._granted()),
        ({"OMP_PROC_BIND": "true"}, _threads._granted()),  # the main thread is bound to one processor then
        ({"OMP_PROC_BIND": "false"}, _threads._granted()),
    ],
    ids=str,
)
def test_environment(environment, expected, tmp_path):
    assert printed(NUMBER, tmp_path, **environment) == str(expected)


@pytest.mark.parametrize("text", ["0", "-2", "two", "2.5", "2,1", "1025"])
def test_wrong_environment(text, tmp_path):
    ran = python(NUMBER, tmp_path, FASTBN_NUM_THREADS=text)
    assert ran.returncode != 0
    assert "ValueError: FASTBN_NUM_THREADS: expected 1 to 1024 threads, got " in ran.stderr
    assert text in ran.stderr.splitlines()[-1]


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity on this system")
def test_affinity(tmp_path):
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert printed(one + NUMBER, tmp_path) == "1"
    assert printed(one + NUMBER, tmp_path, OMP_NUM_THREADS="8") == "1"
    assert printed(one + NUMBER, tmp_path, FASTBN_NUM_THREADS="2") == "2"


WAITS = "import os, fastbn; print({k: v for k, v in os.environ.items() if k in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')})"


@pytest.mark.parametrize(
    "given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=lambda given: str(*given)
)
def test_environment_stays_as_it_was(given, tmp_path):
    assert printed(WAITS, tmp_path, **given) == str(given)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("flags", "expected"), [([], "0 1"), (["-fopenmp"], "[12] 3")], ids=["serial", "OpenMP"])
def test_a_build_with_and_without_openmp(flags, expected, tmp_path):
    """What either has for OpenMP's answers: the kind of build and its most threads."""
    source, program = tmp_path / "openmp.c", tmp_path / "openmp"
    source.write_text("""
#include <stdio.h>
#include "platform.h"
int main(void) { openmp_pause(); printf("%d %d", openmp_kind(), openmp_max_threads()); return 0; }
""")
    kernels = Path(__file__).parents[1] / "fastbn/_kernels"
    built = subprocess.run(["cc", f"-I{kernels}", str(source), "-o", str(program), *flags], check=False)
    if built.returncode != 0 and flags:
        pytest.skip("this compiler has no OpenMP")
    assert built.returncode == 0
    told = subprocess.run([program], env={"OMP_NUM_THREADS": "3"}, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(expected, told)


@needs_openmp
@pytest.mark.skipif("gcc" not in _cpu.compiler(), reason="libgomp alone has this variable")
@pytest.mark.parametrize(("given", "used"), [({}, 1000), ({"GOMP_SPINCOUNT": "7"}, 7)], ids=["default", "set"])
def test_waiting_threads_do_not_spin_for_long(given, used, tmp_path):
    ran = python("import fastbn", tmp_path, OMP_DISPLAY_ENV="verbose", **given)
    assert f"GOMP_SPINCOUNT = '{used}'" in ran.stderr


@needs_openmp
@pytest.mark.skipif("gcc" not in _cpu.compiler(), reason="libgomp alone tells of its variables")
def test_a_wait_policy_of_the_user_stays(tmp_path):
    said = python("import fastbn", tmp_path, OMP_DISPLAY_ENV="verbose", OMP_WAIT_POLICY="active").stderr
    assert "GOMP_SPINCOUNT = " in said
    assert "GOMP_SPINCOUNT = '1000'" not in said


QUOTAS = {
    "none": ({}, math.inf),
    "v2": ({"cpu.max": "150000 100000\n"}, 1.5),
    "v2 below one": ({"cpu.max": "20000 100000\n"}, 0.2),
    "v2 unlimited": ({"cpu.max": "max 100000\n"}, math.inf),
    "v2, this group's": ({"own": "0::/a/b\n", "cpu.max": "max 100000", "a/b/cpu.max": "150000 100000\n"}, 1.5),
    "v2, that around it": ({"own": "0::/a/b\n", "a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
    "v2, the least": ({"own": "1:cpu:/b\n0::/a\n", "a/cpu.max": "300000 100000", "cpu.max": "200000 100000"}, 2.0),
    "v2, seen from inside": ({"own": "0::/not/here\n", "cpu.max": "150000 100000\n"}, 1.5),
    "v2, outside": ({"own": "0::/../a\n", "cpu.max": "150000 100000\n"}, 1.5),
    "v1": ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    "v1 unlimited": ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    "v1 without period": ({"cpu/cpu.cfs_quota_us": "400000\n"}, math.inf),
    "v2 before v1": (
        {"cpu.max": "200000 100000", "cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
        2.0,
    ),
    "empty": ({"cpu.max": ""}, math.inf),
    "words": ({"cpu.max": "some words"}, math.inf),
    "too many": ({"cpu.max": "1 2 3"}, math.inf),
    "not a number": ({"cpu.max": "nan 100000"}, math.inf),
    "zero": ({"cpu.max": "0 100000"}, math.inf),
    "period 0": ({"cpu.max": "100000 0"}, math.inf),
    "v1 words": ({"cpu/cpu.cfs_quota_us": "x", "cpu/cpu.cfs_period_us": "y"}, math.inf),
    "v1 bytes": ({"cpu/cpu.cfs_quota_us": b"\xff\xfe", "cpu/cpu.cfs_period_us": b"\xff"}, math.inf),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_cgroup_quota(files, expected, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert _threads._cgroup_quota(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(0.2, 1), (1.0, 1), (1.5, 2), (math.inf, 8), (100.0, 8)], ids=lambda v: str(v)
)
def test_granted_is_the_quota_rounded_up(quota, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: quota)
    assert _threads._granted() == expected


@pytest.mark.parametrize(("told", "expected"), [(6, 6), (None, 1)])
def test_granted_where_the_system_has_no_affinity(told, expected, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: math.inf)
    assert _threads._granted() == expected


# ---- threads are there when there is work for them

TASKS = """
import os, numpy as np, fastbn
tasks = lambda: len(os.listdir("/proc/self/task"))
fastbn.set_num_threads({threads})
x = np.ones({shape}, np.float32)
before = tasks()
fastbn.batch_norm(x)
print(tasks() - before)
"""


@needs_openmp
@needs_proc
@pytest.mark.parametrize(
    ("threads", "shape", "expected"),
    [
        (3, (2, 5, 65536 // 10), 0),
        (3, (2, 5, 65536 // 10 + 1), 2),
        (3, (2, 1, 32768), 2),
        (3, (65536, 1), 2),
        (1, LARGE, 0),
        (4, LARGE, 3),
    ],
)
def test_large_arrays_are_shared(threads, shape, expected, tmp_path):
    assert printed(TASKS.format(threads=threads, shape=shape), tmp_path) == str(expected)


# ---- fork

FORK_HEAD = """
import multiprocessing, os, sys, threading, numpy as np, fastbn
fastbn.set_num_threads(3)
x = np.random.default_rng(0).normal(size=(8, 16, 1000)).astype(np.float32)

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 3

def right():
    return bool(np.array_equal(fastbn.batch_norm(x)[0], expected))

def in_parallel():
    before = tasks()
    result = right()
    return result and (tasks() >= 3 or not THREADS_AFTER_FORK)

def forked():
    child = os.fork()
    if child == 0:
        os._exit(0 if in_parallel() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

THREADS_AFTER_FORK = fastbn._core.openmp() == 2
with fastbn.num_threads(1):
    expected = fastbn.batch_norm(x)[0]
assert right()  # in parallel, before any fork
"""

FORKS = {
    "os.fork": """
assert forked() == 0
assert in_parallel()
assert forked() == 0
assert in_parallel()
""",
    "multiprocessing": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.apply(right) and pool.apply(right)
    assert in_parallel()
assert in_parallel()
""",
    "another thread": """
found = []
def work():
    assert right()
    found.append(forked())
    found.append(in_parallel())
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert found == [0, True], found
assert forked() == 0 and in_parallel()
""",
    "a thread that has not computed": """
found = []
thread = threading.Thread(target=lambda: found.append(forked()))
thread.start()
thread.join()
assert found == [0] and in_parallel()
""",
    "while other threads compute": """
stop = threading.Event()
busy = lambda: [fastbn.batch_norm(x) for _ in iter(stop.is_set, True)]
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    assert [forked() for _ in range(10)] == [0]*10
finally:
    stop.set()
for thread in threads:
    thread.join()
assert in_parallel()
""",
    "child of a child": """
def again():
    assert in_parallel()
    os._exit(forked())
child = os.fork()
if child == 0:
    again()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
}


@needs_fork
@pytest.mark.parametrize("body", FORKS.values(), ids=FORKS)
def test_fork_after_a_parallel_call(body, tmp_path):
    assert printed(FORK_HEAD + body + "\nprint('end')", tmp_path) == "end"


@needs_fork
def test_one_thread_after_a_fork_that_openmp_does_not_survive(tmp_path):
    """Whatever is set in the child. (No such OpenMP is here: this one is said to be one.)"""
    body = """
fastbn._core.openmp = lambda: fastbn._threads.UNSAFE_WITH_FORK
fastbn._threads.start()
fastbn.set_num_threads(3)

def alone():
    return fastbn.get_num_threads() == 1 and right() and (tasks() == 1 or not os.path.exists("/proc/self/task"))

with fastbn.num_threads(2):
    child = os.fork()
if child == 0:      # the end of the block was the first to set a number here
    found = alone()
    fastbn.set_num_threads(3)
    with fastbn.num_threads(2):
        os._exit(0 if found and alone() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert fastbn.get_num_threads() == 3
"""
    assert printed(FORK_HEAD + body + "\nprint('end')", tmp_path) == "end"


# ---- many Python threads


def test_many_python_threads_at_once():
    """Each thread has its own arrays; all start at a barrier; everyone's results are those of a thread alone."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(i, 1, size=(9, 4 + i, 40 if i % 2 else 2500)).astype(np.float32) for i in range(8)]

    def compute(x):
        y, stats = fastbn.batch_norm(x)
        gradients = fastbn.batch_norm_backward(y, x, stats)
        return b"".join(a.tobytes() for a in (y, stats.mean, stats.var, gradients.dx, gradients.dgamma))

    fastbn.set_num_threads(2)
    expected = [compute(x) for x in arrays]
    found = [None] * len(arrays)
    barrier = threading.Barrier(len(arrays))

    def work(i):
        barrier.wait(timeout=30)
        found[i] = [compute(arrays[i]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(arrays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [[bits] * 10 for bits in expected]


def test_small_stack():
    """A thread with little stack (musl's default is 128 KiB) is enough for any memory order."""
    before = threading.stack_size(128 * 1024)
    done = []

    def work(x):
        y, stats = fastbn.batch_norm(x)
        done.append(fastbn.batch_norm_backward(y, x, stats).dx.shape)

    try:
        fastbn.set_num_threads(1)
        for shape in ((70, 300), (5, 30, 50)):
            thread = threading.Thread(target=work, args=(np.ones(shape),))
            thread.start()
            thread.join()
    finally:
        threading.stack_size(before)
    assert done == [(70, 300), (5, 30, 50)]


CALLS = {
    "batch_stats": lambda x, dy, stats: fastbn.batch_stats(x),
    "batch_norm": lambda x, dy, stats: fastbn.batch_norm(x, out=dy),
    "backward": lambda x, dy, stats: fastbn.batch_norm_backward(dy, x, stats, out=dy),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_other_python_threads_run_during_a_call(call):
    """The GIL is released: with a switch interval of an hour, another thread only runs when a call lets it."""
    x = np.ones((16, 8, 40000), np.float32)  # long enough for a waiting thread to be woken
    dy, stats = np.ones_like(x), fastbn.batch_stats(x)
    ready, stop = threading.Event(), threading.Event()
    steps = [0]

    def count():
        ready.set()
        while not stop.is_set():
            steps[0] += 1
            if steps[0] % 1000 == 0:
                stop.wait(1e-6)  # lets the main thread go on

    fastbn.set_num_threads(1)
    before = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    try:
        sys.setswitchinterval(3600)
        thread.start()
        ready.wait()
        for _ in range(200):
            start = steps[0]
            call(x, dy, stats)
            if steps[0] > start:
                break
        progressed = steps[0] > start
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
    assert progressed
