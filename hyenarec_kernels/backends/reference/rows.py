"""The one layout that the reference computes on: rows ``(R, D)`` in which every sequence is a run of consecutive rows.

Packed input has this layout already. Padded input ``(B, L, D)`` is flattened; padding becomes rows of no sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyenarec_kernels.segments import spans, within
from hyenarec_kernels.tracing import concrete


@dataclass(frozen=True)
class Rows:
    """Where the sequences lie among ``R`` rows.

    Attributes:
        first, length: (S,) each sequence's first row and its number of rows.
        sequence, position: (R,) each row's sequence and its position in it; in padding, the position is negative or
            past the end.
        real: (R, 1) False in padding; None if no row is padding.
        bounds: an upper bound of each length, on the host.
        columns: L for padded input, None for packed.
    """

    first: Tensor
    length: Tensor
    sequence: Tensor
    position: Tensor
    real: Tensor | None
    bounds: list[int]
    columns: int | None

    @classmethod
    def of(cls, x: Tensor, starts: Tensor | None, ends: Tensor | None) -> Rows:
        """Made from an operator's arguments: ``x`` (B, L, D) or (T, D), and where each sequence starts and ends."""
        first, length = spans(x, within(x, starts, ends))
        known = concrete(length)
        if x.dim() == 2:
            if known is None:
                raise NotImplementedError(
                    "packed x (T, D) under torch.compile of a transform of torch.func is not supported: pad it, or "
                    "compile what stands inside the transform"
                )
            sequence = torch.repeat_interleave(length, output_size=x.shape[0])
            return cls(first, length, sequence, _range(sequence) - first[sequence], None, known.tolist(), None)
        batch, columns = x.shape[:2]
        sequence = torch.arange(batch, device=x.device).repeat_interleave(columns)
        position = _range(sequence) - first[sequence]
        padded = starts is not None or ends is not None
        real = ((position >= 0) & (position < length[sequence]))[:, None] if padded else None
        # Reading lengths from an accelerator would wait for it, and a CUDA graph could not capture that.
        bounds = known.tolist() if known is not None and known.device.type == "cpu" else [columns] * batch
        return cls(first, length, sequence, position, real, bounds, columns)

    @property
    def longest(self) -> int:
        return max(self.bounds, default=0)

    def keep_real(self, values: Tensor) -> Tensor:
        """``values`` (R, D) with exact zeros in padding, whatever was there."""
        return values if self.real is None else torch.where(self.real, values, 0)

    def borders(self, width: int) -> tuple[Tensor, Tensor]:
        """The indices of the rows with fewer than ``width`` rows before them in their sequence, and of those with fewer
        after.

        A batch row counts as one sequence here, padding included: padding is zero, so only the border between batch
        rows must not be crossed. Few rows reach across a border, so it is cheaper to compute these again than to mask
        all rows.
        """
        bounds = self.bounds if self.columns is None else [self.columns] * len(self.bounds)
        count = sum(min(width, bound) for bound in bounds)
        before = self.position if self.columns is None else _range(self.position) % self.columns
        after = (self.length[self.sequence] if self.columns is None else self.columns) - 1 - before
        heads, tails = (torch.nonzero_static(distance < width, size=count)[:, 0] for distance in (before, after))
        return heads, tails

    def shifted(self, values: Tensor, at: Tensor, lag: int) -> Tensor:
        """``values[at - lag]``, or 0 if that row belongs to another sequence: ``at`` (n,) to (n, D). A negative ``lag``
        looks ahead."""
        source = (at - lag).clamp(0, values.shape[0] - 1)
        same = (at - lag == source) & (self.sequence[source] == self.sequence[at])
        return torch.where(same[:, None], values[source], 0)


def gather(values: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """``values[index]``, zeros where not ``real``: values (R, D), index (S, M), real (S, M, 1) to (S, M, D)."""
    return torch.where(real, values.index_select(0, index.flatten()).view(*index.shape, values.shape[1]), 0)


def _range(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], device=like.device)
