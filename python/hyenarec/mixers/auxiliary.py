"""Losses that a mixer adds to the model's own loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_loss(x: Tensor, loss: Tensor) -> Tensor:
    """``x`` unchanged. Its backward pass also computes the gradients of ``loss`` (), as if that were added to the
    model's loss.

    So the training step needs no code for such a loss, and a pass without gradients pays nothing for it.
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
