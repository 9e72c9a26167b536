"""The compiled extension, which registers the ops of torch.ops.hyenarec_cpu and, compiled by nvcc, hyenarec_cuda."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

# What the extension must say of itself. csrc/cpu/wire.h raises it with every change of an op or of the plan's layout.
INTERFACE = 8


@lru_cache(maxsize=1)
def probe() -> str | None:
    """None where the extension loads and belongs to this Python code, otherwise the reason why not."""
    if find_spec("hyenarec_kernels._C") is None:
        return "the compiled extension was not built (no C++ compiler, no torch beside pip, or HYENAREC_BUILD=0)"
    try:
        import_module("hyenarec_kernels._C")
    except (ImportError, OSError) as error:
        return str(error).strip().splitlines()[0]
    ops = torch.ops.hyenarec_cpu
    if not hasattr(ops, "interface") or ops.interface() != INTERFACE:
        return "the compiled extension is of another version: reinstall"
    return None


def has_cuda() -> bool:
    """Whether the extension, which has to load, was compiled with the CUDA kernels."""
    return hasattr(torch.ops.hyenarec_cuda, "long_conv")
