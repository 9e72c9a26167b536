"""Runs the kernels of :mod:`hyenarec_kernels.backends.triton.kernels` that work on moments over the levels of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tile_channels
from hyenarec_kernels.backends.triton.configs import PROGRAMS, TABLE, TABLE_SHARES
from hyenarec_kernels.backends.triton.kernels import across as across_kernels
from hyenarec_kernels.backends.triton.kernels import moments as kernels
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.plan import octets, padded, stored
from hyenarec_kernels.backends.triton.rows import ChunkedRows, Slots
from hyenarec_kernels.backends.triton.tables import Constants
from hyenarec_kernels.lowrank.levels import Level

Factors = tuple[Tensor, Tensor | None]  # of a product: a tensor of rows and its gate


@dataclass(frozen=True)
class Far:
    """What the far part of one call consists of: its levels, where their nodes lie, and the constants they use.

    Moments and what is made of them are (1, slots, D, rank), or in the backward pass (2, ...): of the input, and with
    time reversed of the output's gradient. Those of the lowest level have the dtype of a matrix product's operand.
    """

    levels: tuple[Level, ...]
    slots: list[Slots]
    rows: ChunkedRows
    constants: Constants
    rate: Tensor | None
    channels: int
    arithmetic: Arithmetic

    @cached_property
    def reach(self) -> list[Tensor]:
        """Of each level (2, slots): how many nodes before and after each meet it. Filled beside the moments."""
        device = self.constants.basis.device
        return [torch.empty(2, slots.count, dtype=torch.int32, device=device) for slots in self.slots]

    def scratch(self, sums: int | None) -> int:
        """The most bytes that moments, and what is computed from them, take at a time.

        `sums`: in training, the bytes of the sums that the chunks kernel adds up while nu is in use; None otherwise.
        """
        ways = 1 if sums is None else 2
        sizes = [
            ways * slots.count * stored(level.rank) * self.channels * self._dtype(index).itemsize
            for index, (level, slots) in enumerate(zip(self.levels, self.slots, strict=True))
        ]
        held, across = sum(sizes), sizes[0] + sum(sizes[1:2])  # nu of a level and of the one above
        if sums is None:
            return max(held, sizes[0] + across)
        shares = max(math.prod(self._shares(index)[0]) for index in range(len(self.levels)))
        return max(held + max(shares * self.arithmetic.wide.itemsize, across), sizes[0] + sums)

    def moments(self, u: Factors, dy: Factors = (None, None)) -> list[Tensor]:
        """The moments of every level."""
        tuned, tile = TABLE["moments"], tile_channels(self.channels)
        ways = 1 if dy[0] is None else 2
        held = [
            torch.empty(ways, slots.count, self.channels, stored(level.rank), dtype=self._dtype(index), device=u[0].device)
            for index, (level, slots) in enumerate(zip(self.levels, self.slots, strict=True))
        ]
        wide = max(tuned.columns // tile, 1)
        launch(
            kernels.legendre_moments_kernel,
            (triton.cdiv(self.slots[0].count, wide), triton.cdiv(self.channels, tile)),
            **with_strides(x=u[0], pre=u[1], grad=dy[0], post=dy[1]),
            basis_ptr=self.constants.basis,
            rate_ptr=self.rate,
            out_ptr=held[0],
            reach_ptr=self.reach[0],
            near_pairs=self.levels[0].near_pairs,
            fan=self.levels[0].fan,
            **self.rows.located(self.slots[0]),
            channels=self.channels,
            octets=octets(self.levels[0].rank),
            CHUNK=self.levels[0].chunk,
            PADDED=padded(self.levels[0].rank),
            ACC=self.arithmetic.kernel_dtype,
            PRECISION=self.arithmetic.precision,
            SLOTS=wide,
            CHANNELS=tile,
            **tuned.options,
        )
        tuned = TABLE["up"]
        wide = max(tuned.columns // tile, 1)
        for index in range(1, len(self.levels)):
            below = self.levels[index - 1]
            launch(
                kernels.legendre_up_kernel,
                (triton.cdiv(self.slots[index].count, wide), triton.cdiv(self.channels, tile), ways),
                below_ptr=held[index - 1],
                transfer_ptr=self.constants.transfers[index - 1],
                rate_ptr=self.rate,
                above_ptr=held[index],
                reach_ptr=self.reach[index],
                near_pairs=self.levels[index].near_pairs,
                fan=self.levels[index].fan,
                per_row_below=self.slots[index - 1].per_row,
                slots_below=self.slots[index - 1].count,
                fan_below=below.fan,
                octets_below=octets(below.rank),
                PADDED_BELOW=padded(below.rank),
                SLOTS=wide,
                CHANNELS=tile,
                **self._level(index, below=True),
                **tuned.options,
            )
        return held

    def across(self, mu: list[Tensor], tables: list[Tensor]) -> Tensor:
        """nu of the lowest level.

        Empties the list `mu` as it goes, so that the levels below can use the memory of those above.
        """
        above: Tensor | None = None
        for index in reversed(range(len(self.levels))):
            level, top = self.levels[index], above is None
            nu = torch.empty_like(mu[index])
            tuned = TABLE["across_wide" if self._dtype(index).itemsize > 2 else "across"]
            # Channels are the batch of the products; a tile of a higher rank holds fewer slots.
            tile = 16 if padded(level.rank) <= 32 else 8
            deep = max(tuned.columns * 16 // (tile * padded(level.rank)), 8)
            launch(
                across_kernels.legendre_across_kernel,
                (triton.cdiv(self.slots[index].count, deep), triton.cdiv(self.channels, tile), len(nu)),
                mu_ptr=mu[index],
                reach_ptr=self.reach[index],
                tables_ptr=tables[index],
                above_ptr=above,
                transfer_ptr=None if top else self.constants.transfers[index],
                rate_ptr=self.rate,
                nu_ptr=nu,
                per_row_above=0 if top else self.slots[index + 1].per_row,
                slots_above=0 if top else self.slots[index + 1].count,
                octets_above=0 if top else octets(self.levels[index + 1].rank),
                SLOTS=deep,
                CHANNELS=tile,
                **self._pairs(level),
                **self._level(index),
                **tuned.options,
            )
            above = nu
            mu.pop()
        assert above is not None
        return above

    def tables_gradient(self, mu: list[Tensor]) -> list[Tensor]:
        """The gradients of each level's tables, (distances, D, rank, rank), from moments of both."""
        gradients = []
        for index, level in enumerate(self.levels):
            shape, grid, tile = self._shares(index)
            shares = torch.empty(shape, dtype=self.arithmetic.wide, device=mu[index].device)
            launch(
                across_kernels.legendre_across_gradient_kernel,
                grid,
                mu_ptr=mu[index],
                reach_ptr=self.reach[index],
                out_ptr=shares,
                SLOTS=self._shared_slots(index),
                CHANNELS=tile,
                **self._pairs(level),
                **self._level(index),
                **TABLE["across_gradient"].options,
            )
            gradients.append(shares.sum(0))
        return gradients

    def _shares(self, index: int) -> tuple[tuple[int, ...], tuple[int, int, int], int]:
        """For the gradient of a level's tables: the shape of the programs' shares, the grid, and a tile's channels."""
        level = self.levels[index]
        tile = min(TABLE["across_gradient"].columns, max(4096 // padded(level.rank) ** 2, 1))
        distances, tiles = level.near_pairs + level.far_pairs, triton.cdiv(self.channels, tile)
        parts = min(
            TABLE_SHARES, triton.cdiv(self.slots[index].count, self._shared_slots(index)), triton.cdiv(PROGRAMS, distances * tiles)
        )
        shape = (parts, distances, self.channels, stored(level.rank), stored(level.rank))
        return shape, (distances, tiles, parts), tile

    def _pairs(self, level: Level) -> dict[str, int]:
        """The arguments that say which chunks of a level meet."""
        return {
            "near_pairs": level.near_pairs,
            "far_first": level.far_first,
            "far_pairs": level.far_pairs,
            "fan": level.fan,
            "FAR": level.far_pairs > 0,
        }

    def _level(self, index: int, *, below: bool = False) -> dict[str, Any]:
        """The arguments that locate a level's chunks, their sizes, and how they (or those below) are multiplied."""
        level, source = self.levels[index], index - below
        return self.rows.located(self.slots[index]) | {
            "channels": self.channels,
            "chunk": level.chunk,
            "octets": octets(level.rank),
            "PADDED": padded(level.rank),
            "ACC": self.arithmetic.kernel_dtype,
            "PRECISION": self.arithmetic.precision if source == 0 else self.arithmetic.precision_of_moments,
        }

    def _shared_slots(self, index: int) -> int:
        """Chunks that a program of a table's gradient takes at a time."""
        return 32 if self._dtype(index).itemsize == 2 else 16

    def _dtype(self, index: int) -> torch.dtype:
        return self.arithmetic.wide if index else self.arithmetic.operand
