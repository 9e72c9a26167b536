"""What the backbone asks of a mixer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.packing import Packing


class State(Protocol):
    """What a mixer remembers of ``S`` sequences. The first dimension of each of its tensors is the sequence.

    :class:`hyenarec_kernels.nn.MixerState` and :class:`TensorState` implement it.
    """

    def index(self, rows: Tensor) -> State:
        """A copy of the state of the sequences with indices ``rows`` (n,)."""
        ...

    @staticmethod
    def cat(states: Sequence[Any]) -> State:
        """One state of all sequences of ``states``, as a copy."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that differ between sequences: everything that has to be stored for a user."""
        ...

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> State:
        """This state with ``tensors`` of other sequences in place of its own :meth:`tensors`."""
        ...


class TensorState(dict[str, Tensor]):
    """Named tensors; the first dimension of each is the sequence."""

    def index(self, rows: Tensor) -> TensorState:
        return TensorState({name: values[rows] for name, values in self.items()})

    @staticmethod
    def cat(states: Sequence[TensorState]) -> TensorState:
        return TensorState({name: torch.cat([state[name] for state in states]) for name in states[0]})

    def tensors(self) -> dict[str, Tensor]:
        return dict(self)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> TensorState:
        return TensorState(tensors)


def most(held: Tensor, room: int) -> int:
    """How many of a cache's ``room`` places a step reads: the largest of ``held`` (S,), the places each sequence fills.

    Looking at ``held`` waits for the device once; without that, every step would read all places. Compiled steps cannot
    look at values, so they do read all places.
    """
    return room if torch.compiler.is_compiling() else int(held.max())


def any_true(mask: Tensor) -> bool:
    """Whether a step has work for any sequence in ``mask``. A compiled step cannot look at values, so the answer there
    is always yes."""
    return torch.compiler.is_compiling() or bool(mask.any())


class Mixer(nn.Module):
    """Token mixing over packed sequences: row ``t`` of the output depends on its own sequence up to ``t`` only.

    A causal mixer can also read events one at a time: :meth:`prefill` gives the state after whole histories, and each
    :meth:`step` advances it by one event. Its outputs are those of :meth:`forward` over all events so far.

    Attributes:
        needs_positions: the model adds learned positions to the item embeddings.
        causal: False for a mixer that sees its whole sequence. Its model cannot learn to predict the next item, so it
            learns to fill in masked items (:mod:`hyenarec.cloze`).
        knows_time: the mixer uses timestamps. If a log has none, positions take their place.
        bounded: the mixer has one parameter per position or lag, ``max_length`` of them, so a state cannot count more
            events than that.
        rectangular: the mixer pads sequences to the longest of its batch, so that it pays to call it once for each
            group of similar lengths (:mod:`hyenarec.mixers.grouping`).

    ``layer`` is the 0-based index of the block that the mixer belongs to, for mixers that differ between blocks.
    """

    needs_positions: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    knows_time: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    rectangular: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """Maps packed ``x`` (T, D) to (T, D), or with ``last_only`` to the outputs at the last event of each sequence,
        (S, D). If the configuration has a ``small_dim``, ``x`` has that many channels after its first D: the second
        embedding of each event.

        ``timestamps`` (T,) int64 are for mixers that use time. The others accept and ignore them, so that all mixers
        share this signature.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def init_state(self, sequences: int, *, compact: bool = False) -> State:
        """The state of sequences without events. With ``compact`` a mixer whose state grows with its horizon returns a
        smaller one, which is accurate to a stated precision; mixers with only one kind of state ignore it."""
        raise NotImplementedError(f"{type(self).__name__} has no streaming state")

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, State]:
        """:meth:`forward` over whole histories, none of them empty, and the state after the last event of each."""
        raise NotImplementedError(f"{type(self).__name__} has no streaming state")

    def step(self, x: Tensor, state: Any, *, timestamps: Tensor | None = None) -> tuple[Tensor, State]:
        """Reads the next event of every sequence, ``x`` (S, D) at ``timestamps`` (S,). Returns its output (S, D) and
        the new state. ``state`` may be overwritten: use only the state returned from then on."""
        raise NotImplementedError(f"{type(self).__name__} has no streaming state")
