"""HydraRec's mixers: attention with as many heads as features (arXiv 2501.01242; Hydra attention, arXiv 2209.07484).

    y_t = W (q^_t * sum_s k^_s * v_s),    q^, k^ of unit length over the features, * elementwise

with the sum over s <= t (causal), or over the whole sequence (bidirectional). The rest of the block is the backbone's.
Ours: the output projection W, as in softmax attention.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear


class HydraMixer(Mixer):
    """Causal Hydra attention, computed as a running sum."""

    needs_positions = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        q, memory = self._query_and_memory(x)
        if self.causal and not last_only:
            return fast_linear(self.out, q * packing.unpad(packing.pad(memory).cumsum(1)))
        total = memory.new_zeros(packing.sequences, memory.shape[1]).index_add(0, packing.rows, memory)  # (S, D)
        return fast_linear(self.out, q[packing.last] * total if last_only else q * total[packing.rows])

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        return TensorState(total=at_least_float32(self.out.bias.new_zeros(sequences, len(self.out.bias))))

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        q, memory = self._query_and_memory(x)
        total = packing.unpad(packing.pad(memory).cumsum(1))  # (T, D)
        return fast_linear(self.out, q * total), TensorState(total=total[packing.last])

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        q, memory = self._query_and_memory(x)
        total = state["total"] + memory
        return fast_linear(self.out, q * total), TensorState(total=total)

    def _query_and_memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = fast_linear(self.qkv, x).chunk(3, -1)  # (T, D) each
        return normalize(q, dim=-1), at_least_float32(normalize(k, dim=-1) * v)


class BidirectionalHydraMixer(HydraMixer):
    """Hydra attention over the whole sequence, trained on masked items as BERT4Rec is."""

    causal = False
