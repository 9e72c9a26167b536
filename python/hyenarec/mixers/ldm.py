"""LDM's mixer: a history split into scales by moving averages (arXiv 2412.16572 and its authors' code).

    m_k = moving average of m_{k-1} over p_k events,    m_0 = W x
    c_k = m_{k-1} - m_k,   c_last = m_last              what lives between the periods p_{k-1} and p_k
    y_t = W_o (SiLU(W_g x_t) * sum_k sum_j a_kj * pooled_k[t - j p_{k-1}])

pooled_k averages c_k over p_{k-1} events, the shortest period that is left in it. The last few such samples of each
scale feed that scale's own predictor, and the predictions are summed. Recent samples average few events and old ones
many, so a long history costs only a few numbers per scale.

Ours: averages over past events only (over as many as there are, at the start of a history), where the authors centre
theirs in a series that is known to its end; average pooling over the whole shorter period, where they take half of it;
periods 4, 16, 64, ... up to half the longest history; predictors that weight samples channel by channel, where theirs
are Transformers over one series; the gate SiLU(W_g x) after the sum, without which everything would be linear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear
from hyenarec_kernels.segments import last_rows

PERIOD = 4  # the shortest period, and the ratio of each period to the one before
SAMPLES = 8  # per scale


class LDMMixer(Mixer):
    """Computes moving averages as differences of running sums."""

    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        dim = config.dim
        self.periods = [1]  # events that each scale pools
        while self.periods[-1] * PERIOD <= max(config.max_length // 2, PERIOD):
            self.periods.append(self.periods[-1] * PERIOD)
        # How many events an output depends on: its oldest sample is a pooled average of averages.
        self.reach = sum(period - 1 for period in self.periods) + SAMPLES * self.periods[-1]
        self.value_gate = nn.Linear(dim, 2 * dim)
        self.weight = nn.Parameter(torch.randn(len(self.periods), SAMPLES, dim) / SAMPLES)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        mixed, gate, _ = self._mix(x, packing)
        if last_only:
            mixed, gate = mixed[packing.last], gate[packing.last]
        return fast_linear(self.out, silu(gate) * mixed)

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        """The values of the last ``reach`` events, the newest last, and the number of events read."""
        dim = self.out.weight.shape[0]
        return TensorState(
            values=self.weight.new_zeros(sequences, self.reach, dim),
            events=torch.zeros(sequences, dtype=torch.int64, device=self.weight.device),
        )

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, gate, value = self._mix(x, packing)
        kept = last_rows(value.contiguous(), packing.cu_seqlens[:-1], packing.lengths, self.reach)
        return fast_linear(self.out, silu(gate) * mixed), TensorState(values=kept, events=packing.lengths)

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        value, gate = fast_linear(self.value_gate, x).chunk(2, -1)  # (S, D) each
        values = torch.cat((state["values"][:, 1:], value[:, None].to(state["values"].dtype)), 1)  # (S, R, D)
        place = state["events"][:, None] - torch.arange(self.reach - 1, -1, -1, device=x.device)  # (S, R)
        mixed = self._scales(values, place)[:, -1]
        state = TensorState(values=values, events=state["events"] + 1)
        return fast_linear(self.out, silu(gate) * mixed.to(gate.dtype)), state

    def _mix(self, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the predictions, the gate (before its SiLU) and the values, (T, D) each."""
        value, gate = fast_linear(self.value_gate, x).chunk(2, -1)
        places = torch.arange(packing.max_length, device=x.device)[None]
        mixed = packing.unpad(self._scales(packing.pad(value), places))
        return mixed.to(gate.dtype), gate, value

    def _scales(self, values: Tensor, place: Tensor) -> Tensor:
        """The sum of all predictions (S, M, D), from values (S, M, D) of the events at positions ``place`` (S or 1, M);
        entries with a negative position are no events."""
        there = (place >= 0)[..., None]
        rest = at_least_float32(values) * there
        mixed = torch.zeros_like(rest)
        for scale, period in enumerate(self.periods):
            split = self.periods[scale + 1] if scale + 1 < len(self.periods) else 0
            slower = _average(rest, place, split) * there if split else torch.zeros_like(rest)
            samples = _average(rest - slower, place, period) * there
            for number, weight in enumerate(self.weight[scale]):
                mixed = mixed + weight * _later(samples, number * period)
            rest = slower
        return mixed


def _later(x: Tensor, events: int) -> Tensor:
    """``x`` (S, M, D) shifted by so many events to later positions, zeros before."""
    return pad(x, (0, 0, events, 0))[:, : x.shape[1]] if events else x


def _average(x: Tensor, place: Tensor, period: int) -> Tensor:
    """The mean of ``x`` (S, M, D) over the last ``period`` events, or over as many as there are."""
    if period == 1:
        return x
    sums = x.cumsum(1)
    return (sums - _later(sums, period)) / (place + 1).clamp(1, period)[..., None]
