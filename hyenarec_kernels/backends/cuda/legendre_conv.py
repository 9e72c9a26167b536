"""The Legendre convolution of the ``cuda`` backend: up to 512 taps, by Toeplitz products."""

from __future__ import annotations

from hyenarec_kernels.backends.calls import Call, DeviceUnable
from hyenarec_kernels.backends.cuda import fft_conv, toeplitz
from hyenarec_kernels.backends.cuda.toeplitz import convolve as legendre_conv
from hyenarec_kernels.backends.cuda.toeplitz import convolve_backward as legendre_conv_backward

__all__ = ["accepts", "legendre_conv", "legendre_conv_backward"]


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    x, *_, horizon, _ = call.arguments
    if x.dtype not in fft_conv.SERVED:
        return f"{x.dtype} is not among {', '.join(map(str, fft_conv.SERVED))}"
    if x.numel() == 0:
        return "x has no elements"
    reason = fft_conv.unsupported(x.device)
    if reason is not None:
        return DeviceUnable(reason)
    if min(horizon, x.shape[-2]) > toeplitz.MOST_TAPS:
        return f"over {toeplitz.MOST_TAPS} taps"
    return None
