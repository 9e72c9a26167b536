"""Where the sequences lie, for kernels: chunks of sequences as *slots*, found without reading a length on the host.

Every sequence is cut into chunks from its first row on, so that padding on either side and packing give the same
values. A slot is a place for one chunk:

* padded (B, L, D): sequence ``s`` has the slots ``s * ceil(L / C)`` and on;
* packed (T, D): sequence ``s``, which starts at row ``a``, has those from ``a // C + s`` up to the next sequence's
  first. These are at least ``ceil(length / C)``, need no running sum, and are ``T // C + S`` in all.

Slots past a sequence's end hold no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Kernels' arguments that point to indices: what of a batch they are views of, thus their alignment, depends on lengths.
WHERE = ["sequences", "starts", "ends"]


@triton.jit
def span(sequence, exists, starts, ends, columns, PACKED: tl.constexpr):
    """The first row (int64) of sequences (n,) and their lengths; 0 and 0 of one that does not exist."""
    start = tl.zeros_like(sequence).to(tl.int64)
    if starts is not None:
        start = tl.load(starts + sequence, mask=exists, other=0).to(tl.int64)
    end = tl.zeros_like(start) + columns
    if ends is not None:
        end = tl.load(ends + sequence, mask=exists, other=0).to(tl.int64)
    first = start if PACKED else start + sequence.to(tl.int64) * columns
    return first, tl.where(exists, end - start, 0).to(tl.int32)


@triton.jit
def first_slot(sequence, first, per_row, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """The slot of a sequence's chunk 0."""
    if PACKED:
        return (first // CHUNK).to(tl.int32) + sequence
    return sequence * per_row


@triton.jit
def locate(slot, slots, sequences, starts, ends, columns, per_row, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """Of slots (n,): the sequence, its first row (int64), its length, and the chunk's number in it.

    A slot that does not exist is a chunk of a sequence of length 0.
    """
    exists = slot < slots
    sequence = tl.load(sequences + slot, mask=exists, other=0) if PACKED else slot // per_row
    first, length = span(sequence, exists, starts, ends, columns, PACKED)
    return sequence, first, length, slot - first_slot(sequence, first, per_row, CHUNK, PACKED)


@triton.jit
def tile_columns(SLOTS: tl.constexpr, CHANNELS: tl.constexpr):
    """The slot and the channel of each column of a program's tile, (SLOTS * CHANNELS,)."""
    column = tl.arange(0, SLOTS * CHANNELS)
    return tl.program_id(0) * SLOTS + column // CHANNELS, tl.program_id(1) * CHANNELS + column % CHANNELS


@triton.jit
def written(position, sequence, first, length, slot, slots, columns, PACKED: tl.constexpr):
    """The rows that a chunk writes and which of them exist: its own, and, of padded input, the padding's share.

    What follows the sequence in a batch row goes on at the row's beginning, so that the chunks of a row cover it.
    """
    row = first + position
    if PACKED:
        return row, position < length
    end = (sequence.to(tl.int64) + 1) * columns
    return tl.where(row < end, row, row - columns), (position < columns) & (slot < slots)


@triton.jit(do_not_specialize=["width"], do_not_specialize_on_alignment=WHERE)
def _name_slots(sequences, starts, ends, chunks, width, BLOCK: tl.constexpr):
    """Writes each sequence's number into its slots: one program a sequence and chunk size."""
    sequence, level = tl.program_id(0), tl.program_id(1)
    chunk = tl.load(chunks + level).to(tl.int64)
    begin = tl.load(starts + sequence).to(tl.int64) // chunk + sequence
    end = tl.load(ends + sequence).to(tl.int64) // chunk + sequence + 1
    for at in range(begin, end, BLOCK):
        slot = at + tl.arange(0, BLOCK)
        tl.store(sequences + level * width.to(tl.int64) + slot, tl.zeros_like(slot).to(tl.int32) + sequence, slot < end)


@dataclass(frozen=True)
class Slots:
    """The slots of one chunk size, and the arguments by which a kernel finds them (`locate`)."""

    count: int
    per_row: int
    sequences: Tensor | None


@dataclass(frozen=True)
class Rows:
    """Where the sequences of one call lie.

    Attributes:
        starts, ends: as the operator got them.
        columns: L for padded input; for packed T, which bounds a length.
        batch: sequences.
        packed: whether input is (T, D).
    """

    starts: Tensor | None
    ends: Tensor | None
    columns: int
    batch: int
    packed: bool

    @classmethod
    def of(cls, x: Tensor, starts: Tensor | None, ends: Tensor | None) -> Rows:
        starts = None if starts is None else starts.contiguous()
        ends = None if ends is None else ends.contiguous()
        if x.dim() == 2:
            assert starts is not None
            return cls(starts, ends, x.shape[0], starts.shape[0], True)
        return cls(starts, ends, x.shape[1], x.shape[0], False)

    def part(self, part: slice) -> Rows:
        """Of some sequences of padded input."""
        starts, ends = (None if t is None else t[part] for t in (self.starts, self.ends))
        return replace(self, starts=starts, ends=ends, batch=len(range(*part.indices(self.batch))))

    def slots(self, chunks: Sequence[int]) -> list[Slots]:
        """The slots of several chunk sizes, for packed input with one launch."""
        if not self.packed:
            per_row = [-(-self.columns // chunk) for chunk in chunks]
            return [Slots(self.batch * n, n, None) for n in per_row]
        assert self.starts is not None
        counts = [self.columns // chunk + self.batch for chunk in chunks]
        names = torch.empty(len(chunks), max(counts), dtype=torch.int32, device=self.starts.device)
        sizes = on_device(tuple(chunks), names.device)
        if self.batch:
            sequences = (names, self.starts, self.ends, sizes, max(counts))
            launch(_name_slots, (self.batch, len(chunks)), *sequences, BLOCK=32, num_warps=1)
        return [Slots(count, 0, names[i]) for i, count in enumerate(counts)]


@cache
def on_device(chunks: tuple[int, ...], device: torch.device) -> Tensor:
    """Chunk sizes where the kernel reads them; made once, since a copy to the device cannot be captured in a graph, and
    kept, for a captured graph reads them again."""
    return torch.tensor(chunks, dtype=torch.int32).to(device)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Runs a kernel on the device of its first tensor, on that device's current stream."""
    device = next(a for a in arguments if isinstance(a, Tensor)).device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **options)
