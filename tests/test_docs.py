"""The docstrings: every public name has one, with parameters, results and an example that runs."""

import doctest
import inspect
import re
from operator import attrgetter

import pytest

import fastbn
from fastbn import _threads, caffe, folding, functional, layers, reference, statistics

MODULES = [fastbn, folding, functional, layers, statistics, _threads]
FUNCTIONS = [n for n in fastbn.__all__ if inspect.isfunction(getattr(fastbn, n))]
CLASSES = [n for n in fastbn.__all__ if inspect.isclass(getattr(fastbn, n))]
METHODS = [
    f"{name}.{method}"
    for name in ("BatchNorm", "BatchStats", "GradientSums")
    for method, thing in vars(getattr(fastbn, name)).items()
    if (inspect.isfunction(thing) and not method.startswith("_")) or method == "__call__"
]
CAFFE = [f"caffe.{name}" for name in caffe.__all__]
CAFFE_CALLS = [
    f"caffe.{name}.{method}"
    for name in caffe.__all__
    for method in ("__call__", "backward")
    if method in vars(getattr(caffe, name))
]


def public(name):
    return attrgetter(name)(fastbn)


@pytest.fixture(autouse=True)
def _settings_stay():
    """The examples set numbers of threads."""
    before = fastbn._core.chosen_threads()
    yield
    fastbn._core.set_threads(before, _threads._granted())


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def sections(name):
    return set(re.findall(r"^(\w+)\n-+$", inspect.getdoc(public(name)), re.MULTILINE))


def parameters(name):
    return [p for p in inspect.signature(public(name)).parameters.values() if p.name not in ("self", "cls")]


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, *METHODS, *CAFFE, *CAFFE_CALLS])
def test_docstrings_exist(name):
    text = inspect.getdoc(public(name))
    assert text
    assert re.match(r"[`(\w].{15,}[.:]$", text.splitlines()[0]), "the first line is a sentence"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_parameters_returns_and_an_example(name):
    found = sections(name)
    assert "Examples" in found
    assert ("Parameters" in found) == bool(parameters(name))
    no_result = name in ("set_num_threads", "num_threads", "show_config")
    short = name == "get_num_threads"  # the first line says what it returns
    assert ("Returns" in found) != (no_result or short)
    assert ("Raises" in found) == bool(parameters(name))  # all check their arguments


@pytest.mark.parametrize("name", ["BatchNorm", "BatchStats", "GradientSums"])
def test_classes_have_parameters_errors_and_an_example(name):
    assert {"Parameters", "Raises", "Examples"} <= sections(name)


@pytest.mark.parametrize("name", CAFFE)
def test_caffe_has_an_example_and_says_what_it_is_made_of(name):
    found = sections(name)
    assert "Examples" in found
    if name in ("caffe.Block", "caffe.Net"):  # made by load()
        assert "Attributes" in found
    else:
        assert {"Parameters", "Raises"} <= found


@pytest.mark.parametrize("name", CAFFE_CALLS)
def test_caffe_calls_have_parameters_returns_and_errors(name):
    assert {"Parameters", "Returns", "Raises"} <= sections(name)


@pytest.mark.parametrize(
    "name",
    [*FUNCTIONS, "BatchNorm", "BatchStats", "GradientSums", *METHODS, "caffe.load", "caffe.BatchNorm", *CAFFE_CALLS],
)
def test_every_parameter_is_described(name):
    """By a line of the section Parameters that begins with it."""
    text = inspect.getdoc(public(name))
    described = re.search(r"^Parameters\n-+\n((?:.|\n)*?)(?=^\w+\n-+$|\Z)", text, re.MULTILINE)
    lines = re.findall(r"^\*?(\w[\w, *]*?)(?: :.*)?$", described.group(1), re.MULTILINE) if described else []
    told = {word.strip(" *") for line in lines for word in line.split(",")}
    given = {p.name for p in parameters(name)}
    if described or name in FUNCTIONS:
        assert given == told
    else:
        assert len(given) <= 1, "more than one argument needs a section"


@pytest.mark.parametrize("name", reference.__all__)
def test_reference_says_what_it_defines(name):
    assert inspect.getdoc(getattr(reference, name))


def test_every_module_says_what_it_is():
    for module in [*MODULES, reference, fastbn._explain, fastbn._integers, fastbn._dispatch, fastbn._core, fastbn._cpu]:
        assert len(module.__doc__.splitlines()[0]) > 20, module.__name__
