"""Whether the code that runs now works on plain tensors, or is traced, faked or transformed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)


def plain() -> bool:
    """True where tensors hold values that the host may read, and where a tensor made now may be kept for later calls.

    False under `torch.compile`, `torch.export`, `torch.jit.trace`, any `TorchDispatchMode` (`FakeTensorMode` is one)
    and `torch.func`.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def concrete(t: Tensor) -> Tensor | None:
    """``t``, `unwrapped`, if Python code may act on its values; None if the code is traced or the tensor is fake.

    A `TorchDispatchMode` that only observes, such as PyTorch's counters of operations, does not matter.
    """
    if torch.compiler.is_compiling() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return None
    t = unwrapped(t)
    return t if type(t) in PLAIN and t.device.type != "meta" else None


def readable(t: Tensor) -> bool:
    """Whether the host can read the values of ``t`` without waiting for a device."""
    return t.device.type == "cpu"


def unwrapped(t: Tensor) -> Tensor:
    """The tensor inside the wrappers of `torch.func`; under ``vmap`` it holds all examples."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def direct(arguments: Iterable[object]) -> bool:
    """True where an operator's own function may be called directly with these arguments, bypassing torch's dispatcher:
    no mode or transform intercepts calls, and no argument is a tensor subclass that may override them."""
    return (
        plain()
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
        and all(type(a) in PLAIN or not isinstance(a, Tensor) for a in arguments)
    )


def jit_tracing() -> bool:
    """True under `torch.jit.trace`."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def transformed() -> bool:
    """True inside a transform of `torch.func`, and inside `torch.autograd.forward_ad.dual_level`."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
