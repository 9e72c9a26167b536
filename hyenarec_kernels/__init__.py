"""Kernels for the Hyena operator with Legendre-polynomial filters and fused gates."""

from importlib.metadata import PackageNotFoundError, version

from hyenarec_kernels import backends, nn
from hyenarec_kernels.legendre import legendre_filter
from hyenarec_kernels.ops.conv_step import conv_step
from hyenarec_kernels.ops.gated_short_conv import gated_short_conv
from hyenarec_kernels.ops.legendre_conv import legendre_conv
from hyenarec_kernels.ops.long_conv import long_conv
from hyenarec_kernels.ops.short_conv import short_conv

try:
    __version__ = version("hyenarec")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "backends",
    "conv_step",
    "gated_short_conv",
    "legendre_conv",
    "legendre_filter",
    "long_conv",
    "nn",
    "short_conv",
]
