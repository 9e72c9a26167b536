"""FuXi-Linear's mixer: three linear channels (arXiv 2602.23671 and its authors' code).

    u, q, k, v = SiLU(W x)
    retention:   linear attention of q, k, v with a constant decay per head
    temporal:    values W_t x; a head weights event s in event t by the sine or the cosine of 2 pi (time_t - time_s)
                 / period, times sigmoid(g) to the power 2 pi (time_t - time_s) / period
    positional:  values W_p x; the weight is p_t . p_s / (E / 2) with learned features p, initialised as sinusoids,
                 plus a direct path: alpha sum + beta W_p x
    y = W_o (u * [norm(retention), norm(temporal), norm(positional)])

Ours: the query's time is that of its own event, where the authors' code takes the next event's, because no other system
here is told when the next event happens; g is learned for every period in every block. The residual connection and the
feed-forward network are the backbone's (the paper's has RMSNorm and SwiGLU). Without timestamps, positions serve as
times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, logsigmoid, silu, softplus

from hyenarec.config import ModelConfig
from hyenarec.errors import UserError
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.decaying_sums import decaying_sums, decaying_sums_step
from hyenarec.mixers.recurrences.linear_attention import linear_attention_and_state, linear_attention_step
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

PERIODS = 8  # 1, 16, 16^2, ... seconds, up to 8.5 years; fewer if the channels do not divide into twice as many heads
PERIOD_BASE = 16
POSITION_FEATURES = 32
SINUSOID_BASE = 10_000


class FuXiLinearMixer(Mixer):
    """The retention and positional channels are chunked linear attention, the temporal channel is decaying sums."""

    knows_time = True
    bounded = True
    rectangular = True
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
        rate = -self._rate().expand(1, packing.max_length, -1)  # shared by all sequences, padding included
        channels, gate, _ = self._mix(x, packing, timestamps, rate)
        if last_only:
            channels, gate = [channel[packing.last] for channel in channels], gate[packing.last]
        return self._gated(channels, gate)

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        dim = self.temporal_value.in_features
        size = dim // self.heads
        nothing = torch.zeros(sequences, dtype=torch.int64, device=self.periods.device)

        def memory(*shape: int) -> Tensor:
            return at_least_float32(self.positions.new_zeros(sequences, *shape))

        return TensorState(
            retention=memory(self.heads, size, size),
            temporal=memory(self.periods.shape[0], 2 * dim // self.periods.shape[0]),
            positional=memory(1, POSITION_FEATURES, dim),
            events=nothing,
            time=nothing.clone(),
        )

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        rate = packing.pad(-self._rate().expand(x.shape[0], -1))  # no decay in padding, where a state must not forget
        channels, gate, state = self._mix(x, packing, timestamps, rate)
        return self._gated(channels, gate), state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        events = state["events"]
        time = events if timestamps is None else timestamps
        gate, qkv = silu(fast_linear(self.gate_qkv, x)).chunk(2, -1)  # (S, 3D) each
        q, k, v = qkv.view(x.shape[0], 3, self.heads, -1).unbind(1)  # (S, H, D/H) each
        retention, kept = linear_attention_step(q, k, v, state["retention"], -self._rate().expand(x.shape[0], -1))
        waves, timed = self._timed(x, time)
        elapsed = (time - state["time"]) * (events > 0)
        timed = decaying_sums_step(timed, self._fading(), elapsed, state["temporal"])
        temporal = _waves_of(timed, waves)
        p, value = self.positions[events][:, None], fast_linear(self.positional_value, x)  # (S, 1, E), (S, D)
        summed, placed = linear_attention_step(p, p / (POSITION_FEATURES // 2), value[:, None], state["positional"])
        channels = [retention.flatten(1), temporal, self._placed(value, summed[:, 0])]
        after = TensorState(retention=kept, temporal=timed, positional=placed, events=events + 1, time=time)
        return self._gated(channels, gate), after

    def _mix(
        self, x: Tensor, packing: Packing, timestamps: Tensor | None, rate: Tensor
    ) -> tuple[list[Tensor], Tensor, TensorState]:
        """The three channels, (T, D) each, the gate (T, 3D) and the state. ``rate`` (1 or S, M, H) is the retention's
        log decay."""
        times = packing.positions if timestamps is None else timestamps
        gate, qkv = silu(fast_linear(self.gate_qkv, x)).chunk(2, -1)  # (T, 3D) each
        q, k, v = packing.pad(qkv.view(qkv.shape[0], 3, self.heads, -1)).unbind(2)  # (S, M, H, D/H) each
        retention, kept = linear_attention_and_state(q, k, v, rate)
        waves, timed = self._timed(x, times)
        sums, timed = decaying_sums(packing.pad(timed), self._fading(), packing.pad(packing.elapsed(times)))
        value = fast_linear(self.positional_value, x)
        p = self.positions[None, : packing.max_length, None]  # (1, M, 1, E), shared by all sequences
        summed, placed = linear_attention_and_state(p, p / (POSITION_FEATURES // 2), packing.pad(value)[:, :, None])
        channels = [
            packing.unpad(retention).flatten(1),
            _waves_of(packing.unpad(sums), waves),
            self._placed(value, packing.unpad(summed).flatten(1)),
        ]
        state = TensorState(
            retention=kept, temporal=timed, positional=placed, events=packing.lengths, time=times[packing.last]
        )
        return channels, gate, state

    def _gated(self, channels: list[Tensor], gate: Tensor) -> Tensor:
        mixed = torch.cat([layer_norm(channel, channel.shape[-1:]) for channel in channels], -1)  # (T, 3D)
        return fast_linear(self.out, gate * mixed)

    def _rate(self) -> Tensor:  # (H,)
        return softplus(self.retention_rate).cumsum(0)  # later heads forget faster

    def _fading(self) -> Tensor:
        """The log decay of the sums per second, for each period, (P,)."""
        return logsigmoid(self.temporal_decay) * (2 * math.pi / self.periods.to(self.temporal_decay.dtype))

    def _timed(self, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every event's time (T, P, 2), and what the event adds to the sums: cosine and sine, each
        times its values for the sine head and the cosine head, (T, P, 2 D / P)."""
        angle = (times[:, None] % self.periods).to(x.dtype)  # (T, P); on integers, so large times stay exact
        angle = angle * (2 * math.pi / self.periods.to(x.dtype))
        waves = torch.stack((angle.cos(), angle.sin()), -1)  # (T, P, 2)
        v = fast_linear(self.temporal_value, x).view(x.shape[0], self.periods.shape[0], 1, -1)  # (T, P, 1, D/P)
        return waves, (waves[..., None] * v).flatten(2)

    def _placed(self, value: Tensor, summed: Tensor) -> Tensor:
        return torch.addcmul(self.positional_mix[1] * value, self.positional_mix[0], summed)


def _waves_of(sums: Tensor, waves: Tensor) -> Tensor:
    """The temporal channel (T, D): combines the sums over cosines and sines of earlier times (T, P, 2 D / P) with those
    of the event's own time into sines and cosines of time differences."""
    cosines, sines = sums.chunk(2, -1)  # (T, P, D/P) each: the sine head's half, then the cosine head's
    cos, sin = waves.to(sums.dtype).chunk(2, -1)  # (T, P, 1) each
    half = cosines.shape[-1] // 2
    of_sine = sin * cosines[..., :half] - cos * sines[..., :half]
    of_cosine = cos * cosines[..., half:] + sin * sines[..., half:]
    return torch.cat((of_sine, of_cosine), -1).flatten(1)
