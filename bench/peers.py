"""Race fastbn against what else is installed: the NumPy formula, PyTorch, onnxruntime (inference).

    python bench/peers.py [--batch 32] [--rounds 9] [--out DIR]

Every contender has a process of its own, so that thread pools do not disturb one another; rounds are interleaved; each
round measures the floor in the same process, and the ratio is taken within the round. One thread each. Prints a
table and writes peers.json and peers.png. A contender that is not installed is left out; PyTorch belongs to no extra.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import speed

CONTENDERS = {
    "fastbn": "fastbn",
    "NumPy formula": "numpy",
    "PyTorch": "torch",
    "PyTorch, output reused": "torch",
    "onnxruntime": "onnxruntime",
}


def numpy_formula(p: speed.Prepared) -> Callable[[speed.Buffers], object]:
    """What one writes without a library, in the dtype of x."""
    over, where = (0, 2, 3), (slice(None), None, None)

    def forward(x, mean, var):
        return p.gamma[where] * ((x - mean[where]) / np.sqrt(var[where] + 1e-5)) + p.beta[where]

    def backward(dy, x):
        n = x.size // x.shape[1]
        invstd = 1 / np.sqrt(var + 1e-5)
        xhat = (x - mean[where]) * invstd[where]
        dbeta, dgamma = dy.sum(over), (dy * xhat).sum(over)
        return (p.gamma * invstd / n)[where] * (n * dy - dbeta[where] - xhat * dgamma[where])

    mean, var = (v.astype(p.case.dtype) for v in (p.stats.mean, p.stats.var))
    return {
        "training": lambda b: forward(b.x, b.x.mean(over), b.x.var(over)),
        "inference": lambda b: forward(b.x, mean, var),
        "backward": lambda b: backward(b.dy, b.x),
    }[p.case.what]


def pytorch(p: speed.Prepared, reuse: bool) -> Callable[[speed.Buffers], object] | None:
    """As users call it; or with the output of the last call given back, where PyTorch can."""
    import torch

    torch.set_num_threads(1)
    x, dy, out = (torch.from_numpy(a) for a in p.buffers[0])
    gamma, beta = torch.from_numpy(p.gamma), torch.from_numpy(p.beta)
    mean, var = (torch.from_numpy(v.astype(p.case.dtype)) for v in (p.stats.mean, p.stats.var))
    invstd = 1 / torch.sqrt(var + 1e-5)
    none = torch.empty(0)
    if reuse and p.case.what == "backward":
        return None
    if reuse:
        training = p.case.what == "training"
        arguments = (x, gamma, beta, mean.clone(), var.clone(), training, 0.0, 1e-5)
        return lambda b: torch.native_batch_norm(*arguments, out=(out, none.clone(), none.clone()))
    return {
        "training": lambda b: torch.nn.functional.batch_norm(x, None, None, gamma, beta, True),
        "inference": lambda b: torch.nn.functional.batch_norm(x, mean, var, gamma, beta, False),
        "backward": lambda b: torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, None, None, mean, invstd, True, 1e-5, [True, True, True]
        ),
    }[p.case.what]


def onnx_runtime(p: speed.Prepared) -> Callable[[speed.Buffers], object] | None:
    """A model of one BatchNormalization node."""
    if p.case.what != "inference" or importlib.util.find_spec("onnx") is None:
        return None
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["scale", "b", "mean", "var"]
    values = dict(zip(names, (p.gamma, p.beta, p.stats.mean, p.stats.var), strict=True))
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=1e-5)],
        "bn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, p.case.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, p.case.shape)],
        [onnx.numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda b: session.run(["y"], {"x": b.x})


def caller(name: str, p: speed.Prepared) -> Callable[[speed.Buffers], object] | None:
    """What a contender does in a case; None where it has no such pass."""
    if name == "fastbn":
        return p.call
    if name == "NumPy formula":
        return numpy_formula(p)
    if name == "onnxruntime":
        return onnx_runtime(p)
    return pytorch(p, reuse=name != "PyTorch")


def first(result: object) -> np.ndarray:
    """The y or dx in what a contender returned."""
    return np.asarray(result[0] if isinstance(result, (tuple, list)) else result)


def one_round(p: speed.Prepared, call: Callable[[speed.Buffers], object]) -> float:
    """Time over floor, once each; the process has just been asleep, so both run once before."""
    p.move(stream=True)
    call(p.buffers[0])
    floor = p.floor()
    return speed.seconds(lambda: call(p.buffers[0]), p.repeat) / floor


def work(name: str) -> None:
    """The process of a contender: a case a line comes in, a ratio (or null) goes out."""
    prepared: dict[speed.Case, tuple[speed.Prepared, object]] = {}
    for line in sys.stdin:
        case = speed.Case(**json.loads(line))
        if case not in prepared:
            prepared.clear()  # one case's arrays at a time
            p = speed.Prepared(case)
            call = caller(name, p)
            if call is not None:
                got, expected = first(call(p.buffers[0])), np.array(p.call(p.buffers[0]))
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3, err_msg=f"{name}, {case}")
            prepared[case] = p, call
        p, call = prepared[case]
        ratio = None if call is None else one_round(p, call)
        print(json.dumps(ratio), flush=True)


def race(cases: Sequence[speed.Case], rounds: int) -> dict[str, dict[str, float]]:
    """Median time over floor of each contender in each case."""
    names = [name for name, module in CONTENDERS.items() if importlib.util.find_spec(module)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "FASTBN_NUM_THREADS": "1"}
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for name in names
    }  # fmt: skip
    results: dict[str, dict[str, float]] = {}
    for case in cases:
        ratios: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name, worker in workers.items():
                worker.stdin.write(json.dumps(vars(case)) + "\n")
                worker.stdin.flush()
                ratio = json.loads(worker.stdout.readline())
                if ratio is not None and turn > 0:  # the first round warms up
                    ratios[name].append(ratio)
        results[str(case)] = {name: round(float(np.median(r)), 2) for name, r in ratios.items() if r}
        print(f"{case!s:48}", *(f"{name} {r:.2f}" for name, r in results[str(case)].items()), sep="   ", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return results


def draw(results: dict[str, dict[str, float]], path: Path) -> None:
    """Time over floor for each shape, a panel for each pass."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.4), sharey=True, layout="constrained")
    for panel, what in zip(panels, speed.PASSES, strict=True):
        rows = {key.split("-")[1]: r for key, r in results.items() if key.startswith(what)}
        for number, name in enumerate(CONTENDERS):
            points = [(i, r[name]) for i, r in enumerate(rows.values()) if name in r]
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=name)
        panel.axhline(1, color="black", linewidth=1)
        panel.set(title=what, yscale="log", yticks=[1, 2, 5, 10, 20, 50])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.set_xticks(range(len(rows)), ["x".join(shape.split("x")[1:3]) for shape in rows], rotation=60)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("time over floor (1: a streaming copy or triad)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(CONTENDERS))
    figure.supxlabel("channels x height, ResNet-50, float32, one thread", fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of peers.json and peers.png")
    args = parser.parse_args(argv)
    if args.work:
        work(args.work)
        return
    cases = [speed.Case(args.batch, *s, what) for what in speed.PASSES for s in speed.NETWORKS["ResNet-50"]]
    results = race(cases, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.out / "peers.png")


if __name__ == "__main__":
    main()
