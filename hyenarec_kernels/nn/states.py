"""Makes states of empty sequences, from the filters of a mixer as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hyenarec_kernels import backends
from hyenarec_kernels.lowrank.compact import PAGE, CompactLevel, compact_levels
from hyenarec_kernels.nn.compact import CompactState, LevelState, LevelTables
from hyenarec_kernels.nn.filters import Filter
from hyenarec_kernels.nn.streaming import MixerState, StreamingState, in_pages
from hyenarec_kernels.sharding import is_distributed


def make_state(
    op: str,
    batch: int,
    kind: Literal["exact", "compact"],
    moments: torch.dtype | None,
    filters: Sequence[Filter],
    skip: Tensor | None,
    short: tuple[Tensor, Tensor],
    gate: str,
    horizon: int,
    dim: int,
) -> StreamingState:
    """The state of ``batch`` empty sequences, as :meth:`HyenaMixer.init_state` returns it.

    ``short`` holds the taps (W, C), largest lag first, and the bias (C,) of the short convolution; ``skip`` (F, D)
    belongs to the long filters and is None if there are none.

    Raises:
        ValueError: ``kind`` or ``moments`` is not allowed, or the filters have no compact state.
    """
    if kind not in ("exact", "compact"):
        raise ValueError(f"{op}: state must be 'exact' or 'compact', got {kind!r}")
    short_taps = short[0]
    dtype = short_taps.dtype
    if moments not in (None, dtype, torch.bfloat16):
        raise ValueError(f"{op}: moments must be {dtype} or torch.bfloat16, got {moments}")
    if kind == "exact" and moments is not None:
        raise ValueError(f"{op}: an exact state has no moments, so that they have no dtype")
    width, channels = short_taps.shape
    projected, steps = short_taps.new_zeros(batch, width - 1, channels), short_taps.new_zeros(batch, dtype=torch.int64)
    if skip is None:
        none, no_taps = projected.new_zeros(batch, 0, horizon - 1, dim), projected.new_zeros(0, horizon, dim)
        return MixerState(projected, none, steps, *short, no_taps, gate)
    levels = _levels(op, filters, dtype) if kind == "compact" else ()
    reach = levels[0].chunk if levels else horizon
    taps = torch.stack([f()[:, :reach].to(dtype).repeat_interleave(dim // f.groups, 0).flip(1).T for f in filters])
    taps = torch.cat([taps[:, :-1], taps[:, -1:] + skip[:, None].to(dtype)], 1)  # lag 0 stands last
    if not levels:
        paged = taps.device.type == "cpu" and horizon > 2 * PAGE and not backends.lacks("compact_step")
        paged = paged and not is_distributed(taps)  # of the step operators only conv_step takes DTensors
        past = taps.new_zeros(batch, len(filters), in_pages(horizon) if paged else horizon - 1, dim)
        return MixerState(projected, past, steps, *short, taps, gate)

    def kept(level: CompactLevel) -> Tensor:
        return taps.new_zeros(batch, len(filters), level.slots, level.rank, dim, dtype=moments)

    def memory(level: CompactLevel) -> LevelState:
        sums = taps.new_zeros(batch, len(filters), level.rank, dim)
        return LevelState(sums, sums.clone(), kept(level))

    tables = tuple(LevelTables.of(level, filters, dim, taps) for level in levels)
    page, above = taps.new_zeros(batch, len(filters), reach, dim), tuple(map(memory, levels[1:]))
    return CompactState(projected, page, kept(levels[0]), above, steps, *short, taps, tables, gate)


def _levels(op: str, filters: Sequence[Filter], dtype: torch.dtype) -> tuple[CompactLevel, ...]:
    """The levels, which all filters must share; empty where the exact state is small enough."""
    found = set()
    for f in filters:
        coefficients = f.polynomial()
        if coefficients is None:
            raise ValueError(
                f"{op}: filters must be polynomials of the lag (legendre, chebyshev), without hooks, for a compact "
                f"state, got {type(f).__name__}; state='exact' serves any filter"
            )
        found.add(compact_levels(coefficients.shape[1], f.horizon, dtype))
    if len(found) > 1:
        raise ValueError(f"{op}: filters must have as many terms each for a compact state")
    return found.pop()
