"""Pictures of a run: the training curve and the learned filters, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hyenarec.breakdown import KINDS, MEANING
from hyenarec.errors import UserError
from hyenarec.files import PNG, WRITTEN_BY, refuse_foreign, write_atomically
from hyenarec.mixers.hyena import HyenaRecMixer
from hyenarec.model import SequenceModel


def write_figure(figure: Figure, path: Path) -> None:
    """Write a picture, replacing whatever is there."""
    mark = {"Software": WRITTEN_BY}
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120, metadata=mark))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture where :func:`hyenarec.files.refuse_foreign` allows it."""
    refuse_foreign(path, PNG)
    write_figure(figure, path)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, path: Path) -> None:
    """Loss and validation ``metric`` by epoch, one line per run; ``histories`` maps a label to the rows of a run's
    ``metrics.jsonl``."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    for label, rows in histories.items():
        loss_axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], label=label)
        evaluated = [row for row in rows if "validation" in row]
        values = [row["validation"][metric] for row in evaluated]
        metric_axes.plot([row["epoch"] for row in evaluated], values, marker=".", label=label)
    loss_axes.set(xlabel="epoch", ylabel="training loss (nats)")
    metric_axes.set(xlabel="epoch", ylabel=f"validation {metric}")
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save_figure(figure, path)


def learned_filters(model: SequenceModel, path: Path, channels: int = 6) -> None:
    """The long filters of every block: all channels as a map (each scaled to its peak), and a few as curves.

    Raises :class:`UserError` for a model without long filters.
    """
    mixers = [block.mixer for block in model.blocks]
    filters = [taps for mixer in mixers if isinstance(mixer, HyenaRecMixer) for taps in mixer.taps()]  # (G, K) each
    if not filters:
        raise UserError(f"mixer {model.config.mixer} has no long filters to plot; only hyena has")
    figure = Figure(figsize=(11, 3.6 * len(filters)), layout="constrained")
    grid = figure.subplots(len(filters), 2, squeeze=False)
    for index, (taps, (map_axes, curve_axes)) in enumerate(zip(filters, grid, strict=True)):
        h = taps.numpy()
        reach = (np.arange(h.shape[1]) * h**2).sum(1) / (h**2).sum(1).clip(
            1e-30
        )  # (G,) mean lag of the filter's energy
        order = np.argsort(reach)
        scaled = h[order] / np.abs(h[order]).max(1, keepdims=True).clip(1e-30)
        map_axes.imshow(scaled, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        map_axes.set(
            xlabel="lag (events)", ylabel="channel, by mean lag", title=f"long filter {index + 1}: all channels"
        )
        for channel in order[np.linspace(0, len(order) - 1, channels).astype(int)]:
            curve_axes.plot(h[channel], label=f"mean lag {reach[channel]:.0f}")
        curve_axes.set(xlabel="lag (events)", ylabel="tap", title="some channels, short to long memory")
        curve_axes.axhline(0, color="black", linewidth=0.5)
        curve_axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def breakdowns(values: Mapping[str, Mapping[str, Mapping[str, float]]], metric: str, path: Path) -> None:
    """``metric`` by kind of target, one plot per breakdown: ``values`` maps a system to the buckets of each breakdown,
    as :func:`hyenarec.breakdown.averaged` returns them."""
    figure = Figure(figsize=(6 * len(KINDS), 4.5), layout="constrained")
    for kind, axes in zip(KINDS, figure.subplots(1, len(KINDS)), strict=True):
        for number, (name, parts) in enumerate(values.items()):
            axes.plot(list(parts[kind]), list(parts[kind].values()), f"C{number % 10}.-", label=name)
        axes.set(xlabel=MEANING[kind], ylabel=metric)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    save_figure(figure, path)


def lines(x: Sequence[float], y: Mapping[str, Sequence[float]], names: tuple[str, str], path: Path) -> None:
    """A line for each label of ``y`` over ``x``, on a logarithmic axis; ``names`` are those of the two axes."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, values in y.items():
        axes.plot(x, values, marker=".", label=label)
    axes.set(xscale="log", xlabel=names[0], ylabel=names[1], ylim=(0, 1.1 * max(map(max, y.values()))))
    axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def importance_bars(shares: Mapping[str, float], path: Path) -> None:
    """How much each option of a search mattered, as bars, the largest on top."""
    figure = Figure(figsize=(7, 0.5 * len(shares) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names])
    axes.set(xlabel="share of the differences between trials", xlim=(0, 1))
    axes.grid(alpha=0.3, axis="x")
    save_figure(figure, path)
