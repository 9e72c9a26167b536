"""Who is measured at a shape of the operator: ours on each backend, and the rivals that it is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyenarec_kernels as hk
from benchmarks.gpu.clocks import draw
from hyenarec_kernels import backends
from hyenarec_kernels.backends.reference.fourier import fft_size

HEAD = 64  # channels of a head of attention


@dataclass(frozen=True)
class Contestant:
    """A forward pass, and the tensors whose gradients its backward computes; without tensors there is no backward."""

    forward: Callable[[], Any]
    leaves: list[Tensor]


@contextmanager
def only(backend: str | None) -> Iterator[None]:
    """Forces a backend or, with None, leaves the choice among the fast ones. A call that only the reference could serve
    fails, so that its time is not taken for that of a fast backend."""

    def refuse() -> Any:
        raise NotImplementedError(f"backend {backend or 'cuda and triton'}: does not take this call")

    reference = backends.Backend(None, lambda: None, refuse)
    with mock.patch.dict(backends.BACKENDS, reference=reference):
        if backend is None:
            yield
        else:
            with backends.use(backend):
                yield


def ours(tokens: int, length: int, dim: int, terms: int, window: bool, packed: bool) -> Contestant:
    """The gated Legendre convolution, bfloat16 with float32 parameters, over sequences of one length."""
    batch = max(tokens // length, 1)
    shape = (batch * length,) if packed else (batch, length)
    x, pre, post = (draw(*shape, dim) for _ in range(3))
    c, skip = draw(dim, terms, dtype=torch.float32), draw(dim, dtype=torch.float32)
    c.data *= length**-0.5
    options: dict[str, Any] = {"horizon": length, "pre_gate": pre, "post_gate": post}
    leaves = [x, c, skip, pre, post]
    if window:
        options["decay"] = torch.rand(dim, device="cuda").requires_grad_()
        leaves.append(options["decay"])
    if packed:
        options["cu_seqlens"] = torch.arange(0, batch * length + 1, length, device="cuda", dtype=torch.int32)
    return Contestant(partial(hk.legendre_conv, x, c, skip, **options), leaves)


def copy(tokens: int, length: int, dim: int) -> Contestant:
    """Copies as many bytes as the gated forward must move: three tensors read and one written, 8 bytes per element."""
    elements = 2 * max(tokens // length, 1) * length * dim
    target, source = (torch.empty(elements, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2))
    return Contestant(partial(target.copy_, source), [])


def flash(tokens: int, length: int, dim: int) -> Contestant:
    """Causal FlashAttention through scaled_dot_product_attention; q, k and v are three separate leaves."""
    leaves = q, k, v = [draw(max(tokens // length, 1), dim // HEAD, length, HEAD) for _ in range(3)]

    def attention() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Contestant(attention, leaves)


def varlen(tokens: int, length: int, dim: int) -> Contestant:
    """Causal FlashAttention over packed sequences."""
    attention = import_module("torch.nn.attention.varlen").varlen_attn
    windowed = "window_size" in inspect.signature(attention).parameters  # torch 2.10 says `is_causal`
    causal: dict[str, Any] = {"window_size": (-1, 0)} if windowed else {"is_causal": True}
    batch = max(tokens // length, 1)
    leaves = [draw(batch * length, dim // HEAD, HEAD) for _ in range(3)]
    bounds = torch.arange(0, batch * length + 1, length, device="cuda", dtype=torch.int32)
    return Contestant(partial(attention, *leaves, bounds, bounds, length, length, **causal), leaves)


def fft(tokens: int, length: int, dim: int, channels_last: bool) -> Contestant:
    """A convolution by torch.fft between the same gates, in float32, with an explicit filter as long as the
    sequences."""
    batch, size = max(tokens // length, 1), fft_size(2 * length - 1)
    axis = -2 if channels_last else -1

    def shaped(*shape: int) -> tuple[int, ...]:  # from (..., L, D)
        return shape if channels_last else (*shape[:-2], shape[-1], shape[-2])

    x, pre, post = (draw(*shaped(batch, length, dim)) for _ in range(3))
    h, skip = draw(*shaped(length, dim), dtype=torch.float32), draw(*shaped(1, dim), dtype=torch.float32)
    h.data *= length**-0.5

    def convolution() -> Tensor:
        u = (pre * x).float()
        spectrum = torch.fft.rfft(u, size, dim=axis) * torch.fft.rfft(h, size, dim=axis)
        y = torch.fft.irfft(spectrum, size, dim=axis).narrow(axis, 0, length)
        out: Tensor = post * (y + skip * u).to(x.dtype)
        return out

    return Contestant(convolution, [x, h, skip, pre, post])


def flash_fft(tokens: int, length: int, dim: int) -> Contestant:
    """FlashFFTConv, where it is installed: gated, bfloat16, with channels before rows, as it requires."""
    size = 1 << (2 * length - 1).bit_length()
    conv = import_module("flashfftconv").FlashFFTConv(size, dtype=torch.bfloat16).cuda()
    x, pre, post = (draw(max(tokens // length, 1), dim, length) for _ in range(3))
    h = draw(dim, length, dtype=torch.float32)
    h.data *= length**-0.5
    return Contestant(lambda: conv(x, h, pregate=pre, postgate=post), [x, h, pre, post])


RIVALS: dict[str, Callable[[int, int, int], Contestant]] = {
    "copy": copy,
    "FlashAttention": flash,
    "FlashAttention, varlen": varlen,
    "torch.fft (B, L, D)": partial(fft, channels_last=True),
    "torch.fft (B, D, L)": partial(fft, channels_last=False),
    "FlashFFTConv": flash_fft,
}
