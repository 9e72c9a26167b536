"""The rows of the GPU suite: what is measured at one shape.

Contestants of a row take turns for `seconds`; `times` are the device's milliseconds (:class:`.gpu_measuring.Clock`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyenarec_kernels as hk
from benchmarks.gpu.clocks import Clock, draw, extra_memory, host_time, training
from benchmarks.harness.measuring import take_turns
from hyenarec_kernels import backends
from hyenarec_kernels.backends.reference.fourier import fft_size
from hyenarec_kernels.nn import HyenaMixer

TOKENS = (131_072, 1_048_576)
LENGTHS = (50, 200, 512, 1024, 4096, 16384, 65536)
DIMS = (64, 128, 256)
TERMS = 32
FOURIER_LENGTHS = (256, 1024, 4096, 16384)
FOURIER_DIMS = (64, 256)
# 5% quantiles of sequence lengths, from the shortest to the longest, for packed batches.
DRAWN = {
    "ml-1m": (18, 23, 27, 32, 37, 44, 51, 60, 70, 81, 96, 109, 126, 148, 173, 207, 253, 309, 400, 556, 2277),
    "email-eu-core": (1, 1, 4, 8, 17, 29, 41, 57, 80, 103, 132, 160, 212, 263, 323, 414, 532, 701, 1003, 1720, 9782),
}


def fft(u: Tensor, h: Tensor, dim: int) -> Tensor:
    """torch's: a causal convolution along a dimension as long as the filter."""
    length = u.shape[dim]
    size = fft_size(2 * length - 1)
    spectrum = torch.fft.rfft(u, size, dim=dim) * torch.fft.rfft(h, size, dim=dim)
    whole: Tensor = torch.fft.irfft(spectrum, size, dim=dim)
    return whole.narrow(dim, 0, length)


def packed_attention() -> Callable[..., Tensor] | None:
    """torch's causal attention of packed sequences, where it has one."""
    try:
        attention = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    windowed = "window_size" in inspect.signature(attention).parameters  # torch 2.10 says `is_causal`
    return partial(attention, **({"window_size": (-1, 0)} if windowed else {"is_causal": True}))


def contestants(
    tokens: int, length: int, dim: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Forward passes and training steps by name; also ours alone, returning all that stays."""
    batch = max(tokens // length, 1)
    x, pre, post = (draw(batch, length, dim) for _ in range(3))
    c, skip = draw(dim, TERMS, dtype=torch.float32), draw(dim, dtype=torch.float32)
    c.data *= length**-0.5
    bounds = torch.arange(0, batch * length + 1, length, device="cuda", dtype=torch.int32)
    flat = [t.detach().reshape(-1, dim).requires_grad_() for t in (x, pre, post)]

    def ours() -> Tensor:
        return hk.legendre_conv(x, c, skip, horizon=length, pre_gate=pre, post_gate=post)

    def packed() -> Tensor:
        return hk.legendre_conv(
            flat[0], c, skip, horizon=length, pre_gate=flat[1], post_gate=flat[2], cu_seqlens=bounds
        )

    basis = torch.randn(TERMS, length, device="cuda") * length**-0.5

    def through_fft() -> Tensor:
        u = (pre * x).float()
        y = fft(u, (c @ basis).T, -2) + skip * u
        return post * y.to(x.dtype)

    query = draw(batch, dim // 64, length, 64)

    def attention() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, query, query, is_causal=True)

    forward: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "ours": (ours, [x, c, skip, pre, post]),
        "ours, packed": (packed, [*flat, c, skip]),
        "FFT": (through_fft, [x, c, skip, pre, post]),
        "attention": (attention, [query]),
    }
    varlen_attn = packed_attention()
    if varlen_attn is not None:
        heads = draw(batch * length, dim // 64, 64)
        forward["attention, packed"] = (partial(varlen_attn, *[heads] * 3, *[bounds] * 2, length, length), [heads])
    moved = torch.empty(2, 2 * batch * length * dim, dtype=torch.bfloat16, device="cuda")
    runs: dict[str, Callable[[], Any]] = {"copy": lambda: moved[0].copy_(moved[1])}
    for name, (run, leaves) in forward.items():
        try:
            runs[f"{name}, fwd+bwd"] = training(run, leaves)
            runs[name] = torch.no_grad()(run)
        except (RuntimeError, TypeError) as error:  # out of memory, or an argument that this torch calls otherwise
            if name == "ours":
                raise
            print(f"{name} at {batch} x {length} x {dim}: {str(error).splitlines()[0]}", file=sys.stderr)
    alone: dict[str, Callable[[], Any]] = {}
    for name in ("ours", "ours, packed"):
        if name in runs:
            alone |= {
                name: runs[name],
                f"{name}, fwd+bwd": partial(both, *forward[name], torch.randn_like(forward[name][1][0])),
            }
    return runs, alone


def both(run: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    out = run()
    return out, *torch.autograd.grad(out, leaves, grad)


def parity(length: int, dim: int) -> dict[str, float]:
    """The norm-wise error of the output and each gradient against the reference in float64: the worse of two
    sequences', or the parameters'."""
    names = ("x", "coefficients", "skip", "pre_gate", "post_gate")
    x, pre, post = (draw(2, length, dim) for _ in range(3))
    c, skip = draw(dim, TERMS, dtype=torch.float32), draw(dim, dtype=torch.float32)
    grad = torch.randn_like(x)

    def answer(leaves: list[Tensor], grad: Tensor) -> dict[str, Tensor]:
        x, c, skip, pre, post = leaves
        out = hk.legendre_conv(x, c, skip, horizon=length, pre_gate=pre, post_gate=post)
        return {"out": out.detach()} | dict(zip(names, torch.autograd.grad(out, leaves, grad), strict=True))

    leaves = [x, c, skip, pre, post]
    got = answer(leaves, grad)
    with backends.use("reference"):
        want = answer([t.detach().double().requires_grad_() for t in leaves], grad.double())

    def error(got: Tensor, want: Tensor) -> float:
        if want.dim() < 3:
            got, want = got[None], want[None]
        difference = (got.double() - want).flatten(1).norm(dim=1)
        return float((difference / want.flatten(1).norm(dim=1)).max())

    return {name: error(got[name], value) for name, value in want.items()}


def drawn_row(drawn: str, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """Packed sequences of drawn lengths, against as many tokens in sequences of their mean length."""
    tokens = TOKENS[0]
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.tensor(DRAWN[drawn], dtype=torch.float64)
    at = torch.rand(tokens // int(quantiles.mean()) * 2, generator=generator, dtype=torch.float64) * (
        len(quantiles) - 1
    )
    below = at.long().clamp(max=len(quantiles) - 2)
    lengths = quantiles[below] + (at - below) * (quantiles[below + 1] - quantiles[below])
    ends = lengths.round().long().cumsum(0)
    ends = ends[ends <= tokens]
    total, mean = int(ends[-1]), int(ends[-1]) // len(ends)
    c, horizon = draw(dim, TERMS, dtype=torch.float32), 1024
    x, pre, post = (draw(total, dim) for _ in range(3))
    bounds = F.pad(ends, (1, 0)).to("cuda", torch.int32)
    even = total // mean * mean
    dense = [t.detach()[:even].view(-1, mean, dim).requires_grad_() for t in (x, pre, post)]

    def packed() -> Tensor:
        return hk.legendre_conv(x, c, horizon=horizon, pre_gate=pre, post_gate=post, cu_seqlens=bounds)

    def padded() -> Tensor:
        return hk.legendre_conv(dense[0], c, horizon=horizon, pre_gate=dense[1], post_gate=dense[2])

    runs = {
        "packed": torch.no_grad()(packed),
        "dense": torch.no_grad()(padded),
        "packed, fwd+bwd": training(packed, [x, c, pre, post]),
        "dense, fwd+bwd": training(padded, [dense[0], c, *dense[1:]]),
    }
    times = take_turns(runs, seconds, 5, clock)

    def relative(suffix: str) -> float:
        return total / even * times[f"dense{suffix}"]["median"] / times[f"packed{suffix}"]["median"]

    return {
        "sequences": len(ends),
        "times": times,
        "relative": {"forward": relative(""), "training": relative(", fwd+bwd")},
    }


def mixer_row(length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """A whole mixer, trained under autocast, against attention between the same projections."""
    batch = max(TOKENS[0] // length, 1)
    mixer = HyenaMixer(dim, length, terms=TERMS).cuda()
    projection = torch.nn.Linear(dim, 3 * dim, bias=False).cuda()
    x = draw(batch, length, dim)

    def hyena() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            out: Tensor = mixer(x)
            return out

    def attention() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in projection(x).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    runs = {
        "mixer": training(hyena, [x, *mixer.parameters()]),
        "attention": training(attention, [x, *projection.parameters()]),
    }
    return {"times": take_turns(runs, seconds, 5, clock)}


def fourier_row(length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """Explicit filters of `length` taps, gated: ours in bfloat16 and float32, torch.fft in float32."""
    batch = TOKENS[0] // length
    h, skip = draw(dim, length, dtype=torch.float32), draw(dim, dtype=torch.float32)
    h.data *= length**-0.5

    def ours(x: Tensor, pre: Tensor, post: Tensor, h: Tensor, skip: Tensor) -> Tensor:
        return hk.long_conv(x, h, skip, pre_gate=pre, post_gate=post)

    def through_fft(x: Tensor, pre: Tensor, post: Tensor, h: Tensor, skip: Tensor) -> Tensor:
        last = x.shape[-1] == length  # (B, D, L), otherwise (B, L, D)
        u = pre * x
        y = fft(u, h if last else h.T, -1 if last else -2)
        return post * (y + (skip[:, None] if last else skip) * u)

    half, wide, last = (
        [*(draw(*shape, dtype=dtype) for _ in range(3)), h, skip]
        for shape, dtype in (
            ((batch, length, dim), torch.bfloat16),
            ((batch, length, dim), torch.float32),
            ((batch, dim, length), torch.float32),
        )
    )
    runs: dict[str, Callable[[], Any]] = {}
    for name, run, leaves in (
        ("ours", ours, half),
        ("ours, float32", ours, wide),
        ("FFT, (B, L, D)", through_fft, wide),
        ("FFT, (B, D, L)", through_fft, last),
    ):
        forward = partial(run, *leaves)
        runs[name], runs[f"{name}, fwd+bwd"] = torch.no_grad()(forward), training(forward, leaves)
    times = take_turns(runs, seconds, 5, clock)
    first = [t[:2] if t.dim() == 3 else t for t in wide]
    with torch.no_grad():
        got = ours(*first)
        with backends.use("reference"):
            want = ours(*(t.double() for t in first))
    return {
        "times": times,
        "memory": {name: extra_memory(run) for name, run in runs.items()},
        "error": float((got.double() - want).norm() / want.norm()),
    }


def operator_row(tokens: int, length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    runs, alone = contestants(tokens, length, dim)
    row: dict[str, Any] = {
        "times": take_turns(runs, seconds, 5, clock),
        "host": {name: host_time(run) for name, run in alone.items()},
        "memory": {name: extra_memory(run) for name, run in alone.items()},
    }
    if tokens == TOKENS[0]:
        row["error"] = parity(length, dim)
    return row


def scratch_row(run: int, channels: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """Ours alone, in runs of so many elements and channels at least: with more, fewer launches and more memory."""
    block = import_module("hyenarec_kernels.backends.triton.legendre_conv")
    with mock.patch.multiple(block, RUN=run, SLICE=channels):
        runs, alone = contestants(TOKENS[1], 1024, dim)
        return {
            "times": take_turns({name: runs[name] for name in alone}, seconds, 5, clock),
            "host": {name: host_time(run) for name, run in alone.items()},
            "memory": {name: extra_memory(run) for name, run in alone.items()},
        }


def warm(length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """Compiles what the rows of this length launch, which Triton keeps on disk."""
    for run in contestants(2 * length, length, dim)[1].values():
        run()
    return {}


# By the name of their list in the result, what matters most first.
ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "rows": operator_row,
    "drawn": drawn_row,
    "scratch": scratch_row,
    "mixer": mixer_row,
    "fourier": fourier_row,
}
