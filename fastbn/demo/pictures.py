"""The pictures, with the part of matplotlib that needs no display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastbn.commands import new_figure
from fastbn.demo.training import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {False: "tab:red", True: "tab:blue"}  # by whether there is BN


def draw(sigmoid: Sequence[Record], conv: Sequence[Record], folder: Path) -> list[Path]:
    """Write all pictures as PNG to the folder; returns their paths."""
    figures = {
        "accuracy.png": accuracy(sigmoid),
        "sigmoid_input.png": sigmoid_input(sigmoid),
        "convolution.png": convolution(conv),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in figures]


def accuracy(records: Sequence[Record]) -> Figure:
    """Figure 1(a) of the paper, and the accuracy on training images."""
    figure = new_figure(8, 4.5, "Three hidden layers of 100 sigmoid units (section 4.1 of the paper)")
    axes = figure.subplots()
    for record in records:
        colour = COLOURS[record.batch_norm]
        for what, shares, line in (("test", record.accuracy, "-"), ("training", record.training_accuracy, ":")):
            axes.plot(record.steps, percents(shares), line, color=colour, label=f"{record.name}: {what} images")
    accuracy_axes(axes)
    return figure


def convolution(records: Sequence[Record]) -> Figure:
    """One panel a rate, with and without BN."""
    rates = sorted({record.rate for record in records})
    figure = new_figure(10, 4.5, "Convolutional network, three times conv - BN - ReLU")
    panels = figure.subplots(1, len(rates), sharey=True)
    for rate, axes in zip(rates, panels, strict=True):
        for record in (r for r in records if r.rate == rate):
            axes.plot(record.steps, percents(record.accuracy), color=COLOURS[record.batch_norm], label=record.name)
        accuracy_axes(axes)
        axes.set_title(f"learning rate {rate:g}")
        axes.set_ylabel("accuracy on test images (%)")
    return figure


def sigmoid_input(records: Sequence[Record]) -> Figure:
    """Figures 1(b) and 1(c) of the paper."""
    figure = new_figure(10, 4.5, "Input of a typical sigmoid in the last hidden layer, over the test images")
    panels = figure.subplots(1, len(records), sharey=True)
    for record, axes in zip(records, panels, strict=True):
        low, median, high = zip(*record.percentiles, strict=True)
        colour = COLOURS[record.batch_norm]
        axes.fill_between(record.steps, low, high, color=colour, alpha=0.2, label="15th to 85th percentile")
        axes.plot(record.steps, median, color=colour, label="50th percentile")
        axes.set(title=record.name, xlabel="training steps")
        axes.margins(y=0.15)  # room for the legend
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", ncols=2)
    panels[0].set_ylabel("input of the sigmoid")
    return figure


def percents(shares: Sequence[float]) -> list[float]:
    """For an axis in %."""
    return [100 * share for share in shares]


def accuracy_axes(axes: Axes) -> None:
    """Labels, limits and chance for curves of accuracy in %."""
    axes.axhline(10, color="grey", linewidth=1, linestyle="--", label="chance")
    axes.set(xlabel="training steps", ylabel="accuracy (%)", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
