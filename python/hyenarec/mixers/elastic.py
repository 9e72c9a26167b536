"""ELASTIC's mixer: linear dispatcher attention (arXiv 2408.09380), made causal.

A few learned interests gather the history, and events attend to the interests:

    I_j(t) = sum_s w_sj v_s / sum_s w_sj,    w_sj = exp(scale e_j . k_s)        (gather, s <= t)
    o_t    = sum_j softmax_j(scale q_t . e_j) I_j(t),    y = W o                  (dispatch)

Ours: s <= t, where the paper compresses the whole history at once; that events are matched with the interests e_j
themselves; keys and interests of unit length in w, so that no exponential overflows and running sums need no running
maximum; the number of interests. The paper's retrieval of interests from a large memory bank is left out: every system
here has the same backbone and a mixer of comparable size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.linear_attention import linear_attention
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

INTERESTS = 16  # a head


class ElasticMixer(Mixer):
    """Gather and dispatch together are linear attention whose features are the interests."""

    needs_positions = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads = config.attention.heads
        self.interests = nn.Parameter(torch.randn(self.heads, INTERESTS, config.dim // self.heads))
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        qkv = packing.pad(fast_linear(self.qkv, x).view(len(x), 3, self.heads, -1))
        q, k, v = qkv.unbind(2)  # (S, M, H, D/H) each
        size = q.shape[-1]
        dispatch = torch.einsum("smhd,hjd->smhj", q, self.interests * size**-0.5).softmax(-1)
        unit = normalize(self.interests, dim=-1) * size**0.5
        weights = at_least_float32(torch.einsum("smhd,hjd->smhj", normalize(k, dim=-1), unit)).exp()  # (S, M, H, J)
        mixed = linear_attention(dispatch / weights.cumsum(1), weights, v)
        mixed = packing.unpad(mixed).flatten(1)  # (T, D)
        return fast_linear(self.out, mixed[packing.last] if last_only else mixed)
