"""The command `fastbn`: each subcommand is one function that adds its arguments and one that runs it."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import fastbn
from fastbn.commands import CannotRunError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 where nobody reads on, 2 where a command cannot run, 130 where
    it was interrupted.
    """
    parser = argparse.ArgumentParser(prog="fastbn", description="Batch normalization for NumPy on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastbn {fastbn.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for add in (add_demo, add_bench, add_caffe, add_config):
        add(commands)
    try:
        try:
            args = parser.parse_args(argv)
            return args.run(args)
        finally:  # also behind --help, which ends in parse_args
            print(end="", flush=True)
    except BrokenPipeError:  # of `| head`, which has seen enough
        drop_output()
        return 1
    except KeyboardInterrupt:
        return 130
    except CannotRunError as error:
        print(f"fastbn {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk is full, perhaps that of the standard output
        drop_output()
        print(f"fastbn: {error}", file=sys.stderr)
        return 2


def drop_output() -> None:
    """Where the standard output takes no more, nor can what is still buffered be written, even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_demo(commands: Any) -> None:
    """`fastbn demo`."""
    text = "Two claims of the batch normalization paper, tried on 5000 MNIST images. Takes one or two minutes."
    parser = commands.add_parser("demo", help="train networks with and without batch normalization", description=text)
    parser.add_argument("--quick", action="store_true", help="train for fewer steps: some 20 seconds")
    parser.add_argument("--out", default="fastbn-demo", metavar="DIR", help="for pictures and report (%(default)s)")
    parser.add_argument("--seed", default=0, metavar="N", type=seed, help="same seed, same numbers (%(default)s)")
    parser.set_defaults(run=demo)


def demo(args: argparse.Namespace) -> int:
    """Run the demo."""
    from fastbn.demo import run

    run(args.out, args.seed, args.quick)
    return 0


def seed(text: str) -> int:
    """A seed from the command line."""
    return at_least(0, text)


def at_least(least: int, text: str) -> int:
    """An integer from the command line."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text}")
    return value


def add_bench(commands: Any) -> None:
    """`fastbn bench`."""
    text = "Time over the speed of memory: fastbn, the NumPy formula, PyTorch and onnxruntime where installed."
    parser = commands.add_parser("bench", help="measure speed, draw pictures", description=f"{text} Takes minutes.")
    parser.add_argument("--quick", action="store_true", help="few shapes, sizes and rounds: some 20 seconds")
    parser.add_argument("--out", default="fastbn-bench", metavar="DIR", help="for pictures and report (%(default)s)")
    parser.add_argument("--batch", type=count, metavar="N", help="samples of a shape (32; with --quick 8)")
    parser.add_argument("--rounds", type=count, metavar="N", help="of each case (9; with --quick 3)")
    parser.add_argument("--threads", type=threads, metavar="N", help="the most threads to scale to (all)")
    parser.set_defaults(run=bench)


def bench(args: argparse.Namespace) -> int:
    """Run the benchmark."""
    from fastbn.bench.command import run

    run(args.out, args.quick, args.batch, args.rounds, args.threads)
    return 0


def count(text: str) -> int:
    """A number of things from the command line."""
    return at_least(1, text)


def threads(text: str) -> int:
    """A number of threads from the command line."""
    value = count(text)
    try:
        fastbn.num_threads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("n: ")) from None
    return value


def add_caffe(commands: Any) -> None:
    """`fastbn caffe`."""
    text = "List the batch-norm layers of a Caffe net: channels, eps, ranges of statistics, and what is odd about them."
    parser = commands.add_parser("caffe", help="list or export a Caffe net's batch-norm layers", description=text)
    parser.add_argument("prototxt", metavar="MODEL.prototxt", help="the net, as text or binary")
    parser.add_argument("caffemodel", metavar="MODEL.caffemodel", nargs="?", help="its blobs")
    parser.add_argument("--to", metavar="OUT.npz", help="write their state there, in PyTorch's names")
    parser.add_argument("--phase", choices=("TEST", "TRAIN"), default="TEST", help="(%(default)s)")
    parser.add_argument("--bn", choices=("variance", "invstd"), help="the fourth blob of layers of type BN")
    parser.set_defaults(run=caffe)


def caffe(args: argparse.Namespace) -> int:
    """List, and export where asked to."""
    from fastbn.caffe import load, report

    try:
        net = load(args.prototxt, args.caffemodel, args.phase, bn=args.bn)
        print(report.table(net))
        if args.to is not None:
            report.export(net, args.to)
            print(f"written: {args.to}")
    except BrokenPipeError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise CannotRunError(str(error)) from error
    return 0


def add_config(commands: Any) -> None:
    """`fastbn config`."""
    parser = commands.add_parser("config", help="print version, kernels, threads and build")
    parser.set_defaults(run=config)


def config(args: argparse.Namespace) -> int:
    """Print the configuration."""
    fastbn.show_config()
    return 0
