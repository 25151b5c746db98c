"""What fastbn is raced against: what each contender does in a case, in its own words, with one thread."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from fastbn.bench.floor import Array
from fastbn.bench.measure import TOLERANCE, Prepared, WrongResultError

Call = Callable[[], Any]  # returns y or dx, alone or first of several

# Others sum in float32, each in its own order: some 1e-6 off here. What is wrong, and not only rounded, is further off.
OTHERS = 1e-4


def fastbn_call(p: Prepared) -> Call:
    """With out=."""
    return partial(p.call, p.buffers[0])


def numpy_copy(p: Prepared) -> Call | None:
    """No batch normalization: what NumPy takes to copy x. A forward pass can be faster."""
    x, _, out = p.buffers[0]

    def copy() -> Array:
        np.copyto(out, x)
        return out

    return None if p.case.what == "backward" else copy


def numpy_formula(p: Prepared) -> Call:
    """What one writes without a library, in the dtype of x."""
    over, where = (0, 2, 3), (slice(None), None, None)
    x, dy, _ = p.buffers[0]
    mean, var = (v.astype(p.case.dtype) for v in (p.stats.mean, p.stats.var))

    def forward(mean: Array, var: Array) -> Array:
        return p.gamma[where] * ((x - mean[where]) / np.sqrt(var[where] + 1e-5)) + p.beta[where]

    def backward() -> Array:
        n = x.size // x.shape[1]
        invstd = 1 / np.sqrt(var + 1e-5)
        xhat = (x - mean[where]) * invstd[where]
        dbeta, dgamma = dy.sum(over), (dy * xhat).sum(over)
        return (p.gamma * invstd / n)[where] * (n * dy - dbeta[where] - xhat * dgamma[where])

    calls: dict[str, Call] = {
        "training": lambda: forward(x.mean(over), x.var(over)),
        "inference": lambda: forward(mean, var),
        "backward": backward,
    }
    return calls[p.case.what]


def pytorch(p: Prepared) -> Call:
    """As users call it."""
    import torch

    torch.set_num_threads(1)
    x, dy, _ = (torch.from_numpy(a) for a in p.buffers[0])
    gamma, beta = torch.from_numpy(p.gamma), torch.from_numpy(p.beta)
    mean, var = (torch.from_numpy(v.astype(p.case.dtype)) for v in (p.stats.mean, p.stats.var))
    invstd = 1 / torch.sqrt(var + 1e-5)
    calls: dict[str, Call] = {
        "training": lambda: torch.nn.functional.batch_norm(x, None, None, gamma, beta, True),
        "inference": lambda: torch.nn.functional.batch_norm(x, mean, var, gamma, beta, False),
        "backward": lambda: torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, None, None, mean, invstd, True, 1e-5, [True, True, True]
        ),
    }
    return calls[p.case.what]


def pytorch_reusing(p: Prepared) -> Call | None:
    """With the output of the last call given back, where PyTorch can: it saves the page faults of a fresh array."""
    import torch

    if p.case.what == "backward":
        return None
    torch.set_num_threads(1)
    x, _, out = (torch.from_numpy(a) for a in p.buffers[0])
    vectors = [torch.from_numpy(v.astype(p.case.dtype)) for v in (p.gamma, p.beta, p.stats.mean, p.stats.var)]
    training = p.case.what == "training"
    return lambda: torch.native_batch_norm(
        x, *vectors, training, 0.0, 1e-5, out=(out, torch.empty(0), torch.empty(0))
    )  # fmt: skip


def onnx_runtime(p: Prepared) -> Call | None:
    """A model of one BatchNormalization node."""
    if p.case.what != "inference":
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
    copies: bool = False

    @property
    def installed(self) -> bool:
        """Whether it can take part here."""
        return all(find_spec(module) for module in self.modules)

    def check(self, p: Prepared, result: Any) -> None:
        """WrongResultError where the result of its call is wrong."""
        got = np.asarray(result[0] if isinstance(result, tuple | list) else result)
        if not self.copies:
            p.check(got, self.tolerance)
        elif not np.array_equal(got, p.buffers[0].x):
            raise WrongResultError(f"{p.case}: not a copy")


CONTENDERS = {
    "fastbn": Contender(fastbn_call, tolerance=TOLERANCE["float32"]),
    "np.copyto": Contender(numpy_copy, copies=True),
    "NumPy formula": Contender(numpy_formula),
    "PyTorch": Contender(pytorch, ("torch",)),
    "PyTorch, output reused": Contender(pytorch_reusing, ("torch",)),
    "onnxruntime": Contender(onnx_runtime, ("onnx", "onnxruntime")),
}
