"""The closing table: what was reached, in how many steps and what time, and what that says about the paper's claims."""

from collections.abc import Sequence
from textwrap import fill

from fastbn.demo.data import BATCH, TRAIN
from fastbn.demo.training import Record

TEST_GOALS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95)
TRAINING_GOALS = (0.9, 0.99)

WORKS, FAILS = 0.8, 0.2  # final test accuracies from which a rate works, and below which it fails; chance is 0.1


def closing_table(sigmoid: Sequence[Record], conv: Sequence[Record], seed: int) -> str:
    """All sections of the report as one text."""
    normalised = [("sigmoid", r) for r in sigmoid if r.batch_norm] + [("convolution", r) for r in conv if r.batch_norm]
    sections = [
        ("Three hidden layers of 100 sigmoid units (section 4.1 of the paper): steps to accuracy", reached(sigmoid)),
        ("Convolutional network, three times conv - BN - ReLU: steps to accuracy", reached(conv)),
        ("Test accuracy in eval mode after the last step", eval_modes(normalised)),
        ("Time in BN for one training step: forward and backward of all BN layers, medians", times(normalised)),
        ("What the numbers say", "\n".join(verdicts(sigmoid, conv))),
    ]
    head = f"MNIST: {TRAIN} training and {5000 - TRAIN} test images, mini-batches of {BATCH}; seed {seed}"
    return "\n\n".join([head, *(f"{title}\n{'-' * len(title)}\n{text}" for title, text in sections)]) + "\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("   ".join(line) for line in lines)


def percent(share: float) -> str:
    """0.88 as 88.0 %."""
    return f"{100 * share:.1f} %"


def goal_name(goal: float) -> str:
    """0.85 as 85 %."""
    return f"{100 * goal:.0f} %"


def steps(step: int | None) -> str:
    """A number of steps, or never."""
    return "never" if step is None else str(step)


def reached(records: Sequence[Record]) -> str:
    """Steps to given accuracies and the last accuracies, one column a run."""
    rows = [["", *(r.name for r in records)]]
    rows += [[f"test {goal_name(g)}", *(steps(r.steps_to(g, r.accuracy)) for r in records)] for g in TEST_GOALS]
    rows += [
        [f"training {goal_name(g)}", *(steps(r.steps_to(g, r.training_accuracy)) for r in records)]
        for g in TRAINING_GOALS
    ]
    rows += [
        ["final test accuracy", *(percent(r.accuracy[-1]) for r in records)],
        ["final training accuracy", *(percent(r.training_accuracy[-1]) for r in records)],
    ]
    if any(r.diverged_at for r in records):
        rows.append(["loss not finite at step", *(steps(r.diverged_at) for r in records)])
    return table(rows)


def eval_modes(named: Sequence[tuple[str, Record]]) -> str:
    """Running against population statistics."""
    rows = [["", "running statistics", "population statistics (Algorithm 2)"]]
    for network, record in named:
        assert record.population_accuracy is not None  # every network with BN has one
        rows.append([f"{network} {record.name}", percent(record.accuracy[-1]), percent(record.population_accuracy)])
    return table(rows)


def times(named: Sequence[tuple[str, Record]]) -> str:
    """Milliseconds with fastbn and with the formula, and how far the two differ."""
    rows = [["", "fastbn", "NumPy formula", "ratio", "whole step", "relative difference"]]
    for network, record in named:
        fast, formula, step = record.times.medians()
        cells = [f"{1e3 * fast:.2f} ms", f"{1e3 * formula:.2f} ms", f"{formula / fast:.1f}", f"{1e3 * step:.2f} ms"]
        rows.append([f"{network} {record.name}", *cells, f"{record.times.difference:.0e}"])
    return table(rows)


def verdicts(sigmoid: Sequence[Record], conv: Sequence[Record]) -> list[str]:
    """The paper's claims against the numbers, whichever way these go."""
    without, with_bn = sigmoid
    lines = [
        *compared("test", TEST_GOALS, without, with_bn, without.accuracy, with_bn.accuracy),
        *compared("training", TRAINING_GOALS, without, with_bn, without.training_accuracy, with_bn.training_accuracy),
    ]
    if with_bn.accuracy[-1] < without.accuracy[-1]:
        lines.append(
            f"the final test accuracy is LOWER with BN, {percent(with_bn.accuracy[-1])} against "
            f"{percent(without.accuracy[-1])}, while the training accuracy is "
            f"{percent(with_bn.training_accuracy[-1])} against {percent(without.training_accuracy[-1])}: BN speeds up "
            f"fitting the {TRAIN} training images, which is not the same as learning the digits"
        )
    lines = [f"Sigmoid units: {line}." for line in lines] + [rate_verdict(r) for r in conv]
    return [fill(line, 110, initial_indent="- ", subsequent_indent="  ") for line in lines]


def compared(
    what: str, goals: Sequence[float], without: Record, with_bn: Record, a: list[float], b: list[float]
) -> list[str]:
    """Whether BN reaches each accuracy in fewer steps (`a`, `b`: the curves); what neither reaches says nothing."""
    found: dict[str, list[str]] = {"fewer steps with BN": [], "NOT fewer steps with BN": []}
    for goal in goals:
        x, y = without.steps_to(goal, a), with_bn.steps_to(goal, b)
        if x is None and y is None:
            continue
        fewer = y is not None and (x is None or y < x)
        side = "fewer steps with BN" if fewer else "NOT fewer steps with BN"
        found[side].append(f"{goal_name(goal)} ({steps(y)} against {steps(x)})")
    return [f"{side} to a {what} accuracy of {', '.join(cases)}" for side, cases in found.items() if cases]


def rate_verdict(record: Record) -> str:
    """Whether the convolutional network learns at this rate."""
    final = record.accuracy[-1]
    word = "works" if final >= WORKS else "fails" if final < FAILS else "neither works nor fails"
    return f"Convolution {record.name}: {word}, final test accuracy {percent(final)}."
