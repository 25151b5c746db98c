"""The benchmark suite refuses what is wrong before it times it, and tells what has become slower."""

import json
import subprocess
import sys
from pathlib import Path

import compare
import numpy as np
import pytest
import speed

import fastbn
from fastbn import _core

BENCH = Path(compare.__file__).parent
CASE = speed.Case(8, 64, 28, "training")


def test_a_wrong_kernel_is_refused_before_it_is_timed(monkeypatch):
    right = fastbn.batch_norm

    def wrong(x, *args, **kwargs):
        y, stats = right(x, *args, **kwargs)
        y[0, 0, 0, 0] += 1e-3
        return y, stats

    def timed(*_):
        raise RuntimeError("timed")

    monkeypatch.setattr(fastbn, "batch_norm", wrong)
    monkeypatch.setattr(speed, "seconds", timed)
    with pytest.raises(AssertionError, match=f"{CASE}: a wrong result"):
        speed.measure(CASE)
    monkeypatch.setattr(fastbn, "batch_norm", right)
    with pytest.raises(RuntimeError, match="timed"):
        speed.measure(CASE)


@pytest.mark.parametrize("what", speed.PASSES)
def test_verification_is_of_the_pass_that_is_timed(what, monkeypatch):
    prepared = speed.Prepared(speed.Case(4, 8, 14, what))
    prepared.verify()
    call = prepared.call
    monkeypatch.setattr(prepared, "call", lambda b: call(b) * np.float32(1.0001))
    with pytest.raises(AssertionError, match="a wrong result"):
        prepared.verify()


def test_a_slowed_kernel_fails_the_comparison(monkeypatch):
    """A second sweep for the statistics: some 1.3 to 1.9 times the time."""
    old = {str(CASE): speed.measure(CASE, 41)}
    right = fastbn.batch_norm

    def slowed(x, *args, **kwargs):
        fastbn.batch_stats(x)
        fastbn.batch_stats(x)
        return right(x, *args, **kwargs)

    monkeypatch.setattr(fastbn, "batch_norm", slowed)
    table, slower = compare.compare(old, {str(CASE): speed.measure(CASE, 41)})
    assert slower == [str(CASE)]
    assert "SLOWER" in table


def test_comparison_tolerates_ten_percent_and_no_more(tmp_path, capsys):
    def stored(name, ratio):
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": [{"name": "a", "extra_info": {"ratio": ratio, "threads": 1}}]}))
        return str(path)

    old, near, far = stored("old", 2.0), stored("near", 2.19), stored("far", 2.21)
    assert compare.main([old, near]) == 0
    assert compare.main([old, far]) == 1
    assert "1 of 1 cases are more than 10 % slower" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no case in common"):
        compare.compare({"a": 1.0}, {"b": 1.0})


def test_a_kept_run_compares_and_names_no_host(tmp_path):
    run = {
        "machine_info": {"node": "some-host"},
        "benchmarks": [{"name": "a", "extra_info": {"ratio": 2.0}, "stats": {}}],
    }
    (tmp_path / "run").write_text(json.dumps(run))
    compare.keep(tmp_path / "run", tmp_path / "kept")
    assert compare.ratios(tmp_path / "kept") == {"a": 2.0}
    assert "some-host" not in (tmp_path / "kept").read_text()


def test_the_suite_runs_and_stores_what_it_measured(tmp_path):
    report = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "-q", str(BENCH), "-k", "8x256x14x14-float64", "--benchmark-disable-gc"]
    subprocess.run([*command, f"--benchmark-json={report}"], check=True, cwd=tmp_path, capture_output=True)
    cases = json.loads(report.read_text())["benchmarks"]
    assert len(cases) == 3
    for case in cases:
        info = case["extra_info"]
        streams = 3 if "backward" in case["name"] else 2
        assert info["bytes"] == streams * 8 * 256 * 14 * 14 * 8
        assert info["ratio"] > 0
        assert info["threads"] == 1
        assert info["kernels"] in ("baseline", "x86_64_v3")
        assert info["machine"]


def test_the_committed_reference_run_has_the_short_list():
    names = {f"test_speed[{case}]" for case in speed.cases(False) if case.threads == 1}
    assert names <= set(compare.ratios(BENCH / "reference.json"))


def test_the_full_list_has_every_network_batch_and_option():
    full = speed.cases(True)
    assert len(set(full)) == len(full)
    for name in ("batch", "what", "dtype", "out", "cold"):
        assert len({getattr(case, name) for case in full}) == {"batch": 3, "what": 3}.get(name, 2)
    assert {(c.channels, c.height) for c in full} == {shape for net in speed.NETWORKS.values() for shape in net}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_the_floor_copies_and_adds(dtype, threads, stream):
    x, w, y = (speed.aligned((4100, 16), dtype) for _ in range(3))
    x[...] = np.arange(x.size).reshape(x.shape)
    w[...] = 2
    with fastbn.num_threads(threads):
        _core.floor(x, None, y, stream)
        np.testing.assert_array_equal(y, x)
        _core.floor(x, w, y, stream)
        np.testing.assert_array_equal(y, x + 2)


def test_the_floor_takes_whole_lines_only():
    x = speed.aligned((64,), "float32")
    with pytest.raises(ValueError, match="multiples of 64 bytes"):
        _core.floor(x[1:], None, x[:-1], True)
    with pytest.raises(ValueError, match="one size and dtype"):
        _core.floor(x, None, x.astype("float64"), True)
