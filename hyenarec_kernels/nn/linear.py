"""Linear layers, by the matrix products that are fastest to train on a CPU."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.module import _has_any_global_hook

Linear = nn.Linear  # kept for old imports: our own layers once were a class of this name


def fast_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, faster to train where ``layer`` is an ``nn.Linear``, x is on a CPU, and has many rows and few
    channels.

    Layers stay plain ``nn.Linear``, because quantisation looks for exactly that class. Whatever else stands in their
    place (a quantised, adapted or parametrised layer) is simply called, and so is a layer with hooks.

    32,768 rows from 64 to 256 channels, forward and backward on one core of a Xeon, take 42 ms by ``nn.Linear`` and 33
    here. Two things make the difference. A bias that is copied into the output first costs 6 ms, one that is added
    afterwards 2. The weight's gradient takes 13.4 ms as ``grad.T @ x``, and 8.9 as ``(x.T @ grad).T``: the wider side
    should be the columns.

    Args:
        layer: a linear layer, or what a host library put in its place.
        x: (..., in_features).

    Returns:
        (..., out_features).
    """
    if not is_plain(layer):
        y: Tensor = layer(x)
        return y
    return fast_product(x, layer.weight, layer.bias)


def fast_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (..., I) times ``weight`` (O, I), plus ``bias`` (O,): what :func:`fast_linear` computes."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return linear(x, weight, bias)
    factor = weight.t()
    if weight.shape[0] > weight.shape[1]:
        factor = factor.contiguous()  # the gradient has this layout, so autograd computes it in this order
    y: Tensor = x @ factor
    return y if bias is None else y.add_(bias.to(y.dtype))  # autocast casts products, not sums


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call of the layer does no more than ``nn.Linear.forward``."""
    return type(layer) is nn.Linear and not hooked(layer)


def hooked(layer: nn.Module) -> bool:
    """Whether a call of the layer does more than its ``forward``; ``nn.Module`` tests the same."""
    own = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(own) or _has_any_global_hook()  # type: ignore[no-untyped-call]
