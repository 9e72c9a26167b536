"""HyTRec's mixers: a decaying memory for the whole history, softmax attention for the recent part (arXiv 2602.18283).

Three blocks of four are temporal-aware delta networks, the fourth is attention over a recent window; what decides is
how long ago things happened. The memory is the gated delta rule (:mod:`hyenarec.mixers.recurrences.delta_rule`) with

    log a_t = -softplus(w . x_t + c) - lambda dt_t,    b_t = sigmoid(w_b . x_t)

dt_t being the days since the event before and lambda > 0 learned for every head. Ours: this form of the decay; keys,
queries and values, the norm and the gate after the memory as Gated DeltaNet has them (arXiv 2412.06464, section 3.4)
but without its short convolutions; that a model of two or three blocks ends with the attention, so that both parts are
there; the width of the window. Without timestamps each event counts as a day.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, rms_norm, scaled_dot_product_attention, silu, softplus

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer
from hyenarec.mixers.recurrences.delta_rule import gated_delta_rule
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

PERIOD = 4  # blocks, of which one is attention
WINDOW = 64  # events that the attention sees
DAY = 86_400  # seconds
# Of the norm after the memory, which is nearly empty where a history begins: with torch's default, a precision's own,
# gradients in float32 were off by up to their own size.
EPSILON = 1e-5


class HyTRecMixer(Mixer):
    """One part or the other, by block."""

    needs_positions = True  # for the attention: inside its window nothing else tells the order
    knows_time = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        recent = layer % PERIOD == PERIOD - 1 or (1 < config.blocks < PERIOD and layer == config.blocks - 1)
        self.part = RecentAttention(config) if recent else DecayingMemory(config)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        days = packing.elapsed(packing.positions if timestamps is None else timestamps).to(x.dtype)
        mixed: Tensor = self.part(x, packing, days if timestamps is None else days / DAY)  # (T, D)
        return mixed[packing.last] if last_only else mixed


class DecayingMemory(nn.Module):
    """The gated delta rule whose decay also falls with elapsed time."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.attention.heads
        self.qkv_gate = nn.Linear(config.dim, 4 * config.dim)
        self.decay_beta = nn.Linear(config.dim, 2 * self.heads)
        self.rate = nn.Parameter(torch.full((self.heads,), -3.0))  # before the softplus: a memory of 20 days
        self.out = nn.Linear(config.dim, config.dim)
        with torch.no_grad():  # a memory of 16 events in the first head, 256 in the last
            self.decay_beta.bias[: self.heads] = torch.linspace(-2.8, -5.5, self.heads)

    def forward(self, x: Tensor, packing: Packing, days: Tensor) -> Tensor:
        qkv, gate = fast_linear(self.qkv_gate, x).split((3 * x.shape[1], x.shape[1]), -1)  # type: ignore[no-untyped-call]
        q, k, v = silu(qkv).view(len(x), 3, self.heads, -1).unbind(1)  # (T, H, D/H) each
        decay, beta = fast_linear(self.decay_beta, x).chunk(2, -1)  # (T, H) each
        log_decay = -softplus(decay) - softplus(self.rate) * days[:, None]
        read = gated_delta_rule(normalize(q, dim=-1), normalize(k, dim=-1), v, beta.sigmoid(), log_decay, packing)
        return fast_linear(self.out, rms_norm(read, read.shape[-1:], eps=EPSILON).flatten(1) * silu(gate))


class RecentAttention(nn.Module):
    """Softmax attention of every event to the last ``WINDOW`` events of its sequence, itself among them.

    Blocks of ``WINDOW`` packed events attend to themselves and the block before, whatever the sequences' lengths.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.attention.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, packing: Packing, days: Tensor) -> Tensor:
        events = x.shape[0]
        spare = -events % WINDOW
        qkv = pad(fast_linear(self.qkv, x), (0, 0, 0, spare)).view(-1, WINDOW, 3, self.heads, x.shape[1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, H, W, D/H) each
        k, v = (torch.cat((pad(y, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], y), 2) for y in (k, v))  # (N, H, 2W, D/H)
        event = torch.arange(events + spare, device=x.device).view(-1, WINDOW, 1)  # (N, W, 1)
        key = event[:, :1] + torch.arange(-WINDOW, WINDOW, device=x.device)  # (N, 1, 2W)
        first = pad(torch.arange(events, device=x.device) - packing.positions, (0, spare)).view(-1, WINDOW, 1)
        seen = (key <= event) & (key > event - WINDOW) & (key >= first)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])  # (N, H, W, D/H)
        return fast_linear(self.out, mixed.transpose(1, 2).flatten(0, 1).flatten(1)[:events])
