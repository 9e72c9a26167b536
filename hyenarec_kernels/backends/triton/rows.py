"""Where the sequences lie, for kernels: chunks of sequences as *slots*, found without reading a length on the host.

Every sequence is cut into chunks from its own first row on, so that left padding, right padding and packing give the
same values. A slot is a place for one chunk:

* padded (B, L, D): sequence ``s`` has ``ceil(L / C)`` slots, from ``s * ceil(L / C)`` on;
* packed (T, D): sequence ``s``, which starts at row ``a``, has the slots from ``a // C + s`` up to the next sequence's
  first. These are at least ``ceil(length / C)``, need no running sum, and are ``T // C + S`` in all.

Slots past a sequence's end hold no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hyenarec_kernels.backends.triton.kernels.slots import borders_kernel, name_slots_kernel
from hyenarec_kernels.backends.triton.launching import launch


@dataclass(frozen=True)
class Slots:
    """The slots of one chunk size.

    Attributes:
        count: slots in all.
        per_row: slots of each sequence of padded input; 0 for packed.
        sequences: (count,) int32, each slot's sequence, for packed input; None for padded.
    """

    count: int
    per_row: int
    sequences: Tensor | None


@dataclass(frozen=True)
class ChunkedRows:
    """The rows of one call's sequences, which kernels take in chunks.

    Attributes:
        starts, ends: (batch,) each, or None. For padded input they are as the operator got them, and the kernels limit
            them to the rows that exist (`span`). For packed input they have been limited already, and each sequence
            starts where the one before it ends (`_borders`).
        columns: L for padded input; for packed T, which bounds a length.
        batch: the number of sequences.
        packed: whether the input is (T, D).
    """

    starts: Tensor | None
    ends: Tensor | None
    columns: int
    batch: int
    packed: bool

    @classmethod
    def of(cls, x: Tensor, starts: Tensor | None, ends: Tensor | None) -> ChunkedRows:
        ends = None if ends is None else ends.contiguous()
        if x.dim() == 2:
            assert ends is not None
            borders = _borders(ends, x.shape[0])
            return cls(borders[:-1], borders[1:], x.shape[0], ends.shape[0], True)
        starts = None if starts is None else starts.contiguous()
        return cls(starts, ends, x.shape[1], x.shape[0], False)

    def part(self, part: slice) -> ChunkedRows:
        """The rows of some sequences of padded input."""
        starts, ends = (None if t is None else t[part] for t in (self.starts, self.ends))
        return replace(self, starts=starts, ends=ends, batch=len(range(*part.indices(self.batch))))

    def slots(self, chunks: Sequence[int]) -> list[Slots]:
        """The slots of each of several chunk sizes. For packed input one launch finds them all."""
        if not self.packed:
            per_row = [-(-self.columns // chunk) for chunk in chunks]
            return [Slots(self.batch * n, n, None) for n in per_row]
        assert self.starts is not None
        counts = [self.columns // chunk + self.batch for chunk in chunks]
        names = torch.empty(len(chunks), max(counts), dtype=torch.int32, device=self.starts.device)
        sizes = on_device(tuple(chunks), names.device)
        if self.batch:
            launch(
                name_slots_kernel,
                (self.batch, len(chunks)),
                sequences_ptr=names,
                starts_ptr=self.starts,
                ends_ptr=self.ends,
                chunks_ptr=sizes,
                width=max(counts),
                BLOCK=32,
                num_warps=1,
            )
        return [Slots(count, 0, names[i]) for i, count in enumerate(counts)]

    def located(self, slots: Slots) -> dict[str, Any]:
        """The arguments by which a kernel finds the rows of a slot (`locate`)."""
        return {
            "sequences_ptr": slots.sequences,
            "starts_ptr": self.starts,
            "ends_ptr": self.ends,
            "slots": slots.count,
            "columns": self.columns,
            "per_row": slots.per_row,
            "PACKED": self.packed,
        }


def _borders(ends: Tensor, rows: int) -> Tensor:
    """Where packed sequences begin and end, (S + 1,) int64. Whatever ``ends`` (S,) holds, these borders never fall, and
    the sequences together cover all rows."""
    borders = torch.empty(len(ends) + 1, dtype=torch.int64, device=ends.device)
    sizes = {"count": len(ends), "columns": rows, "BLOCK": 1024}
    launch(borders_kernel, (1,), borders_ptr=borders, ends_ptr=ends, **sizes)
    return borders


@cache
def on_device(chunks: tuple[int, ...], device: torch.device) -> Tensor:
    """The chunk sizes on the device, where the kernel reads them.

    They are copied once, since a CUDA graph cannot capture a copy to the device, and kept, since a captured graph reads
    them again.
    """
    return torch.tensor(chunks, dtype=torch.int32).to(device)
