"""What serves the operators: which backends work here, and how to force one."""

from hyenarec_kernels.backends.registry import BACKENDS, Backend, available, forced, implementation, use

__all__ = ["BACKENDS", "Backend", "available", "forced", "implementation", "use"]
