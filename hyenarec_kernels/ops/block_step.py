"""One step of a pre-norm block around a Hyena mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyenarec_kernels.blocks import BlockWeights
from hyenarec_kernels.ops.conv_step import define_step


def check_block(op: str, weights: BlockWeights, dim: int, x: Tensor) -> None:
    """Raises ValueError unless ``weights`` fit a mixer of ``dim`` channels and what the block reads, ``x``."""
    if x.shape[1] != dim:
        raise ValueError(f"{op}: block: a mixer with gate_dim reads more than a block's {dim} channels")
    if len(weights.norms) != 4 or len(weights.feed_forward) != 4:
        raise ValueError(f"{op}: block: norms and feed_forward must have 4 tensors each")
    hidden = weights.feed_forward[0].shape[-1]
    shapes = [(dim,)] * 4 + [(dim, hidden), (hidden,), (hidden, dim), (dim,)]
    for given, shape in zip((*weights.norms, *weights.feed_forward), shapes, strict=True):
        if given.shape != shape or given.dtype != x.dtype or given.device != x.device:
            raise ValueError(
                f"{op}: block: expected {shape} {x.dtype} on {x.device}, got {tuple(given.shape)} {given.dtype} on "
                f"{given.device}"
            )


def block_step(x: Tensor, norms: Sequence[Tensor], feed_forward: Sequence[Tensor], eps: float, *mixer: Any) -> Tensor:
    """What :func:`hyenarec_kernels.blocks.in_block` computes around a mixer's step, in one call.

    It updates the state in place and so has no gradients.

    Args:
        x: (B, D), what the block reads of each sequence's newest event.
        norms, feed_forward, eps: as in :class:`hyenarec_kernels.blocks.BlockWeights`, in the dtype of ``x``.
        mixer: the arguments of :func:`hyenarec_kernels.ops.mixer_step.mixer_step` after its first, in its order.

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        NotImplementedError: gradients are enabled and an argument requires one, or a transform of `torch.func` is
            active.
    """
    out: Tensor = torch.ops.hyenarec.block_step(x, list(norms), list(feed_forward), eps, *mixer)
    return out


define_step(
    "block_step",
    "(Tensor x, Tensor[] norms, Tensor[] feed_forward, float eps, Tensor w_in, Tensor w_out, Tensor(a!) projected, "
    "Tensor short_taps, Tensor short_bias, Tensor(b!)[] memory, Tensor[] tables, Tensor(c!) steps, str gate) -> Tensor",
)
