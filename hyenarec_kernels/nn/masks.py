"""Masks as libraries hand them to attention, as the one mask that a mixer takes."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.ops.checks import check_tensor
from hyenarec_kernels.segments import MASK_DTYPES

NEGLIGIBLE = -1e3  # what an additive mask adds, at most, to the scores of padding: exp of it is 0 in every dtype


def key_mask(mask: Tensor | None = None, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """A mask (B, L) bool, True for real positions, as :class:`HyenaMixer` takes it, from what attention takes.

    Args:
        mask: in the polarity of transformers and of ``scaled_dot_product_attention``. Bool or integers: True, or 1, is
            real. Floating point is added to the scores: 0 is real, -1,000 or less (-inf too) is padding. (B, L),
            (B, L, 1), (B, 1, 1, L), or (B, H, L, L): the last query sees every real key, other real ones see all of
            these or all up to themselves, and queries of padding these, every key or none.
        key_padding_mask: in the polarity of ``nn.MultiheadAttention``, (B, L). Bool: True is *padding*. Floating point
            is added to the scores as above.

    Returns:
        (B, L) bool. The mixer refuses one with holes: the real positions of a row must be one run.

    Raises:
        ValueError: none or both are given, a shape or dtype does not fit, a value is neither real nor padding, or
            queries see something else. On an accelerator, which is not waited for, wrong values fail a device-side
            assertion.
    """
    if (mask is None) == (key_padding_mask is None):
        raise ValueError("key_mask: give either mask or key_padding_mask")
    for name, given in (("mask", mask), ("key_padding_mask", key_padding_mask)):
        if given is not None:
            check_tensor("key_mask", name, given)
    if key_padding_mask is not None:
        if key_padding_mask.dim() != 2:
            raise ValueError(f"key_mask: key_padding_mask must be (B, L), got {tuple(key_padding_mask.shape)}")
        if key_padding_mask.is_floating_point():
            return _additive("key_padding_mask", key_padding_mask)
        return ~_binary("key_padding_mask", key_padding_mask)
    assert mask is not None
    square = mask.dim() == 4 and mask.shape[2] == mask.shape[3] > 1
    shape = tuple(mask.shape)
    if mask.dim() == 3 and mask.shape[2] == 1:
        mask = mask[..., 0]
    elif mask.dim() == 4 and mask.shape[2] == 1:
        mask = mask[:, 0, 0]
    elif mask.dim() != 2 and not square:
        raise ValueError(f"key_mask: mask must be (B, L), (B, L, 1), (B, 1, 1, L) or (B, H, L, L), got {shape}")
    visible = _additive("mask", mask) if mask.is_floating_point() else _binary("mask", mask)
    return _keys(visible) if square else visible


def _keys(visible: Tensor) -> Tensor:
    """The real keys (B, L) of what queries see, (B, H, L, L). Sequences packed into a row, windows and the like would
    otherwise lose what the last query does not see."""
    real = visible[:, 0, -1]
    first = real.int().argmax(-1)  # (B,)
    seen_first = visible[torch.arange(len(real), device=real.device), 0, first]  # (B, L)
    both_ways = (seen_first == real).all()
    rule = visible.new_ones(visible.shape[-2:]).tril() | both_ways
    follows = (visible == (rule & real[:, None, None])).all(-1)  # (B, H, L)
    all_or_none = (visible == visible[..., :1]).all(-1) & ~real[:, None]
    require(
        follows | all_or_none,
        "key_mask: a mask (B, H, L, L) must let every real query see all real keys, or all up to itself; hand over a "
        "mask (B, L) of real positions, or cu_seqlens where a row holds several sequences",
    )
    return real


def _additive(name: str, mask: Tensor) -> Tensor:
    real = mask == 0
    require(real | (mask <= NEGLIGIBLE), f"key_mask: a floating-point {name} must hold 0 and {NEGLIGIBLE:.0f} or less")
    return real


def _binary(name: str, mask: Tensor) -> Tensor:
    if mask.dtype not in MASK_DTYPES:
        raise ValueError(f"key_mask: {name} must be bool, integers or floating point, got {mask.dtype}")
    if mask.dtype is torch.bool:
        return mask
    require((mask == 0) | (mask == 1), f"key_mask: an integer {name} must hold 0 and 1")
    return mask != 0


def require(right: Tensor, message: str) -> None:
    """Raises ValueError with ``message`` unless ``right`` is all True, in eager code on the CPU; elsewhere it is an
    assertion of torch's, which nothing waits for."""
    if right.device.type == "cpu" and not torch.compiler.is_compiling():
        if not right.all():
            raise ValueError(message)
    elif not right.is_meta:
        torch._assert_async(right.all(), message)
