"""GRU4Rec's mixer: a gated recurrent unit (arXiv 1511.06939)."""

from __future__ import annotations

from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.packing import Packing


class GRUMixer(Mixer):
    """``nn.GRU`` over right-padded rectangles. It is causal, so the padding never affects a real row."""

    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gru = nn.GRU(config.dim, config.dim, batch_first=True)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        mixed = packing.unpad(self.gru(packing.pad(x))[0])  # (T, D)
        return mixed[packing.last] if last_only else mixed

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        return TensorState(hidden=next(self.gru.parameters()).new_zeros(sequences, self.gru.hidden_size))

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed = self(x, packing)
        return mixed, TensorState(hidden=mixed[packing.last])  # a GRU's state is its output

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        hidden: Tensor = self.gru(x[:, None], state["hidden"][None].to(x.dtype))[0][:, 0]
        return hidden, TensorState(hidden=hidden)
