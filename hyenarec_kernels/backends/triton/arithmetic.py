"""The dtypes that the kernels compute in, and the tiles that they work on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenarec_kernels.backends.triton import INTERPRETED
from hyenarec_kernels.backends.triton.configs import CHUNK, TABLE
from hyenarec_kernels.backends.triton.rows import ChunkedRows
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.lowrank.blocks import Array

# AMD's matrix instructions take float32 values as they are. They have no TF32, or one of less precision.
AMD = torch.version.hip is not None
SERVED = (torch.float32, torch.float16, torch.float64 if INTERPRETED else torch.bfloat16)


@dataclass(frozen=True)
class Arithmetic:
    """How the kernels compute with an input dtype.

    Sums are float32. Matrix products take bfloat16 values as they are. They take float16 values as TF32, which has the
    same 11 bits and the range that windows need. They split float32 values over three TF32 products, which keep 22
    bits.
    """

    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        return wide(self.dtype)

    @property
    def operand(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == torch.bfloat16 else self.wide

    @property
    def precision(self) -> str:
        return "ieee" if AMD else {torch.float16: "tf32", torch.float32: "tf32x3"}.get(self.dtype, "ieee")

    @property
    def precision_of_moments(self) -> str:
        return "ieee" if AMD or self.dtype == torch.float64 else "tf32x3"

    def rounded(self, table: Array) -> Array:
        """The table, rounded to the precision that a matrix product reads."""
        digits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}.get(self.dtype, 53)
        fraction, exponent = np.frexp(table)
        rounded: Array = np.ldexp(np.round(np.ldexp(fraction, digits)), exponent - digits)
        return rounded

    @property
    def kernel_dtype(self) -> Any:
        return tl.float64 if self.dtype == torch.float64 else tl.float32


def tile_channels(channels: int) -> int:
    """Channels of a tile: the size that leaves the fewest channels of the last tile empty, and the larger of two
    equally good ones."""
    return min((64, 32, 16), key=lambda tile: (-(-channels // tile) * tile, -tile))


def tiles(
    config: str, x: Tensor, channels: int, rows: ChunkedRows, within: int | None = None
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and arguments of a kernel whose tiles are chunks times channels: where rows lie, sizes and launch options.

    `within`: a multiple of 16; no tile then reaches across a multiple of it.
    """
    (slots,), tuned = rows.slots([CHUNK]), TABLE[config]
    tile = min(tile_channels(channels), tuned.columns)
    if within is not None:
        tile = math.gcd(within, min(tuned.columns, 64))
    wide = max(tuned.columns // tile, 1)
    grid = (triton.cdiv(slots.count, wide), triton.cdiv(channels, tile))
    sizes = {"channels": channels, "CHUNK": CHUNK, "SLOTS": wide, "CHANNELS": tile}
    return grid, rows.located(slots) | sizes | {"ACC": Arithmetic(x.dtype).kernel_dtype} | tuned.options


def wide_parameter(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(Arithmetic(x.dtype).wide).contiguous()
