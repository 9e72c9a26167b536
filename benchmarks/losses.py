"""Full cross entropy over the catalogue: ours by chunk size, against scoring everything at once and torch's own fused
loss.

    hyenarec bench losses                  # writes benchmarks/results/losses-cpu.json

Forward and backward, float32 and bfloat16 autocast, medians of alternating runs in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from hyenarec import losses
from hyenarec.display import show_table
from torch import Tensor
from torch.nn import functional as F

from .checks import TOLERANCE, compare
from .measuring import take_turns
from .recording import RESULTS, write

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

    leaves = {"hidden": hidden, "weight": weight, "bias": bias}

    def step(name: str, precision: str) -> dict[str, Tensor]:
        """The loss and its gradients."""
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = contestants[name](hidden, weight, bias, targets)
        return {"loss": loss.detach()} | dict(zip(leaves, torch.autograd.grad(loss, leaves.values()), strict=True))

    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    loss = F.cross_entropy(F.linear(*(exact[name] for name in leaves)), targets)
    want = {"loss": loss.detach()} | dict(zip(exact, torch.autograd.grad(loss, exact.values()), strict=True))
    runs = {(name, precision): partial(step, name, precision) for name in contestants for precision in TOLERANCE}
    checks = {key: compare("float64", run(), want, TOLERANCE[key[1]]) for key, run in runs.items()}
    times = take_turns(runs, 0, ROUNDS)
    cases = [
        {"loss": name, "precision": precision, "ms": times[name, precision], "check": checks[name, precision]}
        for name, precision in runs
    ]
    title = f"full cross entropy, forward + backward, {TOKENS:,} tokens, {ITEMS:,} items, d={DIM}"
    rows = [
        {"loss": name} | {f"{precision} ms": round(times[name, precision]["median"], 1) for precision in TOLERANCE}
        for name in contestants
    ]
    show_table(title, list(rows[0]), rows)
    settings = {"tokens": TOKENS, "items": ITEMS, "dim": DIM}
    write(RESULTS / "losses-cpu.json", "losses", title, {"settings": settings, "cases": cases})
