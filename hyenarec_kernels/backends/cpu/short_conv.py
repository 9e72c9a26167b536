"""The short convolutions of the ``cpu`` backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.backends.cpu.parameters import in_arithmetic, lag_major


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, activation: str
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.short_conv(
        x, lag_major(weight, x), in_arithmetic(bias, x), starts, ends, activation == "silu"
    )
    return out


def short_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = torch.ops.hyenarec_cpu.short_conv_backward(
        grad, x, lag_major(weight, x), in_arithmetic(bias, x), starts, ends, activation == "silu", list(needs)
    )
    return _short_gradients(gradients, weight, bias)


def gated_short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, dim: int
) -> tuple[Tensor, Tensor]:
    u, q = torch.ops.hyenarec_cpu.gated_short_conv(x, lag_major(weight, x), in_arithmetic(bias, x), starts, ends, dim)
    return u, q


def gated_short_conv_backward(
    grad_u: Tensor,
    grad_q: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    dim: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = torch.ops.hyenarec_cpu.gated_short_conv_backward(
        grad_u, grad_q, x, lag_major(weight, x), in_arithmetic(bias, x), starts, ends, dim, list(needs)
    )
    return _short_gradients(gradients, weight, bias)


def _short_gradients(
    gradients: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Brings the kernel's gradients of x, weight (W, C) and bias into the parameters' layout and dtype; empty ones stay
    as they are."""
    dx, dweight, dbias = gradients
    if dweight.dim() == 2:
        dweight = dweight.T.contiguous().to(weight.dtype)
    return dx, dweight, dbias if bias is None else dbias.to(bias.dtype)
