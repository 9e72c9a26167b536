"""FuXi-Linear's mixer: three linear channels (arXiv 2602.23671 and its authors' code).

    u, q, k, v = SiLU(W x)
    retention:   q, k, v with a constant decay a head
    temporal:    values W_t x; a head's weight of event s in event t is the sine or the cosine of 2 pi (time_t - time_s)
                 / period, times sigmoid(g) to the power 2 pi (time_t - time_s) / period
    positional:  values W_p x; the weight is p_t . p_s / (E / 2) with learned features p, begun as sinusoids, plus a
                 direct path: alpha sum + beta W_p x
    y = W_o (u * [norm(retention), norm(temporal), norm(positional)])

Ours: the query's time is the event's own, where the authors' code takes the next event's: no other system here is told
when that happens. g is learned for every period in every block. The residual and the feed-forward are the backbone's
(the paper's has RMSNorm and SwiGLU). Without timestamps positions are the times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, logsigmoid, silu, softplus

from hyenarec.config import ModelConfig
from hyenarec.errors import UserError
from hyenarec.mixers.base import Mixer
from hyenarec.mixers.recurrences.linear_attention import linear_attention
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

PERIODS = 8  # 1, 16, 16^2 .. seconds, up to 8.5 years; fewer where the channels do not divide into twice as many heads
PERIOD_BASE = 16
TEMPORAL_CHUNK = 16  # for many narrow heads: 0.14 s against 0.29 for 32, at 25,600 events, D = 64, one thread
POSITION_FEATURES = 32
SINUSOID_BASE = 10_000


class FuXiLinearMixer(Mixer):
    """Retention, temporal and positional channel, each by chunked linear attention."""

    knows_time = True
    periods: Tensor

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        dim = config.dim
        if dim % 2:
            raise UserError(f"option dim: {dim} is odd; mixer fuxi_linear has a sine and a cosine head for each period")
        self.heads = config.attention.heads
        self.gate_qkv = nn.Linear(dim, 6 * dim)
        self.out = nn.Linear(3 * dim, dim)
        self.retention_rate = nn.Parameter(0.02 * torch.randn(self.heads))
        periods = math.gcd(dim // 2, PERIODS)
        self.register_buffer("periods", PERIOD_BASE ** torch.arange(periods), persistent=False)  # (P,) int64
        self.temporal_value = nn.Linear(dim, dim, bias=False)
        self.temporal_decay = nn.Parameter(0.02 * torch.randn(periods))
        self.positional_value = nn.Linear(dim, dim, bias=False)
        frequencies = SINUSOID_BASE ** -(torch.arange(0, POSITION_FEATURES, 2) / POSITION_FEATURES)
        angles = torch.arange(config.max_length)[:, None] * frequencies
        self.positions = nn.Parameter(torch.cat((angles.sin(), angles.cos()), 1))  # (L, E)
        self.positional_mix = nn.Parameter(torch.tensor([0.02, 1.0]))  # alpha, beta

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        times = packing.positions if timestamps is None else timestamps
        gate, qkv = silu(fast_linear(self.gate_qkv, x)).chunk(2, -1)  # (T, 3D) each
        channels = (self._retention(qkv, packing), self._temporal(x, times, packing), self._positional(x, packing))
        mixed = torch.cat([layer_norm(channel, channel.shape[-1:]) for channel in channels], -1)  # (T, 3D)
        if last_only:
            mixed, gate = mixed[packing.last], gate[packing.last]
        return fast_linear(self.out, gate * mixed)

    def _retention(self, qkv: Tensor, packing: Packing) -> Tensor:
        q, k, v = packing.pad(qkv.view(len(qkv), 3, self.heads, -1)).unbind(2)  # (S, M, H, D/H) each
        rate = softplus(self.retention_rate).cumsum(0)  # later heads forget faster
        return packing.unpad(linear_attention(q, k, v, -rate.expand(1, packing.max_length, -1))).flatten(1)

    def _temporal(self, x: Tensor, times: Tensor, packing: Packing) -> Tensor:
        turns = 2 * math.pi / self.periods.to(x.dtype)  # (P,)
        angle = (times[:, None] % self.periods).to(x.dtype) * turns  # (T, P); whole numbers, so large times stay exact
        cos, sin = angle.cos(), angle.sin()
        k = torch.stack((cos, sin), -1)  # (T, P, 2)
        q = torch.stack((torch.stack((sin, -cos), -1), k), 2)  # (T, P, 2, 2): gives the sine, the cosine of differences
        log_decay = logsigmoid(self.temporal_decay) * turns * packing.elapsed(times)[:, None].to(x.dtype)  # (T, P)
        heads = 2 * self.periods.shape[0]
        v = fast_linear(self.temporal_value, x).view(len(x), heads, -1)  # (T, 2P, D/2P)
        q, k, log_decay, v = (
            packing.pad(y) for y in (q.flatten(1, 2), k.repeat_interleave(2, 1), log_decay.repeat_interleave(2, 1), v)
        )
        return packing.unpad(linear_attention(q, k, v, log_decay, chunk=TEMPORAL_CHUNK)).flatten(1)

    def _positional(self, x: Tensor, packing: Packing) -> Tensor:
        v = fast_linear(self.positional_value, x)
        p = self.positions[None, : packing.max_length, None]  # (1, M, 1, E), common to all sequences
        mixed = linear_attention(p, p / (POSITION_FEATURES // 2), packing.pad(v)[:, :, None])
        summed = packing.unpad(mixed).flatten(1)
        return torch.addcmul(self.positional_mix[1] * v, self.positional_mix[0], summed)
