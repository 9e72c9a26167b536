"""The operators' functions, as :mod:`hyenarec_kernels.backends` looks them up, and which calls they take.

Importing this module imports triton.
"""

from __future__ import annotations

from torch import Tensor

from hyenarec_kernels.backends import crossovers
from hyenarec_kernels.backends.calls import Call, Slower
from hyenarec_kernels.backends.triton.arithmetic import SERVED
from hyenarec_kernels.backends.triton.conv_step import conv_step
from hyenarec_kernels.backends.triton.gated_short_conv import MOST_BLOCKS, gated_short_conv, gated_short_conv_backward
from hyenarec_kernels.backends.triton.legendre_conv import block_plan, legendre_conv, legendre_conv_backward
from hyenarec_kernels.backends.triton.long_conv import long_conv, long_conv_backward
from hyenarec_kernels.backends.triton.short_conv import WIDTH, short_conv, short_conv_backward

__all__ = [
    "accepts",
    "algorithm",
    "conv_step",
    "gated_short_conv",
    "gated_short_conv_backward",
    "legendre_conv",
    "legendre_conv_backward",
    "long_conv",
    "long_conv_backward",
    "short_conv",
    "short_conv_backward",
]


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    x: Tensor = call.arguments[0]
    if x.dtype not in SERVED:
        return f"{x.dtype} is not among {', '.join(map(str, SERVED))}"
    if x.numel() == 0:
        return "x has no elements"
    if call.operator == "long_conv":
        if _explicit(call) == "FFT":
            return Slower(f"over {crossovers.TRITON_DIRECT} taps, an FFT is faster", than="reference")
    elif call.operator == "conv_step":
        if call.arguments[1].stride(2) != 1:
            return "the channels of history are not adjacent in memory"
    elif call.operator in ("short_conv", "gated_short_conv"):
        if call.arguments[1].shape[1] > WIDTH:
            return f"over {WIDTH} taps"
        if call.operator == "gated_short_conv" and x.shape[-1] > MOST_BLOCKS * call.arguments[5]:
            return f"over {MOST_BLOCKS} blocks of channels"
    return None


def algorithm(call: Call) -> str:
    if call.operator == "long_conv":
        return _explicit(call).replace("FFT", "direct")  # if this backend is forced
    if call.operator == "legendre_conv":
        x, coefficients, decay, *_, horizon, last_only = call.arguments
        if last_only:
            return "last rows"
        return "direct" if block_plan(x, coefficients, decay, horizon) is None else "blocks"
    return "direct"


def _explicit(call: Call) -> str:
    """The best way to convolve an explicit filter. It may be "FFT", which this backend does not have."""
    x, filter, *_, last_only = call.arguments
    if last_only:
        return "last rows"
    taps, groups = min(filter.shape[1], x.shape[-2]), filter.shape[0]
    if crossovers.toeplitz(taps, groups, x.shape[-1]):
        return "Toeplitz products"
    return "direct" if taps <= crossovers.TRITON_DIRECT else "FFT"
