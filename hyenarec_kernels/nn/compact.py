"""A streaming state whose size hardly grows with the horizon.

    y_t = sum over the current chunk of taps * inputs  +  sum over levels of  <local polynomials at t, incoming>

The lowest level's current chunk is a page: its rows up to the newest event hold inputs; its later rows hold what
everything before the chunk will add to their outputs. A step reads the rows up to its own and overwrites that one. When
a page is full, each level (:mod:`hyenarec_kernels.lowrank.compact`) adds the page's moments to those of its own current
chunk. It keeps the moments of finished chunks, and what those add to the current one, as coefficients of local
polynomials ("incoming"). These fill the next page. A window ``exp(-a tau / K)`` splits into factors for the row
in the input's chunk, for the row in the output's chunk, and for the chunks between them. None is above 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyenarec_kernels.legendre import event_rate
from hyenarec_kernels.lowrank.compact import CompactLevel
from hyenarec_kernels.nn.filters import Filter
from hyenarec_kernels.nn.streaming import StreamingState, ring
from hyenarec_kernels.ops.compact_step import compact_step


@dataclass(frozen=True)
class LevelTables:
    """The constants of one level, for ``F`` filters of D channels, chunks of C events and R moments. All sequences
    share them.

    Attributes:
        basis: (C, R) the local polynomials on a chunk.
        enter: (F, C, D) the window's factor from a row to the end of its chunk.
        leave: (F, C, D) the window's factor from the end of a chunk to a row of the next.
        blocks: (F, slots, R, R, D), for distances 1, 2, ..: from a chunk's moments to the coefficients of what it adds,
            including the window's factor for the chunks between.
    """

    basis: Tensor
    enter: Tensor
    leave: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, level: CompactLevel, filters: Sequence[Filter], dim: int, like: Tensor) -> LevelTables:
        rows = torch.arange(level.chunk, dtype=torch.float64)
        between = level.chunk * torch.arange(level.slots, dtype=torch.float64)
        enter, leave, blocks = [], [], []
        for f in filters:
            coefficients, decay, repeat = f.polynomial(), f.decay(), dim // f.groups
            assert coefficients is not None
            rate = torch.zeros(f.groups, dtype=torch.float64)
            if decay is not None:
                rate = event_rate(decay.double().cpu(), f.horizon)
            block = torch.from_numpy(level.blocks(coefficients.double().cpu().numpy(), f.horizon))
            block = block * torch.exp(-between[:, None] * rate)[:, None, None]
            enter.append(torch.exp(-(level.chunk - 1 - rows)[:, None] * rate).repeat_interleave(repeat, 1))
            leave.append(torch.exp(-(rows + 1)[:, None] * rate).repeat_interleave(repeat, 1))
            blocks.append(block.repeat_interleave(repeat, 3))
        tables = (torch.from_numpy(level.basis.copy()), *map(torch.stack, (enter, leave, blocks)))
        return cls(*(table.to(like) for table in tables))


@dataclass(frozen=True)
class LevelState:
    """What a level above the lowest remembers, of B sequences for F filters.

    Attributes:
        sums: (B, F, R, D) the moments of the current chunk so far, that is, of its full pages.
        incoming: (B, F, R, D) the coefficients of what finished chunks add to the current one.
        moments: (B, F, slots, R, D) those of finished chunks; chunk n is in slot ``n % slots``.
    """

    sums: Tensor
    incoming: Tensor
    moments: Tensor


@dataclass(frozen=True)
class CompactState(StreamingState):
    """What a mixer with polynomial filters remembers of ``B`` sequences, in a few hundred numbers per channel.

    It gives the outputs of :class:`MixerState`, up to an error bound that is computed with its sizes (float32: 4e-6 of
    the filter's norm times the input's), as long as a history is not longer than the horizon, rounded down to whole
    chunks of the top level. After that the oldest chunk is dropped as a whole: filters then end up to one such chunk
    before the horizon.

    Attributes:
        projected: as in :class:`MixerState`, and so are ``steps``, ``short_taps``, ``short_bias`` and ``gate``.
        page: (B, F, C, D) the current chunk: inputs up to the newest event, then what earlier chunks will add to the
            outputs of later rows.
        moments: (B, F, slots, R, D) those of the lowest level's finished chunks; chunk n is in slot ``n % slots``.
        levels: the levels above the lowest, in ascending order.
        near: (F, C, D) the taps inside a chunk, skip included, largest lag first.
        tables: the constants of every level, the lowest first.
    """

    projected: Tensor
    page: Tensor
    moments: Tensor
    levels: tuple[LevelState, ...]
    steps: Tensor
    short_taps: Tensor
    short_bias: Tensor
    near: Tensor
    tables: tuple[LevelTables, ...]
    gate: str

    @property
    def horizon(self) -> int:
        """The longest history, in events, of which nothing is dropped."""
        top = self.tables[-1]
        return (top.blocks.shape[1] + 1) * top.basis.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        named = {"projected": self.projected, "page": self.page, "moments": self.moments, "steps": self.steps}
        for number, level in enumerate(self.levels, 1):
            named |= {f"levels.{number}.{name}": values for name, values in vars(level).items()}
        return named

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> CompactState:
        levels = tuple(
            LevelState(*(tensors[f"levels.{number}.{name}"] for name in vars(level)))
            for number, level in enumerate(self.levels, 1)
        )
        projected, page, moments, steps = (tensors[name] for name in ("projected", "page", "moments", "steps"))
        return replace(self, projected=projected, page=page, moments=moments, levels=levels, steps=steps)

    def shared(self) -> dict[str, Tensor]:
        named = {"short_taps": self.short_taps, "short_bias": self.short_bias, "near": self.near}
        for number, tables in enumerate(self.tables):
            named |= {f"tables.{number}.{name}": values for name, values in vars(tables).items()}
        return named

    @property
    def reach(self) -> int:
        return self.horizon

    def shapes(self, filters: int, horizon: int, dim: int) -> dict[str, tuple[int, ...]]:
        (chunk, rank), near = self.tables[-1].basis.shape, self.near.shape[1]
        return {
            "page": (self.steps.shape[0], filters, near, dim),
            "near": (filters, near, dim),
            f"tables.{len(self.tables) - 1}.blocks": (filters, horizon // chunk - 1, rank, rank, dim),
        }

    def filled(self, projected: Tensor, inputs: Tensor | None, length: Tensor) -> CompactState:
        assert inputs is not None  # without long convolutions no state is compact
        rows = torch.arange(self.page.shape[2], device=length.device)  # rows of a page
        first = (length.clamp(min=1) - 1) // len(rows) * len(rows)  # the page's first event, (B,)
        found = [self._found(number, inputs, length, first) for number in range(len(self.tables))]
        page = self._rows(inputs, length, first[:, None] + rows)  # (B, F, C, D), zeros in rows to come
        for tables, (_, incoming, _) in zip(self.tables, found, strict=True):
            at = first[:, None] % len(tables.basis) + rows  # (B, C)
            added = torch.einsum("bcr,fbcd,bfrd->bfcd", tables.basis[at], tables.leave[:, at], incoming)
            page = page + added * (rows >= (length - first)[:, None])[:, None, :, None]
        levels = tuple(LevelState(*parts) for parts in found[1:])
        steps, newest = length.to(torch.int64, copy=True), ring(projected, length)
        return replace(self, projected=newest, page=page, moments=found[0][2], levels=levels, steps=steps)

    def _found(self, number: int, inputs: Tensor, length: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A level's sums, incoming and moments as of event ``first`` (B,), where the current page begins."""
        tables, like = self.tables[number], self.moments if number == 0 else self.levels[number - 1].moments
        chunk, slots = len(tables.basis), like.shape[2]
        present = first // chunk  # (B,)
        chunks = present[:, None] + torch.arange(-slots, 1, device=length.device)  # (B, slots + 1)
        events = chunks[..., None] * chunk + torch.arange(chunk, device=length.device)  # (B, slots + 1, C)
        kept = events < first[:, None, None]
        if number + 1 < len(self.tables):  # the levels above serve what lies before the parent
            fan = len(self.tables[number + 1].basis) // chunk
            kept &= (chunks // fan == present[:, None] // fan)[..., None]
        known = self._rows(inputs, length, events.flatten(1)) * kept.flatten(1)[:, None, :, None]
        aligned = known.view(*known.shape[:2], slots + 1, chunk, known.shape[3])  # (B, F, slots + 1, C, D)
        found = torch.einsum("bfncd,cr,fcd->bfnrd", aligned, tables.basis, tables.enter)
        finished, moments = found[:, :, :-1], torch.zeros_like(like)
        slot = (chunks[:, :-1] % slots)[:, None, :, None, None].expand_as(finished)
        moments.scatter_(2, slot, finished.to(moments.dtype))
        incoming = torch.einsum("fnrsd,bfnsd->bfrd", tables.blocks, finished.flip(2))  # in the order of distances
        return found[:, :, -1].contiguous(), incoming, moments

    @staticmethod
    def _rows(inputs: Tensor, length: Tensor, events: Tensor) -> Tensor:
        """The inputs (B, F, n, D) at ``events`` (B, n), picked from the last inputs of histories of ``length`` (B,)
        events; 0 where ``inputs`` does not have the event."""
        place = events - (length - inputs.shape[2])[:, None]
        index = place.clamp(0, inputs.shape[2] - 1)[:, None, :, None].expand(-1, inputs.shape[1], -1, inputs.shape[3])
        there = (place >= 0) & (place < inputs.shape[2])
        return inputs.gather(2, index) * there[:, None, :, None]

    def memory(self) -> tuple[list[Tensor], list[Tensor]]:
        levels, tables = ([v for level in part for v in vars(level).values()] for part in (self.levels, self.tables))
        return [self.page, self.moments, *levels], [self.near, *tables]

    def convolve(self, number: int, x: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None) -> Tensor:
        (page, *levels), (near, *tables) = self.memory()
        return compact_step(x, page, levels, near, tables, self.steps, number, pre_gate=pre_gate, post_gate=post_gate)


torch.serialization.add_safe_globals([CompactState, LevelState, LevelTables])  # for torch.load(weights_only=True)
