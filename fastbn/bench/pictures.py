"""The pictures: time over floor per shape, GB/s over array size, scaling over threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastbn.bench import machine
from fastbn.bench.cases import PASSES
from fastbn.bench.contenders import CONTENDERS
from fastbn.bench.measure import Timing
from fastbn.bench.race import Result
from fastbn.bench.report import size
from fastbn.bench.scaling import Scaled
from fastbn.commands import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for the colour-blind, and markers for who sees none.
STYLES = {
    "fastbn": ("#0072B2", "o"),
    "np.copyto": ("#666666", "x"),
    "NumPy formula": ("#E69F00", "s"),
    "PyTorch": ("#D55E00", "^"),
    "PyTorch, output reused": ("#CC79A7", "v"),
    "onnxruntime": ("#009E73", "D"),
}
PASS_STYLES = dict(zip(PASSES, [("#0072B2", "o"), ("#009E73", "s"), ("#D55E00", "^")], strict=True))


def draw(race: Sequence[Result], sizes: Sequence[Timing], scaling: Sequence[Scaled], folder: Path) -> list[Path]:
    """Write all pictures as PNG to the folder; returns their paths."""
    figures = {"shapes.png": over_shapes(race), "sizes.png": over_sizes(sizes), "threads.png": over_threads(scaling)}
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=110)
    return [folder / name for name in figures]


def over_shapes(race: Sequence[Result]) -> Figure:
    """Time over floor for each shape, a panel for each pass."""
    batch = race[0].case.batch
    figure = new_figure(13, 5, f"Time over floor, batch {batch}, float32, one thread ({machine.name()})")
    panels = figure.subplots(1, len(PASSES), sharey=True)
    for panel, what in zip(panels, PASSES, strict=True):
        results = [r for r in race if r.case.what == what]
        for name in CONTENDERS:
            points = [(i, r.ratios[name]) for i, r in enumerate(results) if name in r.ratios]
            if points:
                colour, marker = STYLES[name]
                front = {"linewidth": 2.2, "zorder": 3} if name == "fastbn" else {"linewidth": 1}
                panel.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name, **front)
        floor_line(panel)
        panel.set(title=what, yscale="log")
        panel.set_xticks(range(len(results)), [plane(r) for r in results], rotation=60)
        ticks_of_ratios(panel)
    panels[0].set_ylabel("time over floor (1: the fastest copy or triad)")
    panels[1].set_xlabel("channels x height x width")
    # The first panel has all contenders but onnxruntime, the second all.
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(CONTENDERS) + 1)
    return figure


def plane(result: Result) -> str:
    """64x112x112."""
    return result.case.shape_name.partition("x")[2]


def over_sizes(sizes: Sequence[Timing]) -> Figure:
    """GB/s over the size of x, a panel for each pass."""
    figure = new_figure(13, 4.6, f"Speed over the size of x, float32, one thread ({machine.name()})")
    panels = figure.subplots(1, len(PASSES), sharey=True)
    for panel, what in zip(panels, PASSES, strict=True):
        timings = [t for t in sizes if t.case.what == what]
        x = [t.case.array_bytes for t in timings]
        panel.plot(x, [t.floor_gb_per_s for t in timings], color="black", linewidth=1)
        colour, marker = STYLES["fastbn"]
        panel.plot(x, [t.gb_per_s for t in timings], color=colour, marker=marker, linewidth=2)
        panel.set_xscale("log", base=2)
        panel.set(title=what, xlabel="size of x")
        panel.set_xticks([1 << e for e in range(10, 31, 5) if 1 << e < 2 * max(x)])
        panel.xaxis.set_major_formatter(lambda value, _: size(value))
        panel.xaxis.set_minor_formatter("")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="GB/s (x, dy read once; y, dx written once)", ylim=(0, None))
    labels = ["floor: the fastest copy of x (backward: triad dy + x)", "fastbn"]
    figure.legend(panels[0].lines, labels, loc="outside lower center", ncols=2)
    return figure


def over_threads(scaling: Sequence[Scaled]) -> Figure:
    """Time over the floor with as many threads, and speed-up over one thread."""
    shape = scaling[0].timing.case.shape_name
    figure = new_figure(11, 4.6, f"Scaling over threads, {shape}, float32 ({machine.name()})")
    ratio, speedup = figure.subplots(1, 2)
    for what, (colour, marker) in PASS_STYLES.items():
        found = [s for s in scaling if s.timing.case.what == what]
        threads = [s.timing.case.threads for s in found]
        style = {"color": colour, "marker": marker}
        ratio.plot(threads, [s.timing.ratio for s in found], label=what, **style)
        speedup.plot(threads, [s.speedup for s in found], label=what, **style)
        floor = "triad" if what == "backward" else "copy"
        if what != "inference":  # its floor is that of training
            speedup.plot(threads, [s.floor_speedup for s in found], "--", color=colour, label=f"floor: {floor}")
    floor_line(ratio)
    ratio.set(title="time over the floor with as many threads", ylim=(0, None), ylabel="time over floor")
    speedup.set(title="speed-up over one thread", ylim=(0, None), ylabel="times as fast")
    for panel in (ratio, speedup):
        panel.set_xscale("log", base=2)
        panel.set_xticks(threads, threads)
        panel.minorticks_off()
        panel.set_xlabel("threads")
        panel.grid(alpha=0.3)
        panel.legend(loc="best")
    return figure


def floor_line(panel: Axes) -> None:
    """At 1."""
    panel.axhline(1, color="black", linewidth=1, label="floor")


def ticks_of_ratios(panel: Axes) -> None:
    """A logarithmic axis with numbers that people read."""
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0.9), high)
    panel.set_yticks([t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if t < high])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.grid(alpha=0.3)
