"""The ``cuda`` backend: explicit filters and Legendre filters, over the kernels of ``csrc/cuda``."""

from __future__ import annotations

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.cuda import fft_conv
from hyenarec_kernels.backends.cuda import legendre_conv as legendre
from hyenarec_kernels.backends.cuda.fft_conv import long_conv, long_conv_backward, probe
from hyenarec_kernels.backends.cuda.legendre_conv import legendre_conv, legendre_conv_backward

__all__ = [
    "accepts",
    "algorithm",
    "legendre_conv",
    "legendre_conv_backward",
    "long_conv",
    "long_conv_backward",
    "probe",
]

ACCEPTS = {"legendre_conv": legendre.accepts, "long_conv": fft_conv.accepts}


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    return ACCEPTS[call.operator](call)


def algorithm(call: Call) -> str:
    return (fft_conv if call.operator == "long_conv" else legendre).algorithm(call)
