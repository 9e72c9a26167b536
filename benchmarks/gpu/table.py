"""What the GPU suite prints: a line as soon as a row is measured, and at the end a table of shapes."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.gpu.plan import BACKENDS, TERMS
from benchmarks.gpu.results import KINDS
from benchmarks.gpu.worker import Row

CLOCKS = ("wall", "device", "graph")
STARVED = 1.5  # if a call takes so many times as long as its graph, the device waits for the host
HEAD = f"{'':<66} {'forward, ms':^39} {'forward and backward, ms':^39}\n{'':<66} " + " ".join(
    f"{name:>9}" for name in (*CLOCKS, "predicted") * 2
)


def line(row: Row) -> str:
    """The line that is printed as soon as a row is measured."""
    cells = []
    for kind in KINDS:
        figures = row.get(kind, {})
        cells += [milliseconds(figures.get(clock, {}).get("median")) for clock in CLOCKS]
        cells.append(milliseconds(row.get("predicted", {}).get(kind)))
    text = f"{name_of(row):<66} " + " ".join(f"{cell:>9}" for cell in cells)
    if "error" in row:
        text += f"  error {max(row['error'].values()):.1e}"
    reasons = [f"{kind} {row[kind]['no_graph']}" for kind in KINDS if "no_graph" in row.get(kind, {})]
    text += f"  no graph: {reasons[0]}" if reasons else ""
    text += f"  LEFT OUT: {row['left_out']}" if "left_out" in row else ""
    return f"{text}  ({row['took']['seconds']:.1f} s)" if "took" in row else text


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def name_of(row: Row) -> str:
    """What identifies a row, in a few words."""
    who = [str(row[key]) for key in ("backend", "rival", "system", "mixer", "drawn", "dtype") if key in row]
    words = [row["what"] if row["what"] != "rival" else "", *who]
    words += [f"{key}={row[key]}" for key in ("length", "dim", "tokens", "terms") if key in row]
    words += [key for key in ("window", "packed", "even") if row.get(key)]
    return " ".join(filter(None, words)).replace("length=", "L=").replace("dim=", "D=").replace("terms=", "N=")


def device(row: Row | None, kind: str) -> float:
    """Milliseconds on the device; NaN where there is no such row or figure."""
    value: float = row[kind]["device"]["median"] if row and "device" in row.get(kind, {}) else math.nan
    return value


class Found:
    """The rows that were measured, to be found by what identifies them."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def ours(self, shape: Row, backend: str, **changed: Any) -> Row | None:
        wanted = {"terms": TERMS, "window": False, "packed": False} | shape | changed
        return self.one(what="ours", backend=backend, **wanted)

    def rival(self, shape: Row, *names: str) -> dict[str, Row]:
        found = {name: self.one(what="rival", rival=name, **shape) for name in names}
        return {name: row for name, row in found.items() if row}

    def one(self, **wanted: Any) -> Row | None:
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def shapes(self) -> list[Row]:
        """Each combination of tokens, length and width that ours has rows of, in their order."""
        same = ("tokens", "length", "dim")
        return [
            dict(zip(same, values, strict=True))
            for values in dict.fromkeys(tuple(row[key] for key in same) for row in self.rows if row["what"] == "ours")
        ]

    def fastest(self, shape: Row, kind: str, **changed: Any) -> tuple[float, str]:
        """Our time on the backend that is faster there, and that backend's name."""
        times = [(device(self.ours(shape, backend, **changed), kind), backend) for backend in BACKENDS]
        return min(times, key=lambda pair: (math.isnan(pair[0]), pair[0]))

    def fft(self, shape: Row, kind: str) -> float:
        """Milliseconds of torch.fft in its faster layout."""
        rows = self.rival(shape, "torch.fft (B, L, D)", "torch.fft (B, D, L)").values()
        return min((device(row, kind) for row in rows), default=math.nan)

    def attention(self, shape: Row, kind: str) -> float:
        return device(self.rival(shape, "FlashAttention").get("FlashAttention"), kind)


def table(rows: list[Row]) -> list[str]:
    """One line per shape, with times on the device: ours on each backend, and how many times as long the others
    take."""
    found = Found(rows)
    head = ["tokens", "L", "D"]
    for short in ("fwd", "f+b"):
        head += [f"{short} {name}" for name in (*BACKENDS, "predicted", "of copy", "flash", "fft")]
    head.remove("f+b of copy")
    lines = [" ".join(f"{cell:>13}" for cell in head)]
    for shape in found.shapes():
        cells = [f"{shape['tokens']:,}", f"{shape['length']:,}", str(shape["dim"])]
        for kind in KINDS:
            ours, backend = found.fastest(shape, kind)
            cells += [milliseconds(none(device(found.ours(shape, name), kind))) for name in BACKENDS]
            cells.append(milliseconds((found.ours(shape, backend) or {}).get("predicted", {}).get(kind)))
            if kind == "forward":
                share = device(found.rival(shape, "copy").get("copy"), kind) / ours
                cells.append("-" if math.isnan(share) else f"{share:.0%}")
            cells += [times(found.attention(shape, kind) / ours), times(found.fft(shape, kind) / ours)]
        lines.append(" ".join(f"{cell:>13}" for cell in cells))
    return lines + starved(rows)


def starved(rows: list[Row]) -> list[str]:
    """A line for each figure in which the device waits for the host."""
    lines = []
    for row in rows:
        for kind, words in KINDS.items():
            figures = row.get(kind, {})
            if "graph" in figures and figures["wall"]["median"] > STARVED * figures["graph"]["median"]:
                lines.append(
                    f"starved by the host: {name_of(row)}, {words}: {figures['wall']['median']:.3f} ms, "
                    f"{figures['graph']['median']:.3f} as a graph"
                )
    return lines


def none(value: float) -> float | None:
    return None if math.isnan(value) else value


def times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.1f}x"
