"""The long convolution with a Legendre filter: computes the filter's taps, and from their gradient those of
coefficients and decay."""

from __future__ import annotations

from torch import Tensor

from hyenarec_kernels.backends.reference.long_conv import long_conv, long_conv_backward
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import filter_gradients, taps_of


def legendre_conv(
    x: Tensor,
    coefficients: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
) -> Tensor:
    taps = _filter(x, coefficients, decay, horizon)
    return long_conv(x, taps, skip, pre_gate, post_gate, starts, ends, last_only)


def legendre_conv_backward(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
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
    need_x, need_coefficients, need_decay, need_skip, need_pre, need_post = needs
    h = _filter(x, coefficients, decay, horizon)  # (G, k)
    wanted = [need_x, need_coefficients or need_decay, need_skip, need_pre, need_post]
    dx, dh, dskip, dpre, dpost = long_conv_backward(
        grad, x, h, skip, pre_gate, post_gate, starts, ends, last_only, wanted
    )
    dcoefficients, ddecay = x.new_empty(0), x.new_empty(0)
    if need_coefficients or need_decay:
        full_coefficients, full_decay = filter_gradients(dh, h, coefficients, decay, horizon)
        dcoefficients = full_coefficients if need_coefficients else dcoefficients
        ddecay = full_decay if need_decay and full_decay is not None else ddecay
    return dx, dcoefficients, ddecay, dskip, dpre, dpost


def _filter(x: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int) -> Tensor:
    """The taps that fit into ``x``, in the arithmetic dtype: (G, min(K, L))."""
    return taps_of(coefficients.to(wide(x.dtype)), horizon, decay, x.shape[-2])
