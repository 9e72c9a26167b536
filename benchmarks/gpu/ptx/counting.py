"""What lanes use of a multiprocessor: instructions, wavefronts of the load-store unit, bytes of memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.ptx.memory import Addresses, Mask

WARP = 32
LINE, SECTOR, BANKS = 128, 32, 32  # bytes, bytes, banks of 4 bytes


class Counts:
    """What the blocks that have run used.

    Attributes:
        blocks: how many have run.
        executed: warps that executed each instruction of the program, (instructions,).
        wavefronts: of the load-store unit, which serves 128 bytes per cycle. Global memory: one for each 128-byte line
            that a warp's access touches. Shared memory: as many as words of one bank, the bank with the most.
        sectors: the sectors of 32 bytes of global memory, by number, that were read or written.
    """

    def __init__(self, instructions: int) -> None:
        self.blocks = 0
        self.executed = np.zeros(instructions, np.int64)
        self.wavefronts: Counter[str] = Counter()
        self.sectors: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._new: list[npt.NDArray[np.int64]] = []

    def step(self, number: int, lanes: int, mask: Any) -> None:
        warps = lanes // WARP if mask is True else int(mask.reshape(-1, WARP).any(1).sum())
        self.executed[number] += warps

    def in_global_memory(self, at: Addresses, size: int, mask: Mask) -> None:
        """Counts accesses of `size` bytes at byte addresses `at` (lanes,)."""
        self.wavefronts["global"] += _distinct(_of_active(at // LINE, mask))
        step = np.arange(0, max(size, 1), SECTOR)
        self._new.append(np.unique((at[mask][:, None] + step) // SECTOR))
        if len(self._new) > 1000:
            self.finish()

    def in_shared_memory(self, at: Addresses, size: int, mask: Mask) -> None:
        words = at[:, None] // 4 + np.arange(-(-size // 4))
        rows = words.reshape(-1, WARP, words.shape[1])
        active = mask.reshape(-1, WARP)
        for row, of in zip(rows, active, strict=True):
            if of.any():
                banks = np.unique(row[of]) % BANKS
                self.wavefronts["shared"] += int(np.bincount(banks).max())

    def finish(self) -> None:
        self.sectors = np.unique(np.concatenate([self.sectors, *self._new]))
        self._new = []


def _of_active(values: Addresses, mask: Mask) -> Addresses:
    """The values as (warps, 32), without warps that take no part; inactive lanes get the value of an active one."""
    rows, active = values.reshape(-1, WARP), mask.reshape(-1, WARP)
    kept = active.any(1)
    rows, active = rows[kept], active[kept]
    first = rows[np.arange(len(rows)), active.argmax(1)]
    return np.where(active, rows, first[:, None])


def _distinct(rows: Addresses) -> int:
    ordered = np.sort(rows, axis=1)
    return len(rows) + int((ordered[:, 1:] != ordered[:, :-1]).sum())
