"""What the GPU suite measures, in which order: what matters most comes first, because the time may end at any moment.

A row is identified by the values that it is measured with; ``what`` says which function measures it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.gpu.contestants import RIVALS
from benchmarks.gpu.rows import DRAWN, drawn_row, explicit_row, mixer_row, ours_row, rival_row
from benchmarks.gpu.training_step import step_row
from benchmarks.gpu.worker import Measure, Row

MEASURES: dict[str, Measure] = {
    "ours": ours_row,
    "rival": rival_row,
    "step": step_row,
    "drawn": drawn_row,
    "mixer": mixer_row,
    "explicit": explicit_row,
}
BACKENDS = ("cuda", "triton")
TOKENS, FEWER_TOKENS = 1_048_576, 25_600  # the second is a batch of 128 histories of 200 events
TERMS, MORE_TERMS = 16, 32  # of a filter: HyenaMixer's default, and the most that designs were estimated for
ESSENTIAL_LENGTHS, LONGER = (200, 1024, 4096), 16_384
OTHER_LENGTHS, OTHER_DIMS = (50, 512, 65_536), (128, 256)
STEP_LENGTHS, STEP_TOKENS = (200, 1024, 4096), 131_072
SYSTEMS = ("hyena", "attention")


def ours(
    length: int, dim: int = 64, tokens: int = TOKENS, terms: int = TERMS, window: bool = False, packed: bool = False
) -> Iterator[Row]:
    for backend in BACKENDS:
        yield {"what": "ours", "backend": backend, "tokens": tokens, "length": length, "dim": dim} | {
            "terms": terms,
            "window": window,
            "packed": packed,
        }


def rivals(length: int, dim: int = 64, tokens: int = TOKENS) -> Iterator[Row]:
    for name in RIVALS:
        yield {"what": "rival", "rival": name, "tokens": tokens, "length": length, "dim": dim}


def one_length(length: int) -> Iterator[Row]:
    """Ours and all rivals at a length, padded and packed."""
    yield from ours(length)
    yield from rivals(length)
    yield from ours(length, packed=True)


def essential() -> Iterator[Row]:
    for length in ESSENTIAL_LENGTHS:
        yield from one_length(length)


def steps() -> Iterator[Row]:
    for length in STEP_LENGTHS:
        for system in SYSTEMS:
            yield {"what": "step", "system": system, "tokens": STEP_TOKENS, "length": length}


def rest() -> Iterator[Row]:
    yield from one_length(LONGER)
    for length in (*ESSENTIAL_LENGTHS, LONGER):
        yield from ours(length, terms=MORE_TERMS)
        yield from ours(length, window=True, packed=True)  # as the mixer calls it
    yield from ours(200, tokens=FEWER_TOKENS)  # where the host may be slower than the device
    yield from ours(200, tokens=FEWER_TOKENS, window=True, packed=True)
    yield from rivals(200, tokens=FEWER_TOKENS)
    for length in STEP_LENGTHS:
        for mixer in SYSTEMS:
            yield {"what": "mixer", "mixer": mixer, "tokens": STEP_TOKENS, "length": length, "dim": 64}
    for drawn in DRAWN:
        for backend in BACKENDS:
            for even in (False, True):
                named: Row = {"what": "drawn", "backend": backend, "drawn": drawn, "even": even}
                yield named | {"tokens": STEP_TOKENS, "dim": 64, "terms": TERMS}
    for length in (1024, LONGER):
        for dtype in ("bfloat16", "float32"):
            named = {"what": "explicit", "backend": "cuda", "dtype": dtype, "tokens": STEP_TOKENS}
            yield named | {"length": length, "dim": 64}
    for dim in OTHER_DIMS:
        for length in (200, 4096):
            yield from ours(length, dim)
            yield from (row for row in rivals(length, dim) if "torch.fft" not in row["rival"])
    for length in OTHER_LENGTHS:
        yield from ours(length)
        yield from rivals(length)


def compiled_first(rows: Iterable[Row], before: Iterable[Row] = ()) -> list[Row]:
    """The first row of each set of kernels that Triton has to compile; the numbers of tokens and channels do not change
    the kernels. Kernels that rows ``before`` launch are compiled already."""
    known = {kernels_of(row) for row in before}
    found: dict[tuple[tuple[str, Any], ...], Row] = {}
    for row in rows:
        if "triton" in row.values() or "hyena" in row.values():
            found.setdefault(kernels_of(row), row)
    return [row for kernels, row in found.items() if kernels not in known]


def kernels_of(row: Row) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in row.items() if name not in ("tokens", "dim", "drawn"))
