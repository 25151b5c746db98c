"""Which build of the kernels runs, that it is never another than the one asked for, and what an import costs."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy
import pytest

import fastbn
from fastbn import _core, _cpu, _dispatch

NAMES = {"baseline": "fastbn._kernels.baseline", "x86-64-v3": "fastbn._kernels.x86_64_v3"}
needs_v3 = pytest.mark.skipif(not _cpu.has_x86_64_v3(), reason="this CPU or operating system does not run x86-64-v3")
ISAS = ["baseline", pytest.param("x86-64-v3", marks=needs_v3)]


def python(script, folder, *options, **environment):
    """Run a script in a fresh interpreter, far from the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "FASTBN_ISA"}
    command = [sys.executable, *options, "-c", script]
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


CONFIG = "import sys, fastbn; print(fastbn.isa, *sorted(m for m in sys.modules if m.startswith('fastbn._kernels.')))"


@pytest.mark.parametrize("isa", ISAS)
def test_forced(isa, tmp_path):
    ran = python(CONFIG + "; fastbn.show_config()", tmp_path, FASTBN_ISA=isa)
    assert ran.returncode == 0, ran.stderr
    first, *config = ran.stdout.splitlines()
    used, *modules = first.split()
    assert used == isa
    assert NAMES[isa] in modules
    assert not set(modules) & (set(NAMES.values()) - {NAMES[isa]})  # the other build was not even loaded
    assert f"kernels  {isa} (forced by FASTBN_ISA)" in config


@pytest.mark.parametrize("environment", [{}, {"FASTBN_ISA": ""}], ids=["unset", "empty"])
def test_not_forced(environment, tmp_path):
    ran = python(CONFIG + "; fastbn.show_config()", tmp_path, **environment)
    assert ran.returncode == 0, ran.stderr
    best = "x86-64-v3" if _cpu.has_x86_64_v3() else "baseline"
    assert ran.stdout.split()[0] == best
    assert f"kernels  {best} (the best that this CPU runs)" in ran.stdout


@pytest.mark.parametrize("name", ["avx2", "x86_64_v3", "Baseline", " baseline", "0"])
def test_unknown(name, tmp_path):
    ran = python("import fastbn", tmp_path, FASTBN_ISA=name)
    assert ran.returncode != 0
    expected = f"ImportError: FASTBN_ISA={name!r} is not a build of the kernels; there are x86-64-v3, baseline"
    assert ran.stderr.splitlines()[-1] == expected


def test_the_cpu_is_asked():
    """What the kernel says in /proc/cpuinfo, where it says it."""
    path = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    if flags is None:
        assert isinstance(_cpu.has_x86_64_v3(), bool)
    else:
        needed = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
        assert _cpu.has_x86_64_v3() == (needed <= set(flags.group(1).split()))


def test_older_xeons_stream_slowly():
    """Family 6, model 85, of Intel's: Skylake-SP, Cascade Lake, Cooper Lake."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    told = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    assert _cpu.streams_slowly() == (told == {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "85"})
    assert _core.set_streams_slowly(False) == _cpu.streams_slowly()
    assert _core.set_streams_slowly(_cpu.streams_slowly()) is False


# ---- other machines than this one, by way of the table


@pytest.fixture
def machine(monkeypatch):
    """Set whether x86-64-v3 runs and which modules are built."""

    def be(runs, built):
        builds = [(n, m, (lambda: runs) if n == "x86-64-v3" else f) for n, m, f in _dispatch.BUILDS]
        monkeypatch.setattr(_dispatch, "BUILDS", builds)
        monkeypatch.setattr(_dispatch, "_built", lambda module: module in built)

    return be


BASELINE, V3 = NAMES["baseline"], NAMES["x86-64-v3"]


@pytest.mark.parametrize(
    ("runs", "built", "forced", "expected"),
    [
        (True, (BASELINE, V3), None, "x86-64-v3"),
        (True, (BASELINE, V3), "baseline", "baseline"),
        (True, (BASELINE, V3), "x86-64-v3", "x86-64-v3"),
        (False, (BASELINE, V3), None, "baseline"),
        (False, (BASELINE, V3), "baseline", "baseline"),
        (True, (BASELINE,), None, "baseline"),
        (True, (V3,), None, "x86-64-v3"),
    ],
)
def test_choice(machine, runs, built, forced, expected):
    machine(runs, built)
    name, module, reason = _dispatch._choose(forced)
    assert (name, module) == (expected, NAMES[expected])
    assert reason == ("forced by FASTBN_ISA" if forced else "the best that this CPU runs")


@pytest.mark.parametrize(
    ("runs", "built", "forced", "text"),
    [
        (False, (BASELINE, V3), "x86-64-v3", "FASTBN_ISA=x86-64-v3: this CPU or operating system does not run"),
        (True, (BASELINE,), "x86-64-v3", "FASTBN_ISA=x86-64-v3: this installation of fastbn has no x86-64-v3 kernels"),
        (True, (V3,), "baseline", "FASTBN_ISA=baseline: this installation of fastbn has no baseline kernels"),
        (True, (), None, "this installation of fastbn has no kernels at all"),
        (False, (V3,), None, "this installation of fastbn has no kernels at all"),
        (True, (BASELINE, V3), "sse2", "FASTBN_ISA='sse2' is not a build of the kernels; there are x86-64-v3, "),
    ],
)  # fmt: skip
def test_no_choice_is_an_error(machine, runs, built, forced, text):
    machine(runs, built)
    with pytest.raises(ImportError, match="^" + re.escape(text)):
        _dispatch._choose(forced)


def test_built_modules_are_found():
    assert _dispatch._built(BASELINE)
    assert not _dispatch._built("fastbn._kernels.no_such_build")
    assert importlib.import_module(NAMES[fastbn.isa]) is _dispatch.kernels


# ---- what is reported


def test_show_config(capsys):
    with fastbn.num_threads(1):
        fastbn.show_config()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["fastbn", "kernels", "OpenMP", "threads", "compiler", "build"]
    assert lines["fastbn"] == fastbn.__version__
    assert lines["kernels"].startswith(f"{fastbn.isa} (")
    assert lines["threads"] == "1"
    assert re.match(r"(gcc|clang|MSVC)", lines["compiler"])
    assert re.match(r"Cython 3\.\d+.*; flags .*(-ffp-contract=off|/fp:precise)", lines["build"])
    assert ("-fopenmp" in lines["build"] or "/openmp" in lines["build"]) == (not lines["OpenMP"].startswith("none"))


def test_version():
    assert fastbn.__version__ == metadata.version("fastbn")
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert f'version = "{fastbn.__version__}"' in pyproject.read_text()


# ---- importing


def test_import_without_compiled_modules(tmp_path):
    """A source checkout in the current folder hides the installed package: the error says so."""
    source = Path(__file__).parents[1] / "fastbn"
    for path in source.rglob("*.py"):
        copy = tmp_path / "fastbn" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    path = [str(tmp_path), str(Path(numpy.__file__).parents[1])]
    # Without site: an editable installation would lend its compiled modules to the copy.
    ran = python(f"import sys; sys.path[:0] = {path}; import fastbn", tmp_path, "-S", "-E")
    assert ran.returncode != 0
    message = ran.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: fastbn's compiled modules are not in {tmp_path / 'fastbn'}. ")
    assert "source checkout" in message
    assert "pip install -e ." in message


def test_an_error_inside_a_dependency_is_not_called_a_checkout(tmp_path):
    (tmp_path / "numpy.py").write_text("import no_such_module_anywhere")
    ran = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastbn", tmp_path)
    assert ran.returncode != 0
    assert "no_such_module_anywhere" in ran.stderr.splitlines()[-1]


def test_import_loads_numpy_and_nothing_else_from_outside(tmp_path):
    script = "import json, sys, fastbn; print(json.dumps(sorted(sys.modules)))"
    before = json.loads(python(script.replace("fastbn", "numpy"), tmp_path).stdout)
    after = json.loads(python(script, tmp_path).stdout)
    packages = {name.partition(".")[0] for name in set(after) - set(before)}
    outside = packages - set(sys.stdlib_module_names) - {"fastbn", "numpy"}
    # Names that compiled modules make up for themselves, and what an editable install brings along.
    assert {name for name in outside if not name.startswith(("_cython", "cython_runtime", "__editable"))} == set()
    assert not packages & {"matplotlib", "tqdm", "mlxtend", "torch", "ml_dtypes", "scipy"}


def test_import_prints_and_warns_nothing(tmp_path):
    ran = python("import fastbn", tmp_path, "-W", "error")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
