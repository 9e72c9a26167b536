"""Linear attention with decay: every event reads a state matrix and adds to it. Computed chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec.mixers.recurrences import at_least_float32

CHUNK = 32  # events that attend to each other directly; older ones are read from the state


def linear_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, chunk: int = CHUNK) -> Tensor:
    """``S_t = exp(g_t) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t`` for every head, from ``S = 0``.

    ``q``, ``k`` (B, L, H, K) and ``v`` (B, L, H, V), right-padded; ``log_decay`` g (B, L, H), at most 0, or None for no
    decay. The batch dimension of each may be 1 if all sequences share it. Returns (B, L, H, V), float32 (float64 if
    ``v`` is). The cost is linear in L. The only exponentials are of sums of g, so nothing overflows. ``chunk`` events
    attend to each other directly; a value near the number of features per head is fastest.
    """
    return linear_attention_and_state(q, k, v, log_decay, chunk=chunk)[0]


def linear_attention_and_state(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """:func:`linear_attention`, and S after the last event, (B, H, K, V)."""
    length = v.shape[1]
    with torch.autocast(v.device.type, enabled=False):
        q, k, v = (by_chunk(x, chunk) for x in (q, k, v))  # (B, H, N, C, ·)
        if log_decay is None:
            log_decay = q.new_zeros(1, length, 1)
        g = by_chunk(log_decay[..., None], chunk).squeeze(-1)  # (B, H, N, C)
        decay = decay_between(g)  # (B, H, N, C, C)
        out = ((q @ k.mT) * decay) @ v
        added = (k * decay[..., -1, :, None]).mT @ v  # (B, H, N, K, V), what each chunk adds to S at its end
        total = g.sum(-1)[..., None, None].exp()
        states = [torch.zeros_like(added[:, :, 0])]
        # unbind, because the gradient of indexing one chunk is as large as all chunks: the backward pass would be
        # quadratic in L.
        for fade, more in zip(total.unbind(2), added.unbind(2), strict=True):
            states.append(fade * states[-1] + more)
        out = out + (q * g.cumsum(-1)[..., None].exp()) @ torch.stack(states[:-1], 2)
    return from_chunks(out, length), states[-1]


def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One event of :func:`linear_attention`: ``q``, ``k`` (B, H, K), ``v`` (B, H, V), ``log_decay`` (B, H) and
    ``state`` S (B, H, K, V), to the output (B, H, V) and the new S."""
    q, k, v = (at_least_float32(x) for x in (q, k, v))
    if log_decay is not None:
        state = state * at_least_float32(log_decay)[..., None, None].exp()
    state = state + k[..., :, None] * v[..., None, :]
    return (q[..., :, None] * state).sum(-2), state


def by_chunk(x: Tensor, chunk: int = CHUNK) -> Tensor:
    """(B, L, H, ·) to (B, H, N, chunk, ·), zero-padded at the end, in at least float32."""
    batch, length, heads, size = x.shape
    x = pad(at_least_float32(x), (0, 0, 0, 0, 0, -length % chunk))
    # Made contiguous once, because every product that uses it would otherwise make its own copy: 31 ms instead of 41
    # for two heads of 32 features and 8,000 events, forward and backward.
    return x.view(batch, -1, chunk, heads, size).permute(0, 3, 1, 2, 4).contiguous()


def from_chunks(x: Tensor, length: int) -> Tensor:
    """(B, H, N, C, ·) to (B, length, H, ·)."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]


def decay_between(g: Tensor) -> Tensor:
    """``exp(g_{j+1} + ... + g_i)`` at [i, j] for j <= i and 0 above: (..., C) to (..., C, C).

    Each sum is computed on its own: a difference of running sums would lose small decays next to large ones.
    """
    places = torch.arange(g.shape[-1], device=g.device)
    below = places[:, None] > places
    sums = (g[..., :, None] * below).cumsum(-2)
    return sums.exp() * (below | (places[:, None] == places))
