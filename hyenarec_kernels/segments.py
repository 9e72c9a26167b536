"""Where sequences lie: from ``lengths``, ``starts``, ``mask``, ``cu_seqlens`` to the operators' ``starts``, ``ends``.

Padded ``x`` (B, L, D): row ``b`` holds one sequence, ``x[b, starts[b]:ends[b]]``; None means 0 and L.
Packed ``x`` (T, D): sequence ``s`` is ``x[starts[s]:ends[s]]``; together the sequences cover ``x`` in order.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

INDEX_DTYPES = (torch.int32, torch.int64)


class Layout(TypedDict, total=False):
    """The arguments by which a public call says where sequences lie."""

    lengths: Tensor | None
    starts: Tensor | None
    cu_seqlens: Tensor | None


def segments(
    op: str,
    x: Tensor,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """``starts`` and ``ends`` of a public call; raises ValueError for a layout that does not fit ``x``."""
    if x.dim() == 2:
        if cu_seqlens is None or lengths is not None or starts is not None:
            raise ValueError(f"{op}: packed x (T, D) needs cu_seqlens, and takes neither lengths nor starts")
        _check_index(op, "cu_seqlens", cu_seqlens, x)
        if cu_seqlens.shape[0] < 1:
            raise ValueError(f"{op}: cu_seqlens must have one entry more than there are sequences, got shape (0,)")
        return cu_seqlens[:-1], cu_seqlens[1:]  # views: no kernel is launched
    if cu_seqlens is not None:
        raise ValueError(f"{op}: padded x (B, L, D) takes lengths and starts, not cu_seqlens; packed x is (T, D)")
    if lengths is None:
        if starts is not None:
            raise ValueError(f"{op}: starts was given without lengths")
        return None, None
    for name, index in (("lengths", lengths), ("starts", starts)):
        if index is not None:
            _check_index(op, name, index, x)
            if index.shape[0] != x.shape[0]:
                raise ValueError(
                    f"{op}: {name} must have one entry a row of x, ({x.shape[0]},), got ({index.shape[0]},)"
                )
    return starts, lengths if starts is None else starts + lengths


def spans(x: Tensor, starts: Tensor | None, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first row of each sequence in ``x.reshape(-1, D)``, and its number of rows: (S,) and (S,) int64."""
    if x.dim() == 2:
        assert starts is not None and ends is not None
        return starts.long(), ends.long() - starts.long()
    row = torch.arange(x.shape[0], device=x.device)
    start = torch.zeros_like(row) if starts is None else starts.long()
    end = torch.full_like(row, x.shape[1]) if ends is None else ends.long()
    return row * x.shape[1] + start, end - start


def last_rows(values: Tensor, first: Tensor, length: Tensor, count: int) -> Tensor:
    """The last ``count`` rows of every sequence, oldest first, zeros before its start: (R, D) to (S, count, D)."""
    if values.shape[0] == 0:
        return values.new_zeros(first.shape[0], count, values.shape[1])
    back = torch.arange(-count, 0, device=values.device)
    index = ((first + length)[:, None] + back).clamp_(min=0)  # (S, count)
    rows = values.index_select(0, index.flatten()).view(*index.shape, values.shape[1])
    return torch.where((back >= -length[:, None])[..., None], rows, 0)


def zero_padding(x: Tensor, layout: Layout) -> Tensor:
    """``x`` with zeros where ``layout`` says padding, whatever stood there."""
    starts, ends = segments("zero_padding", x, **layout)
    if x.dim() == 2 or ends is None:
        return x
    position = torch.arange(x.shape[1], device=x.device)
    real = position < ends[:, None]
    if starts is not None:
        real &= position >= starts[:, None]
    return torch.where(real[..., None], x, 0)


def from_mask(op: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``lengths`` and ``starts`` (B,) of a mask (B, L), True for real positions, which must be one run a row.

    A mask with holes raises ValueError in eager mode on the CPU; elsewhere it fails a device-side assertion, without a
    wait.
    """
    if x.dim() != 3 or mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{op}: mask must be bool (B, L) beside x (B, L, D), got {tuple(mask.shape)} {mask.dtype} "
            f"beside {tuple(x.shape)}"
        )
    lengths = mask.sum(1)
    edges = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, :1].sum(1)  # runs of True in each row
    if torch.compiler.is_compiling() or mask.device.type != "cpu":
        torch._assert_async((edges <= 1).all(), f"{op}: mask has holes")
    elif bool((edges > 1).any()):
        row = int((edges > 1).nonzero()[0])
        raise ValueError(
            f"{op}: the real positions of a mask must be one run a row; row {row} has {int(edges[row])} runs"
        )
    positions = torch.arange(mask.shape[1], device=mask.device)
    starts = torch.where(mask, positions, mask.shape[1]).amin(1) if mask.shape[1] else lengths
    return lengths, torch.where(lengths > 0, starts, 0)


def check_segments(op: str, x: Tensor, starts: Tensor | None, ends: Tensor | None) -> None:
    """Checks the values of ``starts`` and ``ends`` where that waits for no device, that is on the CPU."""
    given = next((t for t in (ends, starts) if t is not None), None)
    if given is None or given.device.type != "cpu":
        return
    rows = x.shape[-2]
    # through numpy, whose calls take a tenth of torch's: with these, checks of one sequence took 60 us
    first = np.zeros(len(given), np.int64) if starts is None else starts.numpy()
    last = np.full(len(given), rows) if ends is None else ends.numpy()
    if x.dim() == 3:
        wrong = (first < 0) | (last < first) | (last > rows)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{op}: row {row} runs from {first[row]} to {last[row]} (starts to starts + lengths), "
                f"which does not lie within its {rows} positions"
            )
        return
    if starts is None or ends is None or (first[1:] != last[:-1]).any():
        raise ValueError(f"{op}: packed sequences must follow one another without gaps")
    falls = last < first
    if falls.any():
        at = int(falls.argmax())
        raise ValueError(f"{op}: cu_seqlens must not decrease, but goes from {first[at]} to {last[at]}")
    start, end = (first[0], last[-1]) if len(first) else (0, 0)
    if start != 0 or end != rows:
        raise ValueError(f"{op}: cu_seqlens must run from 0 to the {rows} rows of x, got {start} to {end}")


def _check_index(op: str, name: str, index: Tensor, x: Tensor) -> None:
    if index.dim() != 1 or index.dtype not in INDEX_DTYPES:
        raise ValueError(f"{op}: {name} must be a 1-D int32 or int64 tensor, got {tuple(index.shape)} {index.dtype}")
    if index.device != x.device:
        raise ValueError(f"{op}: {name} is on {index.device} and x on {x.device}; they must share a device")
