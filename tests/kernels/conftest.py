"""Runs the operator tests on every backend that works on this machine's CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hyenarec_kernels import backends


@pytest.fixture(params=backends.available("cpu"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one backend for the whole test."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
