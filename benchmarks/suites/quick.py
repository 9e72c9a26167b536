"""The operators in half a minute, by pytest-benchmark: to compare the kernels before and after a change.

    python -m benchmarks quick --benchmark-save before
    python -m benchmarks quick --benchmark-compare "*before*"

Every option of pytest and pytest-benchmark works. It writes no result in the benchmarks' format: the figures that the
project reports come from the suite ``operator``, whose contestants take turns and are checked against each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import hyenarec_kernels as hk

DIM, TERMS = 64, 32
SHAPES = ((128, 200), (8, 4096))


def train(forward: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> None:
    torch.autograd.grad(forward(), leaves, grad)


def operators(batch: int, length: int) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """Each operator as users call it, and the tensors whose gradients are computed."""
    x, pre, post = (torch.randn(batch, length, DIM, requires_grad=True) for _ in range(3))
    coefficients = (torch.randn(DIM, TERMS) * length**-0.5).requires_grad_()
    filter = (torch.randn(DIM, length) * length**-0.5).requires_grad_()
    weight = torch.randn(DIM, 4, requires_grad=True)
    gates: dict[str, Any] = {"pre_gate": pre, "post_gate": post}
    return {
        "legendre_conv": (
            partial(hk.legendre_conv, x, coefficients, horizon=length, **gates),
            [x, coefficients, pre, post],
        ),
        "long_conv": (partial(hk.long_conv, x, filter, **gates), [x, filter, pre, post]),
        "short_conv": (partial(hk.short_conv, x, weight, activation="silu"), [x, weight]),
    }


@pytest.mark.parametrize("operator", ["legendre_conv", "long_conv", "short_conv"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]} x {shape[1]}")
@pytest.mark.parametrize("pass_", ["forward", "training"])
def test_operator(operator: str, shape: tuple[int, int], pass_: str, benchmark: BenchmarkFixture) -> None:
    torch.manual_seed(0)
    forward, leaves = operators(*shape)[operator]
    if pass_ == "forward":
        with torch.inference_mode():
            benchmark(forward)
    else:
        benchmark(train, forward, leaves, torch.randn(*shape, DIM))


def main() -> None:
    shown = ["--benchmark-columns=median,iqr,rounds", "--benchmark-group-by=param:pass_,param:shape"]
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", "--benchmark-warmup=on", *shown, *sys.argv[1:]]))
