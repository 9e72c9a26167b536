"""Shared by the benchmarks on a GPU: clocks of device and host, random tensors, and the memory that a call takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.measuring import take_turns

FLUSHED = 64 << 20  # elements, 256 MB: larger than any L2 cache
LONGEST = 20.0  # most milliseconds that the device sleeps before a call
ROUNDS = 5  # fewest rounds of a figure
Run = Callable[[], Any]


class Clock:
    """Times one call on the device, after overwriting its L2 cache.

    Before the call the device sleeps, for longer than the host took to launch the work of recent calls. So the time is
    the device's work alone, with as few gaps as in a training step that keeps the device busy. :func:`host_time`
    measures the host's share.
    """

    lead = 1.0  # milliseconds that the device sleeps; adapts to recent calls

    @cached_property
    def flushed(self) -> Tensor:
        return torch.empty(FLUSHED, dtype=torch.int32, device="cuda")

    @cached_property
    def cycles(self) -> float:
        """Cycles that the device sleeps in a millisecond."""
        times = [self._timed(lambda: torch.cuda._sleep(1_000_000), 0) for _ in range(2)]
        return 1e6 / times[-1]

    def __call__(self, run: Run) -> float:
        return self._timed(run, int(self.lead * self.cycles))

    def _timed(self, run: Run, asleep: int) -> float:
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

    def wall(self, run: Run) -> float:
        """Milliseconds from the call until the device has finished it, starting from an idle device with a cold L2
        cache."""
        self.flushed.zero_()
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)


def figures(runs: dict[str, Run], clock: Clock, seconds: float) -> Iterator[dict[str, dict[str, Any]]]:
    """Each run's times by name: ``wall`` (host and device), ``device`` (by CUDA events, with the host out of the way),
    ``graph`` (a replayed CUDA graph: no Python, no separate launches) and ``host`` (until everything was launched).

    Where ``wall`` is well above ``graph``, the device waits for the host. The first dictionary lacks the graphs,
    because a capture can fail in ways that end the process. The second has them, or under ``no_graph`` the reason why
    not.
    """
    turns: dict[tuple[str, str], Run] = {}
    for name, run in runs.items():
        turns |= {(name, "wall"): partial(clock.wall, run), (name, "device"): partial(clock, run)}
    times = take_turns(turns, seconds, ROUNDS, clock=lambda turn: turn())
    found: dict[str, dict[str, Any]] = {name: {"host": host_time(run)} for name, run in runs.items()}
    for (name, kind), summary in times.items():
        found[name][kind] = summary
    yield found
    for name, run in runs.items():
        try:
            replay = captured(run).replay
            found[name] |= take_turns({"graph": replay}, seconds / 4, ROUNDS, clock)
        except Exception as error:
            found[name]["no_graph"] = first_line(error)
    yield found


def captured(run: Run) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a call. What the call returned lives as long as the graph, and each replay writes into it.

    Calls on a side stream come before the capture, to allocate what stays. Raises the error of a call that cannot be
    captured, such as one that waits for the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def host_time(run: Run) -> float:
    """Milliseconds until the host has launched all work of a call, the median of five."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda").requires_grad_()


def training(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Run:
    """A run of forward and backward."""
    grad = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def extra_memory(run: Run) -> float:
    """The most bytes allocated during a call, as a multiple of the bytes that it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run()
    torch.cuda.synchronize()
    outputs = [out] if isinstance(out, Tensor) else list(out)
    return (torch.cuda.max_memory_allocated() - before) / sum(t.numel() * t.element_size() for t in outputs)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:200]
