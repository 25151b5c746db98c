"""What fastbn is raced against: what each contender does in a case, in its own words, with one thread."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastbn
from fastbn.bench.cases import PASSES, Case
from fastbn.bench.floor import Array
from fastbn.bench.measure import LAST_ROUNDING, SLOPE, TOLERANCE, Prepared, WrongResultError

Call = Callable[[], Any]  # returns y or dx, alone or first of several

# Others sum in float32, each in its own order: some 1e-6 off here. What is wrong, and not only rounded, is further off.
OTHERS = 1e-4
# In one row that is off by n*2**-24 at most, 1.5e-3 for n = 25,088 (1.4e-4 was found, behind an activation).
IN_ONE_ROW = 2e-3
OTHERS_NEAR = 1e-3  # to a kink: such sums may have seen the value on its other side


def activate(z: Array, name: str | None) -> Array:
    """NumPy's words for an activation."""
    if name == "relu":
        return np.maximum(z, 0)
    if name == "relu6":
        return np.clip(z, 0, 6)
    return z if name is None else np.where(z > 0, z, z.dtype.type(SLOPE) * z)


def gradient(dy: Array, z: Array, name: str | None) -> Array:
    """dy behind an activation of z; of its result it is the same."""
    if name == "relu":
        return dy * (z > 0)
    if name == "relu6":
        return dy * ((z > 0) & (z < 6))
    return dy if name is None else np.where(z > 0, dy, dy.dtype.type(SLOPE) * dy)


def fastbn_call(p: Prepared) -> Call:
    """With out=."""
    return p.calls[0]


def fastbn_steps(p: Prepared) -> Call | None:
    """The same steps one after the other: NumPy adds the residual and applies the activation, in place."""
    case, (x, dy, out, residual, y, dresidual) = p.case, p.buffers[0]
    if not (case.activation or case.residual) or case.what not in PASSES:
        return None
    affine, axis = (p.gamma, p.beta), case.axis
    if case.what == "backward":
        stored = y if case.residual else fastbn.batch_norm(x, *affine, axis=axis, activation=case.activation)[0]
        kept = dresidual if case.residual else np.empty_like(out)

        def backward() -> Any:
            multiply_by_slope(dy, stored, case.activation, kept)
            return fastbn.batch_norm_backward(kept, x, p.stats, *affine, axis=axis, out=out).dx

        return backward

    def forward() -> Array:
        if case.what == "training":
            fastbn.batch_norm(x, *affine, axis=axis, out=out)
        else:
            fastbn.normalize(x, *p.stats[1:], *affine, axis=axis, out=out)
        if residual is not None:
            np.add(out, residual, out=out)
        activate_in_place(out, case.activation)
        return out

    return forward


def activate_in_place(z: Array, name: str | None) -> None:
    """As `activate`, with at most a temporary for leaky_relu."""
    if name == "relu":
        np.maximum(z, 0, out=z)
    elif name == "relu6":
        np.clip(z, 0, 6, out=z)
    elif name is not None:
        np.maximum(z, z.dtype.type(SLOPE) * z, out=z)


def multiply_by_slope(dy: Array, y: Array, name: str | None, out: Array) -> None:
    """As `gradient`, into `out`."""
    if name == "relu":
        np.multiply(dy, y > 0, out=out)
    else:
        out[...] = gradient(dy, y, name)


def numpy_copy(p: Prepared) -> Call | None:
    """No batch normalization: what NumPy takes to copy x. A forward pass can be faster."""
    x, out = p.buffers[0].x, p.buffers[0].out

    def copy() -> Array:
        np.copyto(out, x)
        return out

    return None if p.case.what not in ("training", "inference") or p.case.residual else copy


def numpy_formula(p: Prepared) -> Call | None:
    """What one writes without a library, in the dtype of x; half types in float32."""
    case, (x, dy, out, residual, y, _) = p.case, p.buffers[0]
    if case.what not in PASSES:
        return None
    work = p.gamma.dtype.type
    axis = case.axis % x.ndim
    over = tuple(k for k in range(x.ndim) if k != axis)
    where = tuple(slice(None) if k == axis else None for k in range(x.ndim))
    mean, var = (v.astype(work) for v in p.stats[1:])
    n = x.size // case.channels

    def forward(x: Array, mean: Array, var: Array) -> Array:
        z = p.gamma[where] * ((x - mean[where]) / np.sqrt(var[where] + work(1e-5))) + p.beta[where]
        return activate(z if residual is None else z + residual, case.activation)

    stored = None
    if case.what == "backward" and case.activation:
        stored = y if case.residual else forward(x.astype(work, copy=False), mean, var)

    def backward(x: Array, dy: Array) -> Any:
        dz = dy if stored is None else gradient(dy, stored, case.activation)
        invstd = 1 / np.sqrt(var + work(1e-5))
        xhat = (x - mean[where]) * invstd[where]
        dbeta, dgamma = dz.sum(over), (dz * xhat).sum(over)
        return (p.gamma * invstd / n)[where] * (n * dz - dbeta[where] - xhat * dgamma[where]), dz

    def call() -> Any:
        wide = x.astype(work, copy=False)
        if case.what == "training":
            result = forward(wide, wide.mean(over), wide.var(over))
        elif case.what == "inference":
            result = forward(wide, mean, var)
        else:
            result = backward(wide, dy.astype(work, copy=False))
            return tuple(a.astype(out.dtype, copy=False) for a in result)
        return result.astype(out.dtype, copy=False)

    return call


class Tensors:
    """A case's arrays and vectors as PyTorch has them: NCHW by shape whatever lies in memory."""

    def __init__(self, p: Prepared) -> None:
        import torch

        torch.set_num_threads(1)
        self.x, self.dy, self.out, self.residual, self.y, _ = (self.of(a, p.case) for a in p.buffers[0])
        vectors = (p.gamma, p.beta, *(v.astype(p.gamma.dtype) for v in p.stats[1:]))
        self.gamma, self.beta, self.mean, self.var = map(torch.from_numpy, vectors)

    @staticmethod
    def of(a: Array | None, case: Case) -> Any:
        """An array as a tensor, on the same memory."""
        import torch

        if a is None:
            return None
        t = torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if case.dtype == "bfloat16" else torch.from_numpy(a)
        return t.permute(0, 3, 1, 2) if case.order == "NHWC" else t


def pytorch(p: Prepared) -> Call | None:
    """As users call it; activations in place."""
    import torch

    case, t, functions = p.case, Tensors(p), torch.nn.functional
    if case.what not in PASSES:
        return None
    invstd = 1 / torch.sqrt(t.var + 1e-5)
    activations: dict[str | None, Callable[[Any], Any]] = {
        None: lambda z: z,
        "relu": torch.relu_,
        "relu6": lambda z: functions.relu6(z, inplace=True),
        "leaky_relu": lambda z: functions.leaky_relu_(z, SLOPE),
    }
    gradients: dict[str | None, Callable[[Any], Any]] = {
        None: lambda dy: dy,
        "relu": lambda dy: torch.ops.aten.threshold_backward(dy, stored, 0),
        "relu6": lambda dy: torch.ops.aten.hardtanh_backward(dy, stored, 0, 6),
        "leaky_relu": lambda dy: torch.ops.aten.leaky_relu_backward(dy, stored, SLOPE, False),
    }
    activated, behind = activations[case.activation], gradients[case.activation]

    def forward(training: bool) -> Any:
        mean, var = (None, None) if training else (t.mean, t.var)
        z = functions.batch_norm(t.x, mean, var, t.gamma, t.beta, training)
        return activated(z if t.residual is None else z.add_(t.residual))

    stored = forward(True) if case.activation else None

    def backward() -> Any:
        dz = behind(t.dy)
        return torch.ops.aten.native_batch_norm_backward(
            dz, t.x, t.gamma, None, None, t.mean, invstd, True, 1e-5, [True, True, True]
        )

    return backward if case.what == "backward" else partial(forward, case.what == "training")


def pytorch_reusing(p: Prepared) -> Call | None:
    """With the output of the last call given back, where PyTorch can: it saves the page faults of a fresh array."""
    import torch

    case = p.case
    if case.what not in ("training", "inference") or case.activation or case.residual or case.order == "slice":
        return None  # (into slices, and from them, it writes wrong values)
    t, training = Tensors(p), p.case.what == "training"
    return lambda: torch.native_batch_norm(
        t.x, t.gamma, t.beta, t.mean, t.var, training, 0.0, 1e-5, out=(t.out, t.mean[:0].clone(), t.mean[:0].clone())
    )  # fmt: skip


def onnx_runtime(p: Prepared) -> Call | None:
    """A model of one BatchNormalization node."""
    case = p.case
    if (case.what, case.dtype, case.order) != ("inference", "float32", "NCHW") or case.activation or case.residual:
        return None
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    vectors = {"gamma": p.gamma, "beta": p.beta, "mean": p.stats.mean, "var": p.stats.var}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *vectors], ["y"], epsilon=1e-5)],
        "bn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, p.case.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, p.case.shape)],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in vectors.items()],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(["y"], {"x": p.buffers[0].x})


@dataclass(frozen=True)
class Contender:
    """How to make its call in a case (None where it has no such pass), what it imports, and how it is checked."""

    prepare: Callable[[Prepared], Call | None]
    modules: tuple[str, ...] = ()
    tolerance: float = OTHERS
    roundings: int = 8  # of half types: others store intermediate results in them
    copies: bool = False
    own: bool = False  # fastbn itself: all that it returns is checked, as strictly as before it is timed alone

    @property
    def installed(self) -> bool:
        """Whether it can take part here."""
        return all(find_spec(module) for module in self.modules)

    def check(self, p: Prepared, result: Any) -> None:
        """WrongResultError where the result of its call is wrong."""
        if self.own:
            p.check_own(result)
            return
        got = as_array(result[0] if isinstance(result, tuple | list) else result, p.case)
        if not self.copies:
            name = "dx" if p.case.what == "backward" else "y"
            p.check({name: got}, self.tolerance + self.roundings * LAST_ROUNDING.get(p.case.dtype, 0), OTHERS_NEAR)
        elif not np.array_equal(got, p.buffers[0].x):
            raise WrongResultError(f"{p.case}: not a copy")


def as_array(result: Any, case: Case) -> Array:
    """A result in the shape of x; of a tensor, the values."""
    if isinstance(result, np.ndarray):
        return result
    a = (result.float() if case.dtype == "bfloat16" else result).numpy()
    return np.moveaxis(a, 1, case.axis)


CONTENDERS = {
    "fastbn": Contender(fastbn_call, own=True),
    "fastbn, in steps": Contender(fastbn_steps, tolerance=TOLERANCE["float32"]),
    "np.copyto": Contender(numpy_copy, copies=True),
    "NumPy formula": Contender(numpy_formula),
    "PyTorch": Contender(pytorch, ("torch",), tolerance=IN_ONE_ROW),
    "PyTorch, output reused": Contender(pytorch_reusing, ("torch",), tolerance=IN_ONE_ROW),
    "onnxruntime": Contender(onnx_runtime, ("onnx", "onnxruntime")),
}
