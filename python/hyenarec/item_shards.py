"""An item table that is cut into shards: each training process holds some of its rows, and their optimiser.

Every process trains on its own sequences, and needs the rows of their items, of their targets and of the negatives. It
fetches them from the processes that hold them and sends their gradients back (:class:`Exchange`), so that a step is
that of one process with the whole table. torch has nothing that does this: FSDP gathers the whole table in every
process, and the sharded embedding of a DTensor assumes that all processes have the same batch.

Items are scored where their rows are: all processes score the same histories, each for its own items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from hyenarec import distributed
from hyenarec.catalogue import count_reaching
from hyenarec.data.batches import Batch
from hyenarec.errors import ScoreError, UserError
from hyenarec.tensor_file import Streamed, blocks_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

ROWS_AT_A_TIME = 1 << 18  # when rows are drawn, or sent to the process that writes them


class ItemShard(nn.Embedding):
    """Rows ``first`` to ``last - 1`` of the table of ``n_items`` items: those that this process holds."""

    def __init__(self, n_items: int, dim: int) -> None:
        processes, rank = distributed.size(), distributed.rank()
        if n_items < processes:
            raise UserError(f"option shard_items: {n_items} items cannot be divided among {processes} processes")
        self.n_items = n_items
        self.bounds = [n_items * number // processes for number in range(processes + 1)]
        self.first, self.last = self.bounds[rank : rank + 2]
        super().__init__(self.last - self.first, dim, _weight=torch.empty(self.last - self.first, dim))
        self.draw(1.0)  # initialised as nn.Embedding is

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """Fill the rows as ``nn.init.normal_`` of the whole table would, from torch's generator.

        torch draws numbers in groups of sixteen, so blocks of rows give the same numbers as one tensor if sixteen
        divides their number of rows.
        """
        first = 0
        while first < self.n_items:
            last = first + ROWS_AT_A_TIME
            if last + 16 > self.n_items:  # torch draws fewer than sixteen numbers in another way
                last = self.n_items
            block = torch.empty(last - first, self.embedding_dim).normal_(std=std)
            begin, end = max(first, self.first), min(last, self.last)
            if begin < end:
                self.weight[begin - self.first : end - self.first] = block[begin - first : end - first]
            first = last

    def forward(self, items: Tensor) -> Tensor:
        """Rows of any items (T,), (T, D), without gradients. Every process must call this, each with its own items."""
        places, local = torch.unique(items, return_inverse=True)
        exchange = Exchange(places, self)
        return embedding(local, exchange.fetch(self.weight[exchange.asked]))

    def of_own(self, values: Tensor, dim: int = 0) -> Tensor:
        """The part of ``values`` for own items; along ``dim`` it has one entry for every item."""
        return values.narrow(dim, self.first, self.num_embeddings)

    def exclude(self, scores: Tensor, batch: Batch) -> Tensor:
        """:func:`hyenarec.evaluation.exclude_history` for ``scores`` (S, v) of own items."""
        own = (batch.items >= self.first) & (batch.items < self.last)
        scores[batch.packing.rows[own], batch.items[own] - self.first] = float("-inf")
        return scores

    def target_ranks(self, scores: Tensor, targets: Tensor) -> Tensor:
        """:func:`hyenarec.evaluation.target_ranks` for ``scores`` (S, v) of own items and any ``targets`` (S,)."""
        own = ((targets >= self.first) & (targets < self.last))[:, None]
        places = (targets - self.first).clamp(0, scores.shape[1] - 1)[:, None]
        of_target = distributed.add_up(scores.gather(1, places).masked_fill_(~own, 0))  # (S, 1), from its holder
        bad = scores.amax(1).isnan().any() or of_target.isposinf().any()
        if distributed.any_of(bool(bad), scores.device):
            raise ScoreError("scores: NaN or +inf found; ranks would be meaningless")
        return distributed.add_up(count_reaching(scores, of_target)) - 1

    def best(self, values: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The best ``k`` items of all processes; this one's own best are ``values`` and ``places`` (S, n), counted
        among its own items. Returns values, descending, and places in the catalogue, both (S, k)."""
        short = k - values.shape[1]
        values = nn.functional.pad(values, (0, short), value=float("-inf"))
        places = nn.functional.pad(places + self.first, (0, short))
        values, places = (torch.cat(distributed.gather(found), 1) for found in (values, places))
        best = values.topk(k)
        return best.values, places.gather(1, best.indices)

    def streamed(self, own: Tensor) -> Streamed:
        """The rows of all items, (V, ...), for process 0 to write, of which it holds ``own``; the others :meth:`send`
        theirs meanwhile."""
        rows = own.detach().cpu()

        def blocks() -> Iterator[Buffer]:
            yield from blocks_of(rows.contiguous().numpy())
            for process in range(1, distributed.size()):
                for size in self._blocks(process):
                    block = torch.empty(size, *rows.shape[1:], dtype=rows.dtype)
                    distributed.receive(block, process)
                    yield from blocks_of(block.numpy())

        return Streamed((self.n_items, *rows.shape[1:]), _dtype(rows), blocks)

    def send(self, own: Tensor) -> None:
        """Sends this process's rows to process 0, which writes them."""
        for block in torch.split(own.detach(), ROWS_AT_A_TIME):
            distributed.send(block.cpu().contiguous(), 0)

    def _blocks(self, process: int) -> list[int]:
        rows = self.bounds[process + 1] - self.bounds[process]
        return [min(ROWS_AT_A_TIME, rows - first) for first in range(0, rows, ROWS_AT_A_TIME)]


class Exchange:
    """Brings rows from the processes that hold them to those that read them, and gradients back.

    ``asked`` (A,) int64 are the rows that the processes, this one included, ask this one for, one process after
    another, as places among its own rows.
    """

    def __init__(self, places: Tensor, shard: ItemShard) -> None:
        """``places`` (R,) int64 are the rows that this process reads, distinct and sorted. All processes do this
        together."""
        bounds = torch.tensor(shard.bounds, device=places.device)
        wanted = torch.searchsorted(places, bounds).diff()  # (N,), how many are wanted from each process
        even = [1] * len(wanted)
        self._received = wanted.tolist()
        self._sent: list[int] = distributed.exchange(wanted, even, even).tolist()
        self.asked = distributed.exchange(places, self._received, self._sent) - shard.first

    def fetch(self, rows: Tensor) -> Tensor:
        """The rows that this process reads, (R, ...). It gives the others ``rows`` (A, ...), its own at ``asked``."""
        return distributed.exchange(rows, self._sent, self._received)

    def add_up(self, gradients: Tensor, rows: int, local: Tensor) -> Tensor:
        """The sums of all processes' gradients for own rows, (rows, ...). Each gives the ``gradients`` (R, ...) of what
        it reads; ``local`` (A,) is the place in the result of each row that was asked for. Gradients are added in the
        order of the processes, so that equal steps have equal bits."""
        given = distributed.exchange(gradients, self._received, self._sent)  # (A, ...)
        total = gradients.new_zeros(rows, *gradients.shape[1:])
        for part, where in zip(torch.split(given, self._sent), torch.split(local, self._sent), strict=True):
            total[where] += part  # places are distinct, as a process asks for a row once
        return total


def _dtype(tensor: Tensor) -> np.dtype[np.generic]:
    found: NDArray[np.generic] = torch.empty(0, dtype=tensor.dtype).numpy()
    return found.dtype
