"""The repeat head: how likely the next event repeats an item of the history, by how long ago that was read.

    score_v = log( exp(h . E_v + b_v) + exp(a . h + a_0) sum_lag w(lag) [x_(t + 1 - lag) = v] / sum_lag w(lag) )

So the softmax over items becomes a mixture of itself and of the history's own items, as in pointer networks (arXiv
1609.07843) and RepeatNet (arXiv 1812.02646), and event by event a linear layer decides how much each counts. Ours: the
weight of an event depends on its lag alone, log w being piecewise linear in log lag, up to REACH events; the mixture
needs no normaliser when items are ranked, so that only the scores of the history's items change; and the head learns
beside the model, which gets no gradient from it. Where both learned together, the head left the model little to learn:
on generated histories (`python -m benchmarks capability`, 200 events) NDCG@10 was .124, without a head .154, and with
one that learns beside it .157.

Without it a model of 64 channels can hardly name one item of a long history: on email-eu-core, where nine events in ten
are repeats, counting a person's earlier correspondents by lag^-0.9 ranked better than every model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hyenarec.config import BIDIRECTIONAL, ModelConfig
from hyenarec.data.batches import Batch

if TYPE_CHECKING:
    from hyenarec.data.splits import Split
    from hyenarec.data.store import SequenceStore

# Events back. The work of training grows with it, and so do states. On email-eu-core, counting by lag^-0.9 over so many
# events has a test NDCG@10 of .5306, over 50 of .5225, over 4,096 of .5328.
REACH = 512
EXPONENT = 0.9  # of the first weights, lag^-EXPONENT: the best for email-eu-core's validation events among eight
OFTEN = 0.1  # the share of repeats from which `auto` takes the head
COUNTED = 1 << 20  # training events in which they are counted
COMPARED = 1 << 22  # pairs of events compared at a time


class Recent(NamedTuple):
    """The last events of ``S`` sequences: their ``items`` (S, M) int64, and ``lags`` (S, M) int64, how many events each
    lies before the newest; where there is no event, the lag is negative and the item any."""

    items: Tensor
    lags: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Recent:
        return cls.padded(batch.packing.pad(batch.items), batch.packing.lengths)

    @classmethod
    def padded(cls, items: Tensor, lengths: Tensor) -> Recent:
        """Of histories of ``lengths`` (S,) in the rows of right-padded ``items`` (S, M)."""
        return cls(items, lengths[:, None] - 1 - torch.arange(items.shape[1], device=items.device))

    @classmethod
    def ring(cls, items: Tensor, events: Tensor) -> Recent:
        """Of sequences of ``events`` (S,), of which number e, from 0, is at place e % M of ``items`` (S, M)."""
        places = items.shape[1]
        lags = (events[:, None] - 1 - torch.arange(places, device=items.device)) % places
        return cls(items, torch.where(lags < events[:, None], lags, -1))


class Repeats(NamedTuple):
    """In training, for every event (T,): the log weight of repeating anything, and the same for the target alone, -inf
    where the target is not in the history."""

    anything: Tensor
    target: Tensor

    def loss(self, log_normaliser: Tensor, own: Tensor) -> Tensor:
        """The mean loss () of the mixture, from each event's log normaliser of the softmax over items and its target's
        score there, (T,) each."""
        return (torch.logaddexp(log_normaliser, self.anything) - torch.logaddexp(own, self.target)).mean()


class RepeatHead(nn.Module):
    """Weights of the last ``room`` events, at most ``REACH`` of ``max_length``, and how much repeating counts against
    the softmax over ``n_items``."""

    below: Tensor
    part: Tensor

    def __init__(self, dim: int, max_length: int, n_items: int) -> None:
        super().__init__()
        self.room = room = min(max_length, REACH)
        octaves = math.log2(max(room, 2))
        count = 2 * math.ceil(octaves) + 1
        place = torch.arange(1, room + 1, dtype=torch.float64).log2() / octaves * (count - 1)
        below = place.floor().clamp_max(count - 2)
        self.register_buffer("below", below.long(), persistent=False)  # (room,)
        self.register_buffer("part", (place - below).float(), persistent=False)  # (room,)
        self.knots = nn.Parameter(-EXPONENT * math.log(max(room, 2)) * torch.linspace(0, 1, count))
        self.weight = nn.Linear(dim, 1)
        nn.init.zeros_(self.weight.weight)
        nn.init.constant_(self.weight.bias, math.log(n_items) - 1)  # a quarter of the softmax's normaliser

    def lags(self) -> Tensor:
        """The weight of each of the last events, the newest first, (room,), not normalised."""
        logs = torch.lerp(self.knots[self.below], self.knots[self.below + 1], self.part)
        return (logs - logs.max()).exp()

    def of_targets(self, hidden: Tensor, batch: Batch) -> Repeats:
        """What the losses need, for hidden states (T, D) and the targets of a training batch."""
        assert batch.targets is not None
        packing = batch.packing
        positions: Tensor = packing.positions
        with torch.autocast(hidden.device.type, enabled=False):
            weights = self.lags()
            found = _Found.apply(weights, batch.items, batch.targets, positions, min(self.room, packing.max_length))  # type: ignore[no-untyped-call]
            sums = weights.cumsum(0).clamp_min(torch.finfo(weights.dtype).tiny)
            share = found / sums[positions.clamp_max(self.room - 1)]
            anything = self._anything(hidden.detach())
            return Repeats(anything, anything + _log(share))

    def add_to(self, scores: Tensor, hidden: Tensor, recent: Recent, first: int = 0) -> Tensor:
        """``scores`` (S, V) of the items from number ``first`` on after hidden states (S, D), with the repeats of
        ``recent`` added."""
        items, lags = recent
        real = (lags >= 0) & (lags < self.room)
        weights = torch.where(real, self.lags()[lags.clamp(0, self.room - 1)], 0)  # (S, M)
        shares = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        items, shares = _within(items - first, shares, scores.shape[1])
        total = torch.zeros_like(scores).scatter_add(1, items, shares).gather(1, items)  # (S, M), of equal items
        added = _log_of_sum(scores.gather(1, items), self._anything(hidden)[:, None] + total.log())
        return scores.scatter(1, items, added)  # equal items have equal values

    def _anything(self, hidden: Tensor) -> Tensor:
        log_weight: Tensor = self.weight(hidden.to(self.weight.weight.dtype))[:, 0]
        return log_weight


def _within(items: Tensor, shares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Both, with a share of 0 for what is none of the ``count`` items."""
    within = (items >= 0) & (items < count)
    return torch.where(within, items, 0), torch.where(within, shares, 0)


def _log_of_sum(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)) for finite ``a``. torch's logaddexp would overflow in ONNX, which writes the formula out."""
    return torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs()))


def _log(x: Tensor) -> Tensor:
    """The logarithm, -inf with gradient 0 at 0 and below."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).log(), -torch.inf)


class _Found(torch.autograd.Function):
    """For every event (T,), the sum of the weights of the lags, up to ``reach``, at which its target is found."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, items: Tensor, targets: Tensor, positions: Tensor, reach: int) -> Tensor:
        ctx.save_for_backward(items, targets, positions)
        ctx.reach, ctx.room = reach, len(weights)
        backwards = weights[:reach].flip(0)
        parts = [equal.to(weights.dtype) @ backwards for _, equal in _equal(items, targets, positions, reach)]
        return torch.cat(parts) if parts else weights.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = grad.new_zeros(ctx.reach)
        items, targets, positions = ctx.saved_tensors
        for rows, equal in _equal(items, targets, positions, ctx.reach):
            found += grad[rows] @ equal.to(grad.dtype)
        return nn.functional.pad(found.flip(0), (0, ctx.room - ctx.reach)), None, None, None, None


def _equal(items: Tensor, targets: Tensor, positions: Tensor, reach: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields some events' rows, and for each of them which of the last ``reach`` events of its sequence, the oldest
    first, have its target: (C, reach) bool."""
    before = torch.cat((items.new_full((reach - 1,), -1), items)).unfold(0, reach, 1)  # (T, reach), a view
    back = torch.arange(reach - 1, -1, -1, device=items.device)
    step = max(1, COMPARED // reach)
    for first in range(0, len(items), step):
        rows = slice(first, first + step)
        yield rows, (before[rows] == targets[rows, None]) & (back <= positions[rows, None])


def settled(config: ModelConfig, store: SequenceStore, split: Split, start: ModelConfig | None = None) -> ModelConfig:
    """The same, with ``repeats`` on or off where it is auto: as in the model to ``start`` from, or else on for a causal
    mixer if ``OFTEN`` of the training events repeat an earlier one of their user."""
    if config.repeats != "auto":
        return config
    if start is not None:
        return replace(config, repeats=start.repeats)
    if config.mixer in BIDIRECTIONAL:
        return replace(config, repeats="off")
    return replace(config, repeats="on" if share_of_repeats(store, split) >= OFTEN else "off")


def share_of_repeats(store: SequenceStore, split: Split) -> float:
    """The share of training events whose item the user has had before, among the first ``COUNTED`` or so events of
    users in a fixed random order."""
    begins, ends = store.offsets[:-1].astype(np.int64), split.train_ends.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(begins))
    chosen = order[: int(np.searchsorted((ends - begins)[order].cumsum(), COUNTED)) + 1]
    events = distinct = 0
    with store.unchanged():
        for user in chosen:
            items = store.items[begins[user] : ends[user]]
            events, distinct = events + len(items), distinct + len(np.unique(items))
    return (events - distinct) / events if events else 0.0
