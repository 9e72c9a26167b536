"""The suite that needs a GPU, its parts, and what compiles kernels for a GPU ahead of time."""
