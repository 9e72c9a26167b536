"""The HyenaRec mixer: the kernels' gated long convolution (Hyena, arXiv 2302.10866; Legendre filters, arXiv
2603.25027).

With ``--hyena.local`` the output of a softmax attention to the recent events is added to the convolution's. The sum has
no gates, which would learn to close one of the two; GEMs (arXiv 2602.13631) adds its streams in the same way. Ours:
everything else about this attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, State, TensorState
from hyenarec.mixers.recent import RecentAttention
from hyenarec.packing import Packing, Rectangle
from hyenarec_kernels.nn import HyenaMixer, StreamingState


class HyenaRecMixer(Mixer):
    """``hyenarec_kernels.nn.HyenaMixer`` over packed sequences; needs no positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        options = config.hyena
        self.operator = HyenaMixer(
            config.dim,
            options.horizon or config.max_length,
            order=options.order,
            filter=options.filter,
            terms=options.terms,
            window=options.window,
            gate=options.gate,
            short_width=options.short_width,
            gate_dim=config.small_dim,
            gate_dropout=config.dropout,
        )

        self.local = None if options.local is None else RecentAttention(config, options.local, lags=True)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        if isinstance(packing, Rectangle):
            mixed: Tensor = self.operator(packing.pad(x), lengths=packing.lengths, last_only=last_only)
            mixed = mixed if last_only else packing.unpad(mixed)
        else:
            mixed = self.operator(x, cu_seqlens=packing.cu_seqlens, last_only=last_only)
        if self.local is not None:
            x = x[:, : self.operator.dim]
            mixed = mixed + (self.local.last(x, packing) if last_only else self.local(x, packing))
        return mixed

    def init_state(self, sequences: int, *, compact: bool = False) -> State:
        state = self.operator.init_state(sequences, state=self._form(compact))
        if self.local is None:
            return state
        recent = self.local.init_state(sequences)
        return LocalState(state, TensorState(recent, events=torch.zeros_like(state.steps)))

    @property
    def is_operator(self) -> bool:
        """Whether the mixer is the operator and nothing else, which reads what other mixers read."""
        return self.local is None and not self.operator.gate_dim

    def _form(self, compact: bool) -> Literal["compact", "exact"]:
        """The form of a state; only filters that are polynomials of the lag have a compact one."""
        polynomials = compact and all(filter.polynomial() is not None for filter in self.operator.filters)
        return "compact" if polynomials else "exact"

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, State]:
        mixed, state = self.operator.prefill(x, cu_seqlens=packing.cu_seqlens, state=self._form(compact))
        if self.local is None:
            return mixed, state
        added, recent = self.local.prefill(x[:, : self.operator.dim], packing)
        return mixed + added, LocalState(state, TensorState(recent, events=packing.lengths))

    def step(self, x: Tensor, state: State, *, timestamps: Tensor | None = None) -> tuple[Tensor, State]:
        if self.local is None:
            return self.operator.step(x, cast(StreamingState, state))
        assert isinstance(state, LocalState)
        mixed, memory = self.operator.step(x, state.memory)
        added, recent = self.local.step(x[:, : self.operator.dim], state.recent)
        return mixed + added, LocalState(memory, TensorState(recent, events=state.recent["events"] + 1))

    @torch.no_grad()
    def taps(self) -> list[Tensor]:
        """The long filters as taps on the CPU, (G, K) each, one for each of the order - 1 convolutions."""
        return [filter().float().cpu() for filter in self.operator.filters]


@dataclass(frozen=True)
class LocalState:
    """The state of the convolutions, ``memory``, and that of the attention to recent events, ``recent``."""

    memory: StreamingState
    recent: TensorState

    def index(self, rows: Tensor) -> LocalState:
        return LocalState(self.memory.index(rows), self.recent.index(rows))

    @staticmethod
    def cat(states: Sequence[LocalState]) -> LocalState:
        memories = [state.memory for state in states]
        return LocalState(type(memories[0]).cat(memories), TensorState.cat([state.recent for state in states]))

    def tensors(self) -> dict[str, Tensor]:
        return self.memory.tensors() | self.recent.tensors()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> LocalState:
        memory = self.memory.with_tensors({name: tensors[name] for name in self.memory.tensors()})
        return LocalState(memory, self.recent.with_tensors({name: tensors[name] for name in self.recent}))
