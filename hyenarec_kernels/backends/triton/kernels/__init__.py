"""Kernels, and what they share; the operators beside this folder launch them."""
