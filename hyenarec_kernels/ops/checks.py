"""Checks of the tensors that operators take: shape, dtype, device. Each failure is one line naming operator and
argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenarec_kernels import sharding
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.tracing import PLAIN

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_input(op: str, x: Tensor) -> None:
    """Raises ValueError unless ``x`` is (B, L, D) or (T, D), D >= 1, in a supported dtype."""
    check_tensor(op, "x", x)
    if x.dim() not in (2, 3) or x.shape[-1] < 1:
        raise ValueError(f"{op}: x must be padded (B, L, D) or packed (T, D) with D >= 1, got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{op}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")


def check_tensor(op: str, name: str, given: object) -> None:
    """Raises ValueError unless ``given`` is a dense tensor. Lists and arrays are not converted, for that would cut off
    their gradients."""
    if type(given) not in PLAIN and not torch.compiler.is_compiling():  # then the operator itself does it
        sharding.prepare(given)
    if not isinstance(given, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(given).__module__}.{type(given).__qualname__}")
    if given.is_nested or given.layout != torch.strided:
        raise ValueError(
            f"{op}: {name} must be a dense tensor, got {'a nested one' if given.is_nested else given.layout}"
        )


def check_groups(op: str, name: str, grouped: Tensor, x: Tensor) -> None:
    """Raises ValueError unless ``grouped`` is (G, n >= 1), where G divides the channels of ``x``, in a dtype as for
    :func:`check_parameter`."""
    check_tensor(op, name, grouped)
    if grouped.dim() != 2 or grouped.shape[1] < 1 or grouped.shape[0] < 1 or x.shape[-1] % grouped.shape[0]:
        raise ValueError(
            f"{op}: {name} must be (G, n) with n >= 1 and G a divisor of the {x.shape[-1]} channels of x, "
            f"got {tuple(grouped.shape)}"
        )
    check_parameter(op, name, grouped, grouped.shape, x)


def check_parameter(op: str, name: str, parameter: Tensor | None, shape: Sequence[int], x: Tensor) -> None:
    """Raises ValueError unless ``parameter`` is None or has this shape, and the dtype of ``x`` or float32 (float64 if
    ``x`` is float64)."""
    allowed = {x.dtype, wide(x.dtype)}
    _check(op, name, parameter, shape, allowed, x)


def check_gate(op: str, name: str, gate: Tensor | None, shape: Sequence[int], x: Tensor) -> None:
    """Raises ValueError unless ``gate`` is None or has this shape and the dtype of ``x``."""
    _check(op, name, gate, shape, {x.dtype}, x)


def autocast(x: Tensor) -> Tensor:
    """``x`` in the dtype that autocast asks for, if it is on; autocast does not change float64."""
    if not isinstance(x, Tensor):
        return x  # type: ignore[unreachable]  # a later check refuses it by name
    return x.to(autocast_dtype(x))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``x``: its own, unless autocast asks for another."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _check(op: str, name: str, t: Tensor | None, shape: Sequence[int], dtypes: set[torch.dtype], x: Tensor) -> None:
    if t is None:
        return
    check_tensor(op, name, t)
    if t.shape != torch.Size(shape):
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(t.shape)}")
    if t.dtype not in dtypes:
        allowed = " or ".join(sorted(str(d) for d in dtypes))
        raise ValueError(f"{op}: {name} must be {allowed} beside {x.dtype} x, got {t.dtype}")
    if t.device != x.device:
        raise ValueError(f"{op}: {name} is on {t.device} and x on {x.device}; they must share a device")
