"""Checks without a GPU that a CUDA graph could capture a step: on meta tensors, the host reads nothing from the device.

A meta tensor has no values: an operation that reads one on the host, or whose result's shape depends on one, raises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenarec_kernels import legendre


class Recorder(TorchDispatchMode):
    """Records the operations of a step. It fails if a value is copied from the host to the device, since a graph would
    replay the captured value for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        if isinstance(out, Tensor) and out.is_meta and func is torch.ops.aten._to_copy.default:
            assert args[0].is_meta, f"{func} from the host"
        return out


def keep_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces polynomial bases by empty tensors on the device. A real device keeps them after the first call, whereas
    a recorder would see them made and moved in every call."""

    def made(terms: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(terms, horizon, dtype=dtype, device=device)

    monkeypatch.setattr(legendre, "_basis", made)
