"""A pre-norm block around a mixer: norms, residuals and a feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm


class BlockWeights(NamedTuple):
    """What a pre-norm block has around its mixer: two layer norms, and a feed-forward with GELU from D to H channels.

    Attributes:
        norms: weight and bias (D,) of the mixer's norm, then of the feed-forward's.
        feed_forward: matrix (D, H) and bias (H,), then matrix (H, D) and bias (D,), for products ``x @ matrix``; the
            matrices may have any strides.
        eps: what both norms add to the variance.
    """

    norms: Sequence[Tensor]
    feed_forward: Sequence[Tensor]
    eps: float


def in_block(x: Tensor, weights: BlockWeights, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """``x + mix(norm(x))``, and to that the feed-forward of its norm: ``x`` (B, D) to (B, D)."""
    first, first_bias, second, second_bias = weights.norms
    up, up_bias, down, down_bias = weights.feed_forward
    x = x + mix(layer_norm(x, x.shape[1:], first, first_bias, weights.eps))
    normed = layer_norm(x, x.shape[1:], second, second_bias, weights.eps)
    return x + torch.addmm(down_bias, gelu(torch.addmm(up_bias, normed, up)), down)
