"""The structure: one direction of imports, one place for each kind of knowledge, public names."""

import ast
import inspect
import re
import typing
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

import fastbn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastbn"
KERNELS = PACKAGE / "_kernels"
SOURCES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".pyx", ".pxd", ".pxi", ".h"))
COMMENT = {".py": "#", ".pyx": "#", ".pxd": "#", ".pxi": "#", ".h": "//"}


def name_of(path):
    return str(path.relative_to(PACKAGE))


def code_of(path):
    """The text of a file without comments and docstrings."""
    text = path.read_text()
    text = re.sub(r'"""(?:.|\n)*?"""', "", text)
    text = re.sub(r"/\*(?:.|\n)*?\*/", "", text) if path.suffix == ".h" else text
    return re.sub(rf"{COMMENT[path.suffix]}.*", "", text)


def holding(pattern, sources=SOURCES):
    """Names of the files whose code matches."""
    return {name_of(path) for path in sources if re.search(pattern, code_of(path))}


IMPORT = re.compile(r"^ *(?:from ([\w.]+) c?import (\([^)]*\)|.*)|c?import (.*))", re.MULTILINE)


def imports(path):
    """Modules of fastbn, and others (prefixed with @), that a file imports, cimports or includes."""
    code, found = code_of(path), set()
    for module, names, plain in IMPORT.findall(code):
        if module == "fastbn":
            found |= {name.split()[0] for name in names.strip("()").split(",") if name.strip()}
        elif module.startswith("fastbn."):
            found.add(module.removeprefix("fastbn."))
        elif module:
            found.add("@" + module.partition(".")[0])
        for name in plain.split(","):
            if name.strip() and not module:
                found.add("@" + name.split()[0].partition(".")[0])
    return found | set(re.findall(r'^include "([\w.]+)"', code, re.MULTILINE))


# What each module of the package may import from it: lower tiers only.
MAY_IMPORT = {
    "__init__.py": {
        "_core",
        "_cpu",
        "_dispatch",
        "_threads",
        "reference",
        "functional",
        "folding",
        "layers",
        "statistics",
    },
    "layers.py": {"functional", "_core", "_cpu", "_explain", "_integers", "statistics"},
    "functional.py": {"_core", "_explain", "_integers", "statistics"},
    "optional.py": {"_core", "_cpu", "_explain"},
    "folding.py": {"_cpu", "_explain", "_integers"},
    "reference.py": {"statistics"},
    "_core.pyx": {"_dispatch", "_explain", "_kernels.table", "statistics"},
    "_threads.py": {"_core", "_integers"},
    "_explain.py": {"_cpu", "_integers", "statistics"},
    "statistics.py": {"_cpu", "_integers"},
    "_integers.py": set(),
    "_dispatch.py": {"_cpu"},
    "_cpu.pyx": set(),
    "_kernels/__init__.py": set(),
    "_kernels/table.pxd": set(),
    "_kernels/kernels.pxi": {"_kernels.table", *(p.name for p in KERNELS.glob("*.pxi") if p.name != "kernels.pxi")},
    "_kernels/baseline.pyx": {"kernels.pxi"},
    "_kernels/x86_64_v3.pyx": {"kernels.pxi"},
}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_import_direction(name):
    found = {module for module in imports(PACKAGE / name) if not module.startswith("@")}
    assert found <= MAY_IMPORT[name]


def test_tiers_are_connected_and_have_no_cycle():
    graph = {name: {m for m in imports(PACKAGE / name) if not m.startswith("@")} for name in MAY_IMPORT}
    assert "functional" in graph["layers.py"]
    assert "_core" in graph["functional.py"]
    assert "_kernels.table" in graph["_core.pyx"]
    files = {name.removesuffix(".py").removesuffix(".pyx"): name for name in MAY_IMPORT}

    def below(name, path=()):
        assert name not in path, f"a cycle: {path}"
        for module in graph.get(files.get(name), ()):
            below(module, (*path, name))

    for name in files:
        below(name)


def test_every_module_is_in_the_table():
    """A new module says here what it may import. Commands and optional parts stand above the public names."""
    commands = {"cli.py", "commands.py", "__main__.py"}
    above = {name_of(p) for p in SOURCES if p.parent.name in ("bench", "caffe", "demo")} | commands
    included = {name_of(p) for p in KERNELS.iterdir() if p.suffix in (".pxi", ".h")}
    assert {name_of(p) for p in SOURCES} - above - included == set(MAY_IMPORT) - {"_kernels/kernels.pxi"}
    private = re.compile(r"\bfastbn\._(?!_)|from fastbn import .*\b_")
    assert [name for name in above if private.search(code_of(PACKAGE / name))] == ["bench/floor.py"]


def test_kernels_know_neither_numpy_nor_python():
    inside = [p for p in SOURCES if p.parent == KERNELS and p.suffix in (".pyx", ".pxi", ".pxd")]
    allowed = {"@cpython", "@cython", "@libc"}
    for path in inside:
        outside = {module for module in imports(path) if module.startswith("@")}
        assert outside <= allowed, path.name
    assert holding(r"\b(np|cnp|numpy|PyObject|PyArray\w*|raise|try|malloc|PyMem_\w+)\b", inside) == set()
    assert holding(r"^\s*def \w+", inside) == set()
    assert holding(r"cpython", inside) == {"_kernels/kernels.pxi"}  # the capsule that exports the table


def test_numpys_c_api_is_behind_one_door():
    assert holding(r"cimport numpy|PyArray_|numpy/") == {"_core.pyx"}


def test_prange_stands_in_one_place():
    assert holding(r"\bprange\(") == {"_kernels/team.pxi"}
    assert holding(r"\bparallel\b") <= {"_kernels/kernels.pxi", "_kernels/team.pxi"}
    assert holding(r"omp_\w+\(") <= {"_kernels/platform.h"}
    assert holding(r"reduction|schedule=\"(dynamic|guided)") == set()


def test_only_threads_reads_thread_variables():
    pattern = r"NUM_THREADS|sched_getaffinity|cpu_count|cpu\.max|cfs_quota|register_at_fork"
    assert holding(pattern) == {"_threads.py"}
    assert holding(r"environ|getenv") == {"_threads.py", "_dispatch.py"}


def test_only_dispatch_knows_instruction_sets():
    names = r"(?i)x86|avx|sse\d|fma\b|neon|aarch64|FASTBN_ISA"
    found = holding(names)
    assert found <= {"_dispatch.py", "_cpu.pyx", "_kernels/platform.h", "_kernels/lanes.h", "_kernels/half.h"}
    assert "_dispatch.py" in found


def test_flags_keep_the_order_of_additions():
    setup = (ROOT / "setup.py").read_text()
    lists = [node for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.Constant) and type(node.value) is str]
    flags = {node.value for node in lists if node.value.startswith(("-", "/"))}
    assert "-ffp-contract=off" in flags
    assert "-march=x86-64-v3" in flags
    forbidden = r"fast-?math|-Ofast|associative-math|unsafe-math|finite-math|reciprocal-math|-march=native|/fp:fast"
    assert [flag for flag in flags if re.search(forbidden, flag)] == []
    assert holding(rf"{forbidden}|#pragma\s+(GCC|STDC)") == set()


def test_no_full_size_temporary_in_python():
    """Above `_core`, nothing computes on whole arrays: x, dy and y are only handed on."""
    arithmetic = r"\b(x|dy|y|out)\b\s*[-+*/]=?\s*\w|\w\s*[-+*/]\s*\b(x|dy|y)\b(?!\()|\b(x|dy)\.(copy|astype|sum|mean)\("
    for name in ("functional.py", "layers.py"):
        assert re.search(arithmetic, code_of(PACKAGE / name)) is None, name


# ---- signatures

AFFINE = "gamma=None, beta=None, *, eps=1e-05, axis=1, activation=None, negative_slope=0.01"
BACKWARD = f"{AFFINE}, residual=False, y=None, training=True"
NEEDS = "need_dx=True, need_params=True, out=None"

FUNCTIONS = {
    "batch_norm": f"(x, {AFFINE}, residual=None, out=None)",
    "normalize": f"(x, mean, var, {AFFINE}, residual=None, out=None)",
    "batch_norm_backward": f"(dy, x, stats, {BACKWARD}, {NEEDS})",
    "batch_stats": "(x, *, axis=1)",
    "backward_sums": f"(dy, x, stats, {BACKWARD})",
    "backward_apply": f"(dy, x, stats, sums, {BACKWARD}, {NEEDS})",
    "population_stats": "(batches, *, axis=1, method='pooled')",
    "fold_batch_norm": "(weight, bias, mean, var, gamma=None, beta=None, *, eps=1e-05, axis=0, groups=1)",
}
OTHERS = {
    "BatchStats": "(count, mean, var)",
    "BatchStats.merge": "(self, *others)",
    "GradientSums": "(sum_dy, sum_dy_xmu)",
    "Gradients": "(dx, dgamma, dbeta, dresidual)",
    "BatchNorm.__call__": "(self, x, residual=None, out=None)",
    "BatchNorm.backward": "(self, dy, out=None)",
    "BatchNorm.train": "(self, mode=True)",
    "BatchNorm.eval": "(self)",
    "BatchNorm.parameters": "(self)",
    "BatchNorm.reset_running_stats": "(self)",
    "BatchNorm.state_dict": "(self)",
    "BatchNorm.load_state_dict": "(self, d)",
    "BatchNorm.recalibrate": "(self, batches, method='pooled')",
    "set_num_threads": "(n)",
    "get_num_threads": "()",
    "num_threads": "(n)",
    "show_config": "()",
}
LAYER = (
    "(num_features, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, *, axis=1, "
    "dtype=<class 'numpy.float32'>, activation=None, negative_slope=0.01, use_global_stats=None)"
)


def signature(thing):
    """A signature without annotations."""
    found = inspect.signature(thing)
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


def public(name):
    return attrgetter(name)(fastbn)


@pytest.mark.parametrize("name", [*FUNCTIONS, *OTHERS])
def test_signatures(name):
    assert signature(public(name)) == {**FUNCTIONS, **OTHERS}[name]


@pytest.mark.parametrize("name", ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_signatures_of_layers(name):
    assert signature(public(name)) == LAYER


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reference_has_the_same_signatures(name):
    assert signature(getattr(fastbn.reference, name)) == signature(public(name))
    assert getattr(fastbn.reference, name) is not public(name)


def test_public_names():
    layers = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
    values = {"isa", "__version__", "reference"}
    assert set(fastbn.__all__) == {*FUNCTIONS, *(n for n in OTHERS if "." not in n), *layers, *values}
    assert len(fastbn.__all__) == len(set(fastbn.__all__))
    assert all(hasattr(fastbn, name) for name in fastbn.__all__)
    assert set(fastbn.reference.__all__) == set(FUNCTIONS)
    stray = {n for n in vars(fastbn) if not n.startswith("_")} - set(fastbn.__all__)
    assert stray <= {
        "annotations",
        "folding",
        "functional",
        "layers",
        "optional",
        "statistics",
        "bench",
        "caffe",
        "cli",
        "commands",
        "demo",
    }


def test_attributes_of_layers():
    names = "gamma beta dgamma dbeta running_mean running_var num_batches_tracked training"
    bn = fastbn.BatchNorm(2)
    assert all(hasattr(bn, name) for name in names.split())


def test_values_unpack_like_tuples():
    count, mean, var = stats = fastbn.BatchStats(np.int64(2), [1], [3])
    assert (type(count), mean.dtype, var.tolist(), stats.mean is mean, stats[2] is var) == (int, float, [3], True, True)
    sum_dy, sum_dy_xmu = sums = fastbn.GradientSums([1], [2])
    assert (sums.sum_dy is sum_dy, sums[1] is sum_dy_xmu) == (True, True)
    dx, dgamma, dbeta, dresidual = fastbn.Gradients(1, 2, 3, 4)
    assert (dx, dgamma, dbeta, dresidual) == (1, 2, 3, 4)


def test_annotations_are_types():
    """Every public function is typed (py.typed says so), and the types can be looked up."""
    for name in [*FUNCTIONS, "set_num_threads", "get_num_threads", "num_threads", "show_config"]:
        hints = typing.get_type_hints(public(name))
        assert set(hints) == {*inspect.signature(public(name)).parameters, "return"}, name
    assert (PACKAGE / "py.typed").exists()


def test_the_map_of_the_kernels_names_every_file():
    named = set(re.findall(r"^(\w+\.\w+) ", (KERNELS / "__init__.py").read_text(), re.MULTILINE))
    files = {p.name for p in KERNELS.iterdir() if p.suffix in (".pxi", ".pxd", ".h", ".pyx")}
    assert named == files - {"x86_64_v3.pyx"}


@pytest.mark.parametrize("package", ["bench", "caffe"])
def test_maps_of_packages_name_every_module(package):
    folder = PACKAGE / package
    named = re.findall(r"\b\w+\.py\b", ast.get_docstring(ast.parse((folder / "__init__.py").read_text())))
    assert sorted(named) == sorted(p.name for p in folder.glob("*.py") if p.name != "__init__.py")
