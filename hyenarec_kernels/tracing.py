"""Whether the code that runs now works on plain tensors, or is traced, faked or transformed."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def plain() -> bool:
    """True where tensors hold values that the host may read, and where a tensor made now may be kept for later calls.

    False under `torch.compile`, `torch.export`, `torch.jit.trace`, any `TorchDispatchMode` (`FakeTensorMode` is one)
    and `torch.func`.
    """
    return not (
        torch.compiler.is_compiling()
        or jit_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def jit_tracing() -> bool:
    """True under `torch.jit.trace`."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def transformed() -> bool:
    """True inside a transform of `torch.func`, and inside `torch.autograd.forward_ad.dual_level`."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
