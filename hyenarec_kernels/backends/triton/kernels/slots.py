"""How a kernel finds its rows: slots of chunks (`hyenarec_kernels.backends.triton.rows`), located on the device."""

from __future__ import annotations

import triton
import triton.language as tl

# Kernel parameters for which Triton must not compile variants: numbers that depend on a batch's lengths, and pointers
# to indices, whose alignment depends on the lengths too. Triton silently ignores a name that a kernel does not have.
LENGTHS = ["slots", "columns", "per_row"]
ENDS = ["starts_ptr", "ends_ptr"]
WHERE = ["sequences_ptr", *ENDS]


@triton.jit
def span(sequence, exists, starts_ptr, ends_ptr, columns, PACKED: tl.constexpr):
    """The first row (int64) and the length of each of sequences (n,); the length is 0 if the sequence does not
    exist."""
    start = tl.zeros_like(sequence).to(tl.int64)
    if starts_ptr is not None:
        start = tl.load(starts_ptr + sequence, mask=exists, other=0).to(tl.int64)
    end = tl.zeros_like(start) + columns
    if ends_ptr is not None:
        end = tl.load(ends_ptr + sequence, mask=exists, other=0).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), columns)  # whatever the values, no row of another sequence is read
    end = tl.minimum(tl.maximum(end, start), columns)
    first = start if PACKED else start + sequence.to(tl.int64) * columns
    return first, tl.where(exists, end - start, 0).to(tl.int32)


@triton.jit
def first_slot(sequence, first, per_row, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """The slot of a sequence's chunk 0."""
    if PACKED:
        return (first // CHUNK).to(tl.int32) + sequence
    return sequence * per_row


@triton.jit
def locate(
    slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK: tl.constexpr, PACKED: tl.constexpr
):
    """For slots (n,): the sequence of each, its first row (int64), its length, and the chunk's number in it.

    A slot that does not exist counts as a chunk of a sequence of length 0.
    """
    exists = slot < slots
    sequence = tl.load(sequences_ptr + slot, mask=exists, other=0) if PACKED else slot // per_row
    first, length = span(sequence, exists, starts_ptr, ends_ptr, columns, PACKED)
    return sequence, first, length, slot - first_slot(sequence, first, per_row, CHUNK, PACKED)


@triton.jit
def tile_columns(SLOTS: tl.constexpr, CHANNELS: tl.constexpr):
    """The slot and the channel of each column of a program's tile, (SLOTS * CHANNELS,)."""
    column = tl.arange(0, SLOTS * CHANNELS)
    return tl.program_id(0) * SLOTS + column // CHANNELS, tl.program_id(1) * CHANNELS + column % CHANNELS


@triton.jit
def written(position, sequence, first, length, slot, slots, columns, PACKED: tl.constexpr):
    """The rows that a chunk writes, and which of them exist: its own and, for padded input, its share of the padding.

    Positions past the end of a batch row continue at its beginning, so that the chunks of a batch row cover all of it.
    """
    row = first + position
    if PACKED:
        return row, position < length
    end = (sequence.to(tl.int64) + 1) * columns
    return tl.where(row < end, row, row - columns), (position < columns) & (slot < slots)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["count", "columns"], do_not_specialize_on_alignment=["ends_ptr"])
def borders_kernel(borders_ptr, ends_ptr, count, columns, BLOCK: tl.constexpr):
    """One program: writes borders (count + 1,) int64 from 0 to `columns` that never fall; they equal the ends where the
    ends are valid."""
    tl.store(borders_ptr, tl.zeros((), tl.int64))
    reached = tl.zeros((), tl.int64)
    for begin in range(0, count, BLOCK):
        sequence = begin + tl.arange(0, BLOCK)
        end = tl.load(ends_ptr + sequence, mask=sequence < count - 1, other=0).to(tl.int64)
        end = tl.minimum(tl.maximum(end, reached), columns)
        end = tl.where(sequence < count - 1, tl.associative_scan(end, 0, larger), columns)
        tl.store(borders_ptr + 1 + sequence, end, mask=sequence < count)
        reached = tl.max(end, 0)


@triton.jit(do_not_specialize=["width"], do_not_specialize_on_alignment=WHERE)
def name_slots_kernel(sequences_ptr, starts_ptr, ends_ptr, chunks_ptr, width, BLOCK: tl.constexpr):
    """Writes each sequence's number into its slots: one program for each sequence and chunk size."""
    sequence, level = tl.program_id(0), tl.program_id(1)
    chunk = tl.load(chunks_ptr + level).to(tl.int64)
    begin = tl.load(starts_ptr + sequence).to(tl.int64) // chunk + sequence
    end = tl.load(ends_ptr + sequence).to(tl.int64) // chunk + sequence + 1
    for at in range(begin, end, BLOCK):
        slot = at + tl.arange(0, BLOCK)
        tl.store(
            sequences_ptr + level * width.to(tl.int64) + slot, tl.zeros_like(slot).to(tl.int32) + sequence, slot < end
        )
