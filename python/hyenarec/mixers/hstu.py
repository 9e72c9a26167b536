"""HSTU's mixer: pointwise attention without a softmax (arXiv 2402.17152 and its authors' code).

    u, v, q, k = SiLU(W x)
    a_ts = SiLU(q_t . k_s + position_bias[t - s] + time_bias[log(time_t - time_s) / 0.301]) / L    (s <= t)
    y_t = W_o (u_t * norm(sum_s a_ts v_s))

The heads share the biases, L is the model's ``max_length``, and the input has learned positions. The cost is quadratic
in the length, as in the paper. Ours: the query's time is that of its own event, where the authors' code takes the next
event's, because no other system here is told when the next event happens. The feed-forward network after the mixer is
the backbone's; the paper's block has none. Without timestamps, positions serve as times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, silu

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState, most
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

TIME_BUCKETS = 128  # plus one for all longer times
BUCKET_WIDTH = 0.301  # in the logarithm of seconds
EPSILON = 1e-6
# Queries per block: few enough that their weights stay in a CPU's cache, and that few of their keys are later events.
ROWS = 128


class HSTUMixer(Mixer):
    """Attention whose weights need not sum to 1, so that the output still shows how much there is to attend to."""

    needs_positions = True
    knows_time = True
    bounded = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads, self.max_length = config.attention.heads, config.max_length
        self.uvqk = nn.Linear(config.dim, 4 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.position_bias = nn.Parameter(0.02 * torch.randn(config.max_length))  # by lag
        self.time_bias = nn.Parameter(0.02 * torch.randn(TIME_BUCKETS + 1))

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        return self._mix(x, packing, timestamps, last_only)[0]

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        """The cache of values, keys and times. It has room for ``max_length`` events, as many as lags have biases."""
        weight = self.out.weight
        cache = weight.new_zeros(sequences, self.max_length, 2, self.heads, weight.shape[1] // self.heads)
        nothing = torch.zeros(sequences, dtype=torch.int64, device=weight.device)
        return TensorState(cache=cache, times=nothing[:, None].repeat(1, self.max_length), events=nothing)

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, kept, times = self._mix(x, packing, timestamps, False)
        state = self.init_state(packing.sequences)
        state["cache"][:, : packing.max_length] = kept
        state["times"][:, : packing.max_length] = times
        state["events"] += packing.lengths
        return mixed, state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        cache, times, events = state["cache"], state["times"], state["events"]
        u, v, q, k = silu(fast_linear(self.uvqk, x)).chunk(4, -1)  # (S, D) each
        rows = torch.arange(x.shape[0], device=x.device)
        cache[rows, events] = torch.stack((v, k), 1).view(x.shape[0], 2, self.heads, -1).to(cache.dtype)
        times[rows, events] = events if timestamps is None else timestamps
        longest = most(events + 1, self.max_length)
        values, keys = cache[:, :longest].to(q.dtype).permute(2, 0, 3, 1, 4)  # (S, H, M, D/H) each
        q = q.view(x.shape[0], self.heads, 1, -1)
        lag = (events[:, None] - torch.arange(longest, device=x.device))[:, None]  # (S, 1, M)
        elapsed = (times[rows, events, None] - times[:, :longest])[:, None]  # (S, 1, M)
        bias = self.position_bias[lag.clamp_min(0)] + self.time_bias[_bucket(elapsed)]  # (S, 1, M)
        weights = silu(q @ keys.mT + bias[:, None]) * (lag >= 0)[:, None] / self.max_length  # (S, H, 1, M)
        mixed = (weights.to(values.dtype) @ values).flatten(1)  # (S, D)
        return self._gated(u, mixed), TensorState(cache=cache, times=times, events=events + 1)

    def _mix(
        self, x: Tensor, packing: Packing, timestamps: Tensor | None, last_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output (T, D) or (S, D), the values and keys (S, M, 2, H, D/H), and the times (1 or S, M)."""
        u, vqk = silu(fast_linear(self.uvqk, x)).split((x.shape[1], 3 * x.shape[1]), -1)  # type: ignore[no-untyped-call]
        padded = packing.pad(vqk.view(x.shape[0], 3, self.heads, -1))  # (S, M, 3, H, D/H)
        places = torch.arange(packing.max_length, device=x.device)[None]
        times = places if timestamps is None else packing.pad(timestamps)  # (1 or S, M)
        with torch.autocast(x.device.type, enabled=False):
            v, q, k = at_least_float32(padded).permute(2, 0, 3, 1, 4)  # (S, H, M, D/H) each
            mixed = _PointwiseAttention.apply(  # type: ignore[no-untyped-call]
                q, k, v, self.position_bias, self.time_bias, times, self.max_length
            )
        mixed = packing.unpad(mixed.transpose(1, 2).flatten(2))  # (T, D)
        if last_only:
            u, mixed = u[packing.last], mixed[packing.last]
        return self._gated(u, mixed), padded[:, :, ::2], times

    def _gated(self, u: Tensor, mixed: Tensor) -> Tensor:
        return fast_linear(self.out, u * layer_norm(mixed, mixed.shape[-1:], eps=EPSILON))


def _bucket(elapsed: Tensor) -> Tensor:
    """The bucket of each elapsed time in seconds, int64; negative times count as 0."""
    return (elapsed.clamp_min(1).to(torch.float32).log() / BUCKET_WIDTH).long().clamp_max(TIME_BUCKETS)


class _PointwiseAttention(torch.autograd.Function):
    """Takes ``ROWS`` queries at a time and recomputes their weights in the backward pass, so that the weights of all
    queries are never in memory at once."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, by_lag: Tensor, by_time: Tensor, times: Tensor, count: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, by_lag, by_time, times)
        ctx.count = count
        out = torch.empty_like(q)
        for rows, last in _blocks(q):
            scores, seen, _, _ = _scores(q[:, :, rows], k[:, :, :last], by_lag, by_time, times, rows)
            out[:, :, rows] = silu(scores).mul_(seen) @ v[:, :, :last]
        return out.div_(count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, by_lag, by_time, times = ctx.saved_tensors
        grad = grad / ctx.count
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad_lag, grad_time = torch.zeros_like(by_lag), torch.zeros_like(by_time)
        for rows, last in _blocks(q):
            queries, keys, out = q[:, :, rows], k[:, :, :last], grad[:, :, rows]
            scores, seen, lag, bucket = _scores(queries, keys, by_lag, by_time, times, rows)
            gate = scores.sigmoid()
            weights = scores * gate
            grad_v[:, :, :last] += weights.mul_(seen).mT @ out
            slope = (1 - gate).mul_(scores).add_(1).mul_(gate).mul_(seen)  # derivative of the SiLU
            slope.mul_(out @ v[:, :, :last].mT)  # (S, H, R, M), gradient of the scores
            grad_q[:, :, rows] = slope @ keys
            grad_k[:, :, :last] += slope.mT @ queries
            slope = slope.sum(1).sum_to_size(bucket.shape)  # (1 or S, R, M), gradient of the biases
            grad_lag.index_add_(0, lag.flatten(), slope.sum(0).flatten().to(grad_lag.dtype))
            grad_time.index_add_(0, bucket.flatten(), slope.flatten().to(grad_time.dtype))
        return grad_q, grad_k, grad_v, grad_lag, grad_time, None, None


def _blocks(q: Tensor) -> list[tuple[slice, int]]:
    """The rows of each block of queries, and the end of the keys that they may see."""
    events = q.shape[2]
    return [(slice(first, min(first + ROWS, events)), min(first + ROWS, events)) for first in range(0, events, ROWS)]


def _scores(
    q: Tensor, k: Tensor, by_lag: Tensor, by_time: Tensor, times: Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For the queries at ``rows``: scores (S, H, R, M), which keys each may see (R, M) as 0 or 1, lags (R, M) and time
    buckets (1 or S, R, M)."""
    last = k.shape[2]
    lag = torch.arange(rows.start, last, device=q.device)[:, None] - torch.arange(last, device=q.device)
    seen, lag = (lag >= 0).to(q.dtype), lag.clamp_min(0)
    bucket = _bucket(times[:, rows, None] - times[:, None, :last])
    bias = by_lag[lag] + by_time[bucket]  # (1 or S, R, M)
    return (q @ k.mT).add_(bias[:, None]), seen, lag, bucket
