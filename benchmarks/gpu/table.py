"""What the GPU suite makes of its rows: the table, how far the operator is from what it is to reach, the plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import DIMS, ROWS, TOKENS
from benchmarks.gpu.worker import Row

# What the operator is to reach: times as fast as attention in training, by length.
ATTENTION = {200: 1.0, 1024: 2.0, 4096: 6.0, 16384: 20.0}
FFT, COPY, PACKED, MEMORY, ERROR = 8.0, 0.5, 0.85, 1.15, 2e-2


def table(result: dict[str, Any]) -> list[str]:
    head = ["tokens", "L", "D", "fwd ms", "of copy", "FFT", "attention", "memory"]
    head += ["fwd+bwd ms", "FFT", "attention", "packed", "host ms", "memory"]
    lines = [" ".join(f"{cell:>9}" for cell in head)]
    rows, drawn, scratch, mixer, fourier = (done(result[kind]) for kind in ROWS)
    for row in rows:
        times, both = row["times"], "ours, fwd+bwd"
        cells = (
            str(row["tokens"]),
            str(row["length"]),
            str(row["dim"]),
            f"{times['ours']['median']:.3f}",
            f"{100 * times['copy']['median'] / times['ours']['median']:.0f}%",
            ratio(times, "FFT", "ours"),
            ratio(times, "attention", "ours"),
            f"{row['memory']['ours']:.2f}x",
            f"{times[both]['median']:.3f}",
            ratio(times, "FFT, fwd+bwd", both),
            ratio(times, "attention, fwd+bwd", both),
            ratio(times, "ours, packed, fwd+bwd", both),
            f"{row['host'][both]:.2f}",
            f"{row['memory'][both]:.2f}x",
        )
        lines.append(" ".join(f"{cell:>9}" for cell in cells))
    for row in drawn:
        forward, training = (100 * row["relative"][what] for what in ("forward", "training"))
        lines.append(
            f"packed {row['drawn']}, D={row['dim']}: {forward:.0f}% of dense's tokens a second, trained {training:.0f}%"
        )
    for row in scratch:
        lines += [
            f"runs of {row['run']:,} elements and {row['channels']} channels, L=1024 D={row['dim']}: {name} "
            f"{row['times'][name]['median']:.3f} ms, host {row['host'][name]:.2f} ms, memory {memory:.2f}x"
            for name, memory in row["memory"].items()
            if name.endswith("fwd+bwd")
        ]
    for row in mixer:
        times = row["times"]
        lines.append(f"mixer L={row['length']} D={row['dim']}: attention takes {ratio(times, 'attention', 'mixer')}")
    lines += map(fourier_line, fourier)
    for kind in ROWS:
        lines += [f"left out: {kind} {shape_of(row)}: {row['left_out']}" for row in result[kind] if "left_out" in row]
    return lines + targets(result)


def targets(result: dict[str, Any]) -> list[str]:
    """What the operator is to reach, and the row that is furthest from it."""
    rows, drawn = done(result["rows"]), done(result["drawn"])
    lines = []

    def target(name: str, wanted: float, found: list[tuple[float, Row]], text: str, least: bool = True) -> None:
        if found:
            worst = min if least else max
            value, row = worst(found, key=lambda pair: (math.isnan(pair[0]) != least, pair[0]))
            reached = value >= wanted if least else value <= wanted  # false for NaN too
            at = ", ".join(f"{key} {row[key]}" for key in ("tokens", "length", "drawn", "dim") if key in row)
            lines.append(
                f"{'reached' if reached else 'MISSED '} {name} {text.format(wanted)}: {text.format(value)} ({at})"
            )

    def times_ours(rival: str, ours: str, rows: list[Row]) -> list[tuple[float, Row]]:
        pairs = [(row["times"], row) for row in rows if rival in row["times"]]
        return [(times[rival]["median"] / times[ours]["median"], row) for times, row in pairs]

    target(
        "forward, of a copy from L=200 on,",
        COPY,
        times_ours("copy", "ours", [r for r in rows if r["length"] >= 200]),
        "{:.0%}",
    )
    for length, wanted in ATTENTION.items():
        at = [row for row in rows if row["length"] == length]
        found = times_ours("attention, fwd+bwd", "ours, fwd+bwd", at)
        target(f"attention's time for fwd+bwd at L={length}", wanted, found, "{:.1f}x")
    for suffix in ("", ", fwd+bwd"):
        target(f"FFT's time{suffix}", FFT, times_ours(f"FFT{suffix}", f"ours{suffix}", rows), "{:.1f}x")
    for what in ("forward", "training"):
        target(f"packed {what}, of dense,", PACKED, [(row["relative"][what], row) for row in drawn], "{:.0%}")
    for name in ("ours", "ours, fwd+bwd", "ours, packed", "ours, packed, fwd+bwd"):
        found = [(row["memory"][name], row) for row in rows if name in row["memory"]]
        target(f"memory of {name},", MEMORY, found, "{:.2f}x", least=False)
    errors: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        for name, error in row.get("error", {}).items():
            errors.setdefault(name, []).append((error, row))
    for name, found in errors.items():
        target(f"error of {name} against float64", ERROR, found, "{:.1e}", least=False)
    return lines


def ratio(times: dict[str, dict[str, float]], slow: str, fast: str) -> str:
    return f"{times[slow]['median'] / times[fast]['median']:.1f}x" if slow in times and fast in times else "-"


def done(rows: list[Row]) -> list[Row]:
    """Those that were measured."""
    return [row for row in rows if "left_out" not in row]


def shape_of(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if name != "left_out")


def fourier_line(row: dict[str, Any]) -> str:
    """Forward and training: milliseconds, and the time and memory that torch takes in its faster layout."""
    cells = [f"explicit filter L={row['length']} D={row['dim']}:"]
    for suffix in ("", ", fwd+bwd"):
        times, memory = row["times"], row["memory"]
        rival = min(
            (f"FFT, ({layout}){suffix}" for layout in ("B, L, D", "B, D, L")), key=lambda name: times[name]["median"]
        )
        wide = f"ours, float32{suffix}"
        cells.append(
            f"{suffix.lstrip(', ') or 'fwd'} {times['ours' + suffix]['median']:.3f} ms, float32 "
            f"{times[wide]['median']:.3f} ms, {rival} takes {ratio(times, rival, wide)} the time and "
            f"{memory[rival] / memory[wide]:.1f}x the memory;"
        )
    return " ".join([*cells, f"error {row['error']:.1e}"])


def plot(result: dict[str, Any], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (axes,) = pyplot.subplots(1, len(DIMS), figsize=(14, 4.5), layout="constrained", sharey=True, squeeze=False)
    for axis, dim in zip(axes, DIMS, strict=True):
        rows = [row for row in done(result["rows"]) if row["dim"] == dim and row["tokens"] == TOKENS[-1]]
        for name in ("copy", "ours", "FFT", "attention", "ours, fwd+bwd", "FFT, fwd+bwd", "attention, fwd+bwd"):
            points = [(row["length"], row["times"][name]["median"]) for row in rows if name in row["times"]]
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="sequence length", title=f"D={dim}")
    axes[0].set_ylabel(f"milliseconds for {TOKENS[-1]:,} tokens")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
