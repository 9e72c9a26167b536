"""Cutting histories into blocks of events, for attention that sees a fixed number of blocks back."""

from __future__ import annotations

import torch
from torch import Tensor


def block_size(max_length: int) -> int:
    """Events per block: 64, or a quarter of the longest history if that is less."""
    return max(1, min(64, max_length // 4))


def by_block(x: Tensor, size: int) -> Tensor:
    """(S, M, ...) to (S, N, size, ...), zero-padded at the end."""
    spare = -x.shape[1] % size
    if spare:
        x = torch.cat((x, x.new_zeros(x.shape[0], spare, *x.shape[2:])), 1)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def with_before(x: Tensor, count: int) -> Tensor:
    """Each block, preceded by the ``count`` blocks before it (zeros where there are none): (S, N, C, ...) to
    (S, N, (count + 1) C, ...)."""
    blocks = x.shape[1]
    x = torch.cat((x.new_zeros(x.shape[0], count, *x.shape[2:]), x), 1)
    return torch.cat([x[:, first : first + blocks] for first in range(count + 1)], 2)


def lags(size: int, count: int, device: torch.device) -> Tensor:
    """How many events each key of :func:`with_before` lies before each event of its block, (C, (count + 1) C); negative
    for keys after the event."""
    event = torch.arange(size, device=device)[:, None]
    return event - torch.arange(-count * size, size, device=device)


def by_heads(q: Tensor, keys_values: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits queries (..., C, D), and keys and values concatenated to (..., K, 2D), into heads. Returns queries
    (..., H, C, D/H), keys and values (..., H, K, D/H)."""
    q = q.reshape(*q.shape[:-1], heads, -1).transpose(-3, -2)
    k, v = keys_values.reshape(*keys_values.shape[:-1], 2, heads, -1).movedim(-3, 0).transpose(-3, -2)
    return q, k, v


def softmax_of_seen(scores: Tensor, seen: Tensor) -> Tensor:
    """The softmax over the entries of the last dimension that are ``seen``; zeros where none is."""
    scores = scores.masked_fill(~seen, -torch.inf)
    largest = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - largest).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
