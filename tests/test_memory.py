"""Peak memory of a process, as the kernel counts it: the arrays and next to nothing more."""

import ctypes
import functools
import mmap
import subprocess
import sys
import tempfile
import threading
import tracemalloc

import numpy as np
import pytest
from numpy._core.multiarray import get_handler_name

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


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the count is of Linux")


@on_linux
def test_a_pass_with_out_takes_less_than_4_mb():
    arrays = peak("nothing")
    assert arrays > 3 * 100 * 1000
    assert peak("forward") < arrays + 4000
    assert peak("backward") < arrays + 4000
    assert peak("formula") > arrays + 90_000  # a temporary would show


UNREAD = """
import mmap, numpy as np, fastbn

shape = (4, 3, 40, 50)
memory = np.frombuffer(mmap.mmap(-1, 4 * 24_000, prot=0), np.float32)   # to read it ends the process
memory = memory[::-1]   # such an array is gathered, where it is needed
v, (x, dy, y) = np.ones(3), np.ones((3, *shape), np.float32)
stats, sums = fastbn.BatchStats(8000, v, v), fastbn.GradientSums(v, v)
full, apply = fastbn.batch_norm_backward, fastbn.backward_apply
behind = {"residual": True, "activation": "relu", "need_params": False}
for order in (shape, (4, 40, 50, 3)):   # planes, then rows
    x, dy, y, hidden = (a.reshape(order) for a in (x, dy, y, memory))
    if order != shape:
        x, dy, y, hidden = (a.transpose(0, 3, 1, 2) for a in (x, dy, y, hidden))
    full(dy, hidden, (v, v), v, v, training=False, need_params=False)
    full(dy, hidden, (v, v), v, v, y=y, training=False, **behind)
    full(dy, hidden, stats, v, v, y=y, need_dx=False, **behind)
    full(hidden, hidden, stats, v, v, activation="relu", need_dx=False, need_params=False)
    full(dy, x, stats, v, v, y=hidden, residual=True)
    apply(dy, hidden, (v, v), sums, v, v, training=False)
    apply(hidden, hidden, stats, sums, v, v, activation="relu", need_dx=False)
print("end", flush=True)
"""


@on_linux
def test_what_a_backward_does_not_need_is_not_read():
    """With statistics that are constants dx is dy times a number; where y tells of the mask, x need not."""
    for more, ends_well in (("", True), ("full(dy, hidden, stats)", False)):  # that one needs x
        command = [sys.executable, "-c", UNREAD + more]
        found = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
        assert found.stdout == "end\n", found.stderr
        assert (found.returncode == 0) is ends_well


def traced_peak(call):
    """The most bytes that NumPy's arrays and Python's objects took during a call, beside those that were there."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_array_is_taken_for_what_is_not_asked_for():
    x, dy = np.ones((2, 8, 4, 100, 100), np.float32)
    stats, sums = fastbn.batch_stats(x), fastbn.GradientSums(np.ones(4), np.ones(4))
    behind = {"activation": "relu", "residual": True, "y": x}
    for call in (
        lambda: fastbn.batch_stats(x),
        lambda: fastbn.backward_sums(dy, x, stats),
        lambda: fastbn.backward_sums(dy, x, stats, **behind),
        lambda: fastbn.batch_norm_backward(dy, x, stats, need_dx=False),
        lambda: fastbn.backward_apply(dy, x, stats, sums, need_dx=False),
    ):
        assert traced_peak(call) < x.nbytes // 20
    full = functools.partial(fastbn.batch_norm_backward, dy, x, stats)
    assert x.nbytes < traced_peak(full) < 1.05 * x.nbytes
    # dx and dresidual
    assert 2 * x.nbytes < traced_peak(functools.partial(full, **behind)) < 2.05 * x.nbytes
    assert x.nbytes < traced_peak(functools.partial(full, **behind, need_dx=False)) < 1.05 * x.nbytes


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

    vector = gamma.nbytes
    with fastbn.num_threads(1):
        forward = functools.partial(fastbn.batch_norm, x, gamma, beta, **options, out=out)
        assert traced_peak(forward) < 2 * vector + (1 << 20)
        inference = functools.partial(fastbn.normalize, x, *stats[1:], gamma, beta, **options, out=out)
        assert traced_peak(inference) < 1 << 20
        backward = functools.partial(fastbn.batch_norm_backward, dy, x, stats, gamma, beta, **options, out=out)
        assert traced_peak(backward) < 4 * vector + (1 << 20)
    y, _ = fastbn.batch_norm(x, gamma, beta, **options)
    expected, _ = reference.batch_norm(x, gamma, beta, **options)
    # 8 roundings of terms up to 50 (see assert_y); float16 rounds y once more. Gradients: 96 roundings (assert_dx).
    close = {np.float16: (2e-3, 2e-5), np.float32: (0, 2e-5), np.float64: (0, 5e-14)}[dtype]
    np.testing.assert_allclose(y.astype(float), expected, rtol=close[0], atol=close[1])
    expected, found = reference.batch_norm_backward(dy, x, stats, gamma, beta, **options), backward()
    for name in ("dx", "dgamma", "dbeta"):
        a, b = (getattr(g, name).astype(float) for g in (found, expected))
        of_largest = {np.float16: 1e-3, np.float32: 1e-6, np.float64: 2e-14}[dtype]
        np.testing.assert_allclose(a, b, rtol=0, atol=of_largest * abs(b).max())
    with fastbn.num_threads(3):
        for name, a in backward()._asdict().items():
            assert a is None or a.tobytes() == getattr(found, name).tobytes(), name


@pytest.mark.parametrize("samples", [64, 65])  # of channels with as many values as notes are left of, and with more
def test_notes_take_little_memory(samples):
    """What a backward behind a residual needs beside its results, for each thread."""
    x, y, dx, dresidual = (np.ones((samples, 4, 128, 128), np.float32) for _ in range(4))
    stats, each = fastbn.batch_stats(x), {64: 1 << 19, 65: 1 << 16}[samples]
    for threads in (1, 2):
        with fastbn.num_threads(threads):
            peak = traced_peak(
                lambda: fastbn.batch_norm_backward(
                    x, x, stats, activation="relu", residual=True, y=y, out=(dx, dresidual), need_params=False
                )
            )
        assert peak < threads * each


# ---- memory of large results: where it begins; that of the last one that was freed is kept, lent to the system, for
# the next

LARGE = (2, 4, 1500, 1500)  # 72 MB
SIZE = 4 * 2 * 4 * 1500**2


def system_lends():
    """Whether the system knows what it is to have memory until it is written again."""
    try:
        mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE).madvise(mmap.MADV_FREE)
    except (AttributeError, OSError):
        return False
    return sys.platform == "linux"


lending = pytest.mark.skipif(not system_lends(), reason="results are kept only where the system may have their memory")


def large(seed=0, shape=LARGE):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def in_a_process(work):
    """What a process prints that has x, of LARGE, and `status(name)`, in bytes, of what Linux counts."""
    before = f"""
import numpy as np, fastbn
def status(name, file="status"):
    return 1024*int(next(line.split()[1] for line in open("/proc/self/" + file) if line.startswith(name)))
x = np.ones({LARGE}, np.float32)
x[0] = 2
"""
    command = [sys.executable, "-c", before + work]
    found = subprocess.run(command, cwd=tempfile.gettempdir(), check=True, capture_output=True).stdout
    return [int(line) for line in found.split()]


@lending
def test_memory_of_a_freed_result_is_used_again():
    """By any call that makes a result of the same size; what stands in it is the same as ever."""
    x, dy = large(), large(1)
    expected, stats = fastbn.batch_norm(x, out=np.empty_like(x))
    expected_dx = fastbn.batch_norm_backward(dy, x, stats, out=np.empty_like(x)).dx
    y, _ = fastbn.batch_norm(x)
    place = y.ctypes.data
    np.testing.assert_array_equal(y, expected)
    del y
    dx = fastbn.batch_norm_backward(dy, x, stats).dx
    assert dx.ctypes.data == place
    np.testing.assert_array_equal(dx, expected_dx)
    view = dx[1:, ::2]
    del dx
    y, _ = fastbn.batch_norm(x)  # a view still holds the memory
    assert abs(y.ctypes.data - place) >= SIZE
    np.testing.assert_array_equal(view, expected_dx[1:, ::2])
    np.testing.assert_array_equal(y, expected)


@lending
def test_kept_memory_is_the_systems_for_the_asking():
    kept, lent = in_a_process("""
y, _ = fastbn.batch_norm(x)
del y
print(status("Rss", "smaps_rollup"), status("LazyFree", "smaps_rollup"))
""")
    assert kept > 2 * SIZE
    assert SIZE - (8 << 20) < lent <= SIZE


@lending
def test_the_system_may_take_kept_memory():
    """Asked to page it out, it drops what was lent; the same memory then takes the next result."""
    taken, left, same, right = in_a_process("""
import ctypes, mmap
y, _ = fastbn.batch_norm(x)
expected, place, size = y.copy(), y.ctypes.data, y.nbytes
del y
page = mmap.PAGESIZE
begin, end = place//page*page, -(-(place + size)//page)*page  # with what stands before and behind
before = status("Rss", "smaps_rollup")
ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 21)  # MADV_PAGEOUT
print(before - status("Rss", "smaps_rollup"), status("LazyFree", "smaps_rollup"))
y, _ = fastbn.batch_norm(x)
print(int(y.ctypes.data == place), int(np.array_equal(y, expected)))
""")
    assert (same, right) == (1, 1)
    if left > 0:
        pytest.skip("this system does not page out on demand")
    assert taken > SIZE - (8 << 20)


@lending
def test_kept_memory_adds_nothing_to_a_peak():
    """A result of another size gives back what is kept; forget_result() does, too."""
    arrays, peak, after, forgotten = in_a_process("""
before = status("VmRSS")
y, _ = fastbn.batch_norm(x)
del y
other = x[:1].copy()
y, _ = fastbn.batch_norm(other)
print(before, status("VmHWM"), status("VmRSS"))
del y, other
y, _ = fastbn.batch_norm(x)
del y
fastbn._core.forget_result()
print(status("VmRSS"))
""")
    assert peak < arrays + SIZE + SIZE // 2 + (4 << 20)  # before it is given back, half of it stands in `other`
    assert after < arrays + SIZE + (4 << 20)
    assert forgotten < arrays + (4 << 20)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", "CF")
def test_where_large_results_begin(dtype, order):
    """With a page, and so with a cache line."""
    x = np.ones((16, 64, 32, 32), dtype, order)
    y, stats = fastbn.batch_norm(x)
    gradients = fastbn.batch_norm_backward(x, x, stats, activation="relu", residual=True, y=y)
    results = y, fastbn.normalize(x, stats.mean, stats.var), gradients.dx, gradients.dresidual
    assert {a.ctypes.data % 4096 for a in results} == {0}
    assert all(a.flags.owndata and a.strides == x.strides for a in results)


def test_small_results_are_numpys():
    y, _ = fastbn.batch_norm(np.ones((2, 3), np.float32))
    assert get_handler_name(y) == "default_allocator"


def test_any_memory_may_be_had_as_that_of_results():
    """What runs while a result is made, a finalizer, gets its memory so, whatever it does with it."""
    y, _ = fastbn.batch_norm(np.ones((16, 64, 32, 32), np.float32))
    field = id(y) + object.__basicsize__ + 72  # mem_handler of PyArrayObject
    handler_of = ctypes.cast(field, ctypes.POINTER(ctypes.py_object))[0]
    _, choose = numpys_handlers()
    before = choose(handler_of)
    try:
        arrays = [np.arange(n, dtype=np.float64) for n in (1, 3, 1000, 1 << 18)]
        zeros = [np.zeros(n) for n in (1, 3, 1000, 1 << 18)]
        nothing = np.empty((0, 3))
    finally:
        choose(before)
    assert all(get_handler_name(a) == "fastbn" for a in (*arrays, *zeros, nothing))
    for n, a, z in zip((1, 3, 1000, 1 << 18), arrays, zeros, strict=True):
        assert np.array_equal(a, range(n))
        assert not z.any()
        for size in (2 * n, n + 5, 1, 0, 4 * n):
            some, was = min(size, a.size), a.copy()
            a.resize(size, refcheck=False)
            assert np.array_equal(a[:some], was[:some])
            assert not a[some:].any()


@lending
def test_a_kept_result_is_an_array_like_any_other():
    x = large()
    y, _ = fastbn.batch_norm(x)
    assert get_handler_name(y) == "fastbn"
    assert get_handler_name() == get_handler_name(y.copy()) == "default_allocator"
    assert y.flags.owndata
    assert y.base is None
    first = y.ravel()[:7].copy()
    y.resize(7, refcheck=False)
    np.testing.assert_array_equal(y, first)
    y.resize(9_000_000, refcheck=False)  # large again, and freed so
    np.testing.assert_array_equal(y[:7], first)
    assert not y[7:].any()
    del y
    z = fastbn.normalize(x, np.zeros(4), np.ones(4))
    np.testing.assert_allclose(z, x / np.float32(np.sqrt(1 + 1e-5)), rtol=1e-6)


def numpys_handlers():
    """NumPy's own handler of memory, and its function that chooses one."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    table = ctypes.cast(pointer(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    choose = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])
    default = ctypes.cast(table[306], ctypes.POINTER(ctypes.py_object))[0]
    return pointer(default, b"mem_handler"), choose


def test_memory_is_had_as_a_user_has_told_numpy_to():
    default, choose = numpys_handlers()
    own = ctypes.create_string_buffer(ctypes.string_at(default, 128 + 5 * 8))
    own[:7] = b"a user\0"
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.argtypes, capsule.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
    before = choose(capsule(ctypes.addressof(own), b"mem_handler", None))
    try:
        y, _ = fastbn.batch_norm(large())
        assert get_handler_name(y) == get_handler_name() == "a user"
        del y
    finally:
        choose(before)
    assert get_handler_name() == "default_allocator"


@on_linux
def test_no_memory_for_a_result():
    """MemoryError, and NumPy is as it was."""
    (found,) = in_a_process("""
import resource
from numpy._core.multiarray import get_handler_name
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (20 << 20),)*2)
try:
    fastbn.batch_norm(x)
except MemoryError:
    print(int(get_handler_name() == "default_allocator"))
""")
    assert found == 1


def test_kept_memory_and_threads():
    """No two results that live have the same memory, whoever frees and asks. (Only where there is no GIL is memory had
    and freed by two threads at once.)
    """
    inputs = [large(k, (1, 2, 2100, 2100)) for k in range(3)]
    expected = [fastbn.batch_norm(x, out=np.empty_like(x))[0] for x in inputs]
    wrong = []

    def work(k):
        for _ in range(6):
            y, _ = fastbn.batch_norm(inputs[k])
            if not np.array_equal(y, expected[k]):
                wrong.append(k)
            del y

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
