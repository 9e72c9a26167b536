"""Checks for test_distributed.py: whole models trained with DistributedDataParallel and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close
from two_processes import WORLD, check, whole

from hyenarec_kernels.nn import HyenaMixer


class MixerLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = HyenaMixer(8, 20, order=3, groups=4, dtype=torch.float64)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.model(x, lengths=lengths).square().mean()


class GateLoss(MixerLoss):
    """A mixer of order 1, which has no long convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.model = HyenaMixer(8, 20, order=1, dtype=torch.float64)


class RecommenderLoss(nn.Module):
    def __init__(self) -> None:
        from hyenarec.config import ModelConfig
        from hyenarec.model import SequenceModel

        super().__init__()
        self.model = SequenceModel(ModelConfig(dim=8, dropout=0.0), 30).double()

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        from hyenarec.data.batches import Batch
        from hyenarec.losses import full_cross_entropy
        from hyenarec.packing import Packing

        hidden = self.model(Batch(items[:-1].flatten(), Packing.from_lengths(lengths)))
        return full_cross_entropy(hidden, self.model.items.weight, self.model.bias, items[1:].flatten())


def data(kind: type[nn.Module], step: int) -> list[tuple[Tensor, Tensor]]:
    """The parts of one batch: one for each process, all of the same size."""
    generator = torch.Generator().manual_seed(step)
    if issubclass(kind, MixerLoss):
        lengths = torch.tensor([[9, 4], [1, 7]])
        return list(zip(torch.randn(WORLD, 2, 9, 8, dtype=torch.float64, generator=generator), lengths, strict=True))
    lengths = torch.tensor([[12, 4], [7, 9]])
    return list(zip(torch.randint(0, 30, (WORLD, 17), generator=generator), lengths, strict=True))


def trained(model: nn.Module, parts: Callable[[int], list[tuple[Tensor, Tensor]]]) -> list[tuple[str, Tensor]]:
    """The gradients and weights after each of two steps."""
    optimizer, kept = torch.optim.SGD(model.parameters(), 0.1), []
    for step in range(2):
        optimizer.zero_grad()
        batch = parts(step)
        losses = [model(*part) for part in batch]
        torch.stack(losses).mean().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            kept += [(f"gradient of {name}", whole(parameter.grad).clone()), (name, whole(parameter.detach()).clone())]
    return kept


def parallel(kind: type[nn.Module], wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    alone, together = kind(), kind()
    together.load_state_dict(alone.state_dict())
    want = trained(alone, lambda step: data(kind, step))
    got = trained(wrap(together), lambda step: [data(kind, step)[dist.get_rank()]])
    for (name, w), (_, g) in zip(want, got, strict=True):
        assert_close(g, w, msg=lambda m, name=name: f"{name}: {m}")


@check
def data_parallel_mixer(mesh: Any) -> None:
    parallel(MixerLoss, nn.parallel.DistributedDataParallel)
    parallel(GateLoss, nn.parallel.DistributedDataParallel)


@check
def data_parallel_recommender(mesh: Any) -> None:
    parallel(RecommenderLoss, nn.parallel.DistributedDataParallel)


@check
def fully_sharded_mixer(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    parallel(MixerLoss, lambda model: fully_shard(model, mesh=mesh))


@check
def fully_sharded_recommender(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    def wrap(loss: nn.Module) -> nn.Module:
        for block in loss.model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)  # type: ignore[arg-type]
        return fully_shard(loss, mesh=mesh)

    parallel(RecommenderLoss, wrap)
