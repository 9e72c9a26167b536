"""The ``cuda`` backend: explicit filters of any shape, over the compiled kernels of ``csrc/cuda``."""

from hyenarec_kernels.backends.cuda.fft_conv import accepts, algorithm, long_conv, long_conv_backward, probe

__all__ = ["accepts", "algorithm", "long_conv", "long_conv_backward", "probe"]
