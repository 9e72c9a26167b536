"""The cuda backend: where it runs, and which calls it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import compiled, registry, triton
from hyenarec_kernels.backends.cuda import fft_conv as cuda


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extension": "no compiler"}, "no compiler"),
        ({"ops": SimpleNamespace()}, "compiled without CUDA"),
        ({"version": None}, "torch was built without CUDA"),
        ({"available": False}, "no NVIDIA GPU"),
        ({"unsupported": {0: "not compiled", 1: "too old"}}, "GPU 1: too old"),  # the current one
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
    monkeypatch.setattr(cuda, "unsupported", lambda device: change.get("unsupported", {}).get(device.index))
    found = cuda._probe.__wrapped__()
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
    cuda.unsupported.cache_clear()
    found = [cuda.unsupported(torch.device("cuda", i)) for i in (1, 0, 1)]
    cuda.unsupported.cache_clear()
    assert found == ["no kernel image", None, "no kernel image"] and asked == [1, 0]


@pytest.mark.parametrize("use_triton", [True, False])
def test_what_a_gpu_cannot_run_goes_on(use_triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an exception, to Triton or the reference; forced, it says why it cannot."""
    x, h = torch.randn(2, 50, 4), torch.randn(4, 50)
    arguments = (x, h, None, None, None, None, None, False)
    marked = SimpleNamespace(long_conv=lambda *_: x)
    monkeypatch.setattr(cuda, "unsupported", lambda device: f"not compiled for {device.type}")
    if use_triton:
        monkeypatch.setattr(triton, "probe", lambda: None)
        monkeypatch.setitem(sys.modules, "hyenarec_kernels.backends.triton.operators", marked)
        assert cuda.long_conv(*arguments) is x
    else:
        monkeypatch.setattr(triton, "probe", lambda: "not installed")
        with backends.use("reference"):
            assert torch.equal(cuda.long_conv(*arguments), hk.long_conv(x, h))
    monkeypatch.setattr(registry, "_forced", "cuda")
    with pytest.raises(NotImplementedError, match="the forced backend 'cuda' does not run on cpu: not compiled for"):
        cuda.long_conv(*arguments)


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


@pytest.mark.parametrize("use_triton", [True, False])
@pytest.mark.parametrize(
    ("shape", "taps", "dtype", "last_only", "expected"),
    [
        ((2, 100, 4), 17, torch.float32, False, "FFT"),
        ((2, 17, 4), 1000, torch.bfloat16, False, "FFT"),
        ((2, 100, 4), 16, torch.float16, False, "few"),
        ((2, 16, 4), 1000, torch.float32, False, "few"),
        ((2, 1000, 32), 512, torch.bfloat16, False, "few"),  # 16 channels share a filter
        ((2, 1000, 32), 513, torch.bfloat16, False, "FFT"),
        ((2, 1000, 30), 512, torch.bfloat16, False, "FFT"),
        ((40, 4), 40, torch.float32, False, "FFT"),
        ((2, 100, 4), 100, torch.float64, False, "elsewhere"),
        ((2, 100, 4), 100, torch.float32, True, "elsewhere"),
        ((2, 0, 4), 100, torch.float32, False, "elsewhere"),
    ],
)
def test_the_plan(
    shape: tuple[int, ...],
    taps: int,
    dtype: torch.dtype,
    last_only: bool,
    expected: str,
    use_triton: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long filters go through the FFT; short and shared ones only where Triton is missing or this backend is forced."""
    monkeypatch.setattr(triton, "probe", lambda: None if use_triton else "not installed")
    monkeypatch.setattr(cuda, "unsupported", lambda device: None)
    x, filter = torch.empty(shape, dtype=dtype), torch.empty(2, taps)
    assert cuda.transforms(x, filter, last_only) == (expected == "FFT" or (expected == "few" and not use_triton))
    monkeypatch.setattr(registry, "_forced", "cuda")
    assert cuda.transforms(x, filter, last_only) == (expected in ("FFT", "few"))
