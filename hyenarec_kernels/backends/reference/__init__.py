"""The reference backend: the definition in plain PyTorch, on any device. Every other backend is tested against it.

It is differentiable throughout, including gradients of gradients; it is deterministic, and computes in float32 (float64
for float64). Sequences do not affect each other, and NaN and Inf stay within their channel and sequence: with few taps
they spread as far as the taps reach, with many over the whole sequence (see `direct` and `fourier`). On an accelerator
each call with packed input waits once for the device, to read the lengths.
"""

from hyenarec_kernels.backends.reference.compact_step import compact_step
from hyenarec_kernels.backends.reference.conv_step import conv_step
from hyenarec_kernels.backends.reference.dropout import dropout, dropout_backward
from hyenarec_kernels.backends.reference.gated_short_conv import gated_short_conv, gated_short_conv_backward
from hyenarec_kernels.backends.reference.legendre_conv import legendre_conv, legendre_conv_backward
from hyenarec_kernels.backends.reference.long_conv import algorithm, long_conv, long_conv_backward
from hyenarec_kernels.backends.reference.mixer_step import block_step, mixer_step
from hyenarec_kernels.backends.reference.short_conv import short_conv, short_conv_backward

__all__ = [
    "algorithm",
    "block_step",
    "compact_step",
    "conv_step",
    "dropout",
    "dropout_backward",
    "gated_short_conv",
    "gated_short_conv_backward",
    "legendre_conv",
    "legendre_conv_backward",
    "long_conv",
    "long_conv_backward",
    "mixer_step",
    "short_conv",
    "short_conv_backward",
]
