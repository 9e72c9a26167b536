"""The Legendre convolution of the ``cuda`` backend: up to 512 taps by Toeplitz products, more as low-rank blocks."""

from __future__ import annotations

from torch import Tensor

from hyenarec_kernels.backends.calls import Call, DeviceUnable
from hyenarec_kernels.backends.cuda import fft_conv, legendre_blocks, toeplitz

__all__ = ["accepts", "algorithm", "legendre_conv", "legendre_conv_backward"]

# A block plan for more terms takes seconds to make, and needs higher ranks than the kernels have unless the horizon is
# long.
MOST_TERMS = 64


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    x, coefficients, decay, *_, horizon, last_only = call.arguments
    if x.dtype not in fft_conv.SERVED:
        return f"{x.dtype} is not among {', '.join(map(str, fft_conv.SERVED))}"
    if x.numel() == 0:
        return "x has no elements"
    reason = fft_conv.unsupported(x.device)
    if reason is not None:
        return DeviceUnable(reason)
    if few_taps(x, horizon):
        return None
    if last_only:
        return f"last rows of over {toeplitz.MOST_TAPS} taps"
    if coefficients.shape[1] > MOST_TERMS:
        return f"over {MOST_TERMS} terms and {toeplitz.MOST_TAPS} taps"
    if not legendre_blocks.serves(x, coefficients, decay, horizon):
        return "no plan is precise enough"
    return None


def algorithm(call: Call) -> str:
    x, *_, horizon, last_only = call.arguments
    return "last rows" if last_only else "Toeplitz products" if few_taps(x, horizon) else "block low-rank"


def few_taps(x: Tensor, horizon: int) -> bool:
    """Whether a filter's taps that meet anything are multiplied as Toeplitz matrices."""
    return min(horizon, x.shape[-2]) <= toeplitz.MOST_TAPS


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
    arguments = (x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon)
    if few_taps(x, horizon):
        return toeplitz.convolve(*arguments, last_only)
    return legendre_blocks.convolve(*arguments)


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
    arguments = (grad, x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon)
    if few_taps(x, horizon):
        return toeplitz.convolve_backward(*arguments, last_only, needs)
    return legendre_blocks.convolve_backward(*arguments, needs)
