"""One layout for the reference: rows ``(R, D)`` in which every sequence is a run of consecutive rows.

Packed input is that already; padded input ``(B, L, D)`` becomes it by flattening, with padding as rows of no sequence.
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
        sequence, position: (R,) each row's sequence and its place there; in padding, negative or past the end.
        real: (R, 1) False in padding; None where no row is padding.
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
        """From an operator's arguments: ``x`` (B, L, D) or (T, D), and where each sequence starts and ends."""
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
        # Reading lengths from an accelerator would wait for it, and could not be captured in a CUDA graph.
        bounds = known.tolist() if known is not None and known.device.type == "cpu" else [columns] * batch
        return cls(first, length, sequence, position, real, bounds, columns)

    @property
    def longest(self) -> int:
        return max(self.bounds, default=0)

    def keep_real(self, values: Tensor) -> Tensor:
        """``values`` (R, D) with exact zeros in the padding, whatever stood there."""
        return values if self.real is None else torch.where(self.real, values, 0)

    def borders(self, width: int) -> tuple[Tensor, Tensor]:
        """The rows with fewer than ``width`` rows before, and after, them in their sequence.

        A batch row counts as one sequence here, padding included: padding is zero, so only the border between batch
        rows must not be crossed. Rows that reach across are few, which makes them cheaper to do again than all to mask.
        """
        bounds = self.bounds if self.columns is None else [self.columns] * len(self.bounds)
        count = sum(min(width, bound) for bound in bounds)
        before = self.position if self.columns is None else _range(self.position) % self.columns
        after = (self.length[self.sequence] if self.columns is None else self.columns) - 1 - before
        heads, tails = (torch.nonzero_static(distance < width, size=count)[:, 0] for distance in (before, after))
        return heads, tails

    def shifted(self, values: Tensor, at: Tensor, lag: int) -> Tensor:
        """``values[at - lag]``, 0 where that is another sequence: (n,) to (n, D). A negative ``lag`` looks ahead."""
        source = (at - lag).clamp(0, values.shape[0] - 1)
        same = (at - lag == source) & (self.sequence[source] == self.sequence[at])
        return torch.where(same[:, None], values[source], 0)


def gather(values: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """``values[index]`` with zeros where not ``real``: (R, D), (S, M), (S, M, 1) to (S, M, D)."""
    return torch.where(real, values.index_select(0, index.flatten()).view(*index.shape, values.shape[1]), 0)


def _range(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], device=like.device)
