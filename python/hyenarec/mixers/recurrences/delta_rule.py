"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464, equation 10), computed chunk by chunk.

On a GPU under autocast it uses the kernel of the package fla-core if that is installed. The kernel supports half
precision only. This path has not been run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.mixers.recurrences.linear_attention import CHUNK, by_chunk, decay_between, from_chunks
from hyenarec.packing import Packing

try:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
except ImportError:
    chunk_gated_delta_rule = None


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, packing: Packing) -> Tensor:
    """``S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T``, ``o_t = S_t q_t`` for every head and sequence.

    ``q``, ``k`` (T, H, K), ``v`` (T, H, V), packed; ``k`` of unit length; ``beta`` b (T, H) in [0, 1]; ``log_decay``
    log a (T, H), at most 0. Returns (T, H, V). The cost is linear in the length of the sequences.
    """
    if chunk_gated_delta_rule is not None and q.is_cuda and torch.is_autocast_enabled("cuda"):
        q, k, v = (x[None].to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
        out, _ = chunk_gated_delta_rule(q, k, v, log_decay[None], beta[None], scale=1.0, cu_seqlens=packing.cu_seqlens)
        return out[0]  # type: ignore[no-any-return]
    out = chunked_gated_delta_rule(*(packing.pad(x) for x in (q, k, v, beta, log_decay)))
    return packing.unpad(out)


def gated_delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One event of :func:`gated_delta_rule`: ``q``, ``k``, ``v`` (B, H, ·), ``beta``, ``log_decay`` (B, H) and
    ``state`` S (B, H, V, K), to the output (B, H, V) and the new S."""
    q, k, v, beta, log_decay = (at_least_float32(x) for x in (q, k, v, beta, log_decay))
    state = state * log_decay[..., None, None].exp()
    fresh = beta[..., None] * (v - (state * k[..., None, :]).sum(-1))  # (B, H, V)
    state = state + fresh[..., :, None] * k[..., None, :]
    return (state * q[..., None, :]).sum(-1), state


def chunked_gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    """:func:`gated_delta_rule` for right-padded rectangles, (B, L, H, ·) and (B, L, H), in plain PyTorch and in at
    least float32."""
    return gated_delta_rule_and_state(q, k, v, beta, log_decay)[0]


def gated_delta_rule_and_state(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`chunked_gated_delta_rule`, and S after the last event, (B, H, V, K).

    With u_t = b_t (v_t - a_t S_{t-1} k_t), the part of the value that the state does not predict yet, the rule is
    S_t = a_t S_{t-1} + u_t k_t^T. Inside a chunk the u solve a unit triangular system (section 3.3 of the paper), whose
    right-hand side is linear in the state S at the start of the chunk. So ``U = fresh - known S^T``, and ``fresh`` and
    ``known`` are computed for all chunks at once.
    """
    length = q.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (by_chunk(x) for x in (q, k, v))  # (B, H, N, C, ·)
        beta, g = (by_chunk(x[..., None]) for x in (beta, log_decay))  # (B, H, N, C, 1)
        decay = decay_between(g.squeeze(-1))  # (B, H, N, C, C)
        since = g.cumsum(-2).exp()  # (B, H, N, C, 1), decay since the start of the chunk
        system = torch.eye(CHUNK, dtype=k.dtype, device=k.device) + (beta * (k @ k.mT) * decay).tril(-1)
        right = torch.cat((beta * v, beta * since * k), -1)
        fresh, known = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
            (v.shape[-1], k.shape[-1]), -1
        )
        scores = (q @ k.mT) * decay
        read, write, fade = q * since, k * decay[..., -1, :, None], since[..., -1:, :]
        state = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1])  # (B, H, V, K)
        out = []
        # unbind, because the gradient of indexing one chunk is as large as all chunks: the backward pass would be
        # quadratic in L.
        chunks = (x.unbind(2) for x in (read, scores, fresh, known, write, fade))
        for read_n, scores_n, fresh_n, known_n, write_n, fade_n in zip(*chunks, strict=True):
            u = fresh_n - known_n @ state.mT  # (B, H, C, V)
            out.append(read_n @ state.mT + scores_n @ u)
            state = fade_n * state + u.mT @ write_n
    return from_chunks(torch.stack(out, 2), length), state
