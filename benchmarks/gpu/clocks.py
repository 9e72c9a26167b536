"""What the benchmarks on a GPU share: clocks of device and host, tensors to draw, memory that a call takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

FLUSHED = 64 << 20  # elements, 256 MB: larger than any L2 cache
LONGEST = 20.0  # milliseconds that the device waits for the host


class Clock:
    """Times one call on the device, after writing over its L2 cache.

    Before it the device sleeps for longer than the host took to hand out recent calls: what is timed is the device's
    work, with as few gaps as in a step that keeps it busy. :func:`host_time` is the host's share.
    """

    lead = 1.0  # milliseconds

    @cached_property
    def flushed(self) -> Tensor:
        return torch.empty(FLUSHED, dtype=torch.int32, device="cuda")

    @cached_property
    def cycles(self) -> float:
        """Of a sleep of a millisecond."""
        times = [self._timed(lambda: torch.cuda._sleep(1_000_000), 0) for _ in range(2)]
        return 1e6 / times[-1]

    def __call__(self, run: Callable[[], Any]) -> float:
        return self._timed(run, int(self.lead * self.cycles))

    def _timed(self, run: Callable[[], Any], asleep: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flushed.zero_()
        torch.cuda._sleep(asleep)
        start.record()
        began = time.perf_counter()
        run()
        end.record()
        handed_out = 1e3 * (time.perf_counter() - began)
        end.synchronize()
        self.lead = min(max(0.9 * self.lead, 1.5 * handed_out), LONGEST)
        took: float = start.elapsed_time(end)
        return took


def host_time(run: Callable[[], Any]) -> float:
    """Milliseconds until the host has handed out a call, the median of five."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


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
