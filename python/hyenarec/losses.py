"""Losses over the item catalogue that never hold the whole (tokens, items) score matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, softplus

from hyenarec.repeats import Repeats

# Scores held at a time, unless chunks would then have fewer tokens than there are channels: every chunk also passes
# over the whole embedding table, (V, D), and should be worth it. On one core of a Sapphire Rapids Xeon, 2M scores (8
# MiB of float32) are the fastest of 256K to 4M in float32 and bfloat16 (7,000 tokens, 3,416 items); with 500,000 items
# and 64 channels, 64 tokens at a time are 3.8 times faster than 4.
CHUNK_SCORES = 1 << 21

# Takes a chunk of tokens, their scores (C, V) and a buffer of the same shape; returns the sum of the tokens' losses,
# (), and writes the gradient of the scores into the buffer.
Chunk = Callable[[slice, Tensor, Tensor], Tensor]


def _matmul_dtype(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # "meta" has none
    return torch.get_autocast_dtype(device) if cast else tensor.dtype


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor, of_chunk: Chunk
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The sum of the tokens' losses, (), and its gradients by ``hidden``, ``weight`` and ``bias``, computed together so
    that no score is computed twice or kept."""
    dtype = _matmul_dtype(weight)
    h, e, b = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    tokens, n_items = len(h), len(e)
    chunk = min(tokens, max(CHUNK_SCORES // n_items, h.shape[1]))
    scores = h.new_empty(chunk, n_items)  # reused: fresh pages for every chunk cost a third of the time
    gradients = torch.empty_like(scores)
    grad_hidden = torch.empty_like(h)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    grad_bias = torch.zeros_like(bias, dtype=torch.float32)
    loss = torch.zeros((), dtype=torch.float32, device=h.device)
    for first in range(0, tokens, chunk):
        part = h[first : first + chunk]  # (C, D)
        s, g = scores[: len(part)], gradients[: len(part)]  # (C, V)
        torch.addmm(b, part, e.T, out=s)
        loss += of_chunk(slice(first, first + len(part)), s, g)
        grad_bias += g.sum(0, dtype=torch.float32)
        torch.mm(g, e, out=grad_hidden[first : first + chunk])
        grad_weight += g.T @ part
    return loss, (grad_hidden, grad_weight, grad_bias)


def _softmax(scores: Tensor, out: Tensor) -> Tensor:
    """The softmax of each row into ``out``; returns the rows' log normalisers, (C,) float32."""
    torch.softmax(scores, 1, out=out)
    # A row's largest probability is exp(largest score) / normaliser, so two maxima are enough for the normaliser.
    return scores.amax(1).float() - out.amax(1).float().log()


def _scaled(ctx: Any, grad: Tensor) -> list[Tensor]:
    """The saved gradients, which are of the sum over tokens, as those of the mean, times the incoming gradient."""
    scale = grad / len(ctx.saved_tensors[0])
    return [gradient.to(dtype) * scale for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]


class _FullCrossEntropy(torch.autograd.Function):
    """The mean loss, (), and for each token its softmax's log normaliser and its target's score, (T,) each."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        minus_one = hidden.new_full((1, 1), -1.0, dtype=_matmul_dtype(weight))
        log_normaliser, own = hidden.new_empty(2, len(hidden), dtype=torch.float32)

        def of_chunk(tokens: slice, scores: Tensor, gradient: Tensor) -> Tensor:
            target = targets[tokens, None]  # (C, 1)
            log_normaliser[tokens] = _softmax(scores, gradient)
            gradient.scatter_add_(1, target, minus_one.expand_as(target))  # softmax - one-hot
            own[tokens] = scores.gather(1, target)[:, 0].float()
            loss: Tensor = (log_normaliser[tokens] - own[tokens]).sum()
            return loss

        loss, gradients = _loss_and_gradients(hidden, weight, bias, of_chunk)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(log_normaliser, own)
        return loss / len(hidden), log_normaliser, own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx, grad), None


def full_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, repeats: Repeats | None = None
) -> Tensor:
    """Mean cross entropy of ``hidden @ weight.T + bias`` over the whole catalogue, plus the loss of ``repeats``.

    ``hidden`` (T, D), ``weight`` (V, D), ``bias`` (V,), ``targets`` (T,) int64. Matrix products run in the autocast
    dtype where autocast is on; the softmax is summed in float32. Holds at most ``CHUNK_SCORES`` scores, or as many
    as ``weight`` has elements where that is more.
    """
    loss, log_normaliser, own = _FullCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return _with(repeats, loss, log_normaliser, own)


def _with(repeats: Repeats | None, loss: Tensor, log_normaliser: Tensor, own: Tensor) -> Tensor:
    return loss if repeats is None else loss + repeats.loss(log_normaliser, own)


class _AgainstNegatives(torch.autograd.Function):
    """Each token's loss against shared negatives of ``weight`` (M, D) and ``bias`` (M,); ``own`` (T,) is its target's
    score.

    The loss is log(exp(own) + sum of exp(scores)) - own = softplus(log sum of exp(scores) - own). Returns its mean, (),
    and each token's log normaliser, (T,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, own: Tensor, targets: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_own, log_normaliser = own.new_empty(2, len(own), dtype=torch.float32)

        def of_chunk(tokens: slice, scores: Tensor, gradient: Tensor) -> Tensor:
            # The least finite number, not -inf: a token whose negatives are all its target would get NaN.
            scores.masked_fill_(targets[tokens, None] == negatives, torch.finfo(scores.dtype).min)
            excess = _softmax(scores, gradient) - own[tokens].float()  # (C,)
            share = torch.sigmoid(excess)  # of the negatives in the whole softmax
            grad_own[tokens] = -share
            gradient.mul_(share[:, None])
            losses = softplus(excess)
            log_normaliser[tokens] = losses + own[tokens].float()
            return losses.sum()

        loss, gradients = _loss_and_gradients(hidden, weight, bias, of_chunk)
        ctx.save_for_backward(*gradients, grad_own)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype, own.dtype
        ctx.mark_non_differentiable(log_normaliser)
        return loss / len(hidden), log_normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx, grad), None, None


def sampled_softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    repeats: Repeats | None = None,
) -> Tensor:
    """Mean sampled-softmax loss with logQ correction, for catalogues too big to score whole, plus the loss of
    ``repeats``.

    ``negatives`` (M,) int64 are drawn with replacement from the distribution whose log is ``log_q`` (V,), one sample
    shared by the batch. Each negative's score is corrected by ``log(M q)``, which makes the estimated normaliser
    unbiased; a negative that equals a row's target is dropped in that row, and the target, which is always present,
    needs no correction (Bengio & Senecal 2008). Precision and memory are those of :func:`full_cross_entropy`.
    """
    # embedding and gather, as the gradient of indexing sorts the indices (7.6 ms instead of 2.8 for 32,768 x 64)
    own = (hidden * embedding(targets, weight)).sum(1) + bias.gather(0, targets)  # (T,)
    corrected = bias[negatives] - (log_q[negatives] + math.log(len(negatives)))  # (M,)
    loss, log_normaliser = _AgainstNegatives.apply(  # type: ignore[no-untyped-call]
        hidden, weight[negatives], corrected, own, targets, negatives
    )
    return _with(repeats, loss, log_normaliser, own.detach().float())
