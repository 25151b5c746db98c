"""Promise P2: the bits of every result depend on the values, the shape and the memory order of x alone.

Everything here is compared byte by byte, and nothing with recorded bits: a faster kernel may change them. Run as a
script, this file prints a digest of the whole battery for the build of the kernels that FASTBN_ISA asks for.
"""

import ctypes
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from arrays import LAYOUTS, WRITEABLE, broadcasts, constant, differing

import fastbn
from fastbn import _core, _cpu, caffe

DTYPES = [np.float32, np.float64]

# name: (shape, axes from the outermost in memory to the innermost). The large ones are shared by threads, and the
# results of the largest are written past the cache.
CASES = {
    "nchw": ((4, 3, 5, 7), (0, 1, 2, 3)),
    "nc": ((40, 7), (0, 1)),
    "nc, channels outside": ((40, 7), (1, 0)),
    "ncl, channels innermost": ((5, 21, 6), (0, 2, 1)),
    "ncl, samples innermost": ((6, 5, 21), (2, 1, 0)),
    "one sample": ((1, 3, 50), (0, 1, 2)),
    "one channel": ((9, 1, 50), (0, 1, 2)),
    "large nchw": ((5, 16, 30, 31), (0, 1, 2, 3)),
    "large, one channel": ((3, 1, 25000), (0, 1, 2)),
    "large, three channels": ((2, 3, 17, 1000), (0, 1, 2, 3)),
    "large nc": ((700, 130), (0, 1)),
    "large nc, two channels": ((40000, 2), (0, 1)),
    "large nc, wide": ((203, 2500), (0, 1)),
    "large ncl, channels innermost": ((10, 140, 60), (0, 2, 1)),
    "large, samples innermost": ((100, 5, 200), (2, 1, 0)),
    "streamed nchw": ((3, 6, 239, 251), (0, 1, 2, 3)),
    "streamed, short rows": ((2000, 20, 27), (0, 1, 2)),
    "streamed nc": ((9000, 120), (0, 1)),
    "many channels": ((2, 75, 5, 7), (0, 1, 2, 3)),
    "streamed, large channels": ((7, 3, 211, 239), (0, 1, 2, 3)),
    "streamed, shortest rows": ((2100, 60, 9), (0, 1, 2)),
    "streamed, rows of 13x15": ((200, 40, 195), (0, 1, 2)),
}
LARGE = [name for name in CASES if name.startswith(("large", "streamed"))]
SMALL = [name for name in CASES if name not in LARGE]
STREAMED = [name for name in CASES if name.startswith("streamed")]


def laid_out(values, order):
    """A copy whose axes stand in memory in this order."""
    copy = np.ascontiguousarray(values.transpose(order))
    return copy.transpose(np.argsort(order))


def cancelling(values):
    """Runs of noise between runs of large integers whose sum is 0.

    Compensated sums forgive nearly every change of order. Here the sum is only what is left of far larger ones, so that
    its last bits tell.
    """
    large = np.random.default_rng(1).integers(-8, 9, size=values.size) * 2.0**60
    large[values.size // 2 :] = 0
    large[: values.size // 2] *= np.arange(values.size // 2) // 2048 % 2
    large -= large[::-1]
    return np.where(large == 0, values.ravel(), large).reshape(values.shape)


def make(name, dtype):
    """(x, dy, gamma, beta) of a case, with channels that are hard to sum."""
    shape, order = CASES[name]
    rng = np.random.default_rng(list(CASES).index(name))
    x, dy = rng.normal(1, 3, size=shape), rng.normal(size=shape)
    hard = [
        cancelling,
        lambda v: np.sort(v, axis=None).reshape(v.shape),
        lambda v: v + 3e4,
        np.ones_like,
        lambda v: v**7,
    ]
    for c, change in zip(range(shape[1]), hard, strict=False):
        x[:, c] = change(x[:, c])
    dy[:, 0] = cancelling(dy[:, 0])
    gamma = rng.normal(size=shape[1]).astype(np.float32)
    return laid_out(x.astype(dtype), order), dy.astype(dtype), gamma, rng.normal(size=shape[1])


def results(x, dy, gamma, beta, eps=1e-5):
    """Every array that the functions give for these arguments, by name."""
    y, stats = fastbn.batch_norm(x, gamma, beta, eps=eps)
    whole = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, eps=eps)
    constant = fastbn.batch_norm_backward(dy, x, stats[1:], gamma, beta, eps=eps, training=False)
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta, eps=eps)
    measured = fastbn.batch_stats(x)
    return {
        "y": y,
        "mean": stats.mean,
        "var": stats.var,
        "batch_stats.mean": measured.mean,
        "batch_stats.var": measured.var,
        "normalize": fastbn.normalize(x, stats.mean, stats.var, gamma, beta, eps=eps),
        "dx": whole.dx,
        "dgamma": whole.dgamma,
        "dbeta": whole.dbeta,
        "sum_dy": sums.sum_dy,
        "sum_dy_xmu": sums.sum_dy_xmu,
        "backward_apply": fastbn.backward_apply(dy, x, stats, sums, gamma, beta, eps=eps).dx,
        "constant dx": constant.dx,
        "constant dgamma": constant.dgamma,
    }


def test_cases_are_large_enough():
    sizes = {name: np.prod(shape) for name, (shape, _) in CASES.items()}
    assert min(sizes[name] for name in LARGE) >= constant("PARALLEL_FROM") > max(sizes[name] for name in SMALL)
    assert min(sizes[name] for name in STREAMED) * 4 >= constant("STREAM_FROM")
    # short rows: those of few values get their results after their sums, longer ones beside the sums of others
    rows = {name: shape[-1] for name, (shape, _) in CASES.items()}
    assert rows["streamed, short rows"] < constant("LINE_BY_LINE") <= rows["streamed, rows of 13x15"]


# ---- threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LARGE)
def test_threads(name, dtype):
    arguments = make(name, dtype)
    with fastbn.num_threads(1):
        alone = results(*arguments)
    for threads in (2, 3, 4):
        with fastbn.num_threads(threads):
            assert differing(results(*arguments), alone) == [], f"{threads} threads"


# ---- builds of the kernels


def digest():
    """Which kernels ran, and a hash of every result of the battery."""
    hashes = {
        f"{name}, {np.dtype(dtype)}: {part}": hashlib.sha256(array.tobytes()).hexdigest()
        for name in CASES
        for dtype in DTYPES
        for part, array in results(*make(name, dtype)).items()
    }
    return {"isa": fastbn.isa, "kernels": fastbn._dispatch.kernels.__name__, "hashes": hashes}


def digest_of(isa, folder, script=__file__):
    ran = subprocess.run(
        [sys.executable, script], cwd=folder, env={**os.environ, "FASTBN_ISA": isa}, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    return json.loads(ran.stdout)


@pytest.mark.skipif(not _cpu.has_x86_64_v3(), reason="this CPU or operating system does not run x86-64-v3")
def test_builds(tmp_path):
    baseline, v3 = digest_of("baseline", tmp_path), digest_of("x86-64-v3", tmp_path)
    assert (baseline["isa"], v3["isa"]) == ("baseline", "x86-64-v3")
    assert baseline["kernels"] != v3["kernels"]
    assert len(baseline["hashes"]) == len(CASES) * len(DTYPES) * 14
    assert [name for name, bits in baseline["hashes"].items() if v3["hashes"][name] != bits] == []


# ---- ways to write large results: past the cache, or not where a processor streams slowly


@contextmanager
def streaming(slowly):
    """As on a machine of this kind."""
    before = _core.set_streams_slowly(slowly)
    try:
        yield
    finally:
        _core.set_streams_slowly(before)


# Rows long and short, some of which share lines, all large enough in half types; the last for all arrays together.
WRITTEN = {
    "long rows": (6, 5, 301, 301),
    "rows of whole lines": (3, 15, 128, 448),
    "rows in groups": (37, 160, 19, 19),
    "short rows": (90, 160, 13, 13),
    "rows of 49 values": (54, 1600, 7, 7),
    "side by side": (60000, 45),
    "rows whose last part is shorter than a line": (1, 3, 5, 208897),
    "all arrays large": (9, 12, 311, 251),
}


def test_written_results_are_large_enough():
    sizes = {name: 2 * np.prod(shape) for name, shape in WRITTEN.items()}  # bytes of half types
    assert min(sizes.values()) >= constant("STREAM_FROM")
    assert sizes["rows of 49 values"] >= constant("SHORT_HALVES_STREAM_FROM")
    assert [name for name in sizes if 2 * sizes[name] >= constant("SLOW_STREAM_FROM")] == ["all arrays large"]


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [*DTYPES, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", WRITTEN.values(), ids=WRITTEN)
def test_ways_to_write(shape, dtype, activation):
    rng = np.random.default_rng(0)
    x, dy, residual = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    gamma, beta = rng.standard_normal((2, shape[1]), np.float32)
    act = {"activation": activation}

    def all_results():
        y, stats = fastbn.batch_norm(x, gamma, beta, **act)
        joined = fastbn.batch_norm(x, gamma, beta, residual=residual, **act)[0]
        back = {"gamma": gamma, "beta": beta, **act}
        dx, dgamma, dbeta, *_ = fastbn.batch_norm_backward(dy, x, stats, **back)
        both = fastbn.batch_norm_backward(dy, x, stats, y=joined, residual=True, **back)
        inference = fastbn.normalize(x, stats.mean, stats.var, gamma, beta, **act)
        with_residual = fastbn.normalize(x, stats.mean, stats.var, gamma, beta, residual=residual, **act)
        own = x.copy()
        fastbn.batch_norm(own, gamma, beta, out=own, **act)
        return {
            "y": y, "mean": stats.mean, "var": stats.var, "joined": joined, "dx": dx, "dgamma": dgamma, "dbeta": dbeta,
            "dx behind a residual": both.dx, "dresidual": both.dresidual, "inference": inference,
            "with a residual": with_residual, "in place": own,
        }  # fmt: skip

    with streaming(slowly=False), fastbn.num_threads(1):
        expected = all_results()
    assert expected["in place"].tobytes() == expected["y"].tobytes()
    for threads in (1, 2, 5):
        with streaming(slowly=True), fastbn.num_threads(threads):
            assert differing(all_results(), expected) == [], f"{threads} threads"


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [*DTYPES, np.float16, ml_dtypes.bfloat16])
def test_rows_that_begin_at_the_same_place_of_a_page(dtype, activation):
    """Fewer of a channel are summed before its neighbour's, where they are many in large arrays."""
    n, c, h = 70, 320, 7
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((n, c, h, h), np.float32).astype(dtype) for _ in range(2))
    gamma, beta = rng.standard_normal((2, c), np.float32)
    spread = np.empty((n, 2048, h, h), dtype)[:, :c]
    spread[...] = x
    assert n >= constant("SCATTERED")
    assert x.nbytes >= constant("SECOND_LEVEL")
    assert spread.strides[0] % constant("PAGE") == 0
    assert x.strides[0] % constant("PAGE") > x.strides[1]

    def all_results(x):
        y, stats = fastbn.batch_norm(x, gamma, beta, activation=activation)
        dx, dgamma, dbeta, *_ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, activation=activation)
        return {"y": y, "mean": stats.mean, "var": stats.var, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}

    assert differing(all_results(spread), all_results(x)) == []


# ---- where buffers are, what is written to


def placed(values, offset, begin=64):
    """A copy in the same memory order, `offset` bytes behind a multiple of `begin`."""
    order = sorted(range(values.ndim), key=lambda axis: (-abs(values.strides[axis]), axis))
    raw = np.empty(values.nbytes + begin + offset, np.uint8)
    start = -raw.ctypes.data % begin + offset
    shape = [values.shape[axis] for axis in order]
    copy = np.ndarray(shape, values.dtype, buffer=raw.data, offset=start).transpose(np.argsort(order))
    copy[...] = values
    assert (copy.ctypes.data - offset) % begin == 0
    return copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_alignment(name, dtype):
    x, dy, gamma, beta = make(name, dtype)
    aligned = results(placed(x, 0), placed(dy, 0), gamma, beta)
    for offset in sorted({*range(0, 64, x.itemsize), 1, 2, 3, 6, 13, 63}):
        for dy_offset in (0, offset, 63 - offset):
            moved = results(placed(x, offset), placed(dy, dy_offset), placed(gamma, offset), placed(beta, dy_offset))
            assert differing(moved, aligned) == [], (offset, dy_offset)


# Layouts for large arrays: one way into each loop.
FEW = ["contiguous", "every-second", "odd-address", "offset-16", "channels-last-gap"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*SMALL, "large nchw", *STREAMED])
def test_out(name, dtype):
    with streaming(slowly=False):
        check_out(name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STREAMED)
def test_out_where_streaming_is_slow(name, dtype):
    with streaming(slowly=True):
        check_out(name, dtype)


def check_out(name, dtype):
    x, dy, gamma, beta = make(name, dtype)
    expected = results(x, dy, gamma, beta)
    stats = fastbn.batch_stats(x)
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta)
    calls = {
        "y": lambda out, x, dy: fastbn.batch_norm(x, gamma, beta, out=out)[0],
        "normalize": lambda out, x, dy: fastbn.normalize(x, stats.mean, stats.var, gamma, beta, out=out),
        "dx": lambda out, x, dy: fastbn.batch_norm_backward(dy, x, stats, gamma, beta, out=out).dx,
        "backward_apply": lambda out, x, dy: fastbn.backward_apply(dy, x, stats, sums, gamma, beta, out=out).dx,
        "constant dx": lambda out, x, dy: (
            fastbn.batch_norm_backward(dy, x, stats[1:], gamma, beta, training=False, out=out).dx
        ),
    }
    for part, call in calls.items():
        for layout in WRITEABLE if name in SMALL else FEW:
            out = LAYOUTS[layout](np.zeros_like(dy))
            assert call(out, x, dy) is out
            assert out.tobytes() == expected[part].tobytes(), (part, "other memory", layout)
        over_x = placed(x, 0)
        assert call(over_x, over_x, dy).tobytes() == expected[part].tobytes(), (part, "over x")
        if part in ("dx", "backward_apply", "constant dx"):
            over_dy = dy.copy()
            assert call(over_dy, x, over_dy).tobytes() == expected[part].tobytes(), (part, "over dy")


@pytest.mark.parametrize("dtype", DTYPES)
def test_lines_that_rows_share(dtype):
    """Past the cache go whole lines, and short rows share them: expected is what parts give that stay in the cache."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 1450, 16, 49)).astype(dtype)
    gamma, beta = rng.normal(size=(2, 16)).astype(dtype)
    gamma[5] = 1e-35  # a channel that float32 cannot compute, between others that it can
    stats = fastbn.batch_stats(x)
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta)
    parts = [slice(start, start + 290) for start in range(0, 1450, 290)]

    def forward(part, out=None):
        return fastbn.normalize(x[part], stats.mean, stats.var, gamma, beta, out=out)

    def backward(part, out=None):
        return fastbn.backward_apply(dy[part], x[part], stats, sums, gamma, beta, out=out).dx

    for call in (forward, backward):
        expected = np.concatenate([call(part) for part in parts])
        assert expected[parts[0]].nbytes < constant("STREAM_FROM") <= expected.nbytes
        for offset in range(0, 128, x.itemsize):
            raw = np.full(x.size + 256, 7, dtype)
            start = (-raw.ctypes.data % 128 + offset) // x.itemsize
            out = raw[start : start + x.size].reshape(x.shape)
            call(slice(None), out)
            assert out.tobytes() == expected.tobytes(), (call.__name__, offset)
            assert (raw[:start] == 7).all(), (call.__name__, offset)
            assert (raw[start + x.size :] == 7).all(), (call.__name__, offset)
        buffer = np.full((1450, 20, 49), 7, dtype)
        call(slice(None), buffer[:, 3:19])
        assert buffer[:, 3:19].tobytes() == expected.tobytes(), call.__name__
        assert (buffer[:, :3] == 7).all(), call.__name__
        assert (buffer[:, 19:] == 7).all(), call.__name__


def test_parts_of_gradients_that_float32_can_just_hold():
    """What is computed in float64, since its terms may overflow, is a matter of the statistics, not of the part."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 84, 3)).astype(np.float32)
    stats = fastbn.batch_stats(x)
    for power in np.arange(100, 104, 0.25):
        large = (dy + x / 2) * np.float32(2.0**power)
        sums = fastbn.backward_sums(large, x, stats)
        whole, part = (fastbn.backward_apply(large[k:], x[k:], stats, sums).dx for k in (0, 60))
        assert part.tobytes() == whole[60:].tobytes(), power


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_strides_of_dy(name, dtype):
    x, dy, gamma, beta = make(name, dtype)
    expected = results(x, dy, gamma, beta)
    for layout, other in LAYOUTS.items():
        assert differing(results(x, other(dy), gamma, beta), expected) == [], layout
    for other in broadcasts(dy):
        assert differing(results(x, other, gamma, beta), results(x, other.copy(), gamma, beta)) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*SMALL, "large, three channels"])
def test_strided_x_and_its_copy(name, dtype):
    """Gaps, negative and zero steps: a copy in the same memory order gives the same bits."""
    x, dy, gamma, beta = make(name, dtype)
    layouts = LAYOUTS if name in SMALL else FEW
    for strided in [*(LAYOUTS[layout](x) for layout in layouts), *broadcasts(x)]:
        copy = strided.copy(order="K")
        assert differing(results(strided, dy, gamma, beta), results(copy, dy, gamma, beta)) == [], strided.strides


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 12, 3, 20), (3, 11, 2, 40), (5, 9, 17, 2), (2, 9, 1, 300)], ids=str)
def test_broadcast_x_and_an_out_with_gaps(shape, dtype):
    """Zero steps along any axes: rows of x may then be shorter, or longer, in memory than those of out."""
    values, dy = np.random.default_rng(8).normal(size=(2, *shape)).astype(dtype)
    inside = tuple(map(slice, shape))

    def check(call, *arguments):
        expected = call(*arguments, out=None)
        for axis in range(4):
            memory = np.full([size + 12 * (k == axis) for k, size in enumerate(shape)], 7, dtype)
            call(*arguments, out=memory[inside])
            assert memory[inside].tobytes() == expected[0].tobytes(), (arguments[0].strides, axis)
            memory[inside] = 7
            assert (memory == 7).all(), (arguments[0].strides, axis)

    for kept in itertools.product([False, True], repeat=4):
        x = np.broadcast_to(values[tuple(slice(None) if keep else slice(1) for keep in kept)], shape)
        stats = fastbn.batch_stats(x)
        check(fastbn.batch_norm, x)
        check(lambda x, stats, out: [fastbn.normalize(x, *stats[1:], out=out)], x, stats)
        check(fastbn.batch_norm_backward, dy, x, stats)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("shape", [(37, 2048), (613, 2048), (1031, 2064), (519, 2050), (301, 4096)], ids=str)
def test_results_of_wide_rows(shape, dtype, activation):
    """Whose coefficients no first-level cache keeps: each column as if it stood among few others; past the cache, too,
    wherever the result begins.
    """
    rng = np.random.default_rng(14)
    x, dy, residual = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    gamma, beta = rng.standard_normal((2, shape[1]), np.float32)
    stats = fastbn.batch_stats(x)
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta, activation=activation)
    y = fastbn.normalize(x, *stats[1:], gamma, beta, activation=activation)
    memory = np.empty(x.size + 64, dtype)

    def all_of(columns, place=None):
        mine = np.ascontiguousarray(x[:, columns]), np.ascontiguousarray(dy[:, columns])
        own = fastbn.BatchStats(stats.count, stats.mean[columns], stats.var[columns])
        pair = fastbn.GradientSums(sums.sum_dy[columns], sums.sum_dy_xmu[columns])
        options = {"activation": activation, "out": place}
        vectors = gamma[columns], beta[columns]
        yield fastbn.normalize(mine[0], *own[1:], *vectors, **options)
        yield fastbn.normalize(mine[0], *own[1:], *vectors, residual=residual[:, columns], **options)
        yield fastbn.backward_apply(mine[1], mine[0], own, pair, *vectors, **options).dx
        if activation != "relu":
            mine_y = np.ascontiguousarray(y[:, columns])
            yield fastbn.backward_apply(mine[1], None, own, pair, *vectors, y=mine_y, **options).dx

    few = [slice(k, k + 16) for k in (0, 496, 1008, 1024, 1360, shape[1] - 16)]
    expected = [[a.tobytes() for a in all_of(columns)] for columns in few]
    for offset, threads in ((0, 1), (16, 2), (4, 5)):
        start = (-memory.ctypes.data % 64 + offset) // memory.itemsize
        place = memory[start:][: x.size].reshape(shape)
        with fastbn.num_threads(threads):
            results = all_of(slice(None), place)
            found = [[result[:, columns].tobytes() for columns in few] for result in results]
        for k, result in enumerate(found):
            assert result == [own[k] for own in expected], (offset, threads, k)


def in_page(values, offset):
    """A copy `offset` bytes behind where a page begins."""
    return placed(values, offset, begin=4096)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize(
    ("dtype", "shape", "axis"),
    [
        (np.float32, (53003, 100), -1),
        (np.float32, (220007, 24), -1),
        (np.float32, (5303, 1024), -1),
        (np.float32, (165007, 32), -1),
        (np.float32, (40001, 256), -1),
        (np.float32, (84001, 64), -1),
        (np.float32, (7, 96, 1681), 1),
        (np.float32, (5, 97, 2500), 1),
        (np.float32, (6, 97, 2501), 1),
        (np.float32, (41, 64, 14, 31), 1),
        (np.float64, (42001, 64), -1),
        (np.float64, (10001, 256), -1),
        (np.float64, (26003, 100), -1),
        (np.float64, (9, 64, 1500), 1),
        (np.float64, (7, 60, 1402), 1),  # half of the samples end within a line of 16 values
    ],
    ids=str,
)
def test_results_in_two_places(dtype, shape, axis, activation):
    """Of arrays that no cache holds: each row or sample as if there were few others, wherever the result begins (not
    close behind what is read), in place, too. Rows of 100 or four times 24 columns have theirs in one place, and in
    float64 the backward of all rows.
    """
    rng = np.random.default_rng(15)
    x, dy, residual = (in_page(rng.standard_normal(shape, np.float32).astype(dtype), 0) for _ in range(3))
    if axis == -1:  # coefficients are in phase with all rows, or not
        width = {24: 96, 32: 64}.get(shape[1], shape[1])
        assert (width * x.itemsize % constant("COLUMN_PHASE") == 0) == (width not in (96, 100))
        assert 2 * x.nbytes >= constant("ROWS_HELD_BACK")
    mean, gamma, beta = rng.standard_normal((3, shape[axis]), np.float32)
    var = rng.uniform(0.5, 2, shape[axis])
    var[5] = 1e80 if shape[axis] == 64 else 1  # computed in float64; of rows all then are
    own, pair = fastbn.BatchStats(100, mean, var), fastbn.GradientSums(gamma, beta)
    options = {"activation": activation, "axis": axis}

    def all_of(rows, places):
        mine = x[rows], dy[rows], residual[rows]
        first = None if places is None else places[0]
        yield [fastbn.normalize(mine[0], mean, var, gamma, beta, out=first, **options)]
        yield [fastbn.normalize(mine[0], mean, var, gamma, beta, residual=mine[2], out=first, **options)]
        yield [fastbn.backward_apply(mine[1], mine[0], own, pair, gamma, beta, out=first, **options).dx]
        with_residual = {"residual": True, "y": mine[2], "out": places, **options}
        result = fastbn.backward_apply(mine[1], mine[0], own, pair, gamma, beta, **with_residual)
        yield [result.dx, result.dresidual]
        if first is not None:
            first[...] = mine[0]
        given = mine[0].copy() if first is None else first
        yield [fastbn.normalize(given, mean, var, gamma, beta, out=given, **options)]

    some = 1000 if axis == -1 else 1
    few = [slice(k, k + some) for k in range(0, shape[0], some)]
    expected = list(zip(*([list(map(np.array, a)) for a in all_of(rows, None)] for rows in few), strict=True))
    for offset, threads in ((0, 1), (16, 2), (x.itemsize, 1)):
        places = [in_page(x, page + offset) for page in (1024, 2048)]
        with fastbn.num_threads(threads):
            for k, results in enumerate(all_of(slice(None), places)):
                for result, parts in zip(results, zip(*expected[k], strict=True), strict=True):
                    assert result.tobytes() == np.concatenate(parts).tobytes(), (offset, threads, k)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize(
    ("dtype", "places"),
    [
        ("float32", (0, 1024, 2048)),
        ("float32", (0, 32, 96)),
        ("float64", (0, 1024, 2048)),
        ("float16", (0, 1024, 2048)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 96, 1681), 1), ((6, 96, 2501), 1), ((41, 64, 14, 31), 1), ((84, 64, 14, 14), 1), ((335, 64, 7, 7), 1),
     ((18, 64, 1000), 1), ((61, 191, 97), -1), ((66, 128, 128), -1)],
    ids=str,
)  # fmt: skip
def test_results_close_behind_what_is_read(shape, axis, dtype, places, activation):
    """As far as the offsets in their pages tell: lines are then taken in another order, and in one place at a time.
    Far from it, they are not. The last two results take the place of what is read.
    """
    rng = np.random.default_rng(16)
    is_short = axis == 1 and np.prod(shape[2:]) < constant("SHORT_HALVES")
    many = 8 if dtype == "float16" and is_short else 4
    shape = (-(-shape[0] * many // np.dtype(dtype).itemsize), *shape[1:])  # as many bytes, or more
    drawn = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    x, dy, residual = map(in_page, drawn, places)
    assert x.nbytes >= constant("SHORT_HALVES_STREAM_FROM" if dtype == "float16" and is_short else "STREAM_FROM")
    mean, gamma, beta = rng.standard_normal((3, shape[axis]), np.float32)
    var, options = np.full(shape[axis], 2.0), {"activation": activation, "axis": axis}
    stats = fastbn.batch_stats(x, axis=axis)

    def all_of(offset):
        out, other = in_page(x, offset), in_page(x, offset + 64)
        yield fastbn.normalize(x, mean, var, gamma, beta, out=out, **options)
        yield fastbn.normalize(x, mean, var, gamma, beta, residual=residual, out=out, **options)
        yield fastbn.batch_norm(x, gamma, beta, out=out, **options)[0]
        yield fastbn.batch_norm(x, gamma, beta, residual=residual, out=out, **options)[0]
        for statistics, training in ((stats, True), ((mean, var), False)):
            how = {"training": training, "out": out, **options}
            yield fastbn.batch_norm_backward(dy, x, statistics, gamma, beta, **how).dx
            how |= {"residual": True, "y": residual, "out": (out, other)}
            both = fastbn.batch_norm_backward(dy, x, statistics, gamma, beta, **how)
            yield np.stack([both.dx, both.dresidual])
        there = in_page(residual, offset)
        yield fastbn.batch_norm(x, gamma, beta, residual=there, out=there, **options)[0]
        there = in_page(dy, offset)
        yield fastbn.batch_norm_backward(there, x, stats, gamma, beta, out=there, **options).dx

    expected = [result.tobytes() for result in all_of(3072)]
    for offset in (16, 48, 64, 192, 1024 + 32, 2048 + 112):
        assert [result.tobytes() for result in all_of(offset)] == expected, offset


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("offset", [0, 16, 32])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_many_channels_in_place(samples, offset, threads):
    """Whose results are written by whole lines, some channels after the others: what one of them leaves of a line is
    written once, or its results would be normalised again. Each channel as if it stood alone.
    """
    rng = np.random.default_rng(16)
    x, dy = rng.standard_normal((2, samples, 200, 12769), np.float32)
    mean, gamma, beta = rng.standard_normal((3, 200), np.float32)
    stats, sums = fastbn.BatchStats(100, mean, np.ones(200)), fastbn.GradientSums(gamma, beta)
    memory = np.empty(x.size + 64, np.float32)
    start = (-memory.ctypes.data % 64 + offset) // 4
    place = memory[start:][: x.size].reshape(x.shape)

    def alone(c, x, dy):
        one = slice(c, c + 1)
        own, pair = fastbn.BatchStats(100, mean[one], np.ones(1)), fastbn.GradientSums(gamma[one], beta[one])
        yield fastbn.normalize(x[:, one], *own[1:], gamma[one], beta[one])
        yield fastbn.backward_apply(dy[:, one], x[:, one], own, pair, gamma[one]).dx

    channels = [0, 63, 64, 65, 66, 67, 127, 128, 133, 134, 191, 192, 199]
    with fastbn.num_threads(threads):
        place[...] = x
        y = fastbn.normalize(place, *stats[1:], gamma, beta, out=place).copy()
        place[...] = dy
        dx = fastbn.backward_apply(place, x, stats, sums, gamma, out=place).dx
        for c in channels:
            one_y, one_dx = alone(c, x, dy)
            assert y[:, c : c + 1].tobytes() == one_y.tobytes(), c
            assert dx[:, c : c + 1].tobytes() == one_dx.tobytes(), c


@pytest.mark.parametrize("activation", [None, "relu6", "leaky_relu"])
@pytest.mark.parametrize(
    ("samples", "channels", "length"), [(2, 75, 15), (2, 75, 21), (2, 75, 300), (2, 75, 5000), (70, 160, 49)]
)
def test_channels_beside(samples, channels, length, activation):
    """Channels are summed and worked out together, some of them about their mean: each as if it stood elsewhere.

    (Of many samples with short rows some are summed at a time, unless the array is small: the last shape.)
    """
    rng = np.random.default_rng(length)
    x, dy = rng.normal(size=(2, samples, channels, length)).astype(np.float32)
    x[:, ::7] += 3e4
    x[:, 5::9] = 3
    gamma, beta = rng.normal(size=(2, channels)).astype(np.float32)

    def all_of(x, dy, gamma, beta):
        y, stats = fastbn.batch_norm(x, gamma, beta, activation=activation)
        whole = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, activation=activation)
        joined = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, activation=activation, residual=True, y=y)
        return [np.moveaxis(a, 1, 0) if a.ndim > 1 else a for a in (y, *stats[1:], *whole[:3], *joined)]

    together = all_of(x, dy, gamma, beta)
    for c in range(channels - 1):
        for some in (slice(c, c + 1), slice(c, c + 2)):
            parts = x[:, some].copy(), dy[:, some].copy(), gamma[some], beta[some]
            for apart in (all_of(*parts), all_of(x[:, some], dy[:, some], *parts[2:])):
                assert all(a.tobytes() == b[some].tobytes() for a, b in zip(apart, together, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("offset", [0, 16, 60])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("shape", [(43, 33, 28, 28), (41, 25, 29, 37), (9, 11, 211, 53)], ids=str)
def test_notes_of_what_is_cut_off(shape, activation, offset, threads):
    """A whole backward behind a residual reads y once, its results what sums have noted; the halves read y twice."""
    rng = np.random.default_rng(offset)
    x, dy, residual = rng.standard_normal((3, *shape), np.float32)
    assert x.nbytes >= constant("STREAM_FROM")
    x[:, 4:6] += 3e6  # summed again: no channel gets its results beside these
    x[0, 7, 0, 0] = np.nan
    dy.flat[::7], dy.flat[::11] = 0, -0.0
    gamma, beta = rng.normal(size=(2, shape[1])).astype(np.float32)
    gamma[9] = 1e35  # computed in float64
    how = {"activation": activation, "residual": True}
    y, stats = fastbn.batch_norm(x, gamma, beta, activation=activation, residual=residual)
    assert 0.2 < np.mean(y == 0) < 0.8
    out = placed(x, offset), placed(x, offset)
    with fastbn.num_threads(threads):
        for training in (True, False):
            whole = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, y=y, out=out, training=training, **how)
            sums = fastbn.backward_sums(dy, x, stats, gamma, beta, y=y, **how)
            if training:
                halves = fastbn.backward_apply(dy, x, stats, sums, gamma, beta, y=y, **how)
            else:
                halves = fastbn.batch_norm_backward(
                    dy, x, stats, gamma, beta, y=y, training=False, need_params=False, **how
                )
            assert whole.dx.tobytes() == halves.dx.tobytes()
            assert whole.dresidual.tobytes() == halves.dresidual.tobytes()
            assert whole.dbeta.tobytes() == sums.sum_dy.astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(90, 3, 29, 31), (3, 3, 300, 301), (7000, 3, 21)], ids=str)
def test_an_only_channel_is_summed_as_beside_others(shape, threads, dtype):
    """Large ones, which threads share, on any axis: whether rows follow each other with gaps, or without."""
    x, dy = np.random.default_rng(6).normal(size=(2, *shape)).astype(dtype)
    y, stats = fastbn.batch_norm(x)
    sums = fastbn.backward_sums(dy, x, stats)
    with fastbn.num_threads(threads):
        for c in range(shape[1]):
            for a, d in ((x[:, c : c + 1], dy[:, c : c + 1]), (x[:, c : c + 1].copy(), dy[:, c : c + 1].copy())):
                for axis in (0, 1, -1):
                    alone, own = fastbn.batch_norm(np.moveaxis(a, 1, axis), axis=axis)
                    parts = fastbn.backward_sums(np.moveaxis(d, 1, axis), np.moveaxis(a, 1, axis), own, axis=axis)
                    assert np.moveaxis(alone, axis, 1).tobytes() == y[:, c : c + 1].tobytes()
                    assert (own.mean[0], own.var[0]) == (stats.mean[c], stats.var[c])
                    assert (parts.sum_dy[0], parts.sum_dy_xmu[0]) == (sums.sum_dy[c], sums.sum_dy_xmu[c])


def held_back_from(dtype, plane):
    """Bytes of what is read and of one result, from which on results of planes are held back in all passes."""
    is_short = plane * 4 < constant("SHORT_RUN")
    return constant("SHORT_HELD_BACK" if dtype == np.float32 and is_short else "HELD_BACK")


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *itertools.product(DTYPES, [(4, 30, 239, 251), (31, 60, 57, 59), (40, 160, 29, 31)]),
        *[(np.float64, shape) for shape in [(70, 210, 19, 19), (260, 420, 7, 7), (130, 210, 13, 15)]],
        *[(np.float32, shape) for shape in [(170, 210, 19, 19), (620, 420, 7, 7), (320, 210, 13, 15)]],
    ],
    ids=str,
)
def test_arrays_that_few_caches_hold(dtype, shape, activation):
    """Their results are held back: each channel as if it stood in a small array. (Rows of parts, folds of one row and
    of several, rows of some 2 KB, short rows.)
    """
    rng = np.random.default_rng(0)
    x, dy, residual = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    gamma, beta = rng.standard_normal((2, shape[1]), np.float32)
    assert 2 * x.nbytes >= held_back_from(dtype, shape[2] * shape[3])
    assert 2 * x.nbytes // shape[1] < constant("STREAM_FROM")

    def all_of(x, dy, residual, gamma, beta):
        act = {"activation": activation}
        y, stats = fastbn.batch_norm(x, gamma, beta, **act)
        joined = fastbn.batch_norm(x, gamma, beta, residual=residual, **act)[0]
        dx, dgamma, dbeta, *_ = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, **act)
        both = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, y=joined, residual=True, **act)
        return [np.moveaxis(a, 1, 0) if a.ndim > 1 else a
                for a in (y, *stats[1:], joined, dx, dgamma, dbeta, both.dx, both.dresidual)]  # fmt: skip

    together = all_of(x, dy, residual, gamma, beta)
    for c in (0, 1, shape[1] // 2, shape[1] - 2):
        two = slice(c, c + 2)
        apart = all_of(*(a[:, two].copy() for a in (x, dy, residual)), gamma[two], beta[two])
        assert all(a.tobytes() == b[two].tobytes() for a, b in zip(apart, together, strict=True))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16411, 321), (5303, 1029), (175003, 31)], ids=str)
def test_rows_that_few_caches_hold(shape, dtype, activation):
    """The same of rows: some of them as if they stood in a small array. (Rows alone, and many of them as one.)"""
    rng = np.random.default_rng(0)
    x, dy, residual = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    gamma, beta = rng.standard_normal((2, shape[1]), np.float32)
    some = np.r_[0 : shape[0] : 61, shape[0] - 9 : shape[0]]
    assert 2 * x.nbytes >= constant("ROWS_HELD_BACK")
    assert x[some].nbytes < constant("STREAM_FROM")
    stats = fastbn.batch_stats(x)
    act = {"activation": activation}
    joined = fastbn.batch_norm(x, gamma, beta, residual=residual, **act)[0]
    sums = fastbn.backward_sums(dy, x, stats, gamma, beta, **act)
    both = fastbn.backward_sums(dy, x, stats, gamma, beta, y=joined, residual=True, **act)

    def all_of(x, dy, residual, joined):
        behind_join = fastbn.backward_apply(dy, x, stats, both, gamma, beta, y=joined, residual=True, **act)
        return [
            fastbn.normalize(x, *stats[1:], gamma, beta, **act),
            fastbn.normalize(x, *stats[1:], gamma, beta, residual=residual, **act),
            fastbn.backward_apply(dy, x, stats, sums, gamma, beta, **act).dx,
            behind_join.dx,
            behind_join.dresidual,
        ]

    together = all_of(x, dy, residual, joined)
    apart = all_of(*(a[some] for a in (x, dy, residual, joined)))
    assert all(a.tobytes() == b[some].tobytes() for a, b in zip(apart, together, strict=True))


def test_vectors_of_any_kind():
    x, dy, gamma, beta = make("nchw", np.float32)
    expected = results(x, dy, gamma, beta)
    wide = gamma.astype(np.float64)
    for vector in (wide, np.repeat(wide, 2)[::2], wide[::-1].copy()[::-1], gamma[::-1].copy()[::-1], wide.tolist()):
        given = results(x, dy, vector, np.repeat(beta, 3)[::3])
        expected["dgamma"] = expected["dgamma"].astype(given["dgamma"].dtype)  # that of gamma
        assert [n for n in differing(given, expected) if "dgamma" not in n] == []


# ---- fused or split, functions or layers


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_fused_and_split(name, dtype, threads):
    with fastbn.num_threads(threads):
        x, dy, gamma, beta = make(name, dtype)
        given = results(x, dy, gamma, beta)
        stats = fastbn.batch_stats(x)
        part = fastbn.backward_apply(dy, x, stats, fastbn.backward_sums(dy, x, stats, gamma), gamma, beta)
        no_dx = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, need_dx=False)
        no_params = fastbn.batch_norm_backward(dy, x, stats, gamma, beta, need_params=False)
    fused = ("mean", "var", "y", "dx", "dx", "dgamma", "dbeta", "dgamma", "dbeta", "dgamma")
    split = (
        given["batch_stats.mean"], given["batch_stats.var"], given["normalize"], part.dx, no_params.dx, part.dgamma,
        part.dbeta, no_dx.dgamma, no_dx.dbeta, given["constant dgamma"],
    )  # fmt: skip
    assert [a for a, b in zip(fused, split, strict=True) if given[a].tobytes() != b.tobytes()] == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nchw", "nc", "large nchw", "large nc", "streamed nchw"])
def test_layer_and_functions(name, dtype):
    x, dy, gamma, beta = make(name, dtype)
    beta = beta.astype(np.float32)
    bn = fastbn.BatchNorm(x.shape[1])
    bn.gamma, bn.beta = gamma, beta
    expected = results(x, dy, gamma, beta)
    assert bn(x).tobytes() == expected["y"].tobytes()
    assert bn.backward(dy).tobytes() == expected["dx"].tobytes()
    assert bn.dgamma.tobytes() == expected["dgamma"].tobytes()
    assert bn.dbeta.tobytes() == expected["dbeta"].astype(np.float32).tobytes()
    bn.eval()
    y = fastbn.normalize(x, bn.running_mean, bn.running_var, gamma, beta)
    assert bn(x).tobytes() == y.tobytes()
    frozen = (bn.running_mean, bn.running_var)
    constant = fastbn.batch_norm_backward(dy, x, frozen, gamma, beta, training=False)
    assert bn.backward(dy).tobytes() == constant.dx.tobytes()
    assert bn.dgamma.tobytes() == constant.dgamma.tobytes()


# ---- floating-point modes that another library has set

MODES = {"flush to zero": 0x8000, "denormals are zero": 0x0040, "both": 0x8040, "round towards zero": 0x6000}
DEFAULT_MODE = 0x1F80
FLAGS = 0x3F  # sticky exception flags: NumPy's own, no part of the mode

MODE_HELPER = """
#include <xmmintrin.h>
unsigned get(void) { return _mm_getcsr(); }
void set(unsigned mode) { _mm_setcsr(mode); }
#ifdef _OPENMP
#include <omp.h>
void team_set(int n, unsigned mode) {
    _Pragma("omp parallel num_threads(n)")
    _mm_setcsr(mode);
}
void team_get(int n, unsigned *modes) {
    _Pragma("omp parallel num_threads(n)")
    modes[omp_get_thread_num()] = _mm_getcsr();
}
#endif
"""


@pytest.fixture(scope="module")
def compile_helper(tmp_path_factory):
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the floating-point mode is set through MXCSR, which only x86 has")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build the helper that sets the floating-point mode")

    def build(*flags):
        folder = tmp_path_factory.mktemp("mode")
        (folder / "mode.c").write_text(MODE_HELPER)
        command = ["cc", "-O0", "-shared", "-fPIC", *flags, "-o", "mode.so", "mode.c"]
        subprocess.run(command, cwd=folder, check=True)
        library = ctypes.CDLL(str(folder / "mode.so"))
        library.get.restype = ctypes.c_uint
        library.set.argtypes = [ctypes.c_uint]
        return library

    return build


@pytest.fixture(scope="module")
def mode(compile_helper):
    """A C library with get() and set() for this thread's floating-point mode."""
    return compile_helper()


def in_mode(library, bits, call):
    """What call() returns when the caller has set a floating-point mode, and the mode that it left behind."""
    before = library.get()
    library.set(DEFAULT_MODE | bits)
    try:
        result = call()
        after = library.get()
    finally:
        library.set(before)
    return result, after


def tiny(name, dtype):
    """A case with values and parameters around the smallest normal number: sums, y and dx are subnormal in part."""
    x, dy, gamma, beta = make(name, dtype)
    least = float(np.finfo(dtype).tiny)
    little = np.float32(np.finfo(np.float32).tiny)
    return (x * dtype(least / 8), dy * dtype(least), gamma * little, beta * least)


def test_mode_helper_works(mode):
    numbers = np.full(8, np.finfo(np.float32).tiny)
    half, after = in_mode(mode, MODES["flush to zero"], lambda: numbers * np.float32(0.5))
    assert (half == 0).all()
    assert after & MODES["flush to zero"]
    doubled, _ = in_mode(mode, MODES["denormals are zero"], lambda: (numbers / 2) * np.float32(2))
    assert doubled.tobytes() != numbers.tobytes()
    assert (numbers * np.float32(0.5) > 0).all()


@pytest.mark.parametrize("bits", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nchw", "nc", "large nchw", "large nc", "large, one channel", "streamed nchw"])
def test_mode_of_the_caller(name, dtype, bits, mode):
    arguments = tiny(name, dtype)
    for eps in (0, 1e-5):
        for threads in (1, 3):
            with fastbn.num_threads(threads):
                expected = results(*arguments, eps=eps)
                given, after = in_mode(mode, bits, lambda eps=eps: results(*arguments, eps=eps))
            assert after & ~FLAGS == DEFAULT_MODE | bits
            assert differing(given, expected) == []


def layers_of_caffe(x, dy):
    """Results of caffe's layers on an array of two axes, with what they keep."""
    bn, scale, bias = caffe.BatchNorm(x.shape[1]), caffe.Scale(axis=0, num_axes=2), caffe.Bias(axis=0, num_axes=2)
    bn(x)
    kept = [blob.data.copy() for blob in bn.blobs]
    bn.phase = "TEST"
    given = [bn(x), scale(x), scale.backward(dy), bias(x), bias.backward(dy)]
    learned = [blob.diff.copy() for blob in [*scale.blobs, *bias.blobs]]
    return {str(k): a for k, a in enumerate(kept + given + learned)}


@pytest.mark.parametrize("bits", MODES.values(), ids=MODES)
def test_mode_of_the_caller_of_sums_and_folding(bits, mode):
    near_half = 2.0**-53 + 2.0**-80
    a, b = (
        fastbn.GradientSums([3e-310, 1.0], [1e-310, near_half]),
        fastbn.GradientSums([1e-310, near_half], [5e-310, 1.0]),
    )
    weight = np.array([[1e-310, 0.1], [3e-309, 0.3]])

    def computed():
        folded = fastbn.fold_batch_norm(weight, weight[0], weight[1], [1.0, 3.0], [0.7, 1.1], weight[1])
        return [array.tobytes() for array in (*(a + b), *folded)]

    expected = computed()
    assert in_mode(mode, bits, computed)[0] == expected


@pytest.mark.parametrize("bits", MODES.values(), ids=MODES)
def test_mode_of_the_caller_in_what_numpy_computes(bits, mode):
    """Conversions, checks and fastbn.caffe."""
    little = np.array([1e-40, -3e-41], np.float32)
    stats, _ = in_mode(mode, bits, lambda: fastbn.BatchStats(2, little, abs(little)))
    assert stats.mean.tolist() == [float(v) for v in little]
    sums, _ = in_mode(mode, bits, lambda: fastbn.GradientSums(little, little))
    assert sums.sum_dy.tolist() == [float(v) for v in little]

    x = np.array([[1e-39, 2e-39], [3e-39, 7e-39], [-1e-39, 5e-39]], np.float32)
    with pytest.raises(ValueError, match=r"^var: expected variances >= 0"):
        in_mode(mode, bits, lambda: fastbn.normalize(x, [0.0, 0.0], [1.0, -1e-310]))
    y = fastbn.normalize(x, [0.0, 0.0], [1.0, 1.0], little)
    in_mode(mode, bits, lambda: fastbn.batch_norm_backward(x, None, fastbn.BatchStats(3, [0, 0], [1, 1]), little, y=y))

    assert in_mode(mode, bits, lambda: caffe.Blob([1e-39], np.float32).data[0])[0] > 0
    filled, _ = in_mode(mode, bits, lambda: caffe.Scale(filler={"value": 1e-39})(np.ones((1, 1), np.float32)))
    assert filled[0, 0] > 0

    batches = [np.random.default_rng(n).standard_normal((n, 4)) for n in (7, 10)]

    def running():
        bn = fastbn.BatchNorm(4, momentum=None, dtype=np.float64)
        for batch in batches:
            bn(batch)
        return bn.running_mean.tobytes(), bn.running_var.tobytes()

    expected = running()
    assert in_mode(mode, bits, running)[0] == expected

    expected = layers_of_caffe(x, x[::-1])
    found, _ = in_mode(mode, bits, lambda: layers_of_caffe(x, x[::-1]))
    assert differing(found, expected) == []


def test_exception_flags_of_the_caller_stay(mode):
    x, dy, gamma, _ = make("nchw", np.float32)
    stats = fastbn.batch_stats(x)
    divided_by_zero = 0x04

    def calls():
        fastbn.batch_norm(x)
        fastbn.batch_norm_backward(dy, x, stats, gamma)

    assert in_mode(mode, 0, calls)[1] == DEFAULT_MODE
    assert in_mode(mode, divided_by_zero, calls)[1] == DEFAULT_MODE | divided_by_zero


@pytest.mark.parametrize("bits", MODES.values(), ids=MODES)
def test_mode_of_worker_threads(bits, compile_helper):
    """OpenMP's threads may have got another mode from anyone: results are the same, and they keep it."""
    try:
        library = compile_helper("-fopenmp")
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no OpenMP")
    threads = 3
    found = []

    def work():  # in a thread of its own, which has a team of its own
        modes = (ctypes.c_uint * threads)()
        library.team_set(threads, ctypes.c_uint(DEFAULT_MODE | bits))
        library.set(DEFAULT_MODE)
        given = [results(*tiny(name, dtype)) for name, dtype in cases]
        library.team_get(threads, modes)
        found.extend([given, list(modes)])

    cases = [("large nchw", np.float32), ("large nc", np.float32), ("large, one channel", np.float64)]
    with fastbn.num_threads(1):
        expected = [results(*tiny(name, dtype)) for name, dtype in cases]
    with fastbn.num_threads(threads):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    given, modes = found
    assert [differing(a, b) for a, b in zip(given, expected, strict=True)] == [[], [], []]
    assert [m & ~FLAGS for m in modes[1:]] == [DEFAULT_MODE | bits] * (threads - 1)


@pytest.mark.parametrize("bits", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mode_of_the_caller_of_layers_and_statistics(dtype, bits, mode):
    x, dy, _, beta = tiny("nchw", dtype)

    def use():
        bn = fastbn.BatchNorm(x.shape[1], momentum=0.3, dtype=dtype)
        bn.load_state_dict({**bn.state_dict(), "bias": beta})  # of float64
        y, dx = bn(x), bn.backward(dy)
        first, second = fastbn.batch_stats(x[:1]), fastbn.batch_stats(x[1:])
        merged, paper = first.merge(second), fastbn.population_stats([first, second], method="paper")
        sums = fastbn.backward_sums(dy, x, first) + fastbn.backward_sums(dy, x, first)
        found = {"y": y, "dx": dx, "mean": merged.mean, "var": merged.var, "unbiased": merged.unbiased_var}
        found |= {"paper mean": paper.mean, "paper var": paper.var, "sum_dy": sums.sum_dy}
        found |= {"sum_dy_xmu": sums.sum_dy_xmu, **bn.state_dict()}
        bn.recalibrate([first, second])
        return found | {"recalibrated": bn.running_mean, "recalibrated var": bn.running_var}

    expected = use()
    given, after = in_mode(mode, bits, use)
    assert after & ~FLAGS == DEFAULT_MODE | bits
    assert differing(given, expected) == []


if __name__ == "__main__":
    print(json.dumps(digest()))
