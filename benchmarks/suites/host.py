"""Host time of a mixer call, without a device: no kernel is launched (:mod:`benchmarks.harness.null_machine`).

    python -m benchmarks host [--out runs/host.json]

For calls of the mixer, packed and padded, and of the operators, forward alone and with gradients, it prints and writes
the least time, also as a multiple of `torch.add` in the same process, and what a call does: how many torch operations
that would each launch a kernel, and how many launches of ours. This `torch.add` runs on the CPU; a GPU's takes the host
longer, because it launches a kernel.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.measuring import take_turns
from benchmarks.harness.null_machine import null_machine
from benchmarks.harness.recording import write
from hyenarec.display import show_table
from hyenarec_kernels import gated_short_conv, legendre_conv, long_conv, short_conv
from hyenarec_kernels.nn import HyenaMixer

DIM, HORIZON, ROWS = 16, 50, 40  # so small that torch's own operations take only the host's overhead
CUTS = (0, 5, 11, 20, 40)
CALLS = 20  # per round
# Operations that launch no kernel themselves: they allocate, make views, or call other operations.
FREE = frozenset(
    (
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "new_empty",
            "new_empty_strided",
            "resolve_conj",
            "resolve_neg",
            "to",
        ),
        *("as_strided", "chunk", "detach", "expand", "narrow", "reshape", "select", "slice", "split", "squeeze"),
        *("linear", "matmul", "t", "transpose", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
    )
)


def passes() -> dict[str, Callable[[], Any]]:
    """The calls, by name: a windowed mixer of order 2, packed and padded, and the packed operators."""
    mixer = HyenaMixer(DIM, HORIZON)
    x, grad = torch.randn(ROWS, DIM, requires_grad=True), torch.randn(ROWS, DIM)
    cu_seqlens = torch.tensor(CUTS, dtype=torch.int32)
    leaves = [x, *mixer.parameters()]

    def forward() -> Tensor:
        out: Tensor = mixer(x, cu_seqlens=cu_seqlens)
        return out

    def without_gradients() -> Tensor:
        with torch.no_grad():
            return forward()

    def step() -> None:
        torch.autograd.grad(forward(), leaves, grad)

    rectangle = torch.randn(4, ROWS // 4, DIM, requires_grad=True)
    lengths, rectangle_grad = torch.tensor([10, 3, 1, 10]), torch.randn_like(rectangle)

    def padded(**where: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(mixer(rectangle, **where), [rectangle, *leaves[1:]], rectangle_grad)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    def operator(function: Callable[..., Any], *tensors: Tensor, **options: Any) -> Callable[[], Any]:
        def run() -> None:
            outputs = function(*tensors, **options, cu_seqlens=cu_seqlens)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            torch.autograd.grad(outputs, tensors, [grad] * len(outputs))

        return run

    wide, taps, skip = leaf(ROWS, 3 * DIM), leaf(DIM, HORIZON), leaf(DIM)
    return {
        "forward": forward,
        "forward, no gradients": without_gradients,
        "forward and backward": step,
        "padded, both": padded(),
        "padded with lengths, both": padded(lengths=lengths),
        "short_conv, both": operator(short_conv, x, leaf(DIM, 3), leaf(DIM)),
        "gated_short_conv, both": operator(gated_short_conv, wide, leaf(3 * DIM, 3), leaf(3 * DIM), dim=DIM),
        "long_conv, both": operator(long_conv, x, taps, skip),
        "legendre_conv, both": operator(legendre_conv, x, leaf(DIM, 16), skip, horizon=HORIZON),
    }


def operations(run: Callable[[], Any]) -> Counter[str]:
    """The operations of torch that launch kernels in a call, by name."""
    run()  # so that what is made once exists
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run()
    # A first input without dimensions is a Python number that was converted to a tensor, which happens on CPUs alone.
    found = [event for event in profile.events() if event.name.startswith("aten::") and event.input_shapes[:1] != [[]]]
    return Counter(name for name in (event.name.removeprefix("aten::") for event in found) if name not in FREE)


def _clock(run: Callable[[], Any]) -> float:
    """Microseconds of this process's processor time per call; other processes on the core do not count."""
    began = process_time()
    for _ in range(CALLS):
        run()
    return 1e6 * (process_time() - began) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/host.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    a, b = torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    with null_machine() as launches:
        calls = passes()
        times = take_turns({"add": lambda: torch.add(a, b), **calls}, 10, 40, _clock)
        rows, cases = [], []
        for name, run in calls.items():
            found, before = operations(run), launches()
            run()
            row = {
                "call": name,
                "us": round(times[name]["min"], 1),
                "torch.add": round(times[name]["min"] / times["add"]["min"], 1),
                "torch's launches": found.total(),
                "our launches": launches() - before,
            }
            rows.append(row)
            cases.append(
                {**row, "ms": _milliseconds(times[name]), "rivals": {"torch.add": _milliseconds(times["add"])}}
            )
    show_table("A mixer call on the host, as if its tensors were a GPU's", list(rows[0]), rows)
    settings = {"dim": DIM, "horizon": HORIZON, "rows": ROWS, "cuts": CUTS, "clock": "processor seconds"}
    write(out, "host", "what a mixer call takes of the host", {"settings": settings, "cases": cases})


def _milliseconds(times: dict[str, float]) -> dict[str, float]:
    return {name: value if name == "rounds" else value / 1000 for name, value in times.items()}


if __name__ == "__main__":
    main()
