"""The process of one contender: a case comes in as a line of JSON, what a round found goes out as one."""

import importlib
import json
import sys

from fastbn import set_num_threads
from fastbn.bench.cases import Case
from fastbn.bench.contenders import CONTENDERS, Call
from fastbn.bench.measure import Prepared, WrongResultError
from fastbn.bench.memory import peak_of


class Entry:
    """A contender in a case: its call where it has one and its answer is right, else why not."""

    def __init__(self, name: str, case: Case) -> None:
        self.prepared = Prepared(case)
        contender = CONTENDERS[name]
        self.call: Call | None = contender.prepare(self.prepared)
        self.wrong: str | None = None
        self.memory: int | None = None
        if self.call is None:
            return
        try:
            contender.check(self.prepared, self.call())
            self.memory = peak_of(self.call)
        except WrongResultError as error:
            self.call, self.wrong = None, f"{name}, {error}"

    def round(self) -> dict[str, float | str | None]:
        """Time, and over the floor, once each."""
        if self.call is None:
            return {"ratio": None, "wrong": self.wrong}
        took, floor = self.prepared.round(self.call)
        return {"ratio": took / floor, "seconds": took, "memory": self.memory, "wrong": None}


def work(name: str) -> None:
    """Serve until the input ends."""
    set_num_threads(1)
    for module in CONTENDERS[name].modules:  # now, when all processes start, and not one after the other
        importlib.import_module(module)
    case, entry = None, None
    for line in sys.stdin:
        asked = Case(**json.loads(line))
        if entry is None or asked != case:
            entry = None  # one case's arrays at a time
            case, entry = asked, Entry(name, asked)
        print(json.dumps(entry.round()), flush=True)


if __name__ == "__main__":
    work(sys.argv[1])
