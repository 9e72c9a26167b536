"""The ``cuda`` backend: explicit filters, short convolutions and streaming, over the kernels of ``csrc/cuda``."""

from __future__ import annotations

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.cuda import fft_conv, short_convolutions
from hyenarec_kernels.backends.cuda.fft_conv import long_conv, long_conv_backward, probe
from hyenarec_kernels.backends.cuda.short_convolutions import (
    conv_step,
    gated_short_conv,
    gated_short_conv_backward,
    short_conv,
    short_conv_backward,
)

__all__ = [
    "accepts",
    "algorithm",
    "conv_step",
    "gated_short_conv",
    "gated_short_conv_backward",
    "long_conv",
    "long_conv_backward",
    "probe",
    "short_conv",
    "short_conv_backward",
]

ACCEPTS = {
    "conv_step": short_convolutions.accepts,
    "gated_short_conv": short_convolutions.accepts,
    "long_conv": fft_conv.accepts,
    "short_conv": short_convolutions.accepts,
}


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    return ACCEPTS[call.operator](call)


def algorithm(call: Call) -> str:
    return "FFT" if call.operator == "long_conv" else "direct"
