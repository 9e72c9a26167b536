"""Fixtures that run the operator tests on every backend that works on this machine's CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_ops import forced, with_device, without_device

from hyenarec_kernels import backends


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter computes with NumPy, which warns where a GPU would silently give NaN, and about some of its
    # conversions.
    for category in ("RuntimeWarning", "DeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{category}:triton.runtime.interpreter")


# These tests would take 300 s in the interpreter. test_triton and its neighbours cover the same with fewer calls.
NIGHTLY = {"triton": pytest.mark.slow}


@pytest.fixture(params=[pytest.param(name, marks=NIGHTLY.get(name, ())) for name in backends.available("cpu")])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one backend for the whole test."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=[name for name in backends.available("cpu") if name != "triton"])
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `backend`, but without the interpreter: for tests of hundreds of calls, of which test_triton makes fewer."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=[pytest.param("cpu", marks=without_device), pytest.param("cuda", marks=with_device)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Forces the cuda backend: on a GPU, or as "cpu" with kernels that the test file's ``host_kernels`` fixture
    compiles for the host."""
    if request.param == "cpu":
        request.getfixturevalue("host_kernels")
    with forced(request.param, monkeypatch):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
