"""The table of backends, and contract 10: the package imports anywhere and says what works."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import BACKENDS, Backend, registry

X, H = torch.randn(1, 4, 2), torch.randn(2, 3)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Backend]:
    """A table with a marked backend that has long_conv alone, one that is not available, one for another device."""
    marked = SimpleNamespace(long_conv=lambda x, *rest: torch.full_like(x, 7.0))
    entries = {
        "elsewhere": Backend(("cuda",), lambda: None, lambda: marked),
        "absent": Backend(None, lambda: "its compiler is missing", lambda: marked),
        "marked": Backend(("cpu",), lambda: None, lambda: marked),
        **BACKENDS,
    }
    monkeypatch.setattr(registry, "BACKENDS", entries)
    return entries


def test_first_available_backend_of_the_device_serves(table: dict[str, Backend]) -> None:
    assert backends.available("cpu")[:2] == ["marked", *BACKENDS][:2]
    assert backends.available("cuda")[0] == "elsewhere"
    assert (hk.long_conv(X, H) == 7).all()


def test_an_operator_a_backend_lacks_goes_to_the_next(table: dict[str, Backend]) -> None:
    with backends.use("reference"):
        want = hk.short_conv(X, H)
    torch.testing.assert_close(hk.short_conv(X, H), want)


def test_use_forces_and_restores(table: dict[str, Backend]) -> None:
    with pytest.raises(KeyError), backends.use("reference"):
        assert not (hk.long_conv(X, H) == 7).any()
        with backends.use("marked"):
            assert backends.forced() == "marked"
            assert (hk.long_conv(X, H) == 7).all()
        assert backends.forced() == "reference"
        raise KeyError
    assert backends.forced() is None


def test_use_holds_in_the_backward_pass(table: dict[str, Backend]) -> None:
    with backends.use("marked"), pytest.raises(NotImplementedError, match="long_conv_backward: not implemented"):
        hk.long_conv(X.clone().requires_grad_(), H).sum().backward()


def test_forcing_what_cannot_be(table: dict[str, Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"backends.use: no backend is called 'nothing'; there are elsewhere, absent"):
        backends.use("nothing").__enter__()
    with pytest.raises(NotImplementedError, match="'absent' is not available here: its compiler is missing"):
        backends.use("absent").__enter__()
    with backends.use("elsewhere"), pytest.raises(NotImplementedError, match="'elsewhere' does not serve device 'cpu'"):
        hk.long_conv(X, H)
    with backends.use("marked"), pytest.raises(NotImplementedError, match=r"short_conv: not implemented .* by backend"):
        hk.short_conv(X, H)
    monkeypatch.setenv("HYENAREC_BACKEND", "absent")
    with pytest.raises(NotImplementedError, match="HYENAREC_BACKEND: backend 'absent' is not available here"):
        hk.long_conv(X, H)


def test_environment_variable_forces_and_use_overrides_it(
    table: dict[str, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYENAREC_BACKEND", "reference")
    assert not (hk.long_conv(X, H) == 7).any()
    with backends.use("marked"):
        assert (hk.long_conv(X, H) == 7).all()


def test_contract_10_import_and_report_need_torch_and_numpy_only() -> None:
    program = """
import sys
for name in ("triton", "polars", "tyro", "rich", "safetensors", "matplotlib", "scipy", "pandas"):
    sys.modules[name] = None
import runpy
runpy.run_module("hyenarec_kernels", run_name="__main__")
import torch, hyenarec_kernels
with hyenarec_kernels.backends.use("reference"):
    print("mixed", tuple(hyenarec_kernels.nn.HyenaMixer(4, 8)(torch.randn(2, 5, 4)).shape))
assert "hyenarec" not in sys.modules
"""
    environment = {**os.environ, "PATH": "/nonexistent", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {"python", "torch", "triton", "nvcc", "compiled", "GPU", "backend"} <= lines.keys()
    assert lines["torch"].startswith(torch.__version__)
    assert lines["nvcc"] == "not on PATH"
    assert lines["GPU"].startswith("none")
    assert lines["mixed"] == "(2, 5, 4)"
    for name in BACKENDS:
        (line,) = [text for text in done.stdout.splitlines() if text.startswith(f"backend {name} ")]
        assert "available" in line


def test_contract_10_report_gives_reasons(table: dict[str, Backend]) -> None:
    from hyenarec_kernels.__main__ import report

    lines = [" ".join(line.split()) for line in report().splitlines()]
    assert "backend absent not available: its compiler is missing" in lines
    assert "backend marked available (cpu)" in lines
    assert "backend reference available (any device)" in lines
