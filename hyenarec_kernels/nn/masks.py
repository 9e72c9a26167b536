"""Converts the masks that libraries pass to attention into the one that a mixer takes."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.ops.checks import check_tensor
from hyenarec_kernels.segments import MASK_DTYPES

NEGLIGIBLE = -1e3  # an additive mask must add this or less to the scores of padding; its exp is 0 in every dtype

FORMS = {
    None: "all real keys, or all up to itself",
    True: "all real keys up to itself, and no later ones",
    False: "all real keys, later ones too",
}


def key_mask(
    mask: Tensor | None = None, *, key_padding_mask: Tensor | None = None, causal: bool | None = None
) -> Tensor:
    """Converts a mask for attention into the mask (B, L) that :class:`HyenaMixer` takes: bool, True at real positions.

    Args:
        mask: a mask as transformers and ``scaled_dot_product_attention`` take it. Bool or integers: True, or 1, is
            real. Floating point, which is added to the scores: 0 is real, -1,000 or less (-inf too) is padding. Its
            shape is (B, L), (B, L, 1), (B, H, 1, L) or (B, H, L, L), the same for every head. Of the last kind, the
            last query must see every real key; the other real queries must all see these, or all only those up to
            themselves; and a query at padding may see the same, every key or none.
        key_padding_mask: a mask (B, L) as ``nn.MultiheadAttention`` takes it. Bool or integers: True, or 1, is
            *padding*. Floating point as above.
        causal: which of the two forms a mask (B, H, L, L) must have: True for keys up to each query, False for all.

    Returns:
        (B, L) bool. The mixer refuses a mask with holes: the real positions of each row must be contiguous.

    Raises:
        ValueError: neither or both are given, a shape or dtype does not fit, a value is neither real nor padding, or
            queries see other keys than described. On an accelerator wrong values fail a device-side assertion instead,
            because raising would have to wait for the device.
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
        require((mask == mask[:, :1]).all(), "key_mask: a mask (B, H, 1, L) must be the same for every head")
        mask = mask[:, 0, 0]
    elif mask.dim() != 2 and not square:
        raise ValueError(f"key_mask: mask must be (B, L), (B, L, 1), (B, H, 1, L) or (B, H, L, L), got {shape}")
    visible = _additive("mask", mask) if mask.is_floating_point() else _binary("mask", mask)
    return _keys(visible, causal) if square else visible


def _keys(visible: Tensor, causal: bool | None) -> Tensor:
    """The real keys (B, L): those that the last query sees, if ``visible`` (B, H, L, L) is of a known form. Other
    forms, such as several sequences in one row or a sliding window, are refused: keys that the last query does not see
    would be lost."""
    real = visible[:, 0, -1]
    first = real.int().argmax(-1)  # (B,)
    seen_first = visible[torch.arange(len(real), device=real.device), 0, first]  # (B, L)
    both_ways = (seen_first == real).all() if causal is None else real.new_full((), not causal)
    rule = visible.new_ones(visible.shape[-2:]).tril() | both_ways
    follows = (visible == (rule & real[:, None, None])).all(-1)  # (B, H, L)
    all_or_none = (visible == visible[..., :1]).all(-1) & ~real[:, None]
    require(
        follows | all_or_none,
        f"key_mask: a mask (B, H, L, L) must let every real query see {FORMS[causal]}; hand over a mask (B, L) of real "
        "positions, or cu_seqlens where a row holds several sequences",
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
    """Unless ``right`` is all True, raises ValueError with ``message`` in eager code on the CPU. Elsewhere an
    asynchronous assertion of torch's fails, which does not wait for the device."""
    if right.device.type == "cpu" and not torch.compiler.is_compiling():
        if not right.all():
            raise ValueError(message)
    elif not right.is_meta:
        torch._assert_async(right.all(), message)
