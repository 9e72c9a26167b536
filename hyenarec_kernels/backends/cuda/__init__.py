"""The ``cuda`` backend: explicit and Legendre filters, short convolutions and streaming, by the kernels of
``csrc/cuda``."""

from __future__ import annotations

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.cuda import fft_conv, short_convolutions
from hyenarec_kernels.backends.cuda import legendre_conv as legendre
from hyenarec_kernels.backends.cuda.device import probe
from hyenarec_kernels.backends.cuda.fft_conv import long_conv, long_conv_backward
from hyenarec_kernels.backends.cuda.legendre_conv import legendre_conv, legendre_conv_backward
from hyenarec_kernels.backends.cuda.short_convolutions import (
    conv_step,
    gated_short_conv,
    gated_short_conv_backward,
    short_conv,
    short_conv_backward,
)
from hyenarec_kernels.backends.cuda.whole_mixer import accepts as accepts_mixer
from hyenarec_kernels.backends.cuda.whole_mixer import mixer, mixer_backward

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
    "mixer",
    "mixer_backward",
    "probe",
    "short_conv",
    "short_conv_backward",
]

ACCEPTS = {
    "conv_step": short_convolutions.accepts,
    "gated_short_conv": short_convolutions.accepts,
    "legendre_conv": legendre.accepts,
    "long_conv": fft_conv.accepts,
    "mixer": accepts_mixer,
    "short_conv": short_convolutions.accepts,
}
ALGORITHMS = {"legendre_conv": legendre.algorithm, "long_conv": fft_conv.algorithm}


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    return ACCEPTS[call.operator](call)


def algorithm(call: Call) -> str:
    return ALGORITHMS[call.operator](call) if call.operator in ALGORITHMS else "direct"
