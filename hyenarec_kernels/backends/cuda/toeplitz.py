"""Convolutions with up to 512 taps by exact Toeplitz products of tensor cores (``csrc/cuda/toeplitz_conv.h``).

The compiled operator takes parameters in their own dtype, makes the taps of a Legendre filter from its coefficients,
and brings the gradient back to them: a call is one step from Python to the launches. Nothing waits for the device.

A sequence is cut into columns of 64 rows, of which 16 make one side of a product: whole short sequences, or a piece of
a long one, so that any length is served and every tensor is read and written once. Gradients are sums in a fixed order.
float16 and bfloat16 are multiplied as they are and added in float32, with the products of gates rounded to their dtype;
float32 goes as three products of TF32. NaN and Inf stay within their channel and sequence; they may reach up to 63 rows
back in time. Not measured; predicted in ``csrc/cuda/toeplitz_conv.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_TAPS = 512  # csrc/cuda/legendre_conv.h


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
    """``filter`` (G, N) are a Legendre filter's coefficients, or with ``horizon`` 0 the taps themselves."""
    out: Tensor = torch.ops.hyenarec_cuda.legendre_conv(
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
    dx, dfilter, ddecay, dskip, dpre, dpost = torch.ops.hyenarec_cuda.legendre_conv_backward(
        grad, x, filter, decay, skip, pre_gate, post_gate, *where(starts, ends), horizon, x.shape[-2], last_only, needs
    )
    return dx, dfilter, ddecay, dskip, dpre, dpost


def where(starts: Tensor | None, ends: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both contiguous, and of one type: ``starts`` may be int32 beside int64 ``ends``."""
    if starts is None or ends is None:
        return starts, None if ends is None else ends.contiguous()
    if starts.dtype is ends.dtype and starts.is_contiguous() and ends.is_contiguous():
        return starts, ends
    wider = torch.promote_types(starts.dtype, ends.dtype)
    return starts.to(wider).contiguous(), ends.to(wider).contiguous()
