"""Losses of a mixer's own, beside the model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_loss(x: Tensor, loss: Tensor) -> Tensor:
    """``x`` as it is; whatever is learned from it also learns to lower ``loss`` (), added to the model's own loss.

    A training step then needs to know nothing of it, and a pass without gradients pays nothing.
    """
    return _WithLoss.apply(x, loss)  # type: ignore[no-any-return,no-untyped-call]


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grad, torch.ones_like(loss)
