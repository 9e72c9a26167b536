"""What a packed mixer call takes of the host, with nothing on a device: no launch is made (harness.null_machine).

    python -m benchmarks host

Prints, for a forward pass, one without gradients and a training step of the mixer, the least time in units of
`torch.add` of the same process, and what it does: operations of torch that launch a kernel each, and our launches. It
is a CPU's `torch.add`; a GPU's takes longer on the host, for it launches a kernel.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.measuring import take_turns
from benchmarks.harness.null_machine import null_machine
from hyenarec.display import show_table
from hyenarec_kernels.nn import HyenaMixer

DIM, HORIZON, ROWS = 16, 50, 40  # little enough for torch's own operations to take no time but the host's
CUTS = (0, 5, 11, 20, 40)
CALLS = 20  # a round
# Operations that launch nothing: they allocate, or make views.
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
    """The calls, by name: a packed, windowed mixer of order 2."""
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

    return {"forward": forward, "forward, no gradients": without_gradients, "forward and backward": step}


def operations(run: Callable[[], Any]) -> Counter[str]:
    """The operations of torch that launch kernels in a call, by name."""
    run()  # what is made once is there
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run()
    # A number beside a tensor is converted on a CPU alone: a tensor of no dimensions.
    found = [event for event in profile.events() if event.name.startswith("aten::") and event.input_shapes[:1] != [[]]]
    return Counter(name for name in (event.name.removeprefix("aten::") for event in found) if name not in FREE)


def _clock(run: Callable[[], Any]) -> float:
    """Microseconds that a call takes of this process; another one's share of the core does not count."""
    began = process_time()
    for _ in range(CALLS):
        run()
    return 1e6 * (process_time() - began) / CALLS


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    a, b = torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    with null_machine() as launches:
        calls = passes()
        times = take_turns({"add": lambda: torch.add(a, b), **calls}, 5, 25, _clock)
        rows = []
        for name, run in calls.items():
            found, before = operations(run), launches()
            run()
            taken = times[name]["min"]
            rows.append(
                {
                    "call": name,
                    "us": round(taken, 1),
                    "torch.add": round(taken / times["add"]["min"], 1),
                    "torch's launches": found.total(),
                    "ours, without the long convolution's": launches() - before,
                }
            )
    show_table("A packed mixer call on the host, as if its tensors were a GPU's", list(rows[0]), rows)


if __name__ == "__main__":
    main()
