"""The Legendre convolution of the ``cuda`` backend: up to 512 taps by Toeplitz products, more by low-rank blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.crossovers import CUDA_TOEPLITZ
from hyenarec_kernels.backends.cuda import legendre_blocks, toeplitz
from hyenarec_kernels.backends.cuda.device import refusal

__all__ = ["accepts", "algorithm", "legendre_conv", "legendre_conv_backward"]

# A block plan for more terms takes seconds to make and, unless the horizon is long, needs higher ranks than the kernels
# support.
MOST_TERMS = 64


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    x, coefficients, decay, *_, horizon, last_only = call.arguments
    reason = refusal(x)
    if reason is not None or toeplitz.few_taps(horizon, x):
        return reason
    if last_only:
        return f"last rows of over {CUDA_TOEPLITZ} taps"
    if coefficients.shape[1] > MOST_TERMS:
        return f"over {MOST_TERMS} terms and {CUDA_TOEPLITZ} taps"
    if not legendre_blocks.serves(x, coefficients, decay, horizon):
        return "no plan is precise enough"
    return None


def algorithm(call: Call) -> str:
    x, *_, horizon, last_only = call.arguments
    return "last rows" if last_only else "Toeplitz products" if toeplitz.few_taps(horizon, x) else "block low-rank"


def legendre_conv(x: Tensor, *arguments: Any) -> Tensor:
    """The operator, with the arguments that it has in every backend."""
    *_, horizon, _ = arguments
    form = toeplitz if toeplitz.few_taps(horizon, x) else legendre_blocks
    out: Tensor = form.convolve(x, *arguments)
    return out


def legendre_conv_backward(grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *_, horizon, _, _ = arguments
    form = toeplitz if toeplitz.few_taps(horizon, x) else legendre_blocks
    found: tuple[Tensor, ...] = form.convolve_backward(grad, x, *arguments)
    return found
