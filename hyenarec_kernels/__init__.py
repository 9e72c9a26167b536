"""Kernels for the Hyena operator with Legendre-polynomial filters and fused gates."""

from hyenarec_kernels import backends, nn
from hyenarec_kernels.legendre import legendre_filter
from hyenarec_kernels.ops.legendre_conv import legendre_conv
from hyenarec_kernels.ops.long_conv import long_conv
from hyenarec_kernels.ops.short_conv import short_conv

__all__ = ["backends", "legendre_conv", "legendre_filter", "long_conv", "nn", "short_conv"]
