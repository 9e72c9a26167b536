"""RecGRELA's mixer: gated rotary-enhanced linear attention (arXiv 2506.13315 and its authors' code), made causal.

    v = W_v x,  q, k = elu(W_q v) + 1, elu(W_k v) + 1,  gate = SiLU(W_g x)
    o_t = rope(q_t) (sum_s rope(k_s) v_s^T) / (q_t . sum_s k_s) + conv(v)_t,    y = W (gate * o)

rope turns pairs of features by angles that grow with the position; conv is a causal depthwise convolution of four
taps. The paper sums over the whole sequence: trained at all positions, that would show each event its own answer. Here
s <= t, which is ours; what the last event sees is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, silu

from hyenarec.config import ModelConfig
from hyenarec.errors import UserError
from hyenarec.mixers.base import Mixer
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.linear_attention import linear_attention
from hyenarec.packing import Packing
from hyenarec_kernels import short_conv
from hyenarec_kernels.nn import fast_linear

TAPS = 4
ROPE_BASE = 10_000


class GRELAMixer(Mixer):
    """Linear attention with rotary positions, a short convolution beside it and a gate after both."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        if config.dim % 2:
            raise UserError(f"option dim: {config.dim} is odd; mixer grela turns pairs of features")
        self.heads = config.attention.heads
        self.gate_value = nn.Linear(config.dim, 2 * config.dim)
        self.query_key = nn.Linear(config.dim, 2 * config.dim)
        self.taps = nn.Parameter(torch.empty(config.dim, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.taps_bias = nn.Parameter(torch.zeros(config.dim))
        self.out = nn.Linear(config.dim, config.dim)
        frequencies = ROPE_BASE ** -(torch.arange(0, config.dim, 2) / config.dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        gate, v = fast_linear(self.gate_value, x).chunk(2, -1)  # (T, D) each
        q, k = (elu(at_least_float32(fast_linear(self.query_key, v))) + 1).chunk(2, -1)
        angles = packing.positions[:, None] * self.frequencies  # (T, D/2)
        parts = torch.stack((_turn(q, angles), _turn(k, angles), q, k, v.to(q.dtype)), 1)  # (T, 5, D)
        parts = packing.pad(parts.view(len(x), 5, self.heads, -1))
        turned_q, turned_k, q, k, values = parts.unbind(2)  # (S, M, H, D/H) each
        mixed = linear_attention(turned_q, turned_k, values)
        weight = (q * k.cumsum(1)).sum(-1, keepdim=True)  # (S, M, H, 1), positive but in padding
        mixed = packing.unpad(mixed / weight.clamp_min(1e-6)).flatten(1)  # (T, D)
        mixed = mixed + short_conv(v, self.taps, self.taps_bias, cu_seqlens=packing.cu_seqlens)
        if last_only:
            mixed, gate = mixed[packing.last], gate[packing.last]
        return fast_linear(self.out, silu(gate) * mixed)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs of neighbouring features of ``x`` (T, D) by ``angles`` (T, D/2)."""
    even, odd = x.view(len(x), -1, 2).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
