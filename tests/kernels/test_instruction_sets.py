"""The compiled extension's instruction sets: each is right, and an unknown name or a stale extension is refused."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from hyenarec_kernels.backends import compiled, cpu
from hyenarec_kernels.backends.cpu import convolutions
from tests.interpreter import python

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_each_instruction_set(isa: str) -> None:
    """Short checks of the CPU kernels and of dropout pass in a process that is forced to use the instruction set."""
    environment = os.environ | {"HYENAREC_CPU_ISA": isa}
    probe = "import torch, hyenarec_kernels._C; print(torch.ops.hyenarec_cpu.isa())"
    found = python("-c", probe, env=environment)
    if found.returncode != 0:
        assert "this machine has no" in found.stderr or "allowed are" in found.stderr
        pytest.skip(f"this machine has no {isa}")
    assert found.stdout.strip() == isa
    if isa == torch.ops.hyenarec_cpu.isa():
        return  # this process runs these tests with it anyway
    selected = "channels or short_conv or same_bits or (dropout and (oracle or whole_range))"
    selected = f"({selected}) and not reference and not triton"
    names = ("cpu", "cpu_calls", "cpu_short_conv", "dropout")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    ran = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", selected, env=environment)
    assert ran.returncode == 0, ran.stdout[-3000:]


UNKNOWN_ISA = """
import torch, hyenarec_kernels as hk, hyenarec_kernels.backends.cpu
for call in (
    hk.backends.cpu.probe,
    lambda: hk.backends.available("cpu"),
    lambda: hk.backends.use("cpu").__enter__(),
    lambda: hk.short_conv(torch.ones(1, 1, 1), torch.ones(1, 1)),
):
    try:
        call()
        print("no error")
    except ValueError as error:
        print(error)
"""


def test_an_unknown_instruction_set_is_an_error() -> None:
    """It is not replaced by the reference, which would hide the error."""
    ran = with_isa("sse9", UNKNOWN_ISA)
    assert ran.stdout.splitlines() == 4 * ["HYENAREC_CPU_ISA=sse9: allowed are avx512, avx2 and portable"], ran.stderr


def test_the_report_shows_an_unknown_instruction_set() -> None:
    ran = with_isa("sse9", "from hyenarec_kernels.__main__ import report; print(report())")
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("backend cpu ")]
    assert line.endswith("not available: HYENAREC_CPU_ISA=sse9: allowed are avx512, avx2 and portable"), ran.stderr


def with_isa(isa: str, code: str) -> CompletedProcess[str]:
    environment = os.environ | {"HYENAREC_CPU_ISA": isa}
    return python("-c", code, env=environment)


def test_a_stale_extension_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "INTERFACE", compiled.INTERFACE + 1)
    compiled.probe.cache_clear()
    convolutions._probe.cache_clear()
    try:
        assert cpu.probe() == "the compiled extension is of another version: reinstall"
    finally:
        compiled.probe.cache_clear()
        convolutions._probe.cache_clear()
