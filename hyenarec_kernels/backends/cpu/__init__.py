"""The ``cpu`` backend: the operators, computed by the compiled kernels of ``csrc/cpu``."""

from hyenarec_kernels.backends.cpu.convolutions import (
    accepts,
    algorithm,
    legendre_conv,
    legendre_conv_backward,
    long_conv,
    long_conv_backward,
    probe,
)
from hyenarec_kernels.backends.cpu.dropout import dropout, dropout_backward
from hyenarec_kernels.backends.cpu.short_conv import (
    gated_short_conv,
    gated_short_conv_backward,
    short_conv,
    short_conv_backward,
)
from hyenarec_kernels.backends.cpu.steps import block_step, compact_step, conv_step, mixer_step

__all__ = [
    "accepts",
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
    "probe",
    "short_conv",
    "short_conv_backward",
]
