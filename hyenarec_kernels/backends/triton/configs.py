"""Launch configurations: one small table a device family. None depends on a length.

The figures are chosen ahead of time, from registers and shared memory (``benchmarks/triton_aot.py``); their speed is
not measured. On a GPU ``python -m benchmarks.gpu.tune`` measures alternatives and prints the rows to put
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from hyenarec_kernels.backends.triton import INTERPRETED


@dataclass(frozen=True)
class Config:
    """columns: of a tile, chunks times channels; warps, pipeline stages, registers a thread may have.

    Left alone ptxas aims for a register count of its own; where that cost a few spilled bytes `maxnreg` sets a higher
    one.
    """

    columns: int
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        given = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return given if self.maxnreg is None else given | {"maxnreg": self.maxnreg}


# By the least compute capability they are for: 8.0 (A100 and the smaller 8.x), 9.0 (H100, H200 and later).
# `chunks` takes 16-bit inputs, `chunks_wide` float32; `chunks_edge` chunks of 16 bits that the filter's end reaches.
TABLE: dict[tuple[int, int], dict[str, Config]] = {
    (8, 0): {
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
    },
    (9, 0): {
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
    },
}


def config(kernel: str, device: torch.device) -> Config:
    capability = (8, 0) if INTERPRETED else _capability(device)
    family = max(least for least in TABLE if least <= capability)
    return TABLE[family][kernel]


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
