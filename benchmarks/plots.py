"""The one look of the plots: a system has the same colour in all of them, and ours the thickest line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyenarec.plots import save_figure
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .registry import OURS, SYSTEMS

COLORS = {name: colormaps["tab20"](index / 20) for index, name in enumerate(SYSTEMS)}


def line(axes: Axes, system: str, x: Sequence[float], times: Sequence[Mapping[str, float]], **style: Any) -> None:
    """The medians of ``times`` over ``x`` with their quartiles, in the system's colour."""
    low, middle, high = ([time[name] for time in times] for name in ("q1", "median", "q3"))
    spread = [[m - q for m, q in zip(middle, low, strict=True)], [q - m for m, q in zip(middle, high, strict=True)]]
    width = 2.5 if system == OURS else 1.2
    axes.errorbar(
        x,
        middle,
        spread,
        marker=".",
        linewidth=width,
        color=COLORS[system],
        **{"label": SYSTEMS[system].title, **style},
    )


def against_length(axes: Axes, lengths: Sequence[int], ylabel: str) -> None:
    """Both axes logarithmic, a tick for each length."""
    axes.set(xscale="log", yscale="log", xlabel="history length (events)", ylabel=ylabel)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()


def finish(figure: Figure, title: str, path: Path) -> None:
    """Title, grid and legends; saved as PNG."""
    figure.suptitle(title)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def new_figure(columns: int = 1) -> tuple[Figure, Any]:
    """A figure with ``columns`` plots side by side, and their axes as a list."""
    figure = Figure(figsize=(2 + 6 * columns, 5), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
