"""Shared by the suites on the operators alone: their checks, and their rows as cases of the result format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.checks import TOLERANCE, compare
from hyenarec_kernels import backends

Summary = Mapping[str, float]


def against_reference(function: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor) -> float:
    """The largest norm-wise error of the function's value and gradients against the reference in float64."""

    def answer(leaves: Sequence[Tensor], grad: Tensor) -> dict[str, Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        value = function(*leaves)
        gradients = torch.autograd.grad(value, leaves, grad)
        return {"value": value.detach()} | {str(place): gradient for place, gradient in enumerate(gradients)}

    got = answer(leaves, grad)
    with backends.use("reference"):
        want = answer([leaf.double() for leaf in leaves], grad.double())
    return float(compare("", got, want, 0.0)["error"])


def case(
    what: str, shape: str, times: Mapping[str, Summary], ours: str, rivals: Mapping[str, str], error: float, dtype: str
) -> dict[str, Any]:
    """A case of the result format. ``ours`` and the values of ``rivals`` are keys of ``times``; the keys of ``rivals``
    are the names to print. Rivals without a time are skipped."""
    return {
        "what": what,
        "shape": shape,
        "ms": times[ours],
        "rivals": {name: times[key] for name, key in rivals.items() if key in times},
        "check": {"against": "float64 reference", "error": error, "tolerance": TOLERANCE[dtype]},
    }
