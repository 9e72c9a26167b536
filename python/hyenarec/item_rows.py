"""Training of a large catalogue, whose steps read few rows of the item table and cost what those rows cost.

A step of the sampled softmax reads the rows of its batch's items, of its targets and of its negatives. They alone are
gathered, in one small table which the model and the loss use in place of the whole one, and only they have gradients
and are written back. Every other row moves too in AdamW, by its decay and by what is left of its momentum; it does so
when it is next read, all its missed steps at once (:class:`RowAdamW`).
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

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # as torch.optim.AdamW has them by default
MISSED_STEPS = 1 << 14  # after so many steps, and after an epoch, every row is brought up to date
ROWS_AT_A_TIME = 1 << 16  # when all are


@dataclass(frozen=True)
class Rows:
    """Rows of the item table that a step reads: ``places`` (R,) int64 in the table, sorted, and their ``weight``
    (R, D) and ``bias`` (R,), which are leaves that take gradients."""

    places: Tensor
    weight: Tensor
    bias: Tensor


class RowAdamW:
    """AdamW of an item table, (V, D), and of its bias, (V,), of which a step reads and writes some rows only.

    Up to rounding the result is that of :class:`torch.optim.AdamW` on all rows, but for epsilon, which in steps that do
    not read a row stands beside the second moment as it was when it was last read. A row that was read last in step
    ``s`` has missed the steps ``s+1 ... t``, whose gradients are zero. Step ``j`` of them would have decayed it, by
    ``a_j = 1 - rate_j * decay``, and moved it by
    ``rate_j * sqrt(1 - beta2^j) / (1 - beta1^j) * (beta1 / sqrt(beta2))^(j-s) * m / sqrt(v)``, where ``m`` and ``v``
    are its moments after step ``s``. So all of them take a row ``p`` to ``A p - B m / sqrt(v)`` with two numbers, ``A``
    and ``B``, that depend on ``s`` and ``t`` alone: they are kept for every ``s`` since all rows were last brought up
    to date, and brought from ``t`` to ``t+1`` in a step.
    """

    def __init__(self, weight: Tensor, bias: Tensor, weight_decay: float) -> None:
        self._weight, self._bias, self._decay = weight, bias, weight_decay
        self._moments = {
            name: (torch.zeros_like(table.data), torch.zeros_like(table.data))
            for name, table in (("items.weight", weight), ("bias", bias))
        }
        device = weight.device
        self.step_count = 0
        self._read = torch.zeros(len(weight), dtype=torch.int64, device=device)  # the step up to which each row is
        self._all_read = 0  # the step up to which all are
        # By s, from ``_all_read`` to ``step_count``: A and B of the table, and B of the bias, which does not decay.
        self._missed = torch.zeros(3, MISSED_STEPS + 1, dtype=torch.float64, device=device)
        self._missed[0, 0] = 1
        ratio = BETA1 / BETA2**0.5
        exponents = torch.arange(MISSED_STEPS, 0, -1, dtype=torch.float64, device=device)
        self._momentum = ratio**exponents  # (N,) of missed steps N ... 1

    @torch.no_grad()
    def read(self, places: Tensor) -> Rows:
        """The rows at ``places`` (R,), distinct, brought up to date."""
        self._bring_up_to_date(places)
        weight, bias = self._weight[places], self._bias[places]
        return Rows(places, weight.requires_grad_(), bias.requires_grad_())

    @torch.no_grad()
    def step(self, rows: Rows, rate: float) -> None:
        """One step at learning rate ``rate`` by the gradients of the rows, which are of the newest :meth:`read`."""
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
        done = t - self._all_read  # steps of which the numbers are kept
        moved = rate * second**0.5 / first * self._momentum[-done:]  # (done,)
        self._missed[:2, :done] *= kept
        self._missed[1:, :done] += moved
        self._missed[0, done], self._missed[1:, done] = 1, 0
        if done == MISSED_STEPS:
            self.bring_all_up_to_date()

    @torch.no_grad()
    def bring_all_up_to_date(self) -> None:
        """Every row as AdamW on all rows has it. When this is done is part of what a training computes, by rounding."""
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
        """The state by name; with the tables themselves, all that a training needs to go on with the same bits.

        ``NAME/exp_avg`` and ``NAME/exp_avg_sq`` of both tables are their moments, each row's as of the step that it
        was read in last: ``rows/read`` (V,). ``rows/steps`` (2,) are the steps done, and those up to which all rows
        are brought; ``rows/missed`` (3, n) float64 the numbers A and B of every step between.
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
        """The inverse of :meth:`tensors`. Raises ValueError for what is no state of these tables."""
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
    table has the rows of that alone."""

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
        """Negatives are drawn in proportion to ``counts`` (V,), whole numbers of which each counts one more.

        With ``featured`` items the model and the loss read rows with their features, and the rows here are without.
        """
        self._shard, self._featured = shard, featured
        self.optimizer = RowAdamW(weight, bias, weight_decay)
        self._negatives = negatives
        # One pseudo-count, so that items seen only in evaluation can be drawn too.
        counts = counts.to(weight.device).round().long() + 1
        self._up_to = counts.cumsum(0)  # (V,) whole numbers, so that every item has exactly its share of the draws
        self._log_q = counts.double().log_().sub_(float(self._up_to[-1].log())).float()  # (V,)

    def read(self, batch: Batch) -> SampledStep:
        """What a step on this process's part of ``batch`` reads, negatives drawn by torch's own generator included.

        Without shards all processes read the rows of the whole batch, so that they all make the same step.
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
        rows = Rows(places, weight.requires_grad_(), bias.requires_grad_())
        return ShardedStep(rows, rows.weight, batch, share, negatives, self._log_q[places], held, exchange, where)


def _local(batch: Batch, drawn: Tensor) -> tuple[Tensor, Batch, Tensor]:
    """The rows (R,) that a batch and negatives (M,) read, sorted, and both with places among them for items."""
    assert batch.targets is not None
    everything = torch.cat((batch.items, batch.targets, drawn))
    places, local = torch.unique(everything, return_inverse=True)
    items, targets, negatives = local.split((len(batch.items), len(batch.targets), len(drawn)))
    return places, replace(batch, items=items, targets=targets), negatives


@dataclass(frozen=True)
class SampledStep:
    """A step's ``rows``, the ``table`` (R, D) that the model and the loss read, its ``batch`` whose items and targets
    are places among them, that part's ``share`` of all predictions, ``negatives`` (M,), places too, and ``log_q`` (R,)
    of the rows."""

    rows: Rows
    table: Tensor
    batch: Batch
    share: float
    negatives: Tensor
    log_q: Tensor

    def added_up(self) -> Rows:
        """The rows that this process has an optimiser for, with gradients that are means over the processes."""
        for tensor in (self.rows.weight, self.rows.bias) if distributed.size() > 1 else ():
            assert tensor.grad is not None
            distributed.add_up(tensor.grad.div_(distributed.size()))
        return self.rows

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return sampled_softmax(hidden, self.table, self.rows.bias, targets, self.negatives, self.log_q)


@dataclass(frozen=True)
class ShardedStep(SampledStep):
    """The same where ``rows`` came from the processes that hold them: ``held`` (H,) are those of this one that any
    reads, and ``where`` (A,) each that was asked for is among them."""

    held: Rows
    exchange: Exchange
    where: Tensor

    def added_up(self) -> Rows:
        weight, bias = self.rows.weight.grad, self.rows.bias.grad
        assert weight is not None and bias is not None
        gradients = torch.cat((weight, bias[:, None]), 1).div_(distributed.size())  # (R, D+1)
        total = self.exchange.add_up(gradients, len(self.held.places), self.where)  # (H, D+1)
        self.held.weight.grad, self.held.bias.grad = total[:, :-1], total[:, -1]
        return self.held
