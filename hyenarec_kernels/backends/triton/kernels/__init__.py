"""The kernels and what they share; the modules beside this folder launch them."""
