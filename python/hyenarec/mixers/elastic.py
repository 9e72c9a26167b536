"""ELASTIC's mixer: linear dispatcher attention (arXiv 2408.09380), made causal.

A few learned interests summarise the history, and events attend to the interests:

    I_j(t) = sum_s w_sj v_s / sum_s w_sj,    w_sj = exp(scale e_j . k_s)        (gather, s <= t)
    o_t    = sum_j softmax_j(scale q_t . e_j) I_j(t),    y = W o                  (dispatch)

Ours: the sum over s <= t, where the paper compresses the whole history at once; matching events with the interests e_j
themselves; unit-length keys and interests in w, so that no exponential overflows and the running sums need no running
maximum; the number of interests. The paper's retrieval of interests from a large memory bank is left out, because every
system here has the same backbone and a mixer of comparable size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.linear_attention import linear_attention_and_state, linear_attention_step
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

INTERESTS = 16  # per head


class ElasticMixer(Mixer):
    """Gather and dispatch together are linear attention whose features are the interests."""

    needs_positions = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads = config.attention.heads
        self.interests = nn.Parameter(torch.randn(self.heads, INTERESTS, config.dim // self.heads))
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        mixed, _ = self._mix(x, packing)
        return fast_linear(self.out, mixed[packing.last] if last_only else mixed)

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        heads, interests, size = self.interests.shape
        total = at_least_float32(self.interests.new_zeros(sequences, heads, interests))
        return TensorState(total=total, gathered=total[..., None].repeat(1, 1, 1, size))

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, state = self._mix(x, packing)
        return fast_linear(self.out, mixed), state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        dispatch, weights, v = self._features(x)
        total = state["total"] + weights
        mixed, gathered = linear_attention_step(dispatch / total, weights, v, state["gathered"])
        return fast_linear(self.out, mixed.flatten(1)), TensorState(total=total, gathered=gathered)

    def _mix(self, x: Tensor, packing: Packing) -> tuple[Tensor, TensorState]:
        dispatch, weights, v = (packing.pad(y) for y in self._features(x))  # (S, M, H, ·) each
        totals = weights.cumsum(1)
        mixed, gathered = linear_attention_and_state(dispatch / totals, weights, v)
        return packing.unpad(mixed).flatten(1), TensorState(total=totals[:, -1], gathered=gathered)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each event's dispatch and gather weights for the J interests, (T, H, J) each, and its values (T, H, D/H)."""
        q, k, v = fast_linear(self.qkv, x).view(x.shape[0], 3, self.heads, -1).unbind(1)  # (T, H, D/H) each
        size = q.shape[-1]
        dispatch = torch.einsum("thd,hjd->thj", q, self.interests * size**-0.5).softmax(-1)
        unit = normalize(self.interests, dim=-1) * size**0.5
        weights = at_least_float32(torch.einsum("thd,hjd->thj", normalize(k, dim=-1), unit)).exp()
        return dispatch, weights, v
