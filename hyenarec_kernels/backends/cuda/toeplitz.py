"""Convolutions with up to 512 taps as exact Toeplitz products on tensor cores (``csrc/cuda/toeplitz_conv.h``).

The compiled operator takes parameters in their own dtype, computes a Legendre filter's taps from its coefficients, and
turns the taps' gradient into that of the coefficients, so that one call from Python makes all launches. Nothing waits
for the device.

A sequence is cut into columns of 64 rows, and 16 columns make one side of a product: whole short sequences, or a piece
of a long one. So any length is served, and every tensor is read and written once. Gradients are summed in a fixed
order. float16 and bfloat16 are multiplied as they are and added in float32, with products of gates rounded to their
dtype; float32 is computed as three TF32 products. NaN and Inf stay within their channel and sequence; they may reach up
to 63 rows back in time. Speed is not measured; ``csrc/cuda/toeplitz_conv.h`` has estimates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.backends.crossovers import CUDA_TOEPLITZ
from hyenarec_kernels.backends.cuda.arguments import where

COMPILED = torch.ops.hyenarec_cuda


def few_taps(taps: int, x: Tensor) -> bool:
    """Whether the taps that can reach a row of ``x``, out of ``taps``, are few enough for these products."""
    return min(taps, x.shape[-2]) <= CUDA_TOEPLITZ


def convolve(
    x: Tensor,
    filter: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
) -> Tensor:
    """``filter`` (G, N) holds a Legendre filter's coefficients or, if ``horizon`` is 0, the taps themselves."""
    out: Tensor = COMPILED.legendre_conv(
        x, filter, decay, skip, pre_gate, post_gate, *where(starts, ends), horizon, x.shape[-2], last_only
    )
    return out


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    filter: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dfilter, ddecay, dskip, dpre, dpost = COMPILED.legendre_conv_backward(
        grad, x, filter, decay, skip, pre_gate, post_gate, *where(starts, ends), horizon, x.shape[-2], last_only, needs
    )
    return dx, dfilter, ddecay, dskip, dpre, dpost
