"""The build: other options build again."""

import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import setuptools
from setuptools.command.build_ext import build_ext

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Runs setup.py as far as compilers are asked: whether all would be translated, and compiled, again."""
    found = []
    stands_in = {  # not needed once the package is installed
        "Cython": ModuleType("Cython"),
        "Cython.Build": SimpleNamespace(cythonize=lambda modules, force, **_: found.append(force) or modules),
        "Cython.Compiler": ModuleType("Cython.Compiler"),
        "Cython.Compiler.Version": SimpleNamespace(version="3"),
    }
    for name, module in stands_in.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(build_ext, "build_extensions", lambda command: found.append(bool(command.force)))
    monkeypatch.chdir(tmp_path)

    def setup(ext_modules, cmdclass):
        command = cmdclass["build_ext"](setuptools.Distribution({"ext_modules": ext_modules}))
        command.build_temp = str(tmp_path)
        command.ensure_finalized()
        build_ext.run(command)

    monkeypatch.setattr(setuptools, "setup", setup)

    def run():
        found.clear()
        runpy.run_path(str(SETUP))
        return found.copy()

    return run


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="asks a C compiler, as Linux has it")
def test_other_options_build_again(build, monkeypatch):
    assert [build(), build()] == [[True, True], [False, False]]
    monkeypatch.setenv("FASTBN_OPENMP", "0")
    assert [build(), build()] == [[False, True], [False, False]]
    monkeypatch.setenv("FASTBN_DEBUG", "1")
    assert [build(), build()] == [[True, True], [False, False]]
