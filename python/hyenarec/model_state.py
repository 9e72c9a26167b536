"""What a model remembers of users whose events arrive one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyenarec.mixers import State
from hyenarec.repeats import Recent


@dataclass(frozen=True)
class ModelState:
    """What a model remembers of ``S`` sequences: one state per block, ``events`` (S,) int64, how many each has read,
    and for a repeat head ``history`` (S, max_length) int64, its last items, in the order of
    :meth:`hyenarec.repeats.Recent.ring`."""

    blocks: tuple[State, ...]
    events: Tensor
    history: Tensor | None = None

    def recent(self, rows: Tensor | None = None) -> Recent | None:
        """What a repeat head reads, of all sequences or of some, by their indices (n,)."""
        if self.history is None:
            return None
        return Recent.ring(*((self.history, self.events) if rows is None else (self.history[rows], self.events[rows])))

    def index(self, rows: Tensor) -> ModelState:
        """A copy of the state of some sequences, by their indices (n,)."""
        history = None if self.history is None else self.history[rows]
        return ModelState(tuple(block.index(rows) for block in self.blocks), self.events[rows], history)

    @staticmethod
    def cat(states: Sequence[ModelState]) -> ModelState:
        """Copies of states of one model, joined along the sequences."""
        blocks = zip(*(state.blocks for state in states), strict=True)
        joined = tuple(type(same[0]).cat(same) for same in blocks)
        read = [state.history for state in states if state.history is not None]
        return ModelState(joined, torch.cat([state.events for state in states]), torch.cat(read) if read else None)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that differs between sequences, by name; dimension 0 is the sequences."""
        named = {
            f"{i}.{name}": values for i, block in enumerate(self.blocks) for name, values in block.tensors().items()
        }
        return named | {"events": self.events} | ({} if self.history is None else {"history": self.history})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> ModelState:
        """The same state with the :meth:`tensors` of other sequences."""
        blocks = tuple(
            block.with_tensors({name: tensors[f"{i}.{name}"] for name in block.tensors()})
            for i, block in enumerate(self.blocks)
        )
        return ModelState(blocks, tensors["events"], tensors.get("history"))
