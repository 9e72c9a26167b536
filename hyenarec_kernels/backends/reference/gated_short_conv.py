"""The short convolution split into gates and values, the values times the first gate, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.backends.reference.short_conv import short_conv, short_conv_backward
from hyenarec_kernels.dtypes import wide


def gated_short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, dim: int
) -> tuple[Tensor, Tensor]:
    first, middle, last = _split(x, weight, bias, starts, ends, dim)
    return (first * last).to(x.dtype), middle.to(x.dtype).contiguous()


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
    first, _, last = _split(x, weight, bias, starts, ends, dim)
    du = grad_u.to(first.dtype)
    dz = torch.cat([du * last, grad_q.to(du.dtype), du * first], -1)
    dx, dweight, dbias = short_conv_backward(dz, x.to(dz.dtype), weight, bias, starts, ends, "", needs)
    return dx.to(x.dtype), dweight, dbias


def _split(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, dim: int
) -> tuple[Tensor, ...]:
    """The first gate, the gates between, and the values, in the arithmetic dtype."""
    z = short_conv(x.to(wide(x.dtype)), weight, bias, starts, ends, "")
    return z[..., :dim], z[..., dim:-dim], z[..., -dim:]
