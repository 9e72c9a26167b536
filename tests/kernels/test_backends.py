"""The table of backends, and contract 10: the package imports on any machine and says which backends work."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import BACKENDS, Backend, registry
from hyenarec_kernels.backends.calls import DeviceUnable, Slower
from tests.interpreter import python

X, H = torch.randn(1, 4, 2), torch.randn(2, 3)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Backend]:
    """A table with three more backends: "marked" has long_conv alone, "absent" is not available, "elsewhere" is for
    another device."""
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


def choosy(reason: str | None, value: float) -> SimpleNamespace:
    return SimpleNamespace(long_conv=lambda x, *rest: torch.full_like(x, value), accepts=lambda call: reason)


def serve(monkeypatch: pytest.MonkeyPatch, **served: SimpleNamespace) -> None:
    """Makes a table of these backends for the CPU, followed by the reference."""
    rows = {name: Backend(("cpu",), lambda: None, lambda backend=backend: backend) for name, backend in served.items()}
    monkeypatch.setattr(registry, "BACKENDS", {**rows, "reference": BACKENDS["reference"]})


def test_the_first_that_accepts_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, first=choosy("not today", 1), second=choosy(None, 2), third=choosy(None, 3))
    assert (hk.long_conv(X, H) == 2).all()


def test_a_reason_of_speed_counts_where_the_faster_works(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, first=choosy(Slower("few taps", than="second"), 1), second=choosy(None, 2))
    assert (hk.long_conv(X, H) == 2).all()
    with backends.use("first"):
        assert (hk.long_conv(X, H) == 1).all()
    monkeypatch.setitem(registry.BACKENDS, "second", Backend(None, lambda: "not installed", SimpleNamespace))
    assert (hk.long_conv(X, H) == 1).all()


def test_what_a_forced_backend_cannot_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference serves a call that a forced backend does not take. A call fails if the forced backend lacks the
    operator or does not run on the device."""
    serve(monkeypatch, first=choosy("not this shape", 1), second=choosy(DeviceUnable("too old"), 2))
    with backends.use("reference"):
        want = hk.long_conv(X, H)
    with backends.use("first"):
        assert torch.equal(hk.long_conv(X, H), want)
        with pytest.raises(NotImplementedError, match="short_conv: not implemented"):
            hk.short_conv(X, H)
    assert torch.equal(hk.long_conv(X, H), want)
    with backends.use("second"), pytest.raises(NotImplementedError, match="'second' does not run on cpu: too old"):
        hk.long_conv(X, H)


def test_no_backend_imports_the_registry_or_hands_calls_on() -> None:
    """A backend imports neither the registry, which chooses among backends, nor another backend's operators."""
    folder = Path(registry.__file__).parent
    for name in BACKENDS:
        for file in (folder / name).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom):
                    imported = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    imported = [alias.name for alias in node.names]
                else:
                    continue
                for module in imported:
                    assert "registry" not in module, f"{file} imports {module}"
                    other = next((o for o in BACKENDS if f".backends.{o}" in module and o != name), None)
                    assert other is None, f"{file} imports {module}"


def logged(code: str, **environment: str) -> list[str]:
    """The lines that ``code`` writes to stderr in a process of its own."""
    program = f"import torch, hyenarec_kernels as hk\nx, h = torch.randn(2, 40, 4), torch.randn(2, 3)\n{code}"
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return python("-c", program, env=inherited | environment).stderr.splitlines()


def test_the_log_tells_each_kind_of_call_once() -> None:
    code = """
for n in (40, 39):
    hk.long_conv(x[:, :n], h)
hk.long_conv(x.requires_grad_(), h).sum().backward()
hk.legendre_conv(x[:, 0], h, horizon=50, cu_seqlens=torch.tensor([0, 2]), last_only=True)
"""
    lines = logged(code, HYENAREC_LOG="1", HYENAREC_BACKEND="reference")
    starts = [
        "long_conv: cpu, float32, padded, 3 taps, 2 groups: served by reference (direct)",
        "long_conv_backward: cpu, float32, padded, 3 taps, 2 groups: served by reference (direct)",
        "legendre_conv: cpu, float32, packed, 50 taps, 2 groups, last rows: served by reference (last rows)",
    ]
    assert [line.split("; not by ")[0] for line in lines] == starts
    assert not logged(code) and not logged(code, HYENAREC_LOG="0")


@pytest.mark.skipif(BACKENDS["cpu"].probe() is not None, reason="cpu backend: not available")
def test_the_log_says_how_and_why_not() -> None:
    code = """
hk.long_conv(torch.randn(1, 1100, 1), torch.randn(1, 1100))
hk.long_conv(torch.randn(1, 1000, 1), torch.randn(1, 1000))
hk.legendre_conv(torch.randn(8, 1100, 16), torch.randn(16, 8), horizon=1100)
"""
    fft, direct, blocks = logged(code, HYENAREC_LOG="1")
    assert "served by reference (FFT); not by cpu: over 1024 taps" in fft
    assert direct.endswith("served by cpu (direct)") and blocks.endswith("served by cpu (blocks)")


def test_the_log_goes_where_logging_is_set_up() -> None:
    code = "import logging; logging.basicConfig(format='%(name)s|%(message)s')\nhk.long_conv(x, h)"
    (line,) = logged(code, HYENAREC_LOG="1")
    assert line.startswith("hyenarec_kernels|long_conv: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HYENAREC_LOG", "ValueError: HYENAREC_LOG=maybe: allowed are 0 and 1"),
        (
            "HYENAREC_BACKEND",
            "ValueError: HYENAREC_BACKEND: no backend is called 'maybe'; there are cpu, cuda, triton, ",
        ),
    ],
)
def test_an_unknown_value_of_a_variable_is_an_error(name: str, message: str) -> None:
    assert logged("hk.long_conv(x, h)", **{name: "maybe"})[-1].startswith(message)


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
    done = python("-c", program, env=environment)
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
