"""Random calls of the operators on every CPU implementation give what the definition gives (:mod:`calls`)."""

from __future__ import annotations

import os

import calls
import pytest
import torch

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from tests.interpreter import python

IMPLEMENTATIONS = ("avx512", "avx2", "portable", "reference")
IN_CI, IN_ALL = 100, 2_500  # calls per implementation


def fuzz(implementation: str, first: int, count: int) -> None:
    """Runs the calls in a process of their own, because the instruction set is chosen once per process."""
    if implementation == "reference":
        chosen = {"HYENAREC_BACKEND": "reference"}
    elif "cpu" not in backends.available("cpu"):
        pytest.skip(f"cpu backend: {backends.BACKENDS['cpu'].probe()}")
    else:
        chosen = {"HYENAREC_BACKEND": "cpu", "HYENAREC_CPU_ISA": implementation}
        probe = "import torch, hyenarec_kernels._C; torch.ops.hyenarec_cpu.isa()"
        if python("-c", probe, env=os.environ | chosen).returncode:
            pytest.skip(f"this machine has no {implementation}")
    environment = os.environ | chosen | {"TRITON_INTERPRET": "0"}
    done = python(calls.__file__, first, count, env=environment, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{count} calls, 0 faults\n")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_random_calls(implementation: str) -> None:
    fuzz(implementation, 0, IN_CI)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_many_random_calls(implementation: str) -> None:
    fuzz(implementation, 1_000_000, IN_ALL)


def test_every_kind_of_call_is_drawn() -> None:
    drawn = [calls.draw(seed) for seed in range(IN_CI)]
    assert {call.operator for call in drawn} == {"short_conv", "long_conv", "legendre_conv"}
    assert {call.layout for call in drawn} == {"full", "right", "left", "middle", "packed"}
    assert {call.dtype for call in drawn} == set(calls.TOLERANCE)
    assert {call.last_only for call in drawn} == {call.strided for call in drawn} == {True, False}


@pytest.mark.parametrize("wrong", ["late by one event", "a gradient of nothing", "NaN in padding"])
def test_a_wrong_operator_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = hk.long_conv

    def broken(x: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        if wrong == "a gradient of nothing":
            x = x.detach()
        out = right(x, *arguments, **options)  # type: ignore[arg-type]
        if wrong == "late by one event":
            return out.roll(1, -2)
        return torch.where(out == 0, float("nan"), out) if wrong == "NaN in padding" else out

    monkeypatch.setattr(hk, "long_conv", broken)
    padded = (call for call in map(calls.draw, range(1000)) if call.operator == "long_conv" and call.layout == "left")
    call = next(call for call in padded if min(call.lengths) > 1 and not call.last_only and call.starts[0] > 0)
    assert list(calls.faults(call))
