"""Kernels for the Hyena operator with Legendre-polynomial filters and fused gates."""
