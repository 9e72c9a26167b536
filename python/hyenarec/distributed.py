"""Training with several processes, as ``torchrun`` starts them: what is distributed, and how.

Every process holds the whole model, or with ``--shard-items`` a part of the item table (:mod:`hyenarec.item_shards`),
and the whole log, and goes through the same batches in the same order. It trains on its own sequences of each batch
(:func:`part`), and gradients are added up (:func:`backward`), so that a step is that of one process on the whole batch.
The loss is the same up to rounding, except for dropout, whose masks every process draws for its own part. Evaluation
deals out whole batches (:func:`mine`) and combines the ranks (:func:`add_up`). Process 0 writes the run's folder; all
processes read it, so it must lie where all can.

With a single process every function here is the identity, and nothing is started.
"""

from __future__ import annotations

import hashlib
import heapq
import inspect
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.packing import Packing

LONGEST_WAIT = timedelta(minutes=30)  # of one process for another: evaluation does not take all processes equally long

# Buffers are constants, and those of item features are large, so they are not sent in every step. A newer torch warns
# of the option's older name.
_options = inspect.signature(DistributedDataParallel).parameters
BUFFERS_STAY: Any = {next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _options): False}


def start() -> None:
    """Join the other processes, if ``torchrun`` started this one; on its own GPU, if there are any."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or _started():
        return
    from torch.distributed.distributed_c10d import PrefixStore  # not every build of torch has it
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun: process {local} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start as many processes, or hide the GPUs (CUDA_VISIBLE_DEVICES=)"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    with peers():
        store, rank, size = next(rendezvous("env://", timeout=LONGEST_WAIT))
        # torchrun's --max-restarts starts new processes, which would find the addresses of the ended ones in the same
        # store and wait for them: https://github.com/pytorch/pytorch/issues/135712
        store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, timeout=LONGEST_WAIT, store=store, rank=rank, world_size=size)


def stop() -> None:
    """Leave the other processes."""
    if _started():
        dist.destroy_process_group()


def size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if _started() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _started() else 0


def is_main() -> bool:
    """Whether this process writes files and speaks to people."""
    return rank() == 0


def wrap(model: nn.Module, trained: Collection[Tensor], *, shards: bool = False) -> nn.Module:
    """``model``, wrapped so that the gradients of its parameters ``trained`` become means over the processes. All
    processes start with the weights of process 0; but with ``shards``, which differ, each keeps those it has drawn."""
    if size() == 1:
        return model
    apart = [parameter for parameter in model.parameters() if not any(parameter is other for other in trained)]
    for parameter in apart:
        parameter.requires_grad_(False)  # tells DDP not to wait for these gradients
    with peers():
        wrapped = DistributedDataParallel(model, init_sync=not shards, **BUFFERS_STAY)
    for parameter in apart:
        parameter.requires_grad_(True)
    return wrapped


def shares(lengths: NDArray[np.int64], parts: int) -> list[list[int]]:
    """Which of the sequences of these ``lengths`` (S,) each of ``parts`` gets, so that all get about as many tokens.

    The longest sequence that is left goes to the part with the fewest tokens. No part gets over 4/3 of the smallest
    possible maximum, and mostly the parts differ by less than the shortest sequence.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    tokens = [(0, part) for part in range(parts)]
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        count, to = tokens[0]
        found[to].append(sequence)
        heapq.heapreplace(tokens, (count + int(lengths[sequence]), to))
    return [sorted(sequences) for sequences in found]


def part(batch: Batch) -> tuple[Batch, float]:
    """The sequences of a training batch that this process trains on, and their share of the batch's predictions.

    Where there are fewer sequences than processes, some train on one with a share of 0.
    """
    if size() == 1:
        return batch, 1.0
    assert batch.targets is not None
    lengths, device = batch.packing.lengths.cpu(), batch.items.device
    chosen = shares(lengths.numpy(), size())[rank()]
    own = torch.tensor(chosen or [0])  # (s,)
    is_own = (
        torch.zeros(len(lengths), dtype=torch.bool).index_fill_(0, own, True).to(device)[batch.packing.rows]
    )  # (T,)
    packing = Packing.from_lengths(lengths[own]).to(device)
    times = None if batch.timestamps is None else batch.timestamps[is_own]
    masked, predicted = batch.masked, is_own
    if masked is not None:
        predicted = is_own[masked]  # (P,)
        masked = (is_own.cumsum(0) - 1)[masked[predicted]]
    targets = batch.targets[predicted]
    found = replace(batch, items=batch.items[is_own], packing=packing, timestamps=times, targets=targets, masked=masked)
    return found, len(targets) / len(batch.targets) if chosen else 0.0


def own_seed(seed: int) -> None:
    """Seed torch for the numbers that each process draws for itself."""
    if size() > 1:
        # The seeds differ in the low 32 bits, the only ones that torch's CPU generator reads.
        torch.manual_seed(seed ^ ((rank() + 1) * 0x9E3779B9 % 2**32))


def backward(loss: Tensor, share: float) -> None:
    """Compute the gradients of the mean loss over the whole batch; ``loss`` is a process's mean over its ``share`` of
    it.

    Gradients of a wrapped model become means over the processes in here; others still have to be averaged.
    """
    with peers():
        (loss * (share * size())).backward() if size() > 1 else loss.backward()  # type: ignore[no-untyped-call]


def clip(parameters: Collection[Tensor], rows: Collection[Tensor], most: float, *, shards: bool) -> None:
    """Scale the gradients down so that the norm of all together is at most ``most``. All processes have the same
    gradients, but with ``shards`` each has its own ``rows``."""
    if not shards:
        nn.utils.clip_grad_norm_((*parameters, *rows), most)
        return
    gradients = [tensor.grad for tensor in parameters if tensor.grad is not None]
    squares = sum((tensor.grad.square().sum() for tensor in rows if tensor.grad is not None), torch.zeros(()))
    norm = (nn.utils.get_total_norm(gradients).square() + add_up(squares)).sqrt()
    nn.utils.clip_grads_with_norm_((*parameters, *rows), most, norm)


def add_up(value: Tensor) -> Tensor:
    """The sum of the processes' values, which replaces ``value`` in place."""
    if size() > 1:
        with peers():
            dist.all_reduce(value)
    return value


def exchange(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Exchange rows: a process sends the first ``sent[0]`` of its ``values`` (n, ...) to process 0, the next
    ``sent[1]`` to process 1, and so on. Returns what it gets, ``received[0]`` rows from process 0, then those from
    process 1, ..."""
    if size() == 1:
        return values
    found = values.new_empty(sum(received), *values.shape[1:])
    with peers():
        dist.all_to_all_single(found, values.contiguous(), received, sent)
    return found


def gather(values: Tensor) -> list[Tensor]:
    """The values of all processes, in their order; all have one shape."""
    if size() == 1:
        return [values]
    found = [torch.empty_like(values) for _ in range(size())]
    with peers():
        dist.all_gather(found, values.contiguous())
    return found


def refuse_differing(what: str, *values: object) -> None:
    """Raises :class:`UserError` in all processes if one has other ``values`` than process 0: they would wait for each
    other forever, or compute something wrong. Values are compared by their ``repr``."""
    if size() == 1:
        return
    digest = hashlib.blake2b(repr(values).encode(), digest_size=7).digest()
    found = torch.cat(gather(torch.tensor([int.from_bytes(digest)])))  # (N,)
    others = (found != found[0]).nonzero().flatten().tolist()
    if others:
        raise UserError(
            f"{what}: process {others[0]} of {size()} has others than process 0; all must see the same files and be "
            "given the same options"
        )


def send(values: Tensor, process: int) -> None:
    with peers():
        dist.send(values, process)


def receive(values: Tensor, process: int) -> None:
    """Fill ``values`` with what ``process`` sends."""
    with peers():
        dist.recv(values, process)


def add_up_ranks(ranks: NDArray[np.int64]) -> None:
    """Add up, in place, the ranks that each process found for its own batches, with zeros elsewhere."""
    add_up(torch.from_numpy(ranks))


def mine(batch: int) -> bool:
    """Whether this process evaluates the batch with this number."""
    return batch % size() == rank()


def any_of(here: bool, device: torch.device) -> bool:
    """Whether ``here`` is true in any of the processes."""
    return here if size() == 1 else bool(add_up(torch.tensor(float(here), device=device)) > 0)


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        add_up(torch.zeros(()))


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def peers() -> Iterator[None]:
    """Inside the context, the end of another process becomes one line that says what to do."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        lost = isinstance(error, dist.DistError) or any(word in reason for word in ("gloo", "onnect", "NCCL"))
        if size() == 1 or not lost:
            raise
        raise UserError(
            f"process {rank()} of {size()}: another process has ended or cannot be reached; run the same command "
            f"again, and a training goes on from its last checkpoint ({reason:.200})"
        ) from error
