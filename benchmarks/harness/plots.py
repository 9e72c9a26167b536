"""The common look of the plots: each system has the same colour in all of them, and ours the thickest line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.registry import OURS, SYSTEMS
from hyenarec.plots import write_figure

COLORS = {name: colormaps["tab20"](index % 20) for index, name in enumerate(SYSTEMS)}


def new_figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` plots side by side, and their axes."""
    figure = Figure(figsize=(2 + 6 * columns, 5), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def style(system: str) -> dict[str, Any]:
    return {
        "color": COLORS[system],
        "label": SYSTEMS[system].title,
        "linewidth": 2.5 if system == OURS else 1.2,
        "marker": ".",
    }


def values(axes: Axes, system: str, x: Sequence[float] | Sequence[str], y: Sequence[float], **other: Any) -> None:
    """Draws a line in the system's colour."""
    axes.plot(x, y, **style(system) | other)


def times(axes: Axes, system: str, x: Sequence[float], summaries: Sequence[Mapping[str, float]]) -> None:
    """Draws the medians of ``summaries`` in the system's colour, with their quartiles as error bars."""
    low, middle, high = ([summary[name] for summary in summaries] for name in ("q1", "median", "q3"))
    spread = [[m - q for m, q in zip(middle, low, strict=True)], [q - m for m, q in zip(middle, high, strict=True)]]
    axes.errorbar(x, middle, spread, **style(system))


def against_length(axes: Axes, lengths: Sequence[int], ylabel: str) -> None:
    """Makes both axes logarithmic, with a tick for each length."""
    axes.set(xscale="log", yscale="log", xlabel="history length (events)", ylabel=ylabel)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()


def finish(figure: Figure, title: str, path: Path) -> None:
    """Adds title, grids and one legend of all labels, and saves the figure as PNG."""
    figure.suptitle(title)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    labelled: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), frameon=False, fontsize=8, loc="outside right upper")
    write_figure(figure, path)


def bar(axes: Axes, system: str, place: float, value: float, filled: bool) -> None:
    """Draws a horizontal bar in the system's colour or, unfilled, an outline that shows on top of such a bar."""
    look = {"facecolor": COLORS[system]} if filled else {"facecolor": "none", "edgecolor": "black", "linestyle": "--"}
    axes.barh(place, value, **look)
