"""RecGRELA's mixer: gated rotary-enhanced linear attention (arXiv 2506.13315 and its authors' code), made causal.

    v = W_v x,  q, k = elu(W_q v) + 1, elu(W_k v) + 1,  gate = SiLU(W_g x)
    o_t = rope(q_t) (sum_s rope(k_s) v_s^T) / (q_t . sum_s k_s) + conv(v)_t,    y = W (gate * o)

rope rotates pairs of features by angles that grow with the position; conv is a causal depthwise convolution with four
taps. The paper sums over the whole sequence, but when all positions are trained at once, that would show each event its
own target. Ours: the sum over s <= t, which is the same at the last event.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, silu

from hyenarec.config import ModelConfig
from hyenarec.errors import UserError
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.linear_attention import linear_attention_and_state, linear_attention_step
from hyenarec.packing import Packing
from hyenarec_kernels import short_conv
from hyenarec_kernels.nn import fast_linear
from hyenarec_kernels.segments import last_rows

TAPS = 4
ROPE_BASE = 10_000


class GRELAMixer(Mixer):
    """Linear attention with rotary positions, a short convolution beside it and a gate after both."""

    rectangular = True
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
        mixed, gate, _ = self._mix(x, packing)
        if last_only:
            mixed, gate = mixed[packing.last], gate[packing.last]
        return fast_linear(self.out, silu(gate) * mixed)

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        dim = self.taps.shape[0]
        keys = at_least_float32(self.taps.new_zeros(sequences, self.heads, dim // self.heads))
        return TensorState(
            memory=keys[..., None] * keys[..., None, :],
            keys=keys,
            recent=self.taps.new_zeros(sequences, TAPS - 1, dim),
            events=torch.zeros(sequences, dtype=torch.int64, device=keys.device),
        )

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, gate, state = self._mix(x, packing)
        return fast_linear(self.out, silu(gate) * mixed), state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        parts, v, gate = self._parts(x, state["events"])
        turned_q, turned_k, q, k, values = parts.unbind(1)  # (S, H, D/H) each
        mixed, memory = linear_attention_step(turned_q, turned_k, values, state["memory"])
        keys = state["keys"] + k
        mixed = (mixed / (q * keys).sum(-1, keepdim=True).clamp_min(1e-6)).flatten(1)
        recent = torch.cat((state["recent"], v[:, None].to(state["recent"].dtype)), 1)  # (S, TAPS, D), oldest first
        mixed = mixed + (recent * self.taps.T.flip(0)).sum(1) + self.taps_bias
        state = TensorState(memory=memory, keys=keys, recent=recent[:, 1:], events=state["events"] + 1)
        return fast_linear(self.out, silu(gate) * mixed), state

    def _mix(self, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, TensorState]:
        """The output before the gate and the gate before its SiLU, (T, D) each, and the state."""
        parts, v, gate = self._parts(x, packing.positions)
        turned_q, turned_k, q, k, values = packing.pad(parts).unbind(2)  # (S, M, H, D/H) each
        mixed, memory = linear_attention_and_state(turned_q, turned_k, values)
        keys = k.cumsum(1)
        weight = (q * keys).sum(-1, keepdim=True)  # (S, M, H, 1), positive except in padding
        mixed = packing.unpad(mixed / weight.clamp_min(1e-6)).flatten(1)  # (T, D)
        mixed = mixed + short_conv(v, self.taps, self.taps_bias, cu_seqlens=packing.cu_seqlens)
        recent = last_rows(v, packing.cu_seqlens[:-1], packing.lengths, TAPS - 1)
        return mixed, gate, TensorState(memory=memory, keys=keys[:, -1], recent=recent, events=packing.lengths)

    def _parts(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, queries, keys and values of events, stacked (T, 5, H, D/H); and the values and
        the gate, (T, D) each."""
        gate, v = fast_linear(self.gate_value, x).chunk(2, -1)  # (T, D) each
        q, k = (elu(at_least_float32(fast_linear(self.query_key, v))) + 1).chunk(2, -1)
        angles = positions[:, None] * self.frequencies  # (T, D/2)
        parts = torch.stack((_turn(q, angles), _turn(k, angles), q, k, v.to(q.dtype)), 1)  # (T, 5, D)
        return parts.view(x.shape[0], 5, self.heads, -1), v, gate


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring features of ``x`` (T, D) by ``angles`` (T, D/2)."""
    even, odd = x.view(x.shape[0], -1, 2).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
