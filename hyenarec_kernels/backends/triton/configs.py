"""Launch configurations: one table for all GPUs, since none has been found to need other figures.

The figures are chosen ahead of time, from registers and shared memory (``python -m benchmarks compiled``); their speed
is not measured. On a GPU ``python -m benchmarks.gpu.tune`` measures alternatives and prints the rows to put here. No
configuration depends on a length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Rows of a chunk, and of a tile. The Legendre convolution divides a window out of its first chunk around its middle,
# exp(+-a * CHUNK / 2), which must stay in range: with more rows fewer decays fit, and the ranks that stand in for the
# others double.
CHUNK = 32
GROUP = 4  # a shared basis has a multiple of so many matrices, so that one product can take as many
# A sum over all rows is split: a program adds up its share of them, and what the programs found is added in a second
# step, in a fixed order.
PROGRAMS = 1024  # of a whole launch
TAP_SHARES = 64  # at most, for the gradient of one tap or of one block of taps
TABLE_SHARES = 32  # at most, for the gradient of one distance's table


@dataclass(frozen=True)
class Config:
    """columns: of a tile, chunks times channels; warps, pipeline stages, registers a thread may have; group: matrices of
    a shared basis that one product takes, a divisor of GROUP.

    ptxas, left alone, aims for a register count of its own; where that cost a few spilled bytes, `maxnreg` sets a
    higher one.
    """

    columns: int
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int | None = None
    group: int = 1

    @property
    def options(self) -> dict[str, Any]:
        given = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return given if self.maxnreg is None else given | {"maxnreg": self.maxnreg}


# Those on rows are for 16-bit inputs, `_wide` for float32. `across`: slots times channels of rank 16.
TABLE: dict[str, Config] = {
    "moments": Config(64),
    "up": Config(64),
    "across": Config(512, num_warps=8),
    "across_wide": Config(256, num_warps=8),
    "across_gradient": Config(16),
    "chunks": Config(64, group=4),
    "chunks_wide": Config(64, num_warps=8, group=4),
    "chunks_backward": Config(64, group=2),
    "chunks_backward_wide": Config(32, group=2),
    "direct": Config(64, num_warps=8),
    "short": Config(64, num_warps=8),
    "gated_short_backward": Config(32, num_warps=8),
    "step": Config(64, num_warps=8),
    "toeplitz": Config(64, num_warps=8),
    "toeplitz_gradient": Config(32),
}
