"""Training with a large catalogue: a step reads few rows of the item table, and costs only what those rows cost.

A step of the sampled softmax reads the rows of its batch's items, of its targets and of its negatives. Only these are
gathered, in one small table that the model and the loss use in place of the whole one, and only these have gradients
and are written back. AdamW moves every other row too, by its weight decay and by what is left of its momentum; such a
row catches up when it is next read, with all the steps that it missed at once (:class:`RowAdamW`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyenarec import distributed
from hyenarec.data.batches import Batch
from hyenarec.featured_items import FeaturedItems
from hyenarec.item_shards import Exchange, ItemShard
from hyenarec.losses import sampled_softmax
from hyenarec.repeats import Repeats

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # the defaults of torch.optim.AdamW
MISSED_STEPS = 1 << 14  # every row is brought up to date after so many steps, and after an epoch
ROWS_AT_A_TIME = 1 << 16  # when every row is brought up to date


@dataclass(frozen=True)
class ReadRows:
    """Rows of the item table that a step reads: ``places`` (R,) int64 are their indices in the table, sorted;
    ``weight`` (R, D) and ``bias`` (R,) are leaf tensors that take gradients."""

    places: Tensor
    weight: Tensor
    bias: Tensor


class RowAdamW:
    """AdamW for an item table, (V, D), and for its bias, (V,), of which a step reads and writes only some rows.

    Up to rounding the result is that of :class:`torch.optim.AdamW` on all rows, except for epsilon: in steps that do
    not read a row, epsilon is added to the second moment as it was when the row was last read. A row that was last read
    in step ``s`` has missed the steps ``s+1 ... t``, whose gradients are zero. Step ``j`` of these would have decayed
    it by ``a_j = 1 - rate_j * decay``, and moved it by
    ``rate_j * sqrt(1 - beta2^j) / (1 - beta1^j) * (beta1 / sqrt(beta2))^(j-s) * m / sqrt(v)``, where ``m`` and ``v``
    are its moments after step ``s``. So together they turn a row ``p`` into ``A p - B m / sqrt(v)``, with two numbers
    ``A`` and ``B`` that depend only on ``s`` and ``t``. These are kept for every ``s`` since all rows were last brought
    up to date, and each step updates them from ``t`` to ``t+1``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, weight_decay: float) -> None:
        self._weight, self._bias, self._decay = weight, bias, weight_decay
        self._moments = {
            name: (torch.zeros_like(table.data), torch.zeros_like(table.data))
            for name, table in (("items.weight", weight), ("bias", bias))
        }
        device = weight.device
        self.step_count = 0
        self._read = torch.zeros(len(weight), dtype=torch.int64, device=device)  # the last step that each row includes
        self._all_read = 0  # the last step that all rows include
        # For each s from ``_all_read`` to ``step_count``: A and B of the table, and B of the bias, which has no decay.
        self._missed = torch.zeros(3, MISSED_STEPS + 1, dtype=torch.float64, device=device)
        self._missed[0, 0] = 1
        ratio = BETA1 / BETA2**0.5
        exponents = torch.arange(MISSED_STEPS, 0, -1, dtype=torch.float64, device=device)
        self._momentum = ratio**exponents  # (N,), for N ... 1 missed steps

    @torch.no_grad()
    def read(self, places: Tensor) -> ReadRows:
        """The rows at ``places`` (R,), which must be distinct, brought up to date."""
        self._bring_up_to_date(places)
        weight, bias = self._weight[places], self._bias[places]
        return ReadRows(places, weight.requires_grad_(), bias.requires_grad_())

    @torch.no_grad()
    def step(self, rows: ReadRows, rate: float) -> None:
        """One step at learning rate ``rate`` with the gradients of ``rows``, which the latest :meth:`read` returned."""
        t = self.step_count = self.step_count + 1
        first, second = 1 - BETA1**t, 1 - BETA2**t
        kept = 1 - rate * self._decay
        for (name, table, keep), row in zip(self._tables(kept), (rows.weight, rows.bias), strict=True):
            assert row.grad is not None
            moments = self._moments[name]
            m, v = (moment[rows.places] for moment in moments)
            m.lerp_(row.grad, 1 - BETA1)
            v.mul_(BETA2).addcmul_(row.grad, row.grad, value=1 - BETA2)
            row = row.detach().mul_(keep).addcdiv_(m, v.div(second).sqrt_().add_(EPSILON), value=-rate / first)
            for whole, part in ((table, row), (moments[0], m), (moments[1], v)):
                whole.index_copy_(0, rows.places, part)
        self._read[rows.places] = t
        done = t - self._all_read  # steps whose A and B are kept
        moved = rate * second**0.5 / first * self._momentum[-done:]  # (done,)
        self._missed[:2, :done] *= kept
        self._missed[1:, :done] += moved
        self._missed[0, done], self._missed[1:, done] = 1, 0
        if done == MISSED_STEPS:
            self.bring_all_up_to_date()

    @torch.no_grad()
    def bring_all_up_to_date(self) -> None:
        """Makes every row what AdamW on all rows makes it. Equal trainings must do this after the same steps: it
        affects rounding."""
        for places in torch.split(torch.arange(len(self._read), device=self._read.device), ROWS_AT_A_TIME):
            self._bring_up_to_date(places)
        self._all_read = self.step_count
        self._missed[0, 0], self._missed[1:, 0] = 1, 0

    def _bring_up_to_date(self, places: Tensor) -> None:
        since = self._read[places]
        places, since = places[since < self.step_count], since[since < self.step_count]
        if not len(places):
            return
        lag = (self.step_count - since).double()
        decayed, moved, moved_bias = self._missed[:, since - self._all_read]  # (R,) each
        epsilon = EPSILON * (1 - BETA2**self.step_count) ** 0.5
        for (name, table, _), keep, move in zip(self._tables(), (decayed, None), (moved, moved_bias), strict=True):
            shape = (-1,) + (1,) * (table.ndim - 1)
            m, v = (moment[places] for moment in self._moments[name])
            row = table[places]
            if keep is not None:
                row *= keep.to(row.dtype).view(shape)
            row -= m / v.sqrt().add_(epsilon) * move.to(row.dtype).view(shape)
            m *= (BETA1**lag).to(m.dtype).view(shape)
            v *= (BETA2**lag).to(v.dtype).view(shape)
            for whole, part in ((table, row), (self._moments[name][0], m), (self._moments[name][1], v)):
                whole.index_copy_(0, places, part)
        self._read[places] = self.step_count

    def _tables(self, kept: float = 1.0) -> tuple[tuple[str, Tensor, float], tuple[str, Tensor, float]]:
        return ("items.weight", self._weight.data, kept), ("bias", self._bias.data, 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """The state by name; with the tables themselves, all that a training needs to continue with the same bits.

        ``NAME/exp_avg`` and ``NAME/exp_avg_sq`` are the moments of both tables, each row's as of the step in
        ``rows/read`` (V,), in which it was last read. ``rows/steps`` (2,) are the steps done, and the last step that
        all rows include; ``rows/missed`` (3, n) float64 are the numbers A and B for every step between.
        """
        found = {
            f"{name}/{key}": moment
            for name, moments in self._moments.items()
            for key, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True)
        }
        steps = self.step_count, self._all_read
        kept = self._missed[:, : steps[0] - steps[1] + 1].contiguous()
        return found | {"rows/read": self._read, "rows/steps": torch.tensor(steps), "rows/missed": kept}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises ValueError for tensors that are no state of these tables."""
        own = self.tensors()
        for name in sorted(own.keys() ^ tensors.keys()):
            what = "does not belong to such a model" if name in tensors else "is missing"
            raise ValueError(f"optimizer state {name!r:.80} {what}")
        for name, value in tensors.items():
            if value.dtype != own[name].dtype or (name != "rows/missed" and value.shape != own[name].shape):
                raise ValueError(f"optimizer state {name!r:.80} has another shape or dtype than its parameter")
        step, all_read = tensors["rows/steps"].tolist()
        read, missed = tensors["rows/read"], tensors["rows/missed"]
        if (
            not 0 <= all_read <= step < all_read + MISSED_STEPS
            or missed.shape != (3, step - all_read + 1)
            or not all_read <= int(read.min()) <= int(read.max()) <= step
        ):
            raise ValueError("optimizer state 'rows/steps' does not fit the other state of the rows")
        self.step_count, self._all_read = step, all_read
        self._read.copy_(read)
        self._missed[:, : missed.shape[1]] = missed
        for name, moments in self._moments.items():
            for key, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                moment.copy_(tensors[f"{name}/{key}"])


class SampledRows:
    """The sampled softmax of a catalogue: its negatives, its rows, and their optimiser, which with a ``shard`` of the
    table has only the shard's rows."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        counts: Tensor,
        negatives: int,
        weight_decay: float,
        shard: ItemShard | None = None,
        featured: FeaturedItems | None = None,
    ) -> None:
        """Negatives are drawn in proportion to ``counts`` (V,), whole numbers, each plus one.

        With ``featured`` items, the model and the loss read rows with features added; the rows here are without.
        """
        self._shard, self._featured = shard, featured
        self.optimizer = RowAdamW(weight, bias, weight_decay)
        self._negatives = negatives
        # One pseudo-count, so that items seen only in evaluation can be drawn too.
        counts = counts.to(weight.device).round().long() + 1
        self._up_to = counts.cumsum(0)  # (V,) whole numbers, so that every item has exactly its share of the draws
        self._log_q = counts.double().log_().sub_(float(self._up_to[-1].log())).float()  # (V,)

    def read(self, batch: Batch) -> SampledStep:
        """The rows that a step on this process's part of ``batch`` reads, with negatives drawn by torch's own
        generator.

        Without shards, all processes read the rows of the whole batch, so that they all make the same step.
        """
        draws = torch.randint(int(self._up_to[-1]), (self._negatives,), device=self._up_to.device)
        drawn = torch.searchsorted(self._up_to, draws, right=True)  # (M,)
        if self._shard is None:
            places, batch, negatives = _local(batch, drawn)
            rows = self.optimizer.read(places)
            table = rows.weight if self._featured is None else self._featured.add_features(rows.weight, places)
            return SampledStep(rows, table, *distributed.part(batch), negatives, self._log_q[places])
        batch, share = distributed.part(batch)
        places, batch, negatives = _local(batch, drawn)
        exchange = Exchange(places, self._shard)
        asked, where = torch.unique(exchange.asked, return_inverse=True)
        held = self.optimizer.read(asked)
        with torch.no_grad():
            table = exchange.fetch(torch.cat((held.weight, held.bias[:, None]), 1)[where])  # (R, D+1)
        weight, bias = table[:, :-1].contiguous(), table[:, -1].contiguous()
        rows = ReadRows(places, weight.requires_grad_(), bias.requires_grad_())
        return ShardedStep(rows, rows.weight, batch, share, negatives, self._log_q[places], held, exchange, where)


def _local(batch: Batch, drawn: Tensor) -> tuple[Tensor, Batch, Tensor]:
    """The indices (R,) of all table rows that a batch and negatives (M,) read, sorted; and both, with each item
    replaced by its place among these rows."""
    assert batch.targets is not None
    everything = torch.cat((batch.items, batch.targets, drawn))
    places, local = torch.unique(everything, return_inverse=True)
    items, targets, negatives = local.split((len(batch.items), len(batch.targets), len(drawn)))
    return places, replace(batch, items=items, targets=targets), negatives


@dataclass(frozen=True)
class SampledStep:
    """What a step computes with: its ``rows``; the ``table`` (R, D) that the model and the loss read; this process's
    part of the ``batch``, whose items and targets are places in the table; that part's ``share`` of all predictions;
    the ``negatives`` (M,), places too; and ``log_q`` (R,) of the rows."""

    rows: ReadRows
    table: Tensor
    batch: Batch
    share: float
    negatives: Tensor
    log_q: Tensor

    def added_up(self) -> ReadRows:
        """The rows that this process has an optimiser for, with gradients averaged over the processes."""
        for tensor in (self.rows.weight, self.rows.bias) if distributed.size() > 1 else ():
            assert tensor.grad is not None
            distributed.add_up(tensor.grad.div_(distributed.size()))
        return self.rows

    def loss(self, hidden: Tensor, targets: Tensor, repeats: Repeats | None = None) -> Tensor:
        return sampled_softmax(hidden, self.table, self.rows.bias, targets, self.negatives, self.log_q, repeats)


@dataclass(frozen=True)
class ShardedStep(SampledStep):
    """The same with ``rows`` that came from the processes that hold them. ``held`` (H,) are the rows of this process
    that any process reads; ``where`` (A,) is the place among them of each row that was asked for."""

    held: ReadRows
    exchange: Exchange
    where: Tensor

    def added_up(self) -> ReadRows:
        weight, bias = self.rows.weight.grad, self.rows.bias.grad
        assert weight is not None and bias is not None
        gradients = torch.cat((weight, bias[:, None]), 1).div_(distributed.size())  # (R, D+1)
        total = self.exchange.add_up(gradients, len(self.held.places), self.where)  # (H, D+1)
        self.held.weight.grad, self.held.bias.grad = total[:, :-1], total[:, -1]
        return self.held
