"""Instructions of one call per case under valgrind: a second signal, which noise does not reach.

    python bench/instructions.py [OLD.json] [--store NEW.json]

Needs valgrind and ml_dtypes. Counts are those of the kernels alone, and the same on every run of one build. With
OLD.json, fails above 10 %.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import compare

from fastbn.bench.cases import PASSES

# Batch, channels, height; of (32, 256, 7) a few samples at a time are summed; the last three go past the cache.
SHAPES = [(8, 16, 56), (8, 16, 28), (8, 64, 14), (8, 128, 7), (32, 256, 7), (32, 64, 28), (32, 256, 14), (32, 1024, 7)]
RELU, LEAKY = {"activation": "relu"}, {"activation": "leaky_relu"}
# Each other kind on one shape: its name, how the array lies, its dtype, and the options of the calls.
KINDS = [
    ("relu", (8, 16, 28), "NCHW", "float32", RELU),
    ("relu-residual", (8, 16, 28), "NCHW", "float32", RELU | {"residual": True}),
    ("relu-residual", (8, 128, 7), "NCHW", "float32", RELU | {"residual": True}),
    ("one-sample", (1, 512, 7), "NCHW", "float32", {}),  # what a channel costs beside its values
    ("one-sample-relu", (1, 512, 7), "NCHW", "float32", RELU),
    ("leaky", (8, 16, 28), "NCHW", "float32", LEAKY),
    ("leaky-residual", (8, 16, 28), "NCHW", "float32", LEAKY | {"residual": True}),
    *((dtype, (8, 16, 28), "NCHW", dtype, {}) for dtype in ("float16", "bfloat16")),
    ("NHWC", (8, 64, 14), "NHWC", "float32", {}),
    ("NHWC-relu", (8, 64, 14), "NHWC", "float32", RELU),
    *((f"NHWC-{dtype}", (8, 64, 14), "NHWC", dtype, {}) for dtype in ("float16", "bfloat16")),
    ("NC", (2048, 64, 1), "NC", "float32", {}),
    ("NC-wide", (128, 4096, 1), "NC", "float32", {}),
    *(("tiny", (32, 64, height), "NCHW", "float32", {}) for height in (2, 3)),  # planes whose values are gathered
    ("many-samples", (256, 8, 14), "NCHW", "float32", {}),
]
WORK = """
import os, sys, json, ml_dtypes, numpy as np, fastbn
fastbn.set_num_threads(1)
def placed(a):  # from where a page begins: where arrays stand to each other decides the order of lines
    memory = np.empty(a.nbytes + 4096, np.uint8)
    new = np.ndarray(a.shape, a.dtype, memory, -memory.ctypes.data % 4096)
    new[...] = a
    return new
for what, (n, c, h), order, dtype, options in json.loads(sys.argv[1]):
    shape = {"NCHW": (n, c, h, h), "NHWC": (n, h, h, c), "NC": (n, c)}[order]
    options["axis"] = -1 if order == "NHWC" else 1
    x = placed((np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype))
    dy, out, y = placed(x[::-1]), placed(x), placed(x - x.dtype.type(3))
    mean, var = np.full(c, 3, np.float32), np.full(c, 4, np.float32)
    stats = fastbn.BatchStats(x.size // c, mean, var)
    if options.get("residual") and what == "backward":
        options["y"], out = y, (out, placed(x))
    elif options.get("residual"):
        options["residual"] = dy
    if what == "training":
        fastbn.batch_norm(x, out=out, **options)
    elif what == "inference":
        fastbn.normalize(x, mean, var, out=out, **options)
    else:
        fastbn.batch_norm_backward(dy, x, stats, out=out, **options)
    os.getppid()  # where valgrind writes down what it has counted since the last time
"""


def counted(cases: Sequence[Sequence[object]]) -> list[int]:
    """Instructions of the kernel of one call for each case. One process: to start it takes longer than all calls."""
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind: expected the program on the path, found none")
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--dump-before=getppid"]
        command += [f"--toggle-collect=*{kernel}*" for kernel in ("run_planes", "run_rows")]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        asked = [sys.executable, "-c", WORK, json.dumps(cases)]
        ran = subprocess.run([*command, *asked], env=environment, capture_output=True, text=True, check=False)
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        found = [
            int(count) for path in dumps for count in re.findall(r"^totals: (\d+)", path.read_text(), re.MULTILINE)
        ]
    if ran.returncode or len(found) != len(cases) or 0 in found:
        said = [line for line in ran.stderr.splitlines() if not line.startswith("==")]  # the others are valgrind's
        raise RuntimeError(f"valgrind told the counts {found} of {len(cases)} cases: {' '.join(said)[-500:]}")
    return found


def counts() -> dict[str, float]:
    """Instructions a value of every case, by its name."""
    rows = [("", shape, "NCHW", "float32", {}) for shape in SHAPES] + KINDS
    asked = [(name, [what, *kind]) for name, *kind in rows for what in PASSES]
    found = {}
    for (name, case), count in zip(asked, counted([case for _, case in asked]), strict=True):
        what, shape = case[:2]
        found["-".join(filter(None, (what, "x".join(map(str, shape)), name)))] = round(count / values(shape), 3)
    return found


def values(shape: tuple[int, int, int]) -> int:
    """Of x."""
    batch, channels, height = shape
    return batch * channels * height * height


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a case takes more instructions, or is gone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", metavar="OLD.json", help="counts to compare with")
    parser.add_argument("--store", metavar="NEW.json", help="where to put the counts")
    args = parser.parse_args(argv)
    try:
        old = json.loads(Path(args.old).read_text()) if args.old else None
        new = counts()
        if args.store:
            Path(args.store).write_text(json.dumps(new, indent=1) + "\n")
        table, more = compare.compare(new if old is None else old, new, False, "instructions a value", "MORE")
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(str(error))
    print(table)
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
