"""Packed batches: the one layout in which sequences travel through the model.

A batch of ``S`` sequences with ``T`` events in all is a ``(T, ...)`` array and the offsets ``cu_seqlens``, so that the
embedding, the feed-forward, the norms and the loss spend nothing on padding. Mixers that need a rectangle (softmax
attention, recurrent cells) ask for one with :meth:`Packing.pad` and come back with :meth:`Packing.unpad`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def kept(compute: Callable[[Packing], Tensor]) -> property:
    """A property computed once; in compiled code every time, as that cannot trace the lock of ``cached_property``."""
    name = f"_{compute.__name__}"

    def get(packing: Packing) -> Tensor:
        if torch.compiler.is_compiling():
            return compute(packing)
        values: dict[str, Tensor] = packing.__dict__
        if name not in values:
            values[name] = compute(packing)
        return values[name]

    return property(get, doc=compute.__doc__)


@dataclass(frozen=True)
class Packing:
    """Where each sequence lies in a packed array: sequence ``s`` is rows ``cu_seqlens[s]:cu_seqlens[s+1]``.

    ``cu_seqlens`` is int64 ``(S+1,)`` on the model's device; ``max_length`` is the longest sequence, known on the host
    so that no kernel launch waits for the device.
    """

    cu_seqlens: Tensor
    max_length: int

    @classmethod
    def from_lengths(cls, lengths: Tensor) -> Packing:
        """From the lengths ``(S,)`` int64 on the host."""
        return cls(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), int(lengths.max()) if len(lengths) else 0)

    @property
    def sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> Tensor:  # (S,)
        return self.cu_seqlens.diff()

    @kept
    def rows(self) -> Tensor:
        """The sequence of every event, (T,)."""
        return torch.repeat_interleave(self.lengths)

    @kept
    def positions(self) -> Tensor:
        """The 0-based place of every event in its sequence, (T,)."""
        rows: Tensor = self.rows
        return torch.arange(rows.shape[0], device=rows.device) - self.cu_seqlens[rows]

    @property
    def embedded_positions(self) -> Tensor:
        """The positions by which a model reads its table of positions, (T,)."""
        positions: Tensor = self.positions
        return positions

    @property
    def last(self) -> Tensor:
        """The row of every sequence's last event, (S,)."""
        return self.cu_seqlens[1:] - 1

    @kept
    def _slots(self) -> Tensor:  # (T,) place of every event in the flattened rectangle
        slots: Tensor = self.rows * self.max_length + self.positions
        return slots

    def pad(self, x: Tensor) -> Tensor:
        """(T, ...) to (S, max_length, ...), right-padded with zeros."""
        flat: Tensor = x.new_zeros(self.sequences * self.max_length, *x.shape[1:]).index_copy(0, self._slots, x)
        return flat.view(self.sequences, self.max_length, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """(S, max_length, ...) to (T, ...)."""
        return x.flatten(0, 1).index_select(0, self._slots)

    def events_of(self, sequences: Tensor) -> Tensor:
        """The rows of the events of some sequences, by their indices (n,), in that order."""
        lengths = self.lengths[sequences]
        ends = lengths.cumsum(0)
        shifts = self.cu_seqlens[sequences] - (ends - lengths)  # from the events' rows in the group to those here
        return torch.arange(int(ends[-1])) + shifts.repeat_interleave(lengths)

    def group(self, sequences: Tensor) -> Group:
        """The packing of :meth:`events_of` some sequences, one at least; all on the host."""
        lengths = self.lengths[sequences]
        return Group(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), int(lengths.max()), self)

    @property
    def batch_lengths(self) -> Tensor:
        """The lengths of all sequences of the batch, for means over it, (S,)."""
        return self.lengths

    def elapsed(self, times: Tensor) -> Tensor:
        """The time since the event before in the same sequence, 0 for the first, (T,), from ``times`` (T,)."""
        later: Tensor = self.positions > 0
        return times.diff(prepend=times[:1]) * later

    def to(self, device: torch.device) -> Packing:
        return Packing(self.cu_seqlens.to(device, non_blocking=True), self.max_length)


@dataclass(frozen=True)
class Group(Packing):
    """Some sequences of a ``batch`` (:mod:`hyenarec.mixers.grouping`)."""

    batch: Packing

    @property
    def batch_lengths(self) -> Tensor:
        return self.batch.lengths


@dataclass(frozen=True)
class Rectangle(Packing):
    """Sequences in the rows of a right-padded rectangle, with their padding as events: nothing is moved to pad them.

    For compiled programs, whose shapes may not depend on values. Padding may hold anything: causal mixers keep it out
    of every real event's output, and :attr:`last` gives the last real events.
    """

    sizes: Tensor
    """(S,) int64, the real events of each sequence, at least 1."""

    @classmethod
    def of(cls, sizes: Tensor, max_length: int) -> Rectangle:
        return cls(torch.arange(sizes.shape[0] + 1, device=sizes.device) * max_length, max_length, sizes)

    @property
    def sequences(self) -> int:
        return self.sizes.shape[0]

    @property
    def lengths(self) -> Tensor:
        return self.sizes

    @property
    def rows(self) -> Tensor:
        return self._whole(torch.arange(self.sequences, device=self.sizes.device)[:, None])

    @property
    def positions(self) -> Tensor:
        return self._whole(torch.arange(self.max_length, device=self.sizes.device))

    @property
    def embedded_positions(self) -> Tensor:
        """Padding has the position of the last real event, so that a table of positions may be shorter than a row. The
        lengths decide what is read, which compiled programs check against the table: they do not check shapes."""
        events = torch.arange(self.max_length, device=self.sizes.device)
        return torch.minimum(events, self.sizes[:, None] - 1).flatten()

    def _whole(self, values: Tensor) -> Tensor:  # (T,); without division, which ONNX lacks for symbolic sizes
        return values.expand(self.sequences, self.max_length).flatten()

    @property
    def last(self) -> Tensor:
        return self.cu_seqlens[:-1] + self.sizes - 1

    def pad(self, x: Tensor) -> Tensor:
        return x.view(self.sequences, self.max_length, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)
