"""Runs the kernels of :mod:`hyenarec_kernels.backends.triton.kernels.moments` over the levels of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tile_channels
from hyenarec_kernels.backends.triton.configs import PROGRAMS, TABLE, TABLE_SHARES
from hyenarec_kernels.backends.triton.kernels import moments as kernels
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.plan import padded
from hyenarec_kernels.backends.triton.rows import ChunkedRows, Slots
from hyenarec_kernels.backends.triton.tables import Constants
from hyenarec_kernels.lowrank.levels import Level

SHARED_SLOTS = 16  # chunks that a program takes at a time for a table's gradient


@dataclass(frozen=True)
class Far:
    """The far part of one call: its levels, where their chunks lie, and the constants that they use."""

    levels: tuple[Level, ...]
    slots: list[Slots]
    rows: ChunkedRows
    constants: Constants
    rate: Tensor | None
    channels: int
    arithmetic: Arithmetic

    def scratch(self, sums: int | None) -> int:
        """The most bytes that moments, and what is computed from them, take at any one time.

        `sums`: in training, the bytes of the sums that the chunks kernel adds up while nu is in use; None otherwise.
        """
        wide, operand = self.arithmetic.wide.itemsize, self.arithmetic.operand.itemsize
        sizes = [slots.count * level.rank * self.channels for level, slots in zip(self.levels, self.slots, strict=True)]
        moments, nu = sum(sizes) * wide, sizes[0] * operand
        across = nu + sum(sizes[1:2]) * wide
        if sums is None:
            return max(moments, sizes[0] * wide + across)
        shares = max(math.prod(self._shares(index)[0]) for index in range(len(self.levels)))
        return max(moments + max(moments + shares * wide, across), nu + sums)

    def moments(self, x: Tensor, gate: Tensor | None, *, reverse: bool) -> list[Tensor]:
        """The moments mu of gate * x at every level, (slots, rank, D) each."""
        tuned, tile = TABLE["moments"], tile_channels(self.channels)
        held = [self._empty(level, slots, x) for level, slots in zip(self.levels, self.slots, strict=True)]
        wide = max(tuned.columns // tile, 1)
        launch(
            kernels.legendre_moments_kernel,
            (triton.cdiv(self.slots[0].count, wide), triton.cdiv(self.channels, tile)),
            **with_strides(x=x, gate=gate),
            basis_ptr=self.constants.basis,
            rate_ptr=self.rate,
            out_ptr=held[0],
            REVERSE=reverse,
            PRECISION=self.arithmetic.precision,
            SLOTS=wide,
            CHANNELS=tile,
            **self._level(0),
            **tuned.options,
        )
        for index in range(1, len(self.levels)):
            below = self.levels[index - 1]
            grid, tiled = self._tile("up", index)
            launch(
                kernels.legendre_up_kernel,
                grid,
                below_ptr=held[index - 1],
                transfer_ptr=self.constants.transfers[index - 1],
                rate_ptr=self.rate,
                above_ptr=held[index],
                per_row_below=self.slots[index - 1].per_row,
                REVERSE=reverse,
                FAN=below.fan,
                RANK_BELOW=below.rank,
                **self._level(index),
                **tiled,
            )
        return held

    def across(self, mu: list[Tensor], tables: list[Tensor], *, reverse: bool) -> Tensor:
        """nu of the lowest level, (slots, rank, D).

        Empties the list `mu` as it goes, so that the levels below can use the memory of those above.
        """
        above: Tensor | None = None
        for index in reversed(range(len(self.levels))):
            level = self.levels[index]
            # The chunks kernel takes the lowest nu as an operand of a matrix product: it is rounded here, once.
            nu = torch.empty_like(mu[index], dtype=None if index else self.arithmetic.operand)
            grid, tiled = self._tile("across", index)
            top = above is None
            launch(
                kernels.legendre_across_kernel,
                grid,
                mu_ptr=mu[index],
                tables_ptr=tables[index],
                above_ptr=above,
                transfer_ptr=None if top else self.constants.transfers[index],
                rate_ptr=self.rate,
                nu_ptr=nu,
                per_row_above=0 if top else self.slots[index + 1].per_row,
                REVERSE=reverse,
                RANK_ABOVE=1 if top else self.levels[index + 1].rank,
                **self._pairs(level),
                **self._level(index),
                **tiled,
            )
            above = nu
            mu.pop()
        assert above is not None
        return above

    def tables_gradient(self, mu: list[Tensor], eta: list[Tensor]) -> list[Tensor]:
        """The gradients of each level's tables, (distances * rank * rank, D)."""
        gradients = []
        for index, level in enumerate(self.levels):
            shape, grid, tile = self._shares(index)
            shares = torch.empty(shape, dtype=mu[index].dtype, device=mu[index].device)
            launch(
                kernels.legendre_across_gradient_kernel,
                grid,
                mu_ptr=mu[index],
                eta_ptr=eta[index],
                out_ptr=shares,
                PRECISION=self.arithmetic.precision_of_moments,
                SLOTS=SHARED_SLOTS,
                CHANNELS=tile,
                **self._pairs(level),
                **self._level(index),
                **TABLE["across_gradient"].options,
            )
            gradients.append(shares.sum(0).view(-1, self.channels))
        return gradients

    def _shares(self, index: int) -> tuple[tuple[int, ...], tuple[int, int, int], int]:
        """For the gradient of a level's tables: the shape of the programs' shares, the grid, and the channels of a
        tile."""
        level = self.levels[index]
        tile = min(TABLE["across_gradient"].columns, max(4096 // padded(level.rank) ** 2, 1))
        distances, tiles = level.near_pairs + level.far_pairs, triton.cdiv(self.channels, tile)
        parts = min(
            TABLE_SHARES, triton.cdiv(self.slots[index].count, SHARED_SLOTS), triton.cdiv(PROGRAMS, distances * tiles)
        )
        shape = (parts, distances, level.rank, level.rank, self.channels)
        return shape, (distances, tiles, parts), tile

    def _pairs(self, level: Level) -> dict[str, int]:
        """The arguments that say which chunks of a level meet."""
        return {
            "near_pairs": level.near_pairs,
            "far_first": level.far_first,
            "far_pairs": level.far_pairs,
            "FAN": level.fan,
        }

    def _level(self, index: int) -> dict[str, Any]:
        """The arguments that locate a level's chunks, and their sizes."""
        level = self.levels[index]
        return self.rows.located(self.slots[index]) | {
            "channels": self.channels,
            "CHUNK": level.chunk,
            "RANK": level.rank,
            "PADDED": padded(level.rank),
            "ACC": self.arithmetic.kernel_dtype,
        }

    def _tile(self, config: str, index: int) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Grid, tile and launch options of a kernel on (rank, slots, channels) tiles."""
        tuned = TABLE[config]
        tile = min(tile_channels(self.channels), 32)
        # 2,048 elements are 16 registers for each thread of 4 warps; with 4,096 elements some ranks spilled.
        deep = max(min(tuned.columns, 2048 // padded(self.levels[index].rank)) // tile, 1)
        grid = (triton.cdiv(self.slots[index].count, deep), triton.cdiv(self.channels, tile))
        return grid, {"SLOTS": deep, "CHANNELS": tile} | tuned.options

    def _empty(self, level: Level, slots: Slots, like: Tensor) -> Tensor:
        return torch.empty(slots.count, level.rank, self.channels, dtype=self.arithmetic.wide, device=like.device)
