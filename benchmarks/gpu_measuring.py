"""What the benchmarks on a GPU share: a clock of the device, tensors to draw, memory that a call takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Times one call on the device, after writing over its L2 cache."""

    def __init__(self) -> None:
        self.flushed = torch.empty(64 << 20, dtype=torch.int32, device="cuda")  # 256 MB: larger than any L2 cache

    def __call__(self, run: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda").requires_grad_()


def training(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    """Forward and backward."""
    grad = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def extra_memory(run: Callable[[], Any]) -> float:
    """Most bytes allocated during a call, over those of what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run()
    torch.cuda.synchronize()
    outputs = [out] if isinstance(out, Tensor) else list(out)
    return (torch.cuda.max_memory_allocated() - before) / sum(t.numel() * t.element_size() for t in outputs)
