"""Where the cuda backend runs, and which calls it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import BACKENDS, Backend, Call, compiled, cuda, registry
from hyenarec_kernels.backends.cuda import device as cuda_device


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extension": "no compiler"}, "no compiler"),
        ({"ops": SimpleNamespace()}, "compiled without CUDA"),
        ({"version": None}, "torch was built without CUDA"),
        ({"available": False}, "no NVIDIA GPU"),
        ({"unsupported": {0: "not compiled", 1: "too old"}}, "GPU 1: too old"),  # GPU 1 is the current one
        ({"unsupported": {1: "too old"}}, None),
        ({}, None),
    ],
)
def test_why_it_is_not_available(change: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = SimpleNamespace(long_conv=None)
    monkeypatch.setattr(compiled, "probe", lambda: change.get("extension"))
    monkeypatch.setattr(torch.ops, "hyenarec_cuda", change.get("ops", ops), raising=False)
    monkeypatch.setattr(torch.version, "cuda", change.get("version", "13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: change.get("available", True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(cuda_device, "unsupported", lambda device: change.get("unsupported", {}).get(device.index))
    found = cuda_device._probe.__wrapped__()
    assert found is None if reason is None else reason in found


def test_a_gpu_is_asked_once_while_it_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        asked.append(device.index)
        yield

    answers = ["", "no kernel image"]
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(
        torch.ops, "hyenarec_cuda", SimpleNamespace(unsupported=lambda: answers[asked[-1]]), raising=False
    )
    cuda_device.unsupported.cache_clear()
    found = [cuda_device.unsupported(torch.device("cuda", i)) for i in (1, 0, 1)]
    cuda_device.unsupported.cache_clear()
    assert found == ["no kernel image", None, "no kernel image"] and asked == [1, 0]


X, H = torch.randn(2, 50, 4), torch.randn(4, 50)


def call_of(x: Tensor, filter: Tensor, last_only: bool = False) -> Call:
    return Call("long_conv", "long_conv", (x, filter, None, None, None, None, None, last_only))


@pytest.fixture(params=[True, False])
def use_triton(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A table in which the cuda backend serves the CPU, and so does Triton if the parameter is true."""
    seven = lambda x, *rest: torch.full_like(x, 7.0)  # noqa: E731
    marked = SimpleNamespace(long_conv=seven, legendre_conv=seven)
    reason = None if request.param else "not installed"
    table = {
        "cuda": Backend(("cpu",), lambda: None, lambda: cuda),
        "triton": Backend(("cpu",), lambda: reason, lambda: marked),
        "reference": BACKENDS["reference"],
    }
    monkeypatch.setattr(registry, "BACKENDS", table)
    used: bool = request.param
    return used


def test_what_a_gpu_cannot_run_goes_on(use_triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that the GPU cannot run goes to Triton or the reference; a forced backend says why it cannot run it."""
    monkeypatch.setattr(cuda_device, "unsupported", lambda device: f"not compiled for {device.type}")
    found = hk.long_conv(X, H)
    with backends.use("reference"):
        want = hk.long_conv(X, H)
    assert (found == 7).all() if use_triton else torch.equal(found, want)
    with (
        backends.use("cuda"),
        pytest.raises(NotImplementedError, match="the forced backend 'cuda' does not run on cpu: not compiled for"),
    ):
        hk.long_conv(X, H)


@pytest.mark.skipif(compiled.probe() is not None or not compiled.has_cuda(), reason="compiled without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_driver_the_extension_says_so_in_one_line() -> None:
    reason = torch.ops.hyenarec_cuda.unsupported()
    assert "CUDA" in reason and "\n" not in reason


@pytest.mark.skipif(cuda.probe() is None, reason="it is available")
def test_forcing_it_where_it_is_not_available_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(NotImplementedError) as raised:
        hk.long_conv(torch.randn(1, 4, 2), torch.randn(2, 3))
    assert str(raised.value) == f"HYENAREC_BACKEND: backend 'cuda' is not available here: {cuda.probe()}"


@pytest.mark.parametrize(
    ("shape", "taps", "dtype", "last_only", "expected"),
    [
        ((2, 1000, 4), 513, torch.float32, False, "FFT"),
        ((2, 1000, 32), 513, torch.bfloat16, False, "FFT"),
        ((2, 1000, 32), 512, torch.bfloat16, False, "Toeplitz products"),
        ((2, 512, 4), 1000, torch.float16, False, "Toeplitz products"),
        ((40, 4), 1, torch.float32, False, "Toeplitz products"),
        ((2, 100, 4), 100, torch.float32, True, "last rows"),
        ((2, 1000, 4), 513, torch.float32, True, None),
        ((2, 100, 4), 100, torch.float64, False, None),
        ((2, 0, 4), 100, torch.float32, False, None),
    ],
)
@pytest.mark.parametrize("operator", ["long_conv", "legendre_conv"])
def test_the_plan(
    operator: str,
    shape: tuple[int, ...],
    taps: int,
    dtype: torch.dtype,
    last_only: bool,
    expected: str | None,
    use_triton: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Filters of up to 512 taps are Toeplitz products. Longer explicit filters use the FFT; longer Legendre filters go
    elsewhere. Neither depends on whether Triton works or this backend is forced."""
    monkeypatch.setattr(cuda_device, "unsupported", lambda device: None)
    call = call_of(torch.empty(shape, dtype=dtype), torch.empty(2, taps), last_only)
    if operator == "legendre_conv":
        x, filter, *rest, _ = call.arguments
        call = Call(operator, operator, (x, filter, None, *rest, taps, last_only))
        expected = None if expected == "FFT" else expected
    serves = backends.implementation(call) is getattr(cuda, operator)
    with backends.use("cuda"):
        assert (backends.implementation(call) is getattr(cuda, operator)) == serves
    assert serves == (expected is not None) == (cuda.accepts(call) is None)
    assert not serves or cuda.algorithm(call) == expected
