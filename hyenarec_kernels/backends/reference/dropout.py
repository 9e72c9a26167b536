"""Dropout with a mask that depends only on a seed and on each element's position, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu as apply_gelu

from hyenarec_kernels.dtypes import wide

GROUP, COUNTERS = 256, 16  # elements in a group, and the generator's counters that decide them
MULTIPLIERS, WEYL, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
LOW = 0xFFFFFFFF


def dropout(x: Tensor, seed: Tensor, dropped: int, gelu: bool) -> Tensor:
    value = x.to(wide(x.dtype))
    return _drop(apply_gelu(value) if gelu else value, seed, dropped).to(x.dtype)


def dropout_backward(grad: Tensor, x: Tensor, seed: Tensor, dropped: int, gelu: bool, needs: list[bool]) -> Tensor:
    value = grad.to(wide(x.dtype))
    if gelu:
        at = x.to(value.dtype)
        density = torch.exp(-at * at / 2) * (2 * torch.pi) ** -0.5
        value = value * (torch.special.ndtr(at) + at * density)
    return _drop(value, seed, dropped).to(x.dtype)


def kept(count: int, seed: Tensor, dropped: int) -> Tensor:
    """(count,) bool: which elements stay.

    For each counter the generator gives four words. Byte ``b`` of word ``w`` for counter ``16 g + c`` decides element
    ``256 g + 64 w + 4 c + b``, which stays if the byte is at least ``dropped``.
    """
    groups = -(-count // GROUP)
    words = philox(torch.arange(groups * COUNTERS, device=seed.device), seed)  # (groups COUNTERS, 4)
    words = words.view(groups, COUNTERS, 4).transpose(1, 2)  # (groups, 4, COUNTERS)
    octets = words[..., None] >> torch.arange(0, 32, 8, device=seed.device) & 255  # (groups, 4, COUNTERS, 4)
    return octets.flatten()[:count] >= dropped


def philox(counters: Tensor, seed: Tensor) -> Tensor:
    """Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of the counters (n,) int64
    with ``seed`` (1,) as the key: (n, 4) int64, each in [0, 2^32)."""
    x = [counters & LOW, counters >> 32 & LOW, torch.zeros_like(counters), torch.zeros_like(counters)]
    key = [seed & LOW, seed >> 32 & LOW]
    for _ in range(ROUNDS):
        (high_a, low_a), (high_b, low_b) = (_product(x[i], m) for i, m in zip((0, 2), MULTIPLIERS, strict=True))
        x = [high_b ^ x[1] ^ key[0], low_b, high_a ^ x[3] ^ key[1], low_a]
        key = [k + w & LOW for k, w in zip(key, WEYL, strict=True)]
    return torch.stack(x, -1)


def _product(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of ``x * multiplier``, for two factors below 2^32. int64 could not hold the whole
    product, so it is computed from two halves of ``x``."""
    upper, lower = (x >> 16) * multiplier, (x & 0xFFFF) * multiplier  # each below 2^48
    return upper + (lower >> 16) >> 16, (upper << 16) + lower & LOW


def _drop(value: Tensor, seed: Tensor, dropped: int) -> Tensor:
    keep = kept(value.numel(), seed, dropped).view(value.shape)
    return torch.where(keep, value * (256 / (256 - dropped)), 0)
