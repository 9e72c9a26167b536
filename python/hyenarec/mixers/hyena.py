"""The HyenaRec mixer: the kernels' gated long convolution (Hyena, arXiv 2302.10866; Legendre filters, arXiv
2603.25027)."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer
from hyenarec.packing import Packing
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
        )

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        out: Tensor = self.operator(x, cu_seqlens=packing.cu_seqlens, last_only=last_only)
        return out

    def init_state(self, sequences: int, *, compact: bool = False) -> StreamingState:
        return self.operator.init_state(sequences, state="compact" if compact else "exact")

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, StreamingState]:
        return self.operator.prefill(x, cu_seqlens=packing.cu_seqlens, state="compact" if compact else "exact")

    def step(
        self, x: Tensor, state: StreamingState, *, timestamps: Tensor | None = None
    ) -> tuple[Tensor, StreamingState]:
        return self.operator.step(x, state)

    @torch.no_grad()
    def taps(self) -> list[Tensor]:
        """The long filters as taps on the CPU, (G, K) each, one for each of the order - 1 convolutions."""
        return [filter().float().cpu() for filter in self.operator.filters]
