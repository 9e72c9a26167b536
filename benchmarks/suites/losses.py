"""The losses over a catalogue, full cross entropy and sampled softmax: ours by chunk size, against scoring everything
at once and torch's own fused loss.

    python -m benchmarks losses                  # writes benchmarks/results/losses-cpu.json

Forward and backward, float32 and bfloat16 autocast, medians of alternating runs in one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.checks import TOLERANCE, compare
from benchmarks.harness.measuring import take_turns
from benchmarks.harness.recording import RESULTS, write
from hyenarec import losses
from hyenarec.display import show_table

DIM = 64
TOKENS, ITEMS = 14_000, 3_416  # a batch of 128 ml-1m slices, its catalogue
SAMPLED_TOKENS, SAMPLED_ITEMS, NEGATIVES = 1_600, 57_289, 4_096  # as accuracy's runs on beauty
CHUNKS = [1 << power for power in (18, 19, 20, 21, 22, 24)]
ROUNDS = 6

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of hidden, weight, bias and targets


def whole(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)


def torch_fused(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias)


def whole_sampled(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor
) -> Tensor:
    own = (hidden * weight[targets]).sum(1, keepdim=True) + bias[targets, None]  # (T, 1)
    corrected = bias[negatives] - log_q[negatives] - math.log(len(negatives))
    scores = F.linear(hidden, weight[negatives], corrected).float()  # (T, M)
    scores = scores.masked_fill(targets[:, None] == negatives, float("-inf"))
    return F.cross_entropy(torch.cat((own.float(), scores), 1), torch.zeros_like(targets))


def chunked(loss: Loss, scores: int) -> Loss:
    def chunks(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        with mock.patch.object(losses, "CHUNK_SCORES", scores):
            return loss(hidden, weight, bias, targets)

    return chunks


def with_gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"loss": loss.detach()} | dict(zip(leaves, gradients, strict=True))


def measure(kind: str, tokens: int, items: int, rivals: Mapping[str, Loss], ours: Loss) -> list[dict[str, Any]]:
    """A case for each loss and precision; every loss is checked against the first of ``rivals`` in float64."""
    hidden = torch.randn(tokens, DIM, requires_grad=True)
    weight = (torch.randn(items, DIM) * DIM**-0.5).requires_grad_()
    bias = torch.zeros(items, requires_grad=True)
    targets = torch.randint(items, (tokens,))
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    contestants = {**rivals, **{f"ours, {scores >> 10}K scores a chunk": chunked(ours, scores) for scores in CHUNKS}}

    def step(name: str, precision: str) -> dict[str, Tensor]:
        """The loss and its gradients."""
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = contestants[name](hidden, weight, bias, targets)
        return with_gradients(loss, leaves)

    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    first = next(iter(rivals.values()))
    want = with_gradients(first(exact["hidden"], exact["weight"], exact["bias"], targets), exact)
    runs = {(name, precision): partial(step, name, precision) for name in contestants for precision in TOLERANCE}
    checks = {key: compare("float64", run(), want, TOLERANCE[key[1]]) for key, run in runs.items()}
    times = take_turns(runs, 0, ROUNDS)
    rows = [
        {"loss": name} | {f"{precision} ms": round(times[name, precision]["median"], 1) for precision in TOLERANCE}
        for name in contestants
    ]
    show_table(f"{kind}, {tokens:,} tokens, {items:,} items", list(rows[0]), rows)
    return [
        {"kind": kind, "loss": name, "precision": precision, "ms": times[name, precision], "check": check}
        for (name, precision), check in checks.items()
    ]


def main() -> None:
    torch.manual_seed(0)
    rivals: dict[str, Loss] = {"everything at once": whole}
    if hasattr(F, "linear_cross_entropy"):
        rivals["torch linear_cross_entropy"] = torch_fused
    cases = measure("full cross entropy", TOKENS, ITEMS, rivals, losses.full_cross_entropy)

    log_q = torch.rand(SAMPLED_ITEMS).log()
    sample: dict[str, Any] = {
        "negatives": torch.randint(SAMPLED_ITEMS, (NEGATIVES,)),
        "log_q": log_q - log_q.logsumexp(0),
    }
    rivals = {"everything at once": partial(whole_sampled, **sample)}
    cases += measure(
        "sampled softmax", SAMPLED_TOKENS, SAMPLED_ITEMS, rivals, partial(losses.sampled_softmax, **sample)
    )
    title = f"losses over a catalogue, forward + backward, d={DIM}"
    settings = {
        "dim": DIM,
        "full cross entropy": {"tokens": TOKENS, "items": ITEMS},
        "sampled softmax": {"tokens": SAMPLED_TOKENS, "items": SAMPLED_ITEMS, "negatives": NEGATIVES},
    }
    write(RESULTS / "losses-cpu.json", "losses", title, {"settings": settings, "cases": cases})
