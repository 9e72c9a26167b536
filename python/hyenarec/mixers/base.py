"""What the backbone asks of a mixer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.packing import Packing


class State(Protocol):
    """What a mixer remembers of ``S`` sequences: its tensors have the sequences first.

    :class:`hyenarec_kernels.nn.MixerState` is one, :class:`TensorState` another.
    """

    def index(self, rows: Tensor) -> State:
        """A copy of the state of some sequences, by their indices (n,)."""
        ...

    @staticmethod
    def cat(states: Sequence[Any]) -> State:
        """Copies of states, joined."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What differs from sequence to sequence: everything that has to be stored for a user."""
        ...

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> State:
        """The same with other sequences' :meth:`tensors`."""
        ...


class TensorState(dict[str, Tensor]):
    """Named tensors, each with the sequences first."""

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
    """How many of a cache's ``room`` places a step reads: as many as the fullest sequence has, ``held`` (S,). That is
    one wait for the device, without which every step would read all, as compiled steps do: they cannot wait."""
    return room if torch.compiler.is_compiling() else int(held.max())


def any_true(mask: Tensor) -> bool:
    """Whether a step has to do what concerns only sequences of ``mask``; a compiled step cannot look, so it has to."""
    return torch.compiler.is_compiling() or bool(mask.any())


class Mixer(nn.Module):
    """Token mixing over packed sequences: row ``t`` of the output depends on its own sequence up to ``t`` only.

    A causal mixer also reads events one at a time: :meth:`prefill` gives the state after whole histories, and each
    :meth:`step` moves it on by one event, with the outputs of :meth:`forward` over everything so far.

    Attributes:
        needs_positions: the model adds learned positions to the item embeddings.
        causal: False for a mixer that sees its whole sequence. Its model cannot learn to predict the next item, so it
            learns to fill in masked items (:mod:`hyenarec.cloze`).
        knows_time: the mixer uses timestamps. Where a log has none, positions take their place.
        bounded: its parameters end with the model's ``max_length``, as positions do: no state counts more events.

    ``layer`` is the 0-based number of the block that the mixer serves, for mixers whose blocks differ.
    """

    needs_positions: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    knows_time: ClassVar[bool] = False
    bounded: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """``x`` (T, D), packed, to (T, D); with ``last_only`` to (S, D), the last event of each sequence. Where the
        configuration has ``small_dim``, the second embedding of each event lies behind the D channels of ``x``.

        ``timestamps`` (T,) int64 for mixers that know time; the others take and ignore it, so that all share this
        signature.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def init_state(self, sequences: int, *, compact: bool = False) -> State:
        """The state of sequences without events. ``compact`` asks a mixer whose state grows with its window for a small
        one, equal to a stated precision; the others have but one."""
        raise NotImplementedError(f"{type(self).__name__} has no streaming state")

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, State]:
        """:meth:`forward` of whole histories, none of them empty, and the state after each one's last event."""
        raise NotImplementedError(f"{type(self).__name__} has no streaming state")

    def step(self, x: Tensor, state: Any, *, timestamps: Tensor | None = None) -> tuple[Tensor, State]:
        """The next event of every sequence, ``x`` (S, D) at ``timestamps`` (S,), to its output (S, D) and the state
        after it. The state given may be written to: go on with the one that comes back."""
        raise NotImplementedError(f"{type(self).__name__} has no streaming state")
