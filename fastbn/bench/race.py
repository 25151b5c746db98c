"""fastbn against what else is installed, each contender in a process of its own, rounds interleaved.

So thread pools do not disturb one another, and what slows the machine for a while slows all. Each round measures the
floor in the contender's process; the ratio is taken within it.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fastbn.bench import machine
from fastbn.bench.cases import Case
from fastbn.bench.contenders import CONTENDERS
from fastbn.bench.measure import WrongResultError
from fastbn.commands import CannotRunError

ARRAYS = 10  # as large as x, at most, in each process: x, dy, out, a residual's three, and four of the formula's


@dataclass
class Result:
    """A case: each contender's medians, and those whose answer was wrong (they have none)."""

    case: Case
    ratios: dict[str, float] = field(default_factory=dict)  # time over floor
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)  # bytes at the peak beyond the arguments
    wrong: dict[str, str] = field(default_factory=dict)


class Racer:
    """A contender's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        # -P: a checkout in the current folder is not what is installed.
        command = [sys.executable, "-P", "-m", "fastbn.bench.worker", name]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )  # in a session of its own: Ctrl-C is for the command, which ends it

    def __enter__(self) -> "Racer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def round(self, case: Case) -> Mapping[str, Any]:
        """Ask for one round."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(vars(case)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            status = self.process.wait()
            raise CannotRunError(f"{self.name}: its process ended with status {status} before {case} was timed")
        return json.loads(answer)


def installed(names: Iterable[str] = tuple(CONTENDERS)) -> list[str]:
    """The contenders, of these, that can take part."""
    return [name for name in names if CONTENDERS[name].installed]


def check_memory(cases: Sequence[Case], names: Sequence[str]) -> None:
    """CannotRunError where the arrays of all processes would not fit."""
    need = ARRAYS * len(names) * max(case.array_bytes for case in cases)
    if need > (free := machine.free_memory()):
        raise CannotRunError(
            f"the race takes {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: try a smaller --batch"
        )


def race(cases: Sequence[Case], rounds: int, names: Sequence[str]) -> Iterator[Result]:
    """The cases one after the other, as they are done. A wrong answer of fastbn's ends the race."""
    check_memory(cases, names)
    with ExitStack() as stack:
        racers = [stack.enter_context(Racer(name)) for name in names]
        for case in cases:
            result = Result(case)
            found: dict[str, list[Mapping[str, Any]]] = {racer.name: [] for racer in racers}
            for turn in range(rounds + 1):
                for racer in racers:
                    answer = racer.round(case)
                    if answer["wrong"]:
                        result.wrong[racer.name] = answer["wrong"]
                    elif answer["ratio"] is not None and turn > 0:  # the first round warms up
                        found[racer.name].append(answer)
            if "fastbn" in result.wrong:
                raise WrongResultError(result.wrong["fastbn"])
            for name, answers in found.items():
                if answers:
                    result.ratios[name] = median(answer["ratio"] for answer in answers)
                    result.seconds[name] = median(answer["seconds"] for answer in answers)
                    result.memory[name] = answers[0]["memory"]
            yield result
