"""Instructions of one call per case under valgrind: a second signal, which noise does not reach.

    python bench/instructions.py [OLD.json] [--store NEW.json]

Counts are those of the kernels alone, and the same on every run of one build. With OLD.json, fails above 10 %.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import compare

CASES = ["training", "inference", "backward"]
SHAPES = [(8, 16, 56), (8, 16, 28), (8, 64, 14), (8, 128, 7)]
CALLS = 5
WORK = """
import sys, numpy as np, fastbn
what, shape, calls = sys.argv[1], tuple(map(int, sys.argv[2].split(","))), int(sys.argv[3])
fastbn.set_num_threads(1)
x = (np.arange(np.prod(shape)) % 7).astype(np.float32).reshape(shape)
dy, out, mean, var = x[::-1].copy(), np.empty_like(x), x.mean((0, 2, 3)), x.var((0, 2, 3))
stats = fastbn.BatchStats(x.size // shape[1], mean, var)
for _ in range(calls):
    if what == "training":
        fastbn.batch_norm(x, out=out)
    elif what == "inference":
        fastbn.normalize(x, mean, var, out=out)
    else:
        fastbn.batch_norm_backward(dy, x, stats, out=out)
"""


def per_value(what: str, *shape: int) -> float:
    """Instructions of a call's kernel per value of x."""
    batch, channels, height = shape
    text = f"{batch},{channels},{height},{height}"
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*run_planes*"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, sys.executable, "-c", WORK, what, text, str(CALLS)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if found is None or found[1] == "0":
        raise RuntimeError(f"valgrind told no count: {ran.stderr[-500:]}")
    return int(found[1]) / CALLS / (batch * channels * height * height)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a case takes more instructions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", metavar="OLD.json", help="counts to compare with")
    parser.add_argument("--store", metavar="NEW.json", help="where to put the counts")
    args = parser.parse_args(argv)
    new = {f"{what}-{'x'.join(map(str, s))}": round(per_value(what, *s), 3) for s in SHAPES for what in CASES}
    if args.store:
        Path(args.store).write_text(json.dumps(new, indent=1) + "\n")
    table, more = compare.compare(json.loads(Path(args.old).read_text()) if args.old else new, new)
    print(table.replace("time over floor", "instructions a value").replace("SLOWER", "MORE"))
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
