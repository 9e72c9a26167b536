"""HyTRec's mixers: a decaying memory for the whole history, softmax attention for the recent part (arXiv 2602.18283).

Of every four blocks, three are temporal-aware delta networks, whose memory fades with elapsed time, and the fourth is
attention to the recent events. The memory is the gated delta rule (:mod:`hyenarec.mixers.recurrences.delta_rule`) with

    log a_t = -softplus(w . x_t + c) - lambda dt_t,    b_t = sigmoid(w_b . x_t)

where dt_t is the number of days since the event before, and lambda > 0 is learned for every head. Ours: this form of
the decay; queries, keys and values, the norm and the gate after the memory, which are those of Gated DeltaNet (arXiv
2412.06464, section 3.4) without its short convolutions; attention in the last block of a model of two or three blocks,
so that both parts are there; the number of recent events. Without timestamps each event counts as a day.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, rms_norm, silu, softplus

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recent import RecentAttention
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.delta_rule import (
    gated_delta_rule,
    gated_delta_rule_and_state,
    gated_delta_rule_step,
)
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

PERIOD = 4  # blocks, of which one is attention
WINDOW = 64  # events that the attention sees
DAY = 86_400  # seconds
# Of the norm after the memory, which is nearly empty at the start of a history. With torch's default, the machine
# epsilon of the dtype, float32 gradients were off by up to their own size.
EPSILON = 1e-5


class HyTRecMixer(Mixer):
    """Attention to recent events or a decaying memory, depending on the block."""

    needs_positions = True  # for the attention, which cannot tell the order of events otherwise
    knows_time = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        recent = layer % PERIOD == PERIOD - 1 or (1 < config.blocks < PERIOD and layer == config.blocks - 1)
        self.part = RecentAttention(config, WINDOW) if recent else DecayingMemory(config)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        mixed: Tensor = self.part(x, packing, _days(x, packing, timestamps))  # (T, D)
        return mixed[packing.last] if last_only else mixed

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        nothing = torch.zeros(sequences, dtype=torch.int64, device=self.part.out.weight.device)
        return TensorState(self.part.init_state(sequences), events=nothing, time=nothing.clone())

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, state = self.part.prefill(x, packing, _days(x, packing, timestamps))
        time = torch.zeros_like(packing.lengths) if timestamps is None else timestamps[packing.last]
        return mixed, TensorState(state, events=packing.lengths, time=time)

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        later, time = (state["events"] > 0).to(x.dtype), state["time"]
        days = later if timestamps is None else later * (timestamps - time).to(x.dtype) / DAY
        mixed, after = self.part.step(x, state, days)
        return mixed, TensorState(after, events=state["events"] + 1, time=time if timestamps is None else timestamps)


def _days(x: Tensor, packing: Packing, timestamps: Tensor | None) -> Tensor:
    """Days since the event before, (T,), 0 for the first; without timestamps 1 day per event."""
    days = packing.elapsed(packing.positions if timestamps is None else timestamps).to(x.dtype)
    return days if timestamps is None else days / DAY


class DecayingMemory(nn.Module):
    """The gated delta rule, with a decay that also depends on elapsed time."""

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
        rule, gate = self._rule(x, days)
        return self._gated(gated_delta_rule(*rule, packing), gate)

    def init_state(self, sequences: int) -> TensorState:
        size = self.out.in_features // self.heads
        return TensorState(memory=at_least_float32(self.rate.new_zeros(sequences, self.heads, size, size)))

    def prefill(self, x: Tensor, packing: Packing, days: Tensor) -> tuple[Tensor, TensorState]:
        rule, gate = self._rule(x, days)
        read, memory = gated_delta_rule_and_state(*(packing.pad(y) for y in rule))
        return self._gated(packing.unpad(read), gate), TensorState(memory=memory)

    def step(self, x: Tensor, state: TensorState, days: Tensor) -> tuple[Tensor, TensorState]:
        rule, gate = self._rule(x, days)
        read, memory = gated_delta_rule_step(*rule, state["memory"])
        return self._gated(read, gate), TensorState(memory=memory)

    def _rule(self, x: Tensor, days: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Queries, keys, values, betas and log decays of the rule, and the gate after it (before its SiLU)."""
        qkv, gate = fast_linear(self.qkv_gate, x).split((3 * x.shape[1], x.shape[1]), -1)  # type: ignore[no-untyped-call]
        q, k, v = silu(qkv).view(x.shape[0], 3, self.heads, -1).unbind(1)  # (T, H, D/H) each
        decay, beta = fast_linear(self.decay_beta, x).chunk(2, -1)  # (T, H) each
        log_decay = -softplus(decay) - softplus(self.rate) * days[:, None]
        return (normalize(q, dim=-1), normalize(k, dim=-1), v, beta.sigmoid(), log_decay), gate

    def _gated(self, read: Tensor, gate: Tensor) -> Tensor:
        return fast_linear(self.out, rms_norm(read, read.shape[-1:], eps=EPSILON).flatten(1) * silu(gate))
