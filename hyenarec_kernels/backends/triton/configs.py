"""Launch configurations: one table for all GPUs, since none has been found to need other figures.

The figures are chosen ahead of time, by registers and shared memory (``python -m benchmarks compiled``); their speed is
not measured. On a GPU, ``python -m benchmarks.gpu.tune`` measures alternatives and prints the rows to put here. No
configuration depends on a length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Rows of a chunk, and of a tile. The Legendre convolution divides a window out of the first chunk relative to the
# chunk's middle, by factors up to exp(+-a * CHUNK / 2), which must stay in range. With more rows, fewer decays would
# stay in range, and the ranks that stand in for the others would double.
CHUNK = 32
# A sum over all rows is split: each program adds up its share of the rows, and a second step adds the programs' sums in
# a fixed order.
PROGRAMS = 1024  # about so many in a whole launch
TAP_SHARES = 64  # at most, for the gradient of one tap or of one block of taps
TABLE_SHARES = 32  # at most, for the gradient of one distance's table


@dataclass(frozen=True)
class Config:
    """Columns of a tile (chunks times channels), warps, pipeline stages, and the most registers a thread may have.

    Left alone, ptxas aims for a register count of its own; where that spilled a few bytes, `maxnreg` sets a higher one.
    """

    columns: int
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        given = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return given if self.maxnreg is None else given | {"maxnreg": self.maxnreg}


# `chunks` is for 16-bit inputs, `chunks_wide` for float32, and `chunks_edge` for those chunks of 16-bit inputs that the
# filter's end reaches.
TABLE: dict[str, Config] = {
    "moments": Config(128),
    "up": Config(128),
    "across": Config(64, maxnreg=128),
    "across_gradient": Config(16),
    "chunks": Config(64),
    "chunks_edge": Config(64, num_warps=8, maxnreg=255),
    "chunks_wide": Config(64, num_warps=8),
    "direct": Config(64, num_warps=8),
    "short": Config(64, num_warps=8),
    "gated_short_backward": Config(32, num_warps=8),
    "step": Config(64, num_warps=8),
    "toeplitz": Config(64, num_warps=8),
    "toeplitz_gradient": Config(32),
}
