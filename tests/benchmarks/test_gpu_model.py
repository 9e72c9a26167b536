"""The predictions of `benchmarks.gpu.model`: they equal the recorded ones, and the model agrees with what ptxas makes.

Kernels are compiled in processes of their own, because this process may already have Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.interpreter import python

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton

from benchmarks.gpu import model, usage
from benchmarks.gpu.ptx.parsing import Instruction
from benchmarks.harness.recording import read
from benchmarks.report.tables import model as table_of

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks" / "results" / "gpu-model.json"
# Predicted times depend only on Triton's version and on the code. If one has changed by more than this, find out why
# and write the file again with `python -m benchmarks model`.
TOLERANCE = 0.05


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = python(*arguments, cwd=ROOT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def estimates(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    rows = read(path)["estimates"]
    return {(row["backend"], row["length"], row["terms"], row["packed"]): row for row in rows}


STACK = {"cuda": 0, "triton": 16}  # bytes; with rank 11 Triton's chunks at the filter's end, transposed, would spill 24


def check(found: dict[str, Any], recorded: dict[str, Any], backend: str) -> None:
    """Compares the figures of one pass, or of both together, with the recorded ones."""
    for name in ("at least", "likely", "bytes"):
        assert found[name] == pytest.approx(recorded[name], rel=TOLERANCE), name
    assert found["kernels"].keys() == recorded["kernels"].keys()
    for kernel, figures in found["kernels"].items():
        assert figures["stack"] <= STACK[backend] and 0 < figures["registers"] <= 255, kernel


FORWARD = """
import json, sys
from benchmarks.gpu import model, triton_model
length, terms, tokens = map(int, sys.argv[1:])
uses = triton_model.legendre(length, terms, backward=False, packed=False)
print(json.dumps(model.estimate(uses, tokens * model.DIM)))
"""


def test_the_forward_pass_is_predicted_as_recorded() -> None:
    """The forward pass of the smallest case has the figures that were recorded."""
    if read(RECORDED)["settings"]["triton"] != triton.__version__:
        pytest.skip("recorded with another version of Triton")
    row = estimates(RECORDED)["triton", 200, 16, False]
    check(json.loads(run("-c", FORWARD, "200", "16", str(row["tokens"]))), row["forward"], "triton")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "length"), list(product(model.MODELS, model.LENGTHS)))
def test_predictions_are_those_recorded(backend: str, length: int, tmp_path: Path) -> None:
    """Every figure is as recorded, and no CUDA kernel needs a stack frame, to which registers would be spilled."""
    recorded, settings = estimates(RECORDED), read(RECORDED)["settings"]
    if settings["triton"] != triton.__version__:
        pytest.skip("recorded with another version of Triton")
    if backend == "cuda" and (settings["nvcc"] != model.nvcc() or shutil.which("g++") is None):
        pytest.skip("recorded with another version of nvcc")
    choice = ["--backends", backend, "--lengths", str(length)]
    run("-m", "benchmarks", "model", *choice, "--out", str(tmp_path / "model.json"))
    found = estimates(tmp_path / "model.json")
    assert found.keys() == {(backend, length, terms, False) for terms in model.TERMS}
    for key, row in found.items():
        for what in ("forward", "forward and backward"):
            check(row[what], recorded[key][what], backend)


def test_recorded_predictions_say_that_they_are_estimates() -> None:
    result = read(RECORDED)
    assert result["settings"]["estimate"] is True and "nothing measured" in result["title"]
    shapes = [(length, terms, False) for length in model.LENGTHS for terms in model.TERMS]
    assert estimates(RECORDED).keys() == {(backend, *shape) for backend in model.MODELS for shape in shapes}
    lines = table_of(result)
    assert "estimates" in lines[0] and f"{model.GOAL_OF_COPY:.0%}" in lines[0]
    assert sum(line.startswith(("| triton", "| cuda")) for line in lines) == len(result["estimates"])


@pytest.mark.parametrize(
    ("opcode", "operands", "slots"),
    [
        ("add.s32", ("%r1", "%r2", "3"), 1),
        ("add.s64", ("%rd1", "%rd2", "3"), 2),
        ("mad.wide.s32", ("%rd1", "%r2", "4", "%rd3"), 1),
        ("mov.b32", ("%r1", "%r2"), 0.5),
        ("mov.b32", ("%r1", "{%rs1, %rs2}"), 1),
        ("ld.global.v2.b64", ("{%rd1, %rd2}", "[%rd3]"), 1),
        ("ex2.approx.f32", ("%r1", "%r2"), 4),
        ("rem.s64", ("%rd1", "%rd2", "%rd3"), 80),
        ("and.pred", ("%p1", "%p2", "%p3"), 0.5),
    ],
)
def test_issue_slots(opcode: str, operands: tuple[str, ...], slots: float) -> None:
    assert usage.slots(Instruction(None, False, opcode, operands, "")) == slots


STRAIGHT = """
import json, torch
from collections import Counter
from benchmarks.gpu.ahead_of_time import TARGETS, binary, launches
from benchmarks.gpu.compiled import CASES, call
from benchmarks.gpu.machine_code import machine_instructions
from benchmarks.gpu.usage import slots
from benchmarks.gpu.ptx.parsing import programs

found = {}
for case in CASES[:2]:
    with launches() as launched:
        call(*case)
    for launch in launched:
        if launch[0].__name__ not in ("legendre_moments_kernel", "gated_short_conv_kernel", "short_conv_kernel"):
            continue
        made = binary(launch, TARGETS["sm_90"])
        (program,) = programs(made.asm["ptx"])
        if not any(instruction.opcode.startswith("bra") for instruction in program.instructions):
            found[made.asm["ptx"]] = [
                program.name,
                sum(map(slots, program.instructions)),
                sum(machine_instructions(made.asm["cubin"]).values()),
            ]
print(json.dumps(list(found.values())))
"""


@pytest.mark.slow
def test_issue_slots_of_whole_kernels_are_what_ptxas_makes() -> None:
    """The predicted issue slots of kernels without a loop, where each instruction stands in the code once, are within
    30% of the instructions that ptxas makes."""
    rows = json.loads(run("-c", STRAIGHT).splitlines()[-1])
    assert len(rows) >= 3
    for name, predicted, made in rows:
        assert predicted == pytest.approx(made, rel=0.3), name
