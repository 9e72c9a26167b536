"""The operators' functions, as :mod:`hyenarec_kernels.backends` looks them up; importing this imports triton."""

from hyenarec_kernels.backends.triton.conv_step import conv_step
from hyenarec_kernels.backends.triton.gated_short_conv import gated_short_conv, gated_short_conv_backward
from hyenarec_kernels.backends.triton.legendre_conv import legendre_conv, legendre_conv_backward
from hyenarec_kernels.backends.triton.long_conv import long_conv, long_conv_backward
from hyenarec_kernels.backends.triton.short_conv import short_conv, short_conv_backward

__all__ = [
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
