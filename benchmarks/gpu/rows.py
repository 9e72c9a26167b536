"""The rows of the GPU suite: one contestant at one shape, and the figures that are measured of it.

Each function takes what identifies its row, yields figures as they come, and runs in a process of its own
(:mod:`benchmarks.gpu.worker`). ``forward`` and ``training`` (forward and backward) have the times of
:func:`benchmarks.gpu.clocks.figures`; ``memory`` is the most that is allocated during a call, as a multiple of what it
returns; ``error`` is norm-wise, against the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyenarec_kernels as hk
from benchmarks.gpu.clocks import Clock, Run, draw, extra_memory, figures, training
from benchmarks.gpu.contestants import HEAD, RIVALS, Contestant, only, ours
from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer

Figures = Iterator[dict[str, Any]]
# Quantiles of sequence lengths in steps of 5%, from the shortest to the longest, to draw packed batches from.
DRAWN = {
    "ml-1m": (18, 23, 27, 32, 37, 44, 51, 60, 70, 81, 96, 109, 126, 148, 173, 207, 253, 309, 400, 556, 2277),
    "email-eu-core": (1, 1, 4, 8, 17, 29, 41, 57, 80, 103, 132, 160, 212, 263, 323, 414, 532, 701, 1003, 1720, 9782),
}
DRAWN_HORIZON = 1024


def ours_row(
    backend: str,
    tokens: int,
    length: int,
    dim: int,
    terms: int,
    window: bool,
    packed: bool,
    clock: Clock,
    seconds: float,
) -> Figures:
    """The gated Legendre convolution on one backend. Graphs come last, because a capture can end the process."""
    with only(backend):
        contestant = ours(tokens, length, dim, terms, window, packed)
        times = measured_of(contestant, clock, seconds)
        yield next(times)
    yield {"error": errors(backend, length, ours(2 * length, length, dim, terms, window, packed))}
    with only(backend):
        yield {"memory": {name: extra_memory(run) for name, run in alone(contestant).items()}}
        yield from times


def rival_row(rival: str, tokens: int, length: int, dim: int, clock: Clock, seconds: float) -> Figures:
    """A rival of ours, on as many tokens."""
    yield from measured_of(RIVALS[rival](tokens, length, dim), clock, seconds)


def drawn_row(
    backend: str, drawn: str, even: bool, tokens: int, dim: int, terms: int, clock: Clock, seconds: float
) -> Figures:
    """Packed sequences of drawn lengths or, with ``even``, as many tokens in a padded batch of sequences of their mean
    length."""
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.tensor(DRAWN[drawn], dtype=torch.float64)
    count = tokens // int(quantiles.mean()) * 2
    at = torch.rand(count, generator=generator, dtype=torch.float64) * (len(quantiles) - 1)
    below = at.long().clamp(max=len(quantiles) - 2)
    lengths = quantiles[below] + (at - below) * (quantiles[below + 1] - quantiles[below])
    ends = lengths.round().long().cumsum(0)
    ends = ends[ends <= tokens]
    total, mean = int(ends[-1]), int(ends[-1]) // len(ends)
    rows = total // mean * mean if even else total
    shape = (rows // mean, mean) if even else (rows,)
    c = draw(dim, terms, dtype=torch.float32)
    x, pre, post = (draw(*shape, dim) for _ in range(3))
    options: dict[str, Any] = {"horizon": DRAWN_HORIZON, "pre_gate": pre, "post_gate": post}
    if not even:
        options["cu_seqlens"] = F.pad(ends, (1, 0)).to("cuda", torch.int32)
    yield {"sequences": len(ends), "rows": rows}
    with only(backend):
        contestant = Contestant(partial(hk.legendre_conv, x, c, **options), [x, c, pre, post])
        yield from measured_of(contestant, clock, seconds)


def mixer_row(mixer: str, tokens: int, length: int, dim: int, clock: Clock, seconds: float) -> Figures:
    """A whole mixer, trained under autocast: hyena, or attention between projections of the same shapes."""
    x = draw(max(tokens // length, 1), length, dim)
    in_proj, out_proj = (torch.nn.Linear(dim, width, bias=False) for width in (3 * dim, dim))
    module = (HyenaMixer(dim, length) if mixer == "hyena" else torch.nn.ModuleList((in_proj, out_proj))).cuda()

    def hyena() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            out: Tensor = module(x)
            return out

    def attention() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            q, k, v = (t.unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in in_proj(x).chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            out: Tensor = out_proj(mixed)
            return out

    with only(None):
        contestant = Contestant(hyena if mixer == "hyena" else attention, [x, *module.parameters()])
        yield from measured_of(contestant, clock, seconds)


def explicit_row(backend: str, dtype: str, tokens: int, length: int, dim: int, clock: Clock, seconds: float) -> Figures:
    """Explicit filters as long as the sequences, gated."""
    x, pre, post = (draw(tokens // length, length, dim, dtype=getattr(torch, dtype)) for _ in range(3))
    h, skip = draw(dim, length, dtype=torch.float32), draw(dim, dtype=torch.float32)
    h.data *= length**-0.5

    def contestant(rows: slice) -> Contestant:
        leaves = [*(t.detach()[rows].requires_grad_() for t in (x, pre, post)), h, skip]
        a, pre_gate, post_gate = leaves[:3]
        return Contestant(partial(hk.long_conv, a, h, skip, pre_gate=pre_gate, post_gate=post_gate), leaves)

    with only(backend):
        times = measured_of(contestant(slice(None)), clock, seconds)
        yield next(times)
    yield {"error": errors(backend, length, contestant(slice(2)))}
    with only(backend):
        yield from times


def measured_of(contestant: Contestant, clock: Clock, seconds: float) -> Figures:
    runs: dict[str, Run] = {"forward": torch.no_grad()(contestant.forward)}
    if contestant.leaves:
        runs["training"] = training(contestant.forward, contestant.leaves)
    yield from figures(runs, clock, seconds)


def alone(contestant: Contestant) -> dict[str, Run]:
    """A forward, and a training call that returns everything that it leaves allocated: the output and the gradients."""
    grad = torch.randn_like(contestant.leaves[0])

    def both() -> tuple[Tensor, ...]:
        out = contestant.forward()
        return out, *torch.autograd.grad(out, contestant.leaves, grad)

    return {"forward": torch.no_grad()(contestant.forward), "training": both}


def errors(backend: str, length: int, contestant: Contestant) -> dict[str, float]:
    """The norm-wise errors of the output and of each gradient against the reference in float64. For tensors of the
    output's shape, it is the worse one of the two sequences; for parameters, that of the whole. ``contestant`` calls a
    partial function of its leaves."""
    call = contestant.forward
    assert isinstance(call, partial)
    grad = torch.randn_like(contestant.leaves[0])

    def answer(wide: bool) -> dict[str, Tensor]:
        leaves = {id(t): (t.detach().double() if wide else t.detach()).requires_grad_() for t in contestant.leaves}

        def swapped(value: Any) -> Any:
            return leaves.get(id(value), value)

        named = {name: swapped(value) for name, value in call.keywords.items()}
        out = call.func(*map(swapped, call.args), **named)
        gradients = torch.autograd.grad(out, list(leaves.values()), grad.double() if wide else grad)
        return {"out": out.detach()} | {f"gradient {n}": t for n, t in enumerate(gradients)}

    with only(backend):
        got = answer(False)
    with backends.use("reference"):
        want = answer(True)

    def error(got: Tensor, want: Tensor) -> float:
        if got.shape == grad.shape:  # two sequences
            got, want = got.reshape(2, length, -1), want.reshape(2, length, -1)
        else:
            got, want = got[None], want[None]
        difference = (got.double() - want).flatten(1).norm(dim=1)
        return float((difference / want.flatten(1).norm(dim=1)).max())

    return {name: error(got[name], value) for name, value in want.items()}


def warm(measure: Callable[..., Figures], name: dict[str, Any], clock: Clock, seconds: float) -> Figures:
    """Compiles what a row launches, which Triton keeps on disk: measures its first times, with as few rounds as
    possible."""
    for part in measure(**name, clock=clock, seconds=0.0):
        if not {"forward", "training"}.isdisjoint(part):
            break
    yield {}
