"""In which types and tiles the kernels work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenarec_kernels.backends.triton import INTERPRETED
from hyenarec_kernels.backends.triton.configs import config
from hyenarec_kernels.backends.triton.rows import Rows
from hyenarec_kernels.dtypes import wide

CHUNK = 32  # rows of a tile of the kernels that need no levels

SERVED = (torch.float32, torch.float16, torch.float64 if INTERPRETED else torch.bfloat16)


@dataclass(frozen=True)
class Arithmetic:
    """How an input dtype is computed with.

    Sums are float32. A matrix product takes bfloat16 as it is. float16 goes through TF32, which has its 11 bits and the
    range that windows need; float32 through three TF32 products, which keep 22 bits.
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
        return {torch.float16: "tf32", torch.float32: "tf32x3"}.get(self.dtype, "ieee")

    @property
    def precision_of_moments(self) -> str:
        return "ieee" if self.dtype == torch.float64 else "tf32x3"

    @property
    def kernel_dtype(self) -> Any:
        return tl.float64 if self.dtype == torch.float64 else tl.float32


def served(x: Tensor) -> bool:
    """Whether the kernels take this input; what they do not take, empty ones too, goes to the reference."""
    return x.dtype in SERVED and x.numel() > 0


def tile_channels(channels: int) -> int:
    """Channels of a tile: as many as divide D well, for no tile may be mostly empty."""
    return min((64, 32, 16), key=lambda tile: (-(-channels // tile) * tile, -tile))


def tiles(
    kernel: str, x: Tensor, channels: int, rows: Rows, within: int | None = None
) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """Grid, the arguments that locate rows, and options of a kernel on tiles of chunks times channels.

    `within`: a multiple of 16; no tile then reaches across a multiple of it.
    """
    (slots,), tuned = rows.slots([CHUNK]), config(kernel, x.device)
    tile = min(tile_channels(channels), tuned.columns)
    if within is not None:
        tile = math.gcd(within, min(tuned.columns, 64))
    wide = max(tuned.columns // tile, 1)
    grid = (triton.cdiv(slots.count, wide), triton.cdiv(channels, tile))
    where = (slots.sequences, rows.starts, rows.ends, slots.count, rows.columns, slots.per_row, channels)
    options = {"PACKED": rows.packed, "CHUNK": CHUNK, "ACC": Arithmetic(x.dtype).kernel_dtype}
    return grid, where, options | {"SLOTS": wide, "CHANNELS": tile} | tuned.options


def wide_parameter(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(Arithmetic(x.dtype).wide).contiguous()


def with_strides(*tensors: Tensor | None) -> list[Any]:
    """Each tensor (..., D) as rows (R, D) with adjacent channels, a view unless strides forbid, and its row stride."""
    return [value for t in tensors for value in ((None, 0) if t is None else _rows(t))]


def _rows(t: Tensor) -> tuple[Tensor, int]:
    rows = t.reshape(-1, t.shape[-1])
    rows = rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
    return rows, rows.stride(0)
