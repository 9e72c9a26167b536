"""The compiled extension. Loading it registers the ops of torch.ops.hyenarec_cpu and, if nvcc compiled them, of
torch.ops.hyenarec_cuda."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

# The interface version that the extension must report. It goes up, here and in csrc/cpu/wire.h, with every change of an
# op or of the plan's layout.
INTERFACE = 9


@lru_cache(maxsize=1)
def probe() -> str | None:
    """None if the extension loads and fits this Python code, otherwise the reason why not."""
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
    """Whether the extension was compiled with the CUDA kernels. The extension must load (`probe`)."""
    return hasattr(torch.ops.hyenarec_cuda, "long_conv")
