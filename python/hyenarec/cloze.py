"""Masked items: how models that see a whole sequence at once are trained and asked for the next item (BERT4Rec, arXiv
1904.06690, section 3.6).

In training some events are hidden and predicted from all the others. To predict the next item, a hidden event is put
after the history, and predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec.data.batches import Batch
from hyenarec.packing import Packing

SHARE = 0.2  # of events hidden in training: the source's choice for ML-1M


def hide_events(batch: Batch) -> Batch:
    """A training batch with events hidden at random: ``masked`` (P,) are their rows and ``targets`` (P,) their items.

    Sequences grow by one item, the target of their last event, so that they hold every item that the next-item batch
    predicts. This last item is always hidden, as it is when serving; the source has separate samples for it instead.
    """
    assert batch.targets is not None
    whole = _extended(batch, batch.targets[batch.packing.last])
    hidden = torch.rand(whole.items.shape, device=whole.items.device) < SHARE
    hidden[whole.packing.last] = True
    masked = hidden.nonzero().squeeze(1)
    return Batch(whole.items.index_fill(0, masked, 0), whole.packing, targets=whole.items[masked], masked=masked)


def hide_next(batch: Batch) -> Batch:
    """The batch with a hidden event after each history."""
    asked = _extended(batch, batch.items.new_zeros(batch.packing.sequences))
    return Batch(asked.items, asked.packing, masked=asked.packing.last)


def _extended(batch: Batch, last: Tensor) -> Batch:
    """Every sequence with one more item, ``last`` (S,); without timestamps, since the new event has none."""
    packing = batch.packing
    cu_seqlens = packing.cu_seqlens + torch.arange(packing.sequences + 1, device=packing.cu_seqlens.device)
    longer = Packing(cu_seqlens, packing.max_length + 1)
    items = pad(batch.items, (0, packing.sequences))
    items[torch.arange(len(batch.items), device=items.device) + packing.rows] = batch.items
    items[longer.last] = last
    return Batch(items, longer)
