"""SparseK's mixer: attention to a few selected events and to the recent ones (arXiv 2406.16747).

    z_s = w . x_s + slope s                                  a score of every event, the same for all queries
    p = argmin |p - z|^2 over 0 <= p <= 1, sum p = k         the selection: p_s = clip(z_s - tau, 0, 1)

p is computed for every prefix of the history, so that an event competes only with those before it. tau never falls as
events arrive, so an event whose p is 0 stays out for good, and the number of events to remember is bounded. p is how
much an event counts in the attention, and the scores learn through it.

Ours: an event enters the selection once it is no longer among the recent ones, which are all attended to, so that no
event counts twice; only the m events of a prefix with the highest scores may have p above 0, which guarantees the bound
(otherwise p might be spread over any number of equal scores) and changes nothing of the above; p multiplies an event's
weight in the softmax, so that an event fades before it is dropped; one selection for all heads; the number of recent
events, k and m.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.blocks import block_size, by_block, by_heads, lags, softmax_of_seen, with_before
from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear
from hyenarec_kernels.segments import last_rows

HALVINGS = {torch.float32: 26, torch.float64: 56}  # bisections for tau, as many as the dtype has binary digits


class SparseKMixer(Mixer):
    """Each block of events attends to itself, to the block before, and to the events selected before that."""

    needs_positions = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads, self.window = config.attention.heads, block_size(config.max_length)
        self.selected, self.kept = max(1, self.window // 2), self.window  # k and m
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.score = nn.Linear(config.dim, 1, bias=False)
        self.slope = nn.Parameter(torch.full((1,), 0.25))  # per ``window`` events

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        mixed = self._mix(x, packing)[0]
        return mixed[packing.last] if last_only else mixed

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        """Keys, values and scores of the recent events, the newest last, and of those kept from before them."""
        weight = self.out.weight
        dim = weight.shape[0]
        return TensorState(
            recent=weight.new_zeros(sequences, self.window, 2 * dim),
            recent_scores=at_least_float32(weight.new_full((sequences, self.window), -torch.inf)),
            kept=weight.new_zeros(sequences, self.kept, 2 * dim),
            kept_scores=at_least_float32(weight.new_full((sequences, self.kept), -torch.inf)),
            events=torch.zeros(sequences, dtype=torch.int64, device=weight.device),
        )

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, scores, keys_values = self._mix(x, packing)
        starts, device = packing.cu_seqlens[:-1], x.device
        state = self.init_state(packing.sequences)
        there = torch.arange(self.window, 0, -1, device=device) <= packing.lengths[:, None]  # (S, W)
        recent = last_rows(scores[:, None], starts, packing.lengths, self.window)[..., 0]
        state["recent"] = last_rows(keys_values, starts, packing.lengths, self.window).to(state["recent"].dtype)
        state["recent_scores"] = recent.masked_fill(~there, -torch.inf)
        padded = packing.pad(torch.cat((scores[:, None], keys_values), 1))  # (S, M, 1 + 2D)
        older = torch.arange(packing.max_length, device=device) < packing.lengths[:, None] - self.window  # (S, M)
        ranked = padded[..., 0].masked_fill(~older, -torch.inf)
        best = ranked.topk(min(self.kept, packing.max_length), 1)
        count = best.values.shape[1]
        state["kept_scores"][:, :count] = best.values
        state["kept"][:, :count] = padded[..., 1:].take_along_dim(best.indices[..., None], 1).to(state["kept"].dtype)
        state["events"] += packing.lengths
        return mixed, state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        events = state["events"]
        q, new = fast_linear(self.qkv, x).split((x.shape[1], 2 * x.shape[1]), -1)  # type: ignore[no-untyped-call]
        # The event that is no longer recent joins the selection; of the m + 1 the one with the lowest score is dropped.
        scores = torch.cat((state["kept_scores"], state["recent_scores"][:, :1]), 1)  # (S, m + 1)
        kept = torch.cat((state["kept"], state["recent"][:, :1]), 1)
        best = scores.topk(self.kept, 1)
        scores, kept = best.values, kept.take_along_dim(best.indices[..., None], 1)
        recent = torch.cat((state["recent"][:, 1:], new[:, None].to(kept.dtype)), 1)  # (S, W, 2D)
        score = self._scores(x, events)[:, None]
        recent_scores = torch.cat((state["recent_scores"][:, 1:], score), 1)
        p = torch.cat((self._selection(scores, scores > -torch.inf), (recent_scores > -torch.inf).to(score.dtype)), 1)
        keys_values = torch.cat((kept, recent), 1).to(q.dtype)
        mixed = self._attend(q[:, None], keys_values, p[:, None])[:, 0]
        after = TensorState(
            recent=recent, recent_scores=recent_scores, kept=kept, kept_scores=scores, events=events + 1
        )
        return fast_linear(self.out, mixed), after

    def _mix(self, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
        """The output (T, D), the scores (T,), and the keys and values (T, 2D)."""
        size, dim = self.window, x.shape[1]
        q, keys_values = fast_linear(self.qkv, x).split((dim, 2 * dim), -1)  # type: ignore[no-untyped-call]
        scores = self._scores(x, packing.positions)
        length = packing.lengths[:, None]
        padded = packing.pad(keys_values)
        rows = torch.arange(packing.max_length, device=x.device)
        z = by_block(packing.pad(scores).masked_fill(rows >= length, -torch.inf), size)  # (S, N, C)
        kept, places = self._kept(z.detach())  # (S, N, m) each
        kept = (
            z.flatten(1).take_along_dim(places.flatten(1), 1).view(places.shape).masked_fill(kept.isinf(), -torch.inf)
        )
        before = torch.cat((torch.full_like(z[:, :1], -torch.inf), z[:, :-1]), 1)  # (S, N, C), the block before
        lag = lags(size, 1, x.device)  # (C, 2C)
        left = lag[:, :size] >= size  # (C, C), events of the block before that are no longer recent
        p = self._selections(kept, before, left)  # (S, N, C, m + C)
        inside = ((lag >= 0) & (lag < size)).to(p.dtype)  # (C, 2C)
        first = torch.arange(z.shape[1], device=x.device) == 0
        inside = inside * (~first[:, None, None] | (torch.arange(2 * size, device=x.device) >= size))  # (N, C, 2C)
        counts = inside.expand(z.shape[0], -1, -1, -1)
        counts = torch.cat((p[..., : self.kept], p[..., self.kept :] + counts[..., :size], counts[..., size:]), -1)
        blocks = by_block(padded, size)  # (S, N, C, 2D)
        chosen = blocks.flatten(1, 2).take_along_dim(places.flatten(1)[..., None], 1).view(*places.shape, 2 * dim)
        everything = torch.cat((chosen, with_before(blocks, 1)), 2)  # (S, N, m + 2C, 2D)
        mixed = self._attend(by_block(packing.pad(q), size), everything, counts)  # (S, N, C, D)
        mixed = packing.unpad(mixed.flatten(1, 2)[:, : packing.max_length])
        return fast_linear(self.out, mixed), scores, keys_values

    def _scores(self, x: Tensor, positions: Tensor) -> Tensor:
        """The scores z (T,) of events ``x`` (T, D) at ``positions`` (T,)."""
        content = at_least_float32(self.score(x)[:, 0])
        return content + self.slope * positions.to(content.dtype) / self.window

    @torch.no_grad()
    def _kept(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """For each block, the m best scores of all events before the previous block, the best first, and their places:
        (S, N, C) to (S, N, m) each."""
        sequences, blocks, size = z.shape
        scores = [z.new_full((sequences, self.kept), -torch.inf)] * 2
        places = [torch.zeros(sequences, self.kept, dtype=torch.int64, device=z.device)] * 2
        for block in range(blocks - 2):
            new = torch.arange(block * size, (block + 1) * size, device=z.device).expand(sequences, -1)
            best = torch.cat((scores[-1], z[:, block]), 1).topk(self.kept, 1)
            scores.append(best.values)
            places.append(torch.cat((places[-1], new), 1).take_along_dim(best.indices, 1))
        return torch.stack(scores[:blocks], 1), torch.stack(places[:blocks], 1)

    def _selections(self, kept: Tensor, before: Tensor, left: Tensor) -> Tensor:
        """For every event p (S, N, C, m + C) of the ``kept`` events, whose scores (S, N, m) come best first, and of the
        block ``before``, with scores (S, N, C). ``left`` (C, C) says which of the latter are no longer recent."""
        z = torch.cat((kept, before), -1)  # (S, N, m + C)
        with torch.no_grad():
            # For every event of the block: how many events of the block before that left score above each candidate.
            above = (before[..., :, None] > z[..., None, :]).to(z.dtype)  # (S, N, C, m + C)
            rank = left.to(z.dtype) @ above
            rank += (kept[..., None, :] > z[..., :, None]).sum(-1)[..., None, :]
            there = torch.cat((torch.ones_like(left[:, :1]).expand(-1, self.kept), left), 1)  # (C, m + C)
            allowed = there & (rank < self.kept) & (z[..., None, :] > -torch.inf)
        return self._selection(z[..., None, :].expand(allowed.shape), allowed)

    def _selection(self, z: Tensor, allowed: Tensor) -> Tensor:
        """p of scores z (..., n), 0 where they are not ``allowed``."""
        few = allowed.sum(-1, keepdim=True) <= self.selected  # then p is 1 for all of them
        lowest = z.detach().masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
        z = z.masked_fill(~allowed, -torch.inf)
        with torch.no_grad():
            low, high = lowest - 1, z.amax(-1, keepdim=True)  # for tau between these, sum p falls from n to 0
            low, high = low.masked_fill(few, 0), high.masked_fill(few, 0)
            for _ in range(HALVINGS[z.dtype]):
                middle = (low + high) / 2
                more = (z - middle).clamp_(0, 1).sum(-1, keepdim=True) > self.selected
                low, high = torch.where(more, middle, low), torch.where(more, high, middle)
            tau = (low + high) / 2
            over = z - tau
            whole = (over >= 1).sum(-1, keepdim=True)
            part = (over > 0) & (over < 1)
            share = part.sum(-1, keepdim=True)
        # tau follows from the sum of the scores with 0 < p < 1, so that gradients flow through it.
        exact = (z.masked_fill(~part, 0).sum(-1, keepdim=True) - (self.selected - whole)) / share.clamp_min(1)
        tau = torch.where(share > 0, exact, tau)
        p = (z.masked_fill(~allowed, 0) - tau).clamp(0, 1) * allowed
        return torch.where(few, allowed.to(p.dtype), p)

    def _attend(self, q: Tensor, keys_values: Tensor, counts: Tensor) -> Tensor:
        """Attention of queries (..., C, D) to keys and values (..., K, 2D), weighted by ``counts`` (..., C, K)."""
        q, k, v = by_heads(q, keys_values, self.heads)
        counts = counts.unsqueeze(-3)
        scores = at_least_float32(q * q.shape[-1] ** -0.5 @ k.mT)  # (..., H, C, K)
        weights = softmax_of_seen(scores, counts > 0) * counts
        weights = weights / weights.sum(-1, keepdim=True)
        mixed: Tensor = weights.to(v.dtype) @ v  # (..., H, C, D/H)
        return mixed.transpose(-3, -2).flatten(-2)
