"""GEMs' mixer: three streams of a history, each mixed in its own way and summed (arXiv 2602.13631).

    recent      softmax attention to the last events
    middle      softmax attention to the k events that an indexer picks out of the many before those
    lifecycle   a linear compression of the whole history
    y = W_o (recent + middle) + lifecycle

The sum has no parameters, because learned gates are said to collapse onto the recent stream. The indexer has two small
heads and learns only from a loss of its own: the divergence between its distribution over the whole middle and the
attention's. The streams and the sum without parameters are in the paper's abstract; the rest is from notes on the
paper, not from its equations.

Ours: the formula of an index, sum_i SiLU(q_ti . k_s), with keys shared by both heads; the Hyena convolution as the
lifecycle stream, where the paper compresses offline; 64 recent events and 512 in the middle, of which 32 are picked (in
the paper the last 256, and up to 5,000), fewer for models of shorter histories; training that computes the attention to
the whole middle, for the indexer to learn from, and then drops what was not picked, so that only the picked events
count and the cost grows linearly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from hyenarec.config import ModelConfig
from hyenarec.mixers.auxiliary import with_loss
from hyenarec.mixers.base import Mixer, State, TensorState
from hyenarec.mixers.blocks import block_size, by_block, by_heads, lags, softmax_of_seen, with_before
from hyenarec.mixers.hyena import HyenaRecMixer
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear
from hyenarec_kernels.segments import last_rows

MIDDLE_BLOCKS = 8  # each as long as the recent stream
INDEX_HEADS, INDEX_SIZE = 2, 16


@dataclass(frozen=True)
class StreamsState:
    """The state of the attention to recent and middle events, ``near``, and of the lifecycle stream, ``far``."""

    near: TensorState
    far: State

    def index(self, rows: Tensor) -> StreamsState:
        return StreamsState(self.near.index(rows), self.far.index(rows))

    @staticmethod
    def cat(states: Sequence[StreamsState]) -> StreamsState:
        near, far = [state.near for state in states], [state.far for state in states]
        return StreamsState(TensorState.cat(near), type(far[0]).cat(far))

    def tensors(self) -> dict[str, Tensor]:
        return {**self.near.tensors(), **{f"far.{name}": values for name, values in self.far.tensors().items()}}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> StreamsState:
        far = self.far.with_tensors({name: tensors[f"far.{name}"] for name in self.far.tensors()})
        return StreamsState(self.near.with_tensors({name: tensors[name] for name in self.near}), far)


class GEMsMixer(Mixer):
    """Attends by blocks: to the recent events, and to those picked from the ``MIDDLE_BLOCKS`` blocks before them."""

    needs_positions = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        dim = config.dim
        self.heads, self.recent = config.attention.heads, block_size(config.max_length)
        self.picked = max(1, self.recent // 2)
        self.reach = (1 + MIDDLE_BLOCKS) * self.recent
        self.qkv = nn.Linear(dim, 3 * dim)
        self.indexer = nn.Linear(dim, (INDEX_HEADS + 1) * INDEX_SIZE)
        self.out = nn.Linear(dim, dim)
        self.lifecycle = HyenaRecMixer(config, layer)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        near, _, _ = self._near(x, packing)
        if last_only:
            near = near[packing.last]
        far: Tensor = self.lifecycle(x, packing, last_only=last_only)
        return near + far

    def init_state(self, sequences: int, *, compact: bool = False) -> StreamsState:
        """Keys, values and indexer keys of the last ``reach`` events, the newest last; and the lifecycle's state."""
        weight = self.out.weight
        near = TensorState(
            cache=weight.new_zeros(sequences, self.reach, 2 * weight.shape[0]),
            index_keys=weight.new_zeros(sequences, self.reach, INDEX_SIZE),
            events=torch.zeros(sequences, dtype=torch.int64, device=weight.device),
        )
        return StreamsState(near, self.lifecycle.init_state(sequences, compact=compact))

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, StreamsState]:
        mixed, keys_values, index_keys = self._near(x, packing)
        far, after = self.lifecycle.prefill(x, packing, compact=compact)
        starts, lengths = packing.cu_seqlens[:-1], packing.lengths
        kept = (last_rows(part.contiguous(), starts, lengths, self.reach) for part in (keys_values, index_keys))
        near = TensorState(zip(("cache", "index_keys"), kept, strict=True), events=lengths)
        return mixed + far, StreamsState(near, after)

    def step(self, x: Tensor, state: StreamsState, *, timestamps: Tensor | None = None) -> tuple[Tensor, StreamsState]:
        near, reach = state.near, self.reach
        q, new = fast_linear(self.qkv, x).split((x.shape[1], 2 * x.shape[1]), -1)  # type: ignore[no-untyped-call]
        index_query, index_key = self._index_parts(x)
        cache = torch.cat((near["cache"][:, 1:], new[:, None].to(near["cache"].dtype)), 1)  # (S, R, 2D)
        index_keys = torch.cat((near["index_keys"][:, 1:], index_key[:, None].to(cache.dtype)), 1)  # (S, R, ·)
        there = torch.arange(reach, 0, -1, device=x.device) <= near["events"][:, None] + 1  # (S, R)
        older = reach - self.recent  # where the recent events begin
        scores, v = self._scores(q[:, None], cache.to(q.dtype))  # (S, H, 1, R), (S, H, R, D/H)
        index = self._index(index_query[:, None], index_keys[:, :older].to(x.dtype))  # (S, 1, ·)
        mixed = self._recent(scores[..., older:], v[..., older:, :], there[:, None, older:])
        mixed = mixed + self._middle(scores[..., :older], v[..., :older, :], index, there[:, None, :older])
        mixed = mixed.transpose(-3, -2).flatten(-2)[:, 0]
        far, after = self.lifecycle.step(x, state.far)
        kept = TensorState(cache=cache, index_keys=index_keys, events=near["events"] + 1)
        return fast_linear(self.out, mixed) + far, StreamsState(kept, after)

    def _near(self, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the first two streams (T, D), keys and values (T, 2D) and the indexer's keys (T, ·)."""
        size, dim = self.recent, x.shape[1]
        q, keys_values = fast_linear(self.qkv, x).split((dim, 2 * dim), -1)  # type: ignore[no-untyped-call]
        index_query, index_key = self._index_parts(x.detach())
        parts = (q, index_query, keys_values, index_key)
        q_n, index_q, kv_n, index_k = (by_block(packing.pad(part), size) for part in parts)  # (S, N, C, ·) each
        count = max(1, min(MIDDLE_BLOCKS + 1, q_n.shape[1] - 1))  # preceding blocks to read, no more than there are
        older = (count - 1) * size  # keys before the previous block
        lag = lags(size, count, x.device)  # (C, K), K = older + 2 C
        first = torch.arange(q_n.shape[1], device=x.device)[:, None, None] * size  # (N, 1, 1)
        there = first + torch.arange(-older - size, size, device=x.device) >= 0  # (N, 1, K)
        recent, middle = (lag >= 0) & (lag < size) & there, (lag >= size) & (lag < self.reach) & there  # (N, C, K)
        scores, v = self._scores(q_n, with_before(kv_n, count))
        # The middle ends in the previous block, where the recent events begin.
        index = self._index(index_q, with_before(index_k, count)[:, :, :-size])  # (S, N, C, K - C)
        middle, old = middle[..., :-size], scores[..., :-size]
        mixed = self._recent(scores[..., older:], v[..., older:, :], recent[..., older:])
        mixed = mixed + self._middle(old, v[..., :-size, :], index, middle)  # (S, N, H, C, D/H)
        mixed = mixed.transpose(-3, -2).flatten(-2).flatten(1, 2)[:, : packing.max_length]
        mixed = fast_linear(self.out, packing.unpad(mixed))
        if torch.is_grad_enabled():
            mixed = with_loss(mixed, self._divergence(old.detach(), index, middle, packing))
        return mixed, keys_values, index_key

    def _index_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The indexer's queries (..., INDEX_HEADS * INDEX_SIZE), of all its heads, and its keys (..., INDEX_SIZE)."""
        parts = fast_linear(self.indexer, x)
        return parts.split((INDEX_HEADS * INDEX_SIZE, INDEX_SIZE), -1)  # type: ignore[no-any-return,no-untyped-call]

    def _index(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The index of every key (..., K, ·) for every query (..., C, ·), (..., C, K)."""
        first, second = (silu(at_least_float32(query @ keys.mT)) for query in queries.chunk(INDEX_HEADS, -1))
        return first + second

    def _scores(self, q: Tensor, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention scores of queries (..., C, D) for keys, (..., H, C, K), and the values (..., H, K, D/H)."""
        q, k, v = by_heads(q, keys_values, self.heads)
        return at_least_float32(q * q.shape[-1] ** -0.5 @ k.mT), v

    def _recent(self, scores: Tensor, v: Tensor, recent: Tensor) -> Tensor:
        """Attention to keys that are ``recent`` (..., C, K): scores (..., H, C, K), values (..., H, K, D/H), to
        (..., H, C, D/H)."""
        weights = scores.masked_fill(~recent.unsqueeze(-3), -torch.inf).softmax(-1)  # each event sees at least itself
        return weights.to(v.dtype) @ v

    def _middle(self, scores: Tensor, v: Tensor, index: Tensor, middle: Tensor) -> Tensor:
        """As :meth:`_recent`, but attends to the keys of the ``middle`` (..., C, K) with the highest ``index``
        (..., C, K)."""
        with torch.no_grad():
            ranked = index.masked_fill(~middle, -torch.inf)
            best, picked = ranked.topk(min(self.picked, index.shape[-1]), -1, sorted=False)  # (..., C, k) each
            there = (best > -torch.inf).unsqueeze(-3)
            picked = picked.unsqueeze(-3).expand(*scores.shape[:-1], -1)  # (..., H, C, k)
        few = softmax_of_seen(scores.gather(-1, picked), there)
        weights = torch.zeros_like(scores).scatter(-1, picked, few)
        return weights.to(v.dtype) @ v

    def _divergence(self, scores: Tensor, index: Tensor, middle: Tensor, packing: Packing) -> Tensor:
        """The divergence () of the indexer's distribution over the middle from the attention's, a mean over the events
        of the batch that have a middle. It leaves out the entropy of the attention, which has no gradient."""
        real = by_block(packing.pad(torch.ones_like(packing.positions)), self.recent) > 0  # (S, N, C)
        known = real & middle.any(-1)
        # Not -inf, which would give NaN in rows without a middle, although those rows do not count.
        outside = torch.zeros(middle.shape, dtype=index.dtype, device=index.device).masked_fill_(~middle, -1e30)
        want = (scores + outside.unsqueeze(-3)).softmax(-1).mean(-3)  # (S, N, C, K)
        log_index = (index + outside).log_softmax(-1)
        each = -(want * log_index).sum(-1)
        total = (packing.batch_lengths - self.recent).clamp_min(0).sum()  # an event has one if it has a lag so long
        return torch.where(known, each, 0).sum() / total.clamp_min(1)
