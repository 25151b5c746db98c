"""Promise P5: wrong input raises a clear error before a byte is written, and what is merely unusual is accepted.

The tables below are lists of wrong arguments: where they go, what they are, which error they give and what it says.
After each error everything that took part is byte for byte as before.
"""

import ast
import copy
import fractions
import inspect
import operator
import re
import warnings

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastbn
from fastbn import _explain, functional, layers, statistics
from fastbn import reference as ref

SHAPE = (2, 3, 4)


class Given:
    """Good arguments, fresh for each test: every wrong call changes one of them."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x, self.dy, self.out = rng.normal(size=(3, *SHAPE)).astype(np.float32)
        self.gamma, self.beta = rng.normal(size=3).astype(np.float32), rng.normal(size=3)
        self.mean, self.var = rng.normal(size=3), rng.uniform(1, 2, size=3)
        self.stats = fastbn.BatchStats(8, self.mean, self.var)
        self.sums = fastbn.GradientSums(rng.normal(size=3), rng.normal(size=3))
        self.buffer = rng.normal(size=64).astype(np.float32)
        self.numbers = self.buffer.view(np.float64)
        self.square = rng.normal(size=(3, 3)).astype(np.float32)
        self.bn, self.frozen = fastbn.BatchNorm(3), fastbn.BatchNorm(3).eval()
        self.fresh = fastbn.BatchNorm(3)
        self.untracked = fastbn.BatchNorm(3, affine=False, track_running_stats=False)
        for layer in (self.bn, self.frozen):
            layer(self.x)
            layer.backward(self.dy)
        self.state = self.bn.state_dict()

    def snapshot(self):
        """Everything that an error could have changed."""
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, fastbn.BatchNorm):
                state = {k: v for k, v in vars(value).items() if k != "_saved"}
                found[name] = {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in state.items()}
                found[name]["_saved"] = id(value._saved)
            elif isinstance(value, np.ndarray):
                found[name] = (value.tobytes(), value.flags.writeable)
            else:
                found[name] = repr(value)
        return found


TAKES = {
    "batch_norm": ("x", "gamma", "beta"),
    "normalize": ("x", "mean", "var", "gamma", "beta"),
    "batch_stats": ("x",),
    "batch_norm_backward": ("dy", "x", "stats", "gamma", "beta"),
    "backward_sums": ("dy", "x", "stats", "gamma", "beta"),
    "backward_apply": ("dy", "x", "stats", "sums", "gamma", "beta"),
}


def use(name, a, **changes):
    """Call a function, or a layer of `a`, with good arguments but for the changes."""
    if name == "layer":
        return a.bn(**{"x": a.x} | changes)
    if name == "layer in eval":
        return a.frozen(**{"x": a.x} | changes)
    if name == "layer.backward":
        return a.bn.backward(**{"dy": a.dy} | changes)
    return getattr(fastbn, name)(**{n: getattr(a, n) for n in TAKES[name]} | changes)


def first(result):
    """The array that a call writes."""
    if isinstance(result, fastbn.Gradients):
        return result.dx
    return result[0] if isinstance(result, tuple) else result


LAYER = ("layer", "layer in eval")
BACKWARD = ("batch_norm_backward", "backward_sums", "backward_apply")
GRADIENTS = ("batch_norm_backward", "backward_apply")
WITH_X = (*TAKES, *LAYER)
WITH_DY = (*BACKWARD, "layer.backward")
WITH_GAMMA = tuple(name for name in TAKES if "gamma" in TAKES[name])
WITH_EPS = WITH_GAMMA
WITH_OUT = ("batch_norm", "normalize", "batch_norm_backward", "backward_apply", *LAYER, "layer.backward")


class Refuses:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("not today")


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


def holding_itself():
    found = []
    found.append(found)
    return found


# What is no array of float32 or float64: (name, from a good one, error, text behind the argument's name).
NOT_FLOATS = [
    ("list that holds itself", lambda x: holding_itself(), TypeError, "expected an array, got list"),
    ("masked", np.ma.masked_array, TypeError, "expected a plain array, got a masked array"),
    (
        "list of lists of masked",
        lambda x: [[np.ma.masked_array(part) for part in x]],
        TypeError,
        "expected a plain array, got a masked",
    ),
    (
        "list of masked",
        lambda x: [np.ma.masked_array(part) for part in x],
        TypeError,
        "expected a plain array, got a masked",
    ),
    (
        "int64",
        lambda a: a.astype(np.int64),
        TypeError,
        "expected dtype (float16, bfloat16, )?float32 or float64, got int64",
    ),
    (
        "uint8",
        lambda a: a.astype(np.uint8),
        TypeError,
        "expected dtype (float16, bfloat16, )?float32 or float64, got uint8",
    ),
    ("bool", lambda a: a > 0, TypeError, "expected dtype (float16, bfloat16, )?float32 or float64, got bool"),
    ("complex", lambda a: a * 1j, TypeError, "expected dtype (float16, bfloat16, )?float32 or float64, got complex"),
    (
        "object",
        lambda a: a.astype(object),
        TypeError,
        "expected dtype (float16, bfloat16, )?float32 or float64, got object",
    ),
    ("text", lambda a: a.astype(str), TypeError, "expected dtype (float16, bfloat16, )?float32 or float64, got <U"),
    (
        "record",
        lambda a: a.view([("v", a.dtype)]),
        TypeError,
        r"expected dtype (float16, bfloat16, )?float32 or float64, got \[\(",
    ),
    ("other byte order", swapped, TypeError, "expected native byte order, got dtype '>f"),
    ("other byte order, float16", lambda a: swapped(a.astype("f2")), TypeError, "expected native byte order"),
    (
        "list of ints",
        lambda a: a.astype(int).tolist(),
        TypeError,
        "expected dtype (float16, bfloat16, )?float32 or float64, got int64",
    ),
    ("ragged list", lambda a: [[[1.0]], [[1.0, 2.0]]], TypeError, "expected an array, got list: "),
    ("__array__ raises", lambda a: Refuses(), TypeError, "expected an array, got Refuses: not today"),
    ("dict", lambda a: {}, TypeError, "expected dtype (float16, bfloat16, )?float32 or float64, got object"),
]
if np.dtype(np.longdouble).itemsize > 8:
    NOT_FLOATS += [
        (
            "longdouble",
            lambda a: a.astype(np.longdouble),
            TypeError,
            "expected dtype (float16, bfloat16, )?float32 or float64",
        )
    ]
NONE = ("None", lambda a: None, TypeError, "expected an array, got None")
WRONG_X = [
    ("0-d", lambda a: a[0, 0, 0], ValueError, r"(expected 2 or more dimensions|expected .* dimensions).*shape \(\)"),
    ("1-d", lambda a: a[0, 0], ValueError, r"expected 2 or more dimensions.*got shape \(4,\)"),
    ("number", lambda a: 1.5, ValueError, r"expected 2 or more dimensions.*got shape \(\)"),
    ("no channel", lambda a: a[:, :0], ValueError, r"expected (at least one|3) channels?.*\(2, 0, 4\)"),
]
WRONG_DY = [
    ("float64", lambda a: a.astype(np.float64), TypeError, "expected the dtype of x, float32, got float64"),
    ("a list (float64)", lambda a: a.tolist(), TypeError, "expected the dtype of x, float32, got float64"),
    ("shape", lambda a: a[:1], ValueError, r"expected the shape of x, \(2, 3, 4\), got \(1, 3, 4\)"),
    ("flat", lambda a: a.ravel(), ValueError, r"expected the shape of x, \(2, 3, 4\), got \(24,\)"),
    ("transposed", lambda a: a.transpose(1, 0, 2), ValueError, r"expected the shape of x.*got \(3, 2, 4\)"),
]
WRONG_VECTOR = [
    ("too short", lambda v: v[:2], ValueError, r"expected shape \(3,\), a number per channel, got \(2,\)"),
    ("too long", lambda v: np.append(v, v), ValueError, r"expected shape \(3,\), .*got \(6,\)"),
    ("column", lambda v: v[:, None], ValueError, r"expected shape \(3,\), .*got \(3, 1\)"),
    ("number", lambda v: 1.0, ValueError, r"expected shape \(3,\), .*got \(\)"),
    ("float16", lambda v: v.astype(np.float16), TypeError, "expected dtype float32 or float64, got float16"),
]


def wrong(functions, argument, entries):
    """Rows (function, changes, error, text) for each entry of a list and each function."""
    return [
        pytest.param(
            function,
            lambda a, argument=argument, make=make: {argument: make(getattr(a, argument))},
            error,
            f"^{argument}: {text}",
            id=f"{function}({argument}={name})",
        )
        for function in functions
        for name, make, error, text in entries
    ]


def rows(functions, name, changes, error, text):
    """Rows for any changes of the arguments."""
    return [pytest.param(f, changes, error, text, id=f"{f}: {name}") for f in functions]


ARRAYS = [
    *wrong(WITH_X, "x", [NONE, *NOT_FLOATS, *WRONG_X]),
    *wrong(WITH_DY, "dy", [NONE, *NOT_FLOATS, *WRONG_DY]),
    *wrong(WITH_GAMMA, "gamma", [*NOT_FLOATS, *WRONG_VECTOR]),
    *wrong(WITH_GAMMA, "beta", [*NOT_FLOATS, *WRONG_VECTOR]),
    *wrong(("normalize",), "mean", [NONE, *NOT_FLOATS, *WRONG_VECTOR]),
    *wrong(("normalize",), "var", [NONE, *NOT_FLOATS, *WRONG_VECTOR]),
    *rows(LAYER, "channels", lambda a: {"x": a.x[:, :2]}, ValueError, r"^x: expected 3 channels .*\(2, 2, 4\)"),
    *rows(
        ("batch_norm", "layer"), "no sample", lambda a: {"x": a.x[:0]}, ValueError,
        r"^x: expected at least one value per channel, got shape \(0, 3, 4\)",
    ),
    *rows(
        ("batch_norm", "layer"), "empty plane", lambda a: {"x": a.x[..., :0]}, ValueError,
        r"^x: expected at least one value per channel, got shape \(2, 3, 0\)",
    ),
    *rows(
        ("layer",), "one value per channel", lambda a: {"x": a.x[:1, :, :1]}, ValueError,
        "^x: expected more than one value per channel in training",
    ),
]  # fmt: skip

OPTIONS = [
    *(
        row
        for eps, error, text in [
            (-1e-5, ValueError, "expected a number >= 0, got -1e-05"),
            (np.float32(-1), ValueError, "expected a number >= 0, got -1.0"),
            (np.nan, ValueError, "expected a finite number, got nan"),
            (np.inf, ValueError, "expected a finite number, got inf"),
            (-np.inf, ValueError, "expected a finite number, got -inf"),
            (10**400, ValueError, "expected a finite number"),
            (True, TypeError, "expected a number, got bool"),
            (np.True_, TypeError, "expected a number, got bool"),
            ("1e-5", TypeError, "expected a number, got str"),
            (None, TypeError, "expected a number, got NoneType"),
            (1j, TypeError, "expected a number, got complex"),
            (np.array([1e-5]), TypeError, "expected a number, got ndarray"),
        ]
        for row in rows(WITH_EPS, f"eps {str(eps)[:9]!r}", lambda a, eps=eps: {"eps": eps}, error, f"^eps: {text}")
    ),
    *(
        row
        for axis, error, text in [
            (3, ValueError, "expected -3 to 2 for x with shape .*, got 3"),
            (-4, ValueError, "expected -3 to 2 for x with shape .*, got -4"),
            (2**70, ValueError, "expected -3 to 2"),
            (np.int64(3), ValueError, "expected -3 to 2 for x with shape .*, got 3"),
            (True, TypeError, "expected an integer, got a bool"),
            (np.True_, TypeError, "expected an integer, got a bool"),
            (1.0, TypeError, "expected an integer, got float"),
            ("1", TypeError, "expected an integer, got str"),
            (None, TypeError, "expected an integer, got NoneType"),
            ((1,), TypeError, "expected an integer, got tuple"),
        ]
        for row in rows(TAKES, f"axis {str(axis)[:9]!r}", lambda a, axis=axis: {"axis": axis}, error, f"^axis: {text}")
    ),
    *(
        row
        for name, error, text in [
            ("tanh", ValueError, r"expected one of \('relu', 'relu6', 'leaky_relu'\) or None, got 'tanh'"),
            ("ReLU", ValueError, "expected one of .*got 'ReLU'"),
            (True, TypeError, "expected one of .*got bool"),
            (max, TypeError, "expected one of .*got builtin_function_or_method"),
        ]
        for row in rows(
            WITH_GAMMA, f"activation {name!r:.9}", lambda a, n=name: {"activation": n}, error, f"^activation: {text}"
        )
    ),
    *(
        row
        for slope, error, text in [
            (-0.01, ValueError, "expected a number >= 0, got -0.01"),
            (np.nan, ValueError, "expected a finite number, got nan"),
            (np.inf, ValueError, "expected a finite number, got inf"),
            (None, TypeError, "expected a number, got NoneType"),
            (True, TypeError, "expected a number, got bool"),
            ("0.01", TypeError, "expected a number, got str"),
        ]
        for row in rows(
            WITH_GAMMA, f"negative_slope {slope}", lambda a, v=slope: {"activation": "leaky_relu", "negative_slope": v},
            error, f"^negative_slope: {text}",
        )
    ),
    *(
        row
        for name, wrong, error, text in [
            ("shape", lambda a: a.dy[:1], ValueError, r"expected the shape of x, \(2, 3, 4\), got \(1, 3, 4\)"),
            ("dtype", lambda a: a.dy.astype("f8"), TypeError, "expected the dtype of x, float32, got float64"),
            ("bool", lambda a: True, TypeError, "expected dtype .*got bool"),
            ("masked", lambda a: np.ma.array(a.dy), TypeError, "expected a plain array, got a masked array"),
        ]
        for row in rows(
            ("batch_norm", "normalize", *LAYER), f"residual {name}", lambda a, w=wrong: {"residual": w(a)}, error,
            f"^residual: {text}",
        )
    ),
    *rows(
        BACKWARD, "residual an array", lambda a: {"residual": a.dy}, TypeError,
        "^residual: expected a bool, got ndarray",
    ),
    *rows(BACKWARD, "residual None", lambda a: {"residual": None}, TypeError, "^residual: expected a bool, got None"),
    *rows(
        BACKWARD, "residual without y", lambda a: {"residual": True, "activation": "relu"}, ValueError,
        "^y: expected the forward's result, needed with residual=True and activation='relu'",
    ),
    *rows(
        BACKWARD, "y of another shape", lambda a: {"residual": True, "activation": "relu", "y": a.out[:1]}, ValueError,
        r"^y: expected the shape of x, \(2, 3, 4\), got \(1, 3, 4\)",
    ),
    *rows(
        BACKWARD, "y of another type", lambda a: {"residual": True, "activation": "relu", "y": a.out.astype("f8")},
        TypeError, "^y: expected the dtype of x, float32, got float64",
    ),
    *rows(BACKWARD, "x None", lambda a: {"x": None}, TypeError, "^x: expected an array, got None"),
    *rows(
        BACKWARD, "x None, y of text", lambda a: {"x": None, "y": "abc"}, TypeError, "^y: expected dtype .*got <U3",
    ),
    *rows(
        BACKWARD, "x None, relu", lambda a: {"x": None, "y": a.out, "activation": "relu"}, ValueError,
        "^x: expected the input of the forward, since x cannot be had from y alone: relu keeps nothing of values below",
    ),
    *rows(
        BACKWARD, "x None, relu6", lambda a: {"x": None, "y": a.out, "activation": "relu6"}, ValueError,
        "^x: .*y alone: relu6 keeps nothing of values below 0",
    ),
    *rows(
        BACKWARD, "x None, slope 0",
        lambda a: {"x": None, "y": a.out, "activation": "leaky_relu", "negative_slope": 0.0}, ValueError,
        "^x: .*y alone: leaky_relu with negative_slope 0 keeps nothing of values below 0",
    ),
    *rows(
        BACKWARD, "x None, residual", lambda a: {"x": None, "y": a.out, "residual": True}, ValueError,
        "^x: .*y alone: a residual was added",
    ),
    *rows(
        BACKWARD, "x None, gamma 0", lambda a: {"x": None, "y": a.out, "gamma": [1.0, 0.0, 2.0]}, ValueError,
        "^x: .*y alone: gamma is 0 in a channel",
    ),
    *rows(
        GRADIENTS, "one out for two", lambda a: {"residual": True, "out": a.out}, TypeError,
        r"^out: expected a pair \(dx, dresidual\), got ndarray",
    ),
    *rows(
        GRADIENTS, "three outs for two", lambda a: {"residual": True, "out": (a.out, None, None)}, TypeError,
        r"^out: expected a pair \(dx, dresidual\), got tuple of 3",
    ),
    *rows(
        GRADIENTS, "two outs for one", lambda a: {"out": (a.out, None)}, TypeError, "^out: expected an array, got tup",
    ),
    *rows(
        GRADIENTS, "dx and dresidual in one place", lambda a: {"residual": True, "out": (a.out, a.out)}, ValueError,
        "^out: expected memory apart from dx, got an array that overlaps dx",
    ),
    *rows(
        GRADIENTS, "dresidual over a part of x",
        lambda a: {"x": a.buffer[:24].reshape(SHAPE), "residual": True, "out": (None, a.buffer[12:36].reshape(SHAPE))},
        ValueError, "^out: expected x itself or memory apart from it, got an array that overlaps x",
    ),
    *rows(
        GRADIENTS, "dresidual over y",
        lambda a: {"residual": True, "activation": "relu", "y": a.out, "out": (None, a.out)}, ValueError,
        "^out: expected memory apart from y, got an array that overlaps y",
    ),
    *rows(
        GRADIENTS, "dx over a part of y",
        lambda a: {
            "residual": True, "activation": "relu", "y": a.buffer[:24].reshape(SHAPE),
            "out": (a.buffer[12:36].reshape(SHAPE), None),
        }, ValueError, "^out: .*overlaps y",
    ),
    *rows(
        ("batch_norm", "normalize", *LAYER), "over a part of the residual",
        lambda a: {"residual": a.buffer[:24].reshape(SHAPE), "out": a.buffer[4:28].reshape(SHAPE)}, ValueError,
        "^out: expected residual itself or memory apart from it, got an array that overlaps residual",
    ),
    *(
        row
        for flag, functions in [("training", BACKWARD), ("need_dx", GRADIENTS), ("need_params", GRADIENTS)]
        for value in ("yes", None, 1.0, np.array([True, False]))
        for row in rows(
            functions, f"{flag} {type(value).__name__}", lambda a, f=flag, v=value: {f: v}, TypeError,
            f"^{flag}: expected a bool, got {type(value).__name__}",
        )
    ),
    *rows(
        ("normalize",), "negative variance", lambda a: {"var": [1.0, -0.5, -2.0]}, ValueError,
        "^var: expected variances >= 0, got -0.5 in channel 1",
    ),
    *rows(
        BACKWARD, "negative variance", lambda a: {"stats": fastbn.BatchStats(8, a.mean, -a.var)}, ValueError,
        "^stats.var: expected variances >= 0, got -.* in channel 0",
    ),
    *rows(
        BACKWARD, "a pair in training", lambda a: {"stats": (a.mean, a.var)}, TypeError,
        r"^stats: expected BatchStats or \(count, mean, var\), got tuple of 2",
    ),
    *rows(
        BACKWARD, "no stats", lambda a: {"stats": None, "training": False}, TypeError,
        r"^stats: expected BatchStats, \(count, mean, var\) or \(mean, var\), got NoneType",
    ),
    *rows(BACKWARD, "stats of text", lambda a: {"stats": "abc"}, TypeError, r"^stats: .*\(count, mean, var\), got str"),
    *rows(
        BACKWARD, "count not an integer", lambda a: {"stats": (8.0, a.mean, a.var)}, TypeError,
        "^stats: count: expected an integer, got float",
    ),
    *rows(
        BACKWARD, "stats of other channels", lambda a: {"stats": fastbn.BatchStats(8, a.mean[:2], a.var[:2])},
        ValueError, r"^stats.mean: expected shape \(3,\), .*got \(2,\)",
    ),
    *rows(
        BACKWARD, "pair of other channels", lambda a: {"stats": (a.mean, a.var[:2]), "training": False},
        ValueError, r"^stats.var: expected shape \(3,\), .*got \(2,\)",
    ),
    *rows(
        BACKWARD, "pair with None", lambda a: {"stats": (None, a.var), "training": False},
        TypeError, "^stats.mean: expected an array, got None",
    ),
    *rows(
        ("batch_norm_backward",), "count", lambda a: {"stats": fastbn.BatchStats(7, a.mean, a.var)}, ValueError,
        "^stats: expected the statistics of x, count 8, got count 7",
    ),
    *rows(
        ("backward_apply",), "count 0", lambda a: {"stats": fastbn.BatchStats(0, a.mean, a.var)}, ValueError,
        "^stats: expected the statistics of all parts, count 1 or more, got count 0",
    ),
    *(
        row
        for name, came, make in [
            ("None", "NoneType", lambda a: None), ("list", "list of 2", lambda a: [a.mean, a.var]),
            ("BatchStats", "BatchStats of 3", lambda a: a.stats), ("array", "ndarray", lambda a: np.ones((2, 3))),
            ("three", "tuple of 3", lambda a: (a.mean, a.mean, a.mean)),
        ]
        for row in rows(
            ("backward_apply",), f"sums {name}", lambda a, make=make: {"sums": make(a)}, TypeError,
            rf"^sums: expected GradientSums or a tuple \(sum_dy, sum_dy_xmu\), got {came}",
        )
    ),
    *rows(
        ("backward_apply",), "sums of other channels", lambda a: {"sums": fastbn.GradientSums([1.0], [2.0])},
        ValueError, r"^sums: expected shape \(3,\), .*got \(1,\)",
    ),
    *rows(
        ("batch_norm_backward", "backward_apply"), "out without dx", lambda a: {"need_dx": False, "out": a.out},
        ValueError, "^out: expected None with need_dx=False",
    ),
]  # fmt: skip


def readonly(array):
    view = array[:]
    view.flags.writeable = False
    return view


OWN_PLACES = "expected each value in a place of its own"
OUTS = [
    ("a list", lambda a: {"out": a.out.tolist()}, TypeError, "expected an array, got list"),
    ("a number", lambda a: {"out": 1.0}, TypeError, "expected an array, got float"),
    ("a tuple", lambda a: {"out": (a.out, a.out)}, TypeError, "expected an array, got tuple"),
    ("masked", lambda a: {"out": np.ma.masked_array(a.out)}, TypeError, "expected an array, got MaskedArray"),
    ("float64", lambda a: {"out": a.out.astype("f8")}, TypeError, "expected the dtype of x, float32, got float64"),
    ("int32", lambda a: {"out": a.out.view("i4")}, TypeError, "expected the dtype of x, float32, got int32"),
    ("byte order", lambda a: {"out": swapped(a.out)}, TypeError, "expected the dtype of x, float32, got >f4"),
    ("shape", lambda a: {"out": a.out[:1]}, ValueError, r"expected the shape of x, \(2, 3, 4\), got \(1, 3, 4\)"),
    ("flat", lambda a: {"out": a.out.ravel()}, ValueError, r"expected the shape of x, \(2, 3, 4\), got \(24,\)"),
    ("read-only", lambda a: {"out": readonly(a.out)}, ValueError, "expected a writeable array, got a read-only one"),
    ("one place", lambda a: {"out": as_strided(a.buffer, SHAPE, (0, 0, 0))}, ValueError, OWN_PLACES),
    ("zero step", lambda a: {"out": as_strided(a.buffer, SHAPE, (16, 0, 4))}, ValueError, OWN_PLACES),
    ("windows", lambda a: {"out": as_strided(a.buffer, SHAPE, (4, 32, 4))}, ValueError, OWN_PLACES),
    ("steps that meet", lambda a: {"out": as_strided(a.buffer, SHAPE, (24, 8, 12))}, ValueError, OWN_PLACES),
    ("half a value on", lambda a: {"out": as_strided(a.buffer, SHAPE, (96, 32, 2))}, ValueError, OWN_PLACES),
]


def test_any_steps_of_out():
    """Against places that are counted one by one."""
    rng = np.random.default_rng(0)
    memory, middle = np.zeros(4000, np.uint8), 2000
    seen = [0, 0]
    for _ in range(400):
        shape, steps = tuple(rng.integers(1, 6, 3)), tuple(rng.integers(-40, 41, 3))
        x = np.ones(shape, np.float32)
        out = as_strided(memory[middle : middle + 4].view(np.float32), shape, steps)
        places = sum(np.multiply.outer(np.arange(n), s).reshape([-1 if a == k else 1 for a in range(3)])
                     for k, (n, s) in enumerate(zip(shape, steps, strict=True)))  # fmt: skip
        meets = bool((np.diff(np.sort(places.ravel())) < 4).any())
        seen[meets] += 1
        if meets:
            with pytest.raises(ValueError, match=OWN_PLACES):
                fastbn.normalize(x, np.zeros(shape[1]), np.ones(shape[1]), eps=0, out=out)
            assert not memory.any()
        else:
            fastbn.normalize(x, np.zeros(shape[1]), np.ones(shape[1]), eps=0, out=out)
            assert (out == 1).all()
            memory[:] = 0
    assert min(seen) > 50


def at(buffer, start):
    return buffer[start : start + 24].reshape(SHAPE)


OVERLAPS = [
    ("x, one value on", lambda a: {"x": at(a.buffer, 0), "out": at(a.buffer, 1)}, "x"),
    ("x, one byte on", lambda a: {"x": at(a.buffer, 0), "out": at(a.buffer.view("u1")[1:-3].view("f4"), 0)}, "x"),
    ("x, one value back", lambda a: {"x": at(a.buffer, 1), "out": at(a.buffer, 0)}, "x"),
    ("x, last value", lambda a: {"x": at(a.buffer, 0), "out": at(a.buffer, 23)}, "x"),
    ("x, reversed", lambda a: {"out": a.x[..., ::-1]}, "x"),
    ("x, channels reversed", lambda a: {"out": a.x[:, ::-1]}, "x"),
    ("x, samples reversed", lambda a: {"out": a.x[::-1]}, "x"),
    ("x, other axes", lambda a: {"out": a.x.reshape(4, 3, 2).transpose(2, 1, 0)}, "x"),
    ("x, interleaved in part", lambda a: {"x": as_strided(a.buffer, SHAPE, (96, 32, 8)),
                                          "out": as_strided(a.buffer[2:], SHAPE, (96, 32, 8))}, "x"),
]  # fmt: skip
DY_OVERLAPS = [
    ("dy, one value on", lambda a: {"dy": at(a.buffer, 0), "out": at(a.buffer, 1)}, "dy"),
    ("dy, reversed", lambda a: {"out": a.dy[..., ::-1]}, "dy"),
]


class Holds:
    """An object whose __array__ hands out its own memory."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


# A vector inside the memory of out: in every way that np.asarray takes it without a copy, and in both types.
VECTORS = {
    "float64": lambda a: a.numbers[5:8],
    "float32": lambda a: a.buffer[5:8],
    "with gaps": lambda a: a.numbers[:9:3],
    "memoryview": lambda a: memoryview(a.numbers[5:8]),
    "__array__": lambda a: Holds(a.numbers[5:8]),
    "read-only": lambda a: readonly(a.numbers[5:8]),
}


def over_vector(functions, argument, name=None, **more):
    """Rows in which out lies over a vector given as this argument."""
    name = name or argument
    for kind, vector in VECTORS.items():

        def changes(a, vector=vector):
            a.buffer[...] = np.abs(a.buffer)  # good as a variance
            np.copyto(a.numbers[:9], 1.5)
            return {"out": at(a.buffer, 0), **{k: m(a, vector(a)) for k, m in more.items()}}

        yield from rows(functions, f"{name}, {kind}", changes, ValueError, f"^out: .*{argument}")


FUNCTIONS_WITH_OUT = ("batch_norm", "normalize", "batch_norm_backward", "backward_apply")
OUT = [
    *(row for name, make, error, text in OUTS for row in rows(WITH_OUT, name, make, error, f"^out: {text}")),
    *(
        row
        for name, make, argument in OVERLAPS
        for row in rows(
            (*FUNCTIONS_WITH_OUT, *LAYER), name, make, ValueError, f"^out: .*memory apart.*overlaps {argument}"
        )
    ),
    *(
        row
        for name, make, argument in DY_OVERLAPS
        for row in rows((*GRADIENTS, "layer.backward"), name, make, ValueError, f"^out: .*overlaps {argument}")
    ),
    *over_vector(FUNCTIONS_WITH_OUT, "gamma", gamma=lambda a, v: v),
    *over_vector(FUNCTIONS_WITH_OUT, "beta", beta=lambda a, v: v),
    *over_vector(("normalize",), "mean", mean=lambda a, v: v),
    *over_vector(("normalize",), "var", var=lambda a, v: v),
    *over_vector(
        GRADIENTS, "stats", "stats[0]", stats=lambda a, v: (v, [1.0] * 3), training=lambda a, v: False
    ),
    *over_vector(
        GRADIENTS, "stats", "stats[1]", stats=lambda a, v: ([1.0] * 3, v), training=lambda a, v: False
    ),
    *over_vector(("backward_apply",), "sums", "sums[0]", sums=lambda a, v: (v, [1.0] * 3)),
    *over_vector(("backward_apply",), "sums", "sums[1]", sums=lambda a, v: ([1.0] * 3, v)),
    *rows(
        ("batch_norm", "normalize", *LAYER), "transposed square", lambda a: {"x": a.square, "out": a.square.T},
        ValueError, "^out: .*overlaps x",
    ),
    *rows(
        GRADIENTS, "transposed square",
        lambda a: {"x": a.square, "dy": a.square + 1, "stats": a.stats._replace(count=3), "out": a.square.T},
        ValueError, "^out: .*overlaps x",
    ),
    *rows(
        ("layer",), "x itself with a residual", lambda a: {"out": a.x, "residual": a.dy}, ValueError,
        "^out: expected memory apart from x, since x cannot be had from y alone: a residual was added",
    ),
]  # fmt: skip


def only_taken(name, changes):
    """Without the arguments that a function does not take (tables are shared)."""
    if name in LAYER:
        return {k: v for k, v in changes.items() if k != "dy"}
    if name == "layer.backward":
        return {k: v for k, v in changes.items() if k != "x"}
    return {k: v for k, v in changes.items() if k != "dy" or k in TAKES[name]}


@pytest.mark.parametrize(("function", "changes", "error", "text"), [*ARRAYS, *OPTIONS, *OUT])
def test_wrong_arguments(function, changes, error, text):
    a = Given()
    changed = only_taken(function, changes(a))
    extra = [value.tobytes() for value in changed.values() if type(value) is np.ndarray]
    before = a.snapshot()
    with pytest.raises(error, match=text) as raised:
        use(function, a, **changed)
    assert type(raised.value) is error
    assert a.snapshot() == before
    assert [value.tobytes() for value in changed.values() if type(value) is np.ndarray] == extra


def test_the_tables_are_right():
    """The same calls with good arguments succeed: it is the change that makes them fail."""
    for name in (*WITH_X, "layer.backward"):
        use(name, Given())
    for name in WITH_OUT:
        a = Given()
        assert first(use(name, a, out=a.out)) is a.out
    assert len(ARRAYS) + len(OPTIONS) + len(OUT) > 400


# ---- everything else that refuses its arguments

OTHERS = {
    "BatchStats count float": (lambda a: fastbn.BatchStats(2.0, [1], [1]), TypeError, "^count: expected an integer"),
    "BatchStats count negative": (lambda a: fastbn.BatchStats(-1, [1], [1]), ValueError, "^count: .*got -1"),
    "BatchStats count huge": (lambda a: fastbn.BatchStats(2**63, [1], [1]), ValueError, "^count: .*below 2"),
    "BatchStats mean 2-d": (lambda a: fastbn.BatchStats(2, [[1]], [1]), ValueError, "^mean: expected one number per"),
    "BatchStats var 0-d": (lambda a: fastbn.BatchStats(2, [1], 1), ValueError, "^var: expected one number per"),
    "BatchStats mean None": (lambda a: fastbn.BatchStats(2, None, [1]), TypeError, "^mean: expected one number .*None"),
    "BatchStats mean masked": (
        lambda a: fastbn.BatchStats(2, np.ma.array([1.0], mask=[1]), [1]), TypeError, "^mean: .*got MaskedArray",
    ),
    "BatchStats mean text": (lambda a: fastbn.BatchStats(2, ["a"], [1]), TypeError, "^mean: expected real numbers"),
    "BatchStats var complex": (lambda a: fastbn.BatchStats(2, [1], [1j]), TypeError, "^var: expected real numbers"),
    "BatchStats mean void": (
        lambda a: fastbn.BatchStats(2, np.zeros(1, "V4"), [1]), TypeError, "^mean: expected real numbers, got dtype",
    ),
    "BatchStats mean ragged": (lambda a: fastbn.BatchStats(2, [[1], [1, 2]], [1]), TypeError, "^mean: expected one n"),
    "BatchStats no channels": (lambda a: fastbn.BatchStats(2, [], []), ValueError, "^mean: expected one number per"),
    "BatchStats count True": (lambda a: fastbn.BatchStats(True, [1], [1]), TypeError, "^count: .*got a bool"),
    "GradientSums text": (lambda a: fastbn.GradientSums(["1"], [1]), TypeError, "^sum_dy: expected real numbers"),
    "BatchStats lengths": (lambda a: fastbn.BatchStats(2, [1], [1, 2]), ValueError, "^var: expected 1 channels"),
    "BatchStats + BatchStats": (lambda a: a.stats + a.stats, TypeError, "merge"),
    "BatchStats * 2": (lambda a: a.stats * 2, TypeError, "unsupported"),
    "merge other": (lambda a: a.stats.merge((8, a.mean, a.var)), TypeError, "^others: expected BatchStats, got tuple"),
    "merge channels": (
        lambda a: a.stats.merge(fastbn.BatchStats(0, [1], [1])), ValueError, "^others: expected 3 channels .*got 1",
    ),
    "unbiased of one": (lambda a: fastbn.BatchStats(1, [1], [0]).unbiased_var, ValueError, "^count: expected 2 or"),
    "set BatchStats": (lambda a: setattr(a.stats, "count", 3), AttributeError, "set"),
    "write BatchStats": (lambda a: a.stats.mean.__setitem__(0, 1), ValueError, "read-only"),
    "write GradientSums": (lambda a: a.sums.sum_dy.__setitem__(0, 1), ValueError, "read-only"),
    "write measured": (lambda a: fastbn.batch_stats(a.x).var.__setitem__(0, 1), ValueError, "read-only"),
    "GradientSums lengths": (lambda a: fastbn.GradientSums([1], [1, 2]), ValueError, "^sum_dy_xmu: expected 1 chan"),
    "GradientSums 2-d": (lambda a: fastbn.GradientSums([[1]], [1]), ValueError, "^sum_dy: expected one number per"),
    "GradientSums + other channels": (
        lambda a: a.sums + fastbn.GradientSums([1], [1]), ValueError, "^the second: expected 3 channels",
    ),
    "GradientSums + tuple": (lambda a: operator.add(a.sums, (1, 2)), TypeError, "to add, got tuple"),
    "GradientSums + 1": (lambda a: 1 + a.sums, TypeError, "to add, got int"),
    "population of nothing": (lambda a: fastbn.population_stats([]), ValueError, "^batches: expected at least one b"),
    "population of an array": (lambda a: fastbn.population_stats(a.x), TypeError, "^batches: .*got ndarray"),
    "population of BatchStats": (lambda a: fastbn.population_stats(a.stats), TypeError, "^batches: .*got BatchStats"),
    "population of text": (lambda a: fastbn.population_stats("abc"), TypeError, "^batches: .*got str"),
    "population axis": (
        lambda a: fastbn.population_stats([a.stats], axis="1"), TypeError, "^axis: expected an integer, got str",
    ),
    "population of None": (lambda a: fastbn.population_stats(None), TypeError, "^batches: .*got NoneType"),
    "population method": (
        lambda a: fastbn.population_stats([a.x], method="mean"), ValueError, "^method: expected .*got 'mean'",
    ),
    "population method list": (lambda a: fastbn.population_stats([a.x], method=[]), ValueError, "^method: expected"),
    "population of ints": (
        lambda a: fastbn.population_stats([a.x.astype(int)]), TypeError, r"^batches\[0\]: expected dtype",
    ),
    "population of a tuple": (
        lambda a: fastbn.population_stats([a.x, (20, *a.stats[1:])]), TypeError, r"^batches\[1\]: .* array, got tuple",
    ),
    "population channels": (
        lambda a: fastbn.population_stats([a.x, a.x[:, :2]]), ValueError, r"^batches: expected the same .*\[2, 3\]",
    ),
    "population channels, paper": (
        lambda a: fastbn.population_stats([a.stats, a.x[:, :2]], method="paper"), ValueError, "^batches: expected the",
    ),
    "paper, one value": (
        lambda a: fastbn.population_stats([a.x[:1, :, :1]], method="paper"), ValueError, "^batches: expected 2 or more",
    ),
    "method no text": (
        lambda a: fastbn.population_stats([a.x], method=np.array(["pooled", "x"])), ValueError, "^method: expected",
    ),
    "paper, no value": (
        lambda a: fastbn.population_stats([a.x[:0]], method="paper"), ValueError, "^batches: expected at least one v",
    ),
    # layers
    "no argument": (lambda a: fastbn.BatchNorm(), TypeError, "num_features"),
    "num_features 0": (lambda a: fastbn.BatchNorm(0), ValueError, "^num_features: expected at least 1, got 0"),
    "num_features -1": (lambda a: fastbn.BatchNorm(-1), ValueError, "^num_features: .*got -1"),
    "num_features huge": (lambda a: fastbn.BatchNorm(2**70), ValueError, "^num_features: expected a number of values"),
    "num_features 3.0": (lambda a: fastbn.BatchNorm(3.0), TypeError, "^num_features: .*got float"),
    "num_features True": (lambda a: fastbn.BatchNorm(True), TypeError, "^num_features: .*integer, got a bool"),
    "affine 7": (lambda a: fastbn.BatchNorm(3, affine=7), ValueError, "^affine: expected a bool, got 7"),
    "affine text": (lambda a: fastbn.BatchNorm(3, affine="no"), TypeError, "^affine: expected a bool, got str"),
    "track_running_stats None": (
        lambda a: fastbn.BatchNorm(3, track_running_stats=None), TypeError, "^track_running_stats: .*got NoneType",
    ),
    "mode text": (lambda a: fastbn.BatchNorm(3).train("no"), TypeError, "^mode: expected a bool, got str"),
    "eps 0": (lambda a: fastbn.BatchNorm(3, 0), ValueError, "^eps: expected a number > 0, got 0"),
    "eps -1": (lambda a: fastbn.BatchNorm(3, -1), ValueError, "^eps: expected a number > 0, got -1"),
    "eps nan": (lambda a: fastbn.BatchNorm(3, np.nan), ValueError, "^eps: expected a finite number"),
    "eps None": (lambda a: fastbn.BatchNorm(3, None), TypeError, "^eps: expected a number, got NoneType"),
    "momentum 1.1": (lambda a: fastbn.BatchNorm(3, momentum=1.1), ValueError, "^momentum: expected 0 to 1 or None"),
    "momentum -0.1": (lambda a: fastbn.BatchNorm(3, momentum=-0.1), ValueError, "^momentum: expected 0 to 1"),
    "momentum nan": (lambda a: fastbn.BatchNorm(3, momentum=np.nan), ValueError, "^momentum: expected a finite"),
    "momentum text": (lambda a: fastbn.BatchNorm(3, momentum="0.1"), TypeError, "^momentum: .*got str"),
    "momentum True": (lambda a: fastbn.BatchNorm(3, momentum=True), TypeError, "^momentum: .*got bool"),
    "dtype float16": (lambda a: fastbn.BatchNorm(3, dtype="f2"), TypeError, "^dtype: .*got float16"),
    "dtype int": (lambda a: fastbn.BatchNorm(3, dtype=int), TypeError, "^dtype: .*got int64"),
    "dtype byte order": (lambda a: fastbn.BatchNorm(3, dtype=">f4"), TypeError, "^dtype: .*got >f4"),
    "dtype None": (lambda a: fastbn.BatchNorm(3, dtype=None), TypeError, "^dtype: .*got None"),
    "dtype unknown": (lambda a: fastbn.BatchNorm(3, dtype="real"), TypeError, "^dtype: .*got 'real'"),
    "dtype that is none": (lambda a: fastbn.BatchNorm(3, dtype=(np.float32, -1)), TypeError, "^dtype: expected .*-1"),
    "layer axis 3": (
        lambda a: fastbn.BatchNorm(3, axis=3)(a.x), ValueError, "^axis: expected -3 to 2 for x with shape .*, got 3",
    ),
    "layer axis -1": (
        lambda a: fastbn.BatchNorm(3, axis=-1)(a.x), ValueError, "^x: expected 3 channels on axis -1, got shape",
    ),
    "layer one sample": (
        lambda a: fastbn.BatchNorm(3, axis=-1)(np.ones(3)), ValueError, r"^x: expected 2 or more dim.*got shape \(3,\)",
    ),
    "layer axis huge": (lambda a: fastbn.BatchNorm(3, axis=10**30), ValueError, "^axis: expected one that an array"),
    "layer axis True": (lambda a: fastbn.BatchNorm(3, axis=True), TypeError, "^axis: expected an integer, got a bool"),
    "layer axis 1.0": (lambda a: fastbn.BatchNorm(3, axis=1.0), TypeError, "^axis: expected an integer, got float"),
    "layer axis by position": (
        lambda a: fastbn.BatchNorm(3, 1e-5, 0.1, True, True, 1), TypeError, "positional",
    ),
    "activation": (
        lambda a: fastbn.BatchNorm(3, activation="gelu"), ValueError, "^activation: expected one of .*got 'gelu'",
    ),
    "activation 1": (lambda a: fastbn.BatchNorm(3, activation=1), TypeError, "^activation: expected one .*got int"),
    "negative_slope -1": (
        lambda a: fastbn.BatchNorm(3, activation="leaky_relu", negative_slope=-1), ValueError,
        "^negative_slope: expected a number >= 0, got -1",
    ),
    "use_global_stats text": (
        lambda a: fastbn.BatchNorm(3, use_global_stats="no"), TypeError, "^use_global_stats: expected None, True or F",
    ),
    "use_global_stats 1": (lambda a: fastbn.BatchNorm(3, use_global_stats=1), TypeError, "^use_global_stats: .*int"),
    "use_global_stats untracked": (
        lambda a: fastbn.BatchNorm(3, track_running_stats=False, use_global_stats=True), ValueError,
        "^use_global_stats: True needs running statistics",
    ),
    "1d of 4 dimensions": (
        lambda a: fastbn.BatchNorm1d(3)(a.x[..., None]), ValueError, "^x: BatchNorm1d expected 2 or 3 dimensions",
    ),
    "2d of 3 dimensions": (
        lambda a: fastbn.BatchNorm2d(3)(a.x), ValueError, r"^x: BatchNorm2d expected 4 dimensions, got .*\(2, 3, 4\)",
    ),
    "3d of 4 dimensions": (
        lambda a: fastbn.BatchNorm3d(3)(a.x[..., None]), ValueError, "^x: BatchNorm3d expected 5 dimensions",
    ),
    "backward before forward": (lambda a: a.fresh.backward(a.dy), RuntimeError, "^backward: expected a forward before"),
    "backward of another shape": (
        lambda a: a.bn.backward(a.dy[:1]), ValueError, r"^dy: expected the shape of x, \(2, 3, 4\), got \(1, 3, 4\)",
    ),
    "gamma of another length": (lambda a: setattr(a.bn, "gamma", [1.0, 2.0]), ValueError, r"^gamma: .*got \(2,\)"),
    "gamma of text": (lambda a: setattr(a.bn, "gamma", ["a", "b", "c"]), TypeError, "^gamma: .*got <U1"),
    "gamma of an affine=False layer": (
        lambda a: setattr(a.untracked, "gamma", 1), AttributeError, "^gamma: this layer has none",
    ),
    "running_mean of an untracked layer": (
        lambda a: setattr(a.untracked, "running_mean", 1), AttributeError, "^running_mean: this layer has none",
    ),
    "recalibrate untracked": (lambda a: a.untracked.recalibrate([a.x]), ValueError, "no running statistics"),
    "recalibrate nothing": (lambda a: a.bn.recalibrate([]), ValueError, "^batches: expected at least one batch"),
    "recalibrate an array": (lambda a: a.bn.recalibrate(a.x), TypeError, "^batches: .*got ndarray"),
    "recalibrate BatchStats": (lambda a: a.bn.recalibrate(a.stats), TypeError, "^batches: .*got BatchStats"),
    "recalibrate None": (lambda a: a.bn.recalibrate(None), TypeError, "^batches: .*got NoneType"),
    "recalibrate channels": (
        lambda a: a.bn.recalibrate([a.x[:, :2]]), ValueError, "^batches: expected 3 channels, got 2",
    ),
    "recalibrate later channels": (
        lambda a: a.bn.recalibrate([a.x, a.x[:, :2]]), ValueError, "^batches: expected the same number of channels",
    ),
    "recalibrate method": (lambda a: a.bn.recalibrate([a.x], method="x"), ValueError, "^method: expected"),
    "recalibrate one value": (lambda a: a.bn.recalibrate([a.x[:1, :, :1]]), ValueError, "^batches: expected 2 or more"),
    "load None": (lambda a: a.bn.load_state_dict(None), TypeError, "^d: expected a mapping, got NoneType"),
    "load without weight": (
        lambda a: a.bn.load_state_dict({k: v for k, v in a.state.items() if k != "weight"}), KeyError,
        "missing .'weight'.",
    ),
    "load with more": (lambda a: a.bn.load_state_dict({**a.state, "more": 1}), KeyError, "unknown .'more'."),
    "load with a number": (
        lambda a: a.bn.load_state_dict({**a.state, 1: 1, "q": 1}), KeyError, r"unknown .1, 'q'.",
    ),
    "load into untracked": (lambda a: a.untracked.load_state_dict(a.state), KeyError, "unknown .'bias'"),
    "load length": (
        lambda a: a.bn.load_state_dict({**a.state, "running_var": [1.0]}), ValueError, r"^running_var: .*\(1,\)",
    ),
    "load number": (lambda a: a.bn.load_state_dict({**a.state, "weight": 2.0}), ValueError, r"^weight: .*got \(\)"),
    "load count 1-d": (
        lambda a: a.bn.load_state_dict({**a.state, "num_batches_tracked": [3]}), ValueError, "^num_batches_tracked: ",
    ),
    "load count float": (
        lambda a: a.bn.load_state_dict({**a.state, "num_batches_tracked": 3.0}), TypeError, "^num_batches_tracked: ",
    ),
    "load count huge": (
        lambda a: a.bn.load_state_dict({**a.state, "num_batches_tracked": np.uint64(2**63 + 5)}), ValueError,
        "^num_batches_tracked: expected values in the range of int64",
    ),
    "load count negative": (
        lambda a: a.bn.load_state_dict({**a.state, "num_batches_tracked": -3}), ValueError,
        "^num_batches_tracked: expected values >= 0, got -3",
    ),
    "load objects": (
        lambda a: a.bn.load_state_dict({**a.state, "bias": [None] * 3}), TypeError, "^bias: .*got object",
    ),
    "load ragged": (lambda a: a.bn.load_state_dict({**a.state, "bias": [[1], [1, 2]]}), TypeError, "^bias: expected"),
    "load masked": (
        lambda a: a.bn.load_state_dict({**a.state, "bias": np.ma.ones(3)}), TypeError, "^bias: .*masked array",
    ),
    "load complex": (lambda a: a.bn.load_state_dict({**a.state, "bias": [1j] * 3}), TypeError, "^bias: .*complex"),
    "load None as bias": (lambda a: a.bn.load_state_dict({**a.state, "bias": None}), TypeError, "^bias: "),
    "load negative variance": (
        lambda a: a.bn.load_state_dict({**a.state, "running_var": [1.0, -1.0, 1.0]}), ValueError,
        "^running_var: expected values >= 0, got -1",
    ),
    "load nan": (
        lambda a: a.bn.load_state_dict({**a.state, "running_mean": [1, np.nan, 1]}), ValueError,
        "^running_mean: expected finite values",
    ),
    "load out of range": (
        lambda a: a.bn.load_state_dict({**a.state, "running_var": [1.0, 1e39, 1.0]}), ValueError,
        "^running_var: expected .*range of float32",
    ),
    "load weight out of range": (
        lambda a: a.bn.load_state_dict({**a.state, "weight": [1.0, 1e39, 1.0]}), ValueError,
        "^weight: expected values in the range of float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), OTHERS.values(), ids=OTHERS)
def test_wrong_use(call, error, text):
    a = Given()
    before = a.snapshot()
    with pytest.raises(error) as raised:
        call(a)
    assert re.search(text, raised.value.args[0])
    assert a.snapshot() == before


def test_layer_after_a_forward_over_x():
    a = Given()
    a.frozen.gamma = [1, 0, 2]
    a.frozen(a.x, out=a.x)
    before = a.snapshot()
    with pytest.raises(RuntimeError, match=r"^backward: the last forward wrote its result over x .*gamma is 0 in a ch"):
        a.frozen.backward(a.dy)
    assert a.snapshot() == before


def raise_texts(module):
    """A pattern for each error text of a module: its constant parts in order."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = node.exc.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            pattern = "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in parts)
            found[f"{module.__name__}:{node.lineno}: {pattern}"] = pattern
    return found


def messages():
    """What all the rows above say."""
    for row in (*ARRAYS, *OPTIONS, *OUT):
        function, changes, _, _ = row.values
        a = Given()
        with pytest.raises(Exception) as raised:  # noqa: PT011
            use(function, a, **only_taken(function, changes(a)))
        yield raised.value.args[0]
    for call, _, _ in OTHERS.values():
        with pytest.raises(Exception) as raised:  # noqa: PT011
            call(Given())
        yield str(raised.value.args[0])


def test_every_error_text_is_in_the_tables():
    said = "\n".join(message.replace("\n", " ") for message in messages())
    texts = {
        name: text
        for module in (_explain, functional, layers, statistics)
        for name, text in raise_texts(module).items()
    }
    elsewhere = {  # in tests of their own
        "backward: the last forward wrote", "the layer's array as it was made", "fastbn: an array has changed",
    }  # fmt: skip
    texts = {n: t for n, t in texts.items() if not any(re.escape(e) in t for e in elsewhere)}
    assert len(texts) > 40
    assert [name for name, text in texts.items() if not re.search(f"^{text}$", said, re.MULTILINE)] == []


# ---- what is accepted


def expected_y(x, **options):
    return ref.batch_norm(x, **options)[0]


def close(a, b, tolerance=1e-5):
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


def test_lists_are_arrays():
    x = [[1.0, 2.0], [3.0, 6.0]]
    y, stats = fastbn.batch_norm(x, [1.0, 2.0], (0.5, 0.0), eps=0)
    assert y.dtype == np.float64
    assert y.tolist() == [[-0.5, -2.0], [1.5, 2.0]]
    assert (stats.count, stats.mean.tolist(), stats.var.tolist()) == (2, [2.0, 4.0], [1.0, 4.0])
    gradients = fastbn.batch_norm_backward([[1.0, 1.0], [3.0, 1.0]], x, stats, [1.0, 2.0], eps=0)
    assert gradients.dbeta.tolist() == [4.0, 2.0]
    assert gradients.dgamma.tolist() == [2.0, 0.0]
    assert fastbn.BatchNorm(2)(x).dtype == np.float64


def test_memmaps(tmp_path):
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert type(x) is np.memmap
    y, _ = fastbn.batch_norm(x)
    assert type(y) is np.ndarray
    assert close(y, expected_y(values))
    out = np.memmap(tmp_path / "y", np.float32, "w+", shape=SHAPE)
    assert fastbn.batch_norm(x, out=out)[0] is out
    out.flush()
    assert np.fromfile(tmp_path / "y", np.float32).tobytes() == y.tobytes()
    over = np.load(tmp_path / "x.npy", mmap_mode="r+")
    assert fastbn.BatchNorm(3).eval()(over, out=over) is over


class Child(np.ndarray):
    pass


def test_objects_with_array_and_subclasses():
    a = Given()
    y = expected_y(a.x, gamma=a.gamma, beta=a.beta)
    for x in (Holds(a.x), a.x.view(Child), memoryview(a.x)):
        given, _ = fastbn.batch_norm(x, Holds(a.gamma), a.beta.view(Child))
        assert type(given) is np.ndarray
        assert close(given, y)
    out = a.out.view(Child)
    assert fastbn.batch_norm(a.x, a.gamma, a.beta, out=out)[0] is out
    assert close(a.out, y)


@pytest.mark.parametrize("name", [*TAKES, *LAYER, "layer.backward"])
def test_read_only_inputs_stay_as_they_were(name):
    a = Given()
    for array in (a.x, a.dy, a.gamma, a.beta, a.mean, a.var):
        array.flags.writeable = False
    before = {n: v for n, v in a.snapshot().items() if n not in ("bn", "frozen")}
    use(name, a)
    assert {n: v for n, v in a.snapshot().items() if n not in ("bn", "frozen")} == before


@pytest.mark.parametrize(
    "eps", [0, 1, 1e-5, np.float32(1e-5), np.float64(1e-5), np.int64(1), np.array(1e-5), 1e300, 5e-324], ids=repr
)
def test_numbers_that_are_eps(eps):
    a = Given()
    assert close(fastbn.batch_norm(a.x, eps=eps)[0], expected_y(a.x, eps=float(eps)))
    if eps:
        assert fastbn.BatchNorm(3, eps).eps == float(eps)


@pytest.mark.parametrize("axis", [1, -2, np.int64(1), np.int8(-2), np.array(1)], ids=repr)
def test_integers_that_are_axis_1(axis):
    a = Given()
    assert close(fastbn.batch_norm(a.x, axis=axis)[0], expected_y(a.x))
    assert fastbn.batch_stats(a.x[..., 0], axis=-1) == fastbn.batch_stats(a.x[..., 0])


@pytest.mark.parametrize("residual", [False, np.False_], ids=repr)
def test_no_residual(residual):
    a = Given()
    assert fastbn.batch_norm_backward(a.dy, a.x, a.stats, residual=residual).dresidual is None


def test_stats_as_tuples_and_pairs():
    a = Given()
    expected = fastbn.batch_norm_backward(a.dy, a.x, a.stats)
    given = fastbn.batch_norm_backward(a.dy, a.x, tuple(a.stats))
    assert given.dx.tobytes() == expected.dx.tobytes()
    expected = ref.batch_norm_backward(a.dy, a.x, (a.mean, a.var), training=False)
    for stats in (a.stats, (a.mean, a.var), [a.mean.tolist(), a.var.tolist()], (0, a.mean, a.var)):
        given = fastbn.batch_norm_backward(a.dy, a.x, stats, training=False)
        assert close(given.dx, expected.dx)
        assert close(given.dgamma, expected.dgamma)
    sums = fastbn.backward_apply(a.dy, a.x, a.stats, tuple(a.sums))
    assert close(sums.dx, ref.backward_apply(a.dy, a.x, a.stats, a.sums).dx)


# Arrays with these strides (in items) do not overlap themselves, though some look like it.
STRANGE_OUTS = {
    "C": (12, 4, 1),
    "F": (1, 2, 6),
    "gaps": (30, 10, 2),
    "backwards": (-12, -4, -1),
    "interleaved channels": (1, 3, 9),
    "interleaved samples": (1, 8, 2),
    "steps that pass each other": (13, 2, 6),
    "prime steps": (3, 16, 5),
}


@pytest.mark.parametrize("strides", STRANGE_OUTS.values(), ids=STRANGE_OUTS)
@pytest.mark.parametrize("name", WITH_OUT)
def test_outs_with_strange_strides(name, strides):
    a = Given()
    places = np.add.outer(np.add.outer(np.arange(2) * strides[0], np.arange(3) * strides[1]), np.arange(4) * strides[2])
    assert np.unique(places).size == 24  # the table is right
    buffer = np.full(256, 7, np.float32)
    out = as_strided(buffer[128:], SHAPE, [4 * s for s in strides])
    expected = first(use(name, Given()))
    assert first(use(name, a, out=out)) is out
    assert np.array_equal(out, expected)
    untouched = np.delete(buffer, 128 + places.ravel())
    assert (untouched == 7).all()


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_between_the_values_of_x(name):
    a = Given()
    expected = first(use(name, Given()))
    buffer = np.zeros((2, 6, 4), np.float32)
    x, out = buffer[:, 1::2], buffer[:, ::2]
    x[...] = a.dy if name == "layer.backward" else a.x
    kept = x.tobytes()
    given = use(name, a, **{"dy" if name == "layer.backward" else "x": x}, out=out)
    assert first(given) is out
    assert np.array_equal(out, expected)
    assert x.tobytes() == kept


def test_a_layer_keeps_an_x_that_out_only_surrounds():
    a = Given()
    buffer = np.zeros((2, 6, 4), np.float32)
    buffer[:, 1::2] = a.x
    for layer in (a.bn, a.frozen):
        layer(buffer[:, 1::2], out=buffer[:, ::2])
        dx = layer.backward(a.dy)
        layer(a.x)
        assert np.array_equal(dx, layer.backward(a.dy))


@pytest.mark.parametrize("name", ["batch_norm", "normalize", "batch_norm_backward", "backward_apply", "layer in eval"])
def test_out_may_be_x_in_any_view(name):
    for view in (lambda x: x, lambda x: x[...], lambda x: x.reshape(SHAPE), lambda x: as_strided(x, SHAPE, x.strides)):
        a = Given()
        expected = first(use(name, Given()))
        assert np.array_equal(first(use(name, a, out=view(a.x))), expected)
        assert np.array_equal(a.x, expected)


def test_out_over_one_value_per_axis():
    """Strides of axes of length 1 mean nothing."""
    x = np.array([[[3.0]], [[5.0]]])
    out = as_strided(x, (2, 1, 1), (8, 1000, -3))
    assert fastbn.batch_norm(x, eps=0, out=out)[0].ravel().tolist() == [-1.0, 1.0]
    assert x.ravel().tolist() == [-1.0, 1.0]


def test_empty_outs():
    out = np.zeros((0, 3, 4), np.float32)
    assert fastbn.normalize(out, [0.0] * 3, [1.0] * 3, out=out) is out
    other = as_strided(np.zeros(1, np.float32), (0, 3, 4), (4, 0, 0))
    assert fastbn.normalize(out, [0.0] * 3, [1.0] * 3, out=other) is other


def test_huge_overlapping_out_is_refused_without_counting():
    """300 GB of values in one place: saying no must not take memory."""
    place = np.zeros(1, np.float32)
    x = np.broadcast_to(place, (100_000, 3, 250_000))
    with pytest.raises(ValueError, match=r"^out: .*place of its own"):
        fastbn.normalize(x, [0.0] * 3, [1.0] * 3, out=as_strided(place, x.shape, (0, 0, 0)))


# ---- any views of one buffer: refused or right, and never a byte elsewhere


def random_view(rng, buffer, shape, dtype):
    """An array with small random strides, anywhere in a buffer of bytes."""
    size = np.dtype(dtype).itemsize
    while True:
        strides = rng.choice([0, 1, 1, 2, 3, 4, 5, 6, 8, 12, -1, -2, -4, -6], size=len(shape)) * size
        strides += rng.choice([0, 0, 0, 0, 0, 0, 0, 1], size=len(shape)) * rng.integers(-2, 3)
        reach = (np.array(shape) - 1) * strides
        low, high = np.minimum(reach, 0).sum(), np.maximum(reach, 0).sum() + size
        if high - low <= len(buffer):
            step = size if rng.random() < 0.9 else 1
            offset = -low + rng.integers(0, (len(buffer) - high + low) // step + 1) * step
            return np.ndarray(shape, dtype, buffer=buffer.data, offset=offset, strides=strides)


def places(array, buffer):
    """Index of each byte of each value in the buffer."""
    start = array.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]
    found = np.full(array.shape, start)
    for axis, (length, step) in enumerate(zip(array.shape, array.strides, strict=True)):
        found += (np.arange(length) * step).reshape([-1] + [1] * (array.ndim - axis - 1))
    return np.add.outer(found, np.arange(array.itemsize)).reshape(array.size, -1)


def same_place(a, b):
    data = "__array_interface__"
    steps = zip(a.shape, a.strides, b.strides, strict=True)
    return getattr(a, data)["data"] == getattr(b, data)["data"] and all(n == 1 or s == t for n, s, t in steps)


@pytest.mark.parametrize("seed", range(4))
def test_views_of_one_buffer(seed):
    rng = np.random.default_rng(seed)
    accepted = refused = 0
    for _ in range(1500):
        dtype = rng.choice([np.float32, np.float64])
        buffer = rng.normal(size=rng.choice([40, 80, 160])).astype(dtype).view(np.uint8)
        shape = tuple(rng.choice([1, 2, 2, 3, 4], size=rng.integers(2, 5)))
        x, dy, out = (random_view(rng, buffer, shape, dtype) for _ in range(3))
        out = [x, dy, out, out, out][rng.integers(5)]
        gamma = random_view(rng, buffer, shape[1:2], dtype) if rng.random() < 0.5 else np.arange(1.0, 1 + shape[1])
        with np.errstate(all="ignore"):
            if not all(np.isfinite(v).all() and (abs(v) < 1e4).all() for v in (x, dy, gamma)):
                continue  # not values but bytes of two of them
        stats, before = fastbn.batch_stats(x), buffer.copy()
        copies = x.copy(order="K"), dy.copy(), gamma.copy()
        backward = rng.random() < 0.5
        sharing = [v for v in (x, gamma, *([dy] if backward else [])) if v.base is not None]
        overlaps = [v for v in sharing if np.intersect1d(places(v, buffer), places(out, buffer)).size]
        expected_error = np.unique(places(out, buffer)).size < out.nbytes or any(
            v is gamma or not same_place(v, out) for v in overlaps
        )
        try:
            if backward:
                fastbn.batch_norm_backward(dy, x, stats, gamma, out=out)
            else:
                fastbn.batch_norm(x, gamma, out=out)
        except ValueError:
            assert expected_error
            assert buffer.tobytes() == before.tobytes()
            refused += 1
            continue
        assert not expected_error
        x, dy, gamma = copies
        expected = fastbn.batch_norm_backward(dy, x, stats, gamma).dx if backward else fastbn.batch_norm(x, gamma)[0]
        assert out.tobytes() == expected.tobytes()
        untouched = np.ones(buffer.size, bool)
        untouched[places(out, buffer).ravel()] = False
        assert buffer[untouched].tobytes() == before[untouched].tobytes()
        accepted += 1
    assert min(accepted, refused) > 100


def test_good_calls_do_not_warn():
    """Values at the ends of their range give infinities, not warnings."""
    x = np.array([[1e38, 1e-45], [-1e38, 3.0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for gamma in ([1e300, 1e-300], [np.inf, np.nan]):
            y, stats = fastbn.batch_norm(x, gamma)
            fastbn.batch_norm_backward(y, x, stats, gamma)
        merged = stats.merge(stats, fastbn.BatchStats(3, [np.inf, np.nan], [np.nan, np.inf]))
    assert merged.count == 7
    assert copy.deepcopy(merged).count == 7


# ---- arguments that change others while they are converted


class Changing:
    """Converted to a vector of two numbers, or to what `value` is; x has another shape or type then."""

    def __init__(self, x, how):
        self.x, self.how, self.value = x, how, np.ones(2)

    def __array__(self, dtype=None, copy=None):
        self.how(self.x)
        return self.value


class ChangingPair(tuple):
    """A pair that changes the same when someone looks into it."""

    def __getitem__(self, index):
        np.asarray(self.change)
        return super().__getitem__(index)


def as_pair(w):
    """A pair of no arrays in the place of w."""
    pair = ChangingPair((None, None))
    pair.change = w
    return pair


def as_residual(w, x):
    """A residual of ones in the place of w, which changes the same when it is converted."""
    if not isinstance(w, Changing):
        return np.ones_like(x)
    w.value = np.ones_like(x)
    return w


class ChangingNumber(fractions.Fraction):
    """An eps that changes the same when it is converted."""

    def __float__(self):
        np.asarray(self.change)
        return 1e-5


def as_eps(w):
    eps = ChangingNumber(1, 100000)
    eps.change = w
    return eps


def other_shape(x):
    x.shape = x.shape[::-1]


def one_axis(x):
    x.shape = (-1,)


def other_type(x):
    x.dtype = np.int8


CHANGED = {
    "batch_norm": lambda x, v: fastbn.batch_norm(x, v),
    "normalize": lambda x, v: fastbn.normalize(x, np.zeros(2), v),
    "backward": lambda x, v: fastbn.batch_norm_backward(x, x, (np.zeros(2), v), training=False),
    "backward, dy": lambda x, v: fastbn.batch_norm_backward(np.ones_like(x), x, (np.zeros(2), v), training=False),
    "apply, y": lambda x, v: fastbn.backward_apply(
        np.ones_like(x), np.ones_like(x), fastbn.batch_stats(x), (np.ones(2), v), activation="relu", residual=True, y=x
    ),
}


CHANGED_VECTORS = {
    "batch_norm: gamma": lambda x, v, w: fastbn.batch_norm(x, v, w)[0],
    "batch_norm: beta": lambda x, v, w: fastbn.batch_norm(x, None, v, residual=as_residual(w, x))[0],
    "normalize: mean": lambda x, v, w: fastbn.normalize(x, v, w),
    "normalize: var": lambda x, v, w: fastbn.normalize(x, np.ones(2), v, w),
    "normalize: gamma": lambda x, v, w: fastbn.normalize(x, np.ones(2), np.ones(2), v, w),
    "normalize: beta": lambda x, v, w: fastbn.normalize(x, np.ones(2), np.ones(2), None, v, residual=as_residual(w, x)),
    "backward: gamma": lambda x, v, w: fastbn.batch_norm_backward(x, x, fastbn.batch_stats(x), v, w).dx,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy wants nobody to set types
@pytest.mark.parametrize("how", [other_type, lambda v: setattr(v, "dtype", np.float64)], ids=["int8", "float64"])
@pytest.mark.parametrize("call", CHANGED_VECTORS)
def test_an_argument_that_changes_a_vector(call, how):
    """Vectors are read as they were when they were accepted, and not past their ends."""
    x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    vector = np.array([3.0, 5.0], np.float32)
    expected = CHANGED_VECTORS[call](x, vector.copy(), np.ones(2))
    assert np.array_equal(CHANGED_VECTORS[call](x, vector, Changing(vector, how)), expected)


SMALLER_VECTORS = CHANGED_VECTORS | {
    "backward from y: beta": lambda x, v, w: fastbn.backward_apply(
        x, None, fastbn.batch_stats(x), (np.ones(2), w), None, v, y=x
    ),
    "backward: sums": lambda x, v, w: fastbn.backward_apply(x, x, fastbn.batch_stats(x), (v, w)),
}
SMALLER_STATISTICS = {  # float32 ones are copied at once
    "mean, then var": lambda x, v, w: fastbn.batch_norm_backward(x, x, (v, w), training=False),
    "var, then gamma": lambda x, v, w: fastbn.batch_norm_backward(x, x, (np.ones(2), v), w, training=False),
    "sums, then out": lambda x, v, w: fastbn.backward_apply(
        x, x, fastbn.batch_stats(x), (np.ones(2), v), residual=True, out=as_pair(w)
    ),
}


def check_resized(call, dtype):
    x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    vector = np.array([3.0, 5.0], dtype)
    with pytest.raises(RuntimeError, match="changed its shape"):
        call(x, vector, Changing(vector, lambda v: v.resize(1, refcheck=False)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("call", SMALLER_VECTORS)
def test_an_argument_that_resizes_a_vector(call, dtype):
    """Memory that a vector has lost is not read."""
    check_resized(SMALLER_VECTORS[call], dtype)


@pytest.mark.parametrize("call", SMALLER_STATISTICS)
def test_an_argument_that_resizes_statistics(call):
    check_resized(SMALLER_STATISTICS[call], np.float64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy wants nobody to set shapes
@pytest.mark.parametrize("how", [other_shape, one_axis, other_type])
@pytest.mark.parametrize("call", CHANGED)
def test_an_argument_that_changes_x(call, how):
    """x (dy, y) as it was checked is what is read; an x that changed since is refused, and not read past its end."""
    x = np.ones((300000, 2), np.float32)
    with pytest.raises(RuntimeError, match=r"^fastbn: an array has changed its shape or dtype since it was"):
        CHANGED[call](x, Changing(x, how))


STATISTICS = (np.zeros(3), np.ones(3))
NONE_LEFT = {
    "batch_norm: eps": (lambda x, v: fastbn.batch_norm(x, eps=as_eps(v)), ValueError),
    "normalize: eps": (lambda x, v: fastbn.normalize(x, np.zeros(3), np.ones(3), eps=as_eps(v)), ValueError),
    "backward: eps": (lambda x, v: fastbn.batch_norm_backward(x, x, STATISTICS, eps=as_eps(v)), ValueError),
    "backward: dy": (lambda x, v: fastbn.batch_norm_backward(v, x, STATISTICS, training=False), RuntimeError),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy wants nobody to set shapes
@pytest.mark.parametrize(("call", "error"), NONE_LEFT.values(), ids=NONE_LEFT)
def test_an_argument_that_takes_the_channels_away(call, error):
    """Nothing is divided by their number."""
    x = np.empty((0, 3), np.float32)
    change = Changing(x, other_shape)
    change.value = np.empty((3, 0), np.float32)
    with pytest.raises(error, match=r"at least one channel on axis 1, got shape|an array has changed its shape"):
        call(x, change)


def test_an_overlap_that_takes_too_long_to_find_out_is_refused(monkeypatch):
    def gives_up(*_, **__):
        raise np.exceptions.TooHardError

    monkeypatch.setattr(np, "shares_memory", gives_up)
    both = np.ones((4, 3, 2), np.float32)
    with pytest.raises(ValueError, match=r"^out: expected x itself or memory apart from it"):
        fastbn.batch_norm(both[..., 0], out=both[..., 1])
