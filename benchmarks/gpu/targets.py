"""What the operator should reach on a GPU, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.gpu.plan import BACKENDS, SYSTEMS, TOKENS
from benchmarks.gpu.results import KINDS
from benchmarks.gpu.rows import DRAWN
from benchmarks.gpu.table import Found, device, name_of
from benchmarks.gpu.worker import Row

# Forward and backward: how many times as fast as FlashAttention, by length.
ATTENTION = {200: 1.5, 1024: 3.0, 4096: 9.0, 16_384: 30.0}
COPY = 0.7  # share of a copy's speed, forward, from 200 events on
FFT = 8.0  # times as fast as torch.fft in its faster layout
PACKED = 0.85  # tokens per second at drawn lengths, over those at one length
MEMORY = 1.15  # most memory of a call, over what it returns
ERROR = 2e-2  # norm-wise, at most
Value = tuple[float, str]  # a value, and where it occurs


def lines(rows: list[Row]) -> list[str]:
    """One line per target: its worst value, and where that is."""
    found = Found([row for row in rows if row["what"] in ("ours", "rival")])
    shapes = [shape for shape in found.shapes() if shape["length"] >= 200 and shape["tokens"] == TOKENS]
    said = [verdict(f"forward, of a copy from L=200 on, {COPY:.0%}", COPY, copies(found, shapes), "{:.0%}")]
    for length, wanted in ATTENTION.items():
        at = [shape for shape in shapes if shape["length"] == length]
        said.append(
            verdict(
                f"FlashAttention's time, forward and backward, at L={length}, {wanted:g}x",
                wanted,
                attention(found, at),
                "{:.1f}x",
            )
        )
    for kind, words in KINDS.items():
        said.append(verdict(f"torch.fft's time, {words}, {FFT:g}x", FFT, ffts(found, shapes, kind), "{:.1f}x"))
        said.append(
            verdict(f"drawn lengths, of one length, {words}, {PACKED:.0%}", PACKED, drawn(rows, kind), "{:.0%}")
        )
        used = [(row["memory"][kind], name_of(row)) for row in rows if kind in row.get("memory", {})]
        said.append(verdict(f"memory, {words}, {MEMORY}x", MEMORY, used, "{:.2f}x", least=False))
    errors = [(max(row["error"].values(), key=nan_first), name_of(row)) for row in rows if "error" in row]
    said.append(verdict(f"error against float64, {ERROR:.0e}", ERROR, errors, "{:.1e}", least=False))
    return said + steps(rows)


def verdict(name: str, wanted: float, values: list[Value], text: str, least: bool = True) -> str:
    """Whether the worst of the values is at least (or at most) what is wanted; NaN is worse than any."""
    if not values:
        return f"no figure  {name}"
    value, where = max(values, key=lambda pair: nan_first(-pair[0] if least else pair[0]))
    reached = value >= wanted if least else value <= wanted  # false for NaN too
    return f"{'reached   ' if reached else 'MISSED    '} {name}: {text.format(value)} ({where})"


def nan_first(value: float) -> float:
    """A key by which NaN is the largest."""
    return math.inf if math.isnan(value) else value


def ratios(found: Found, shapes: list[Row], kind: str, rival: dict[int, float]) -> Iterator[Value]:
    """The rival's time over ours on the faster backend; none where either is missing."""
    for number, shape in enumerate(shapes):
        ours, backend = found.fastest(shape, kind)
        ratio = rival[number] / ours
        if not math.isnan(ratio):
            yield ratio, f"L={shape['length']} D={shape['dim']}, {backend}"


def copies(found: Found, shapes: list[Row]) -> list[Value]:
    rival = {n: device(found.rival(shape, "copy").get("copy"), "forward") for n, shape in enumerate(shapes)}
    return list(ratios(found, shapes, "forward", rival))


def attention(found: Found, shapes: list[Row]) -> list[Value]:
    rival = {n: found.attention(shape, "training") for n, shape in enumerate(shapes)}
    return list(ratios(found, shapes, "training", rival))


def ffts(found: Found, shapes: list[Row], kind: str) -> list[Value]:
    rival = {n: found.fft(shape, kind) for n, shape in enumerate(shapes)}
    return list(ratios(found, shapes, kind, rival))


def drawn(rows: list[Row], kind: str) -> list[Value]:
    """Tokens per second of each drawn distribution, over those of sequences of its mean length, on one backend."""
    found, values = Found(rows), []
    for name in DRAWN:
        for backend in BACKENDS:
            pair = [found.one(what="drawn", drawn=name, backend=backend, even=even) or {} for even in (False, True)]
            speeds = [row.get("rows", math.nan) / device(row, kind) for row in pair]
            if not math.isnan(speeds[0] / speeds[1]):
                values.append((speeds[0] / speeds[1], f"{name}, {backend}"))
    return values


def steps(rows: list[Row]) -> list[str]:
    """Lines on the whole training step, with the ratio to SASRec's; it has no target."""
    found, said = Found(rows), []
    for length in dict.fromkeys(row["length"] for row in rows if row["what"] == "step"):
        for clock in ("wall", "graph"):
            pair = [found.one(what="step", system=system, length=length) or {} for system in SYSTEMS]
            ms = [row.get("training", {}).get(clock, {}).get("median", math.nan) for row in pair]
            if not math.isnan(ms[0] + ms[1]):
                said.append(
                    f"training step at L={length}, {clock}: HyenaRec {ms[0]:.2f} ms, SASRec on flash attention "
                    f"{ms[1]:.2f} ms, {ms[1] / ms[0]:.2f}x"
                )
    return said
