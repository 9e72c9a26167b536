"""Full cross entropy over the catalogue: ours by chunk size, against scoring everything at once and torch's own fused
loss.

    python benchmarks/losses.py            # writes benchmarks/results/losses-cpu.json

Forward and backward, float32 and bfloat16 autocast, medians of alternating runs in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from hyenarec import losses
from hyenarec.display import show_table
from measuring import take_turns
from recording import RESULTS, write_report
from torch import Tensor
from torch.nn import functional as F

TOKENS, ITEMS, DIM = 14_000, 3_416, 64  # a batch of 128 ml-1m windows, its catalogue
CHUNKS = [1 << power for power in (18, 19, 20, 21, 22, 24)]
ROUNDS = 6

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def whole(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)


def torch_fused(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias)


def chunked(scores: int) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        with mock.patch.object(losses, "CHUNK_SCORES", scores):
            return losses.full_cross_entropy(hidden, weight, bias, targets)

    return loss


def main() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, requires_grad=True)
    weight = (torch.randn(ITEMS, DIM) * DIM**-0.5).requires_grad_()
    bias = torch.zeros(ITEMS, requires_grad=True)
    targets = torch.randint(ITEMS, (TOKENS,))
    contestants: dict[str, Loss] = {"everything at once": whole}
    if hasattr(F, "linear_cross_entropy"):
        contestants["torch linear_cross_entropy"] = torch_fused
    contestants |= {f"ours, {scores >> 10}K scores a chunk": chunked(scores) for scores in CHUNKS}

    def step(name: str, bf16: bool) -> None:
        hidden.grad = weight.grad = bias.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = contestants[name](hidden, weight, bias, targets)
        loss.backward()

    runs = {(name, bf16): partial(step, name, bf16) for name in contestants for bf16 in (False, True)}
    times = take_turns(runs, 0, ROUNDS)
    rows = [
        {
            "loss": name,
            "float32 ms": round(times[name, False]["median"], 1),
            "bfloat16 ms": round(times[name, True]["median"], 1),
        }
        for name in contestants
    ]
    title = f"full cross entropy, forward + backward, {TOKENS:,} tokens, {ITEMS:,} items, d={DIM}"
    show_table(title, list(rows[0]), rows)
    write_report(RESULTS / "losses-cpu.json", title, {"rows": rows})


if __name__ == "__main__":
    main()
