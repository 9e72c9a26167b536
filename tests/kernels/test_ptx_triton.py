"""The Triton kernels as Triton compiles them for a GPU, run on the CPU by the machine of :mod:`benchmarks.gpu.ptx`.

Unlike the interpreter, these runs have bfloat16, tensor cores, shared memory, barriers and 128-bit loads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.interpreter import python

pytest.importorskip("triton", reason="triton is not installed")

from ptx_cases import BARRIERS, CONTROLS, FEW, MANY

HERE = Path(__file__).parent


def results(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Runs all cases in one process, which has Triton's compiler, and returns their rows by name."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = python(HERE / "ptx_cases.py", *names, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def few() -> dict[str, dict[str, Any]]:
    return results([*FEW, *CONTROLS])


@pytest.fixture(scope="module")
def many() -> dict[str, dict[str, Any]]:
    return results(MANY)


@pytest.fixture(scope="module")
def barriers() -> dict[str, dict[str, Any]]:
    return results(BARRIERS)


def assert_right(row: dict[str, Any]) -> None:
    assert "fault" not in row, row["fault"]
    assert row["error"] <= row["tolerance"] and row["launches"]


@pytest.mark.parametrize("name", FEW)
def test_compiled_kernels_compute_the_definition(name: str, few: dict[str, dict[str, Any]]) -> None:
    assert_right(few[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_more_calls(name: str, many: dict[str, dict[str, Any]]) -> None:
    assert_right(many[name])


@pytest.mark.slow
def test_every_kernel_runs(few: dict[str, dict[str, Any]], many: dict[str, dict[str, Any]]) -> None:
    folder = HERE.parents[1] / "hyenarec_kernels" / "backends" / "triton" / "kernels"
    folders = [folder, folder.parent]
    source = "".join(path.read_text() for where in folders for path in where.glob("*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE))
    seen = {kernel for row in (*few.values(), *many.values()) for kernel in row["launches"]}
    assert kernels == seen and len(kernels) > 15


def test_the_unbroken_control_is_right(few: dict[str, dict[str, Any]]) -> None:
    assert_right(few["nothing"])
    assert few["nothing"]["changed"] == 0


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "nothing"])
def test_what_is_broken_shows(name: str, few: dict[str, dict[str, Any]]) -> None:
    row = few[name]
    assert row["changed"] > 0
    assert "fault" in row or not row["error"] <= row["tolerance"]


@pytest.mark.slow
def test_barriers_are_needed(barriers: dict[str, dict[str, Any]]) -> None:
    """If one barrier of the chunks kernel is left out, the machine reports a race, for nearly every barrier.

    A barrier before another wait, or after a loop's last round, separates nothing.
    """
    changed = [row for row in barriers.values() if row["changed"]]
    seen = [row for row in changed if "fault" in row]
    assert len(changed) >= 5 and len(seen) >= 0.7 * len(changed)
    assert len(changed) < len(barriers), "the kernel has more barriers than are left out"
