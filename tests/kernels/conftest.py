"""Runs the operator tests on every backend that works on this machine's CPU.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before anything imports them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from cuda_ops import forced, with_device, without_device

from hyenarec_kernels import backends


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter computes on NumPy arrays, which say so where a GPU would quietly give NaN, and converts some.
    for category in ("RuntimeWarning", "DeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{category}:triton.runtime.interpreter")


@pytest.fixture(params=backends.available("cpu"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one backend for the whole test."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=[name for name in backends.available("cpu") if name != "triton"])
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, without the interpreter: for tests of hundreds of calls, which test_triton makes with fewer."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=[pytest.param("cpu", marks=without_device), pytest.param("cuda", marks=with_device)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The cuda backend on a device, or on a "cpu" by what a file's own ``host_kernels`` has compiled for the host."""
    if request.param == "cpu":
        request.getfixturevalue("host_kernels")
    with forced(request.param, monkeypatch):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
