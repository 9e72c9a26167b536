"""The GPU suite without a GPU, from end to end, and how long it would take on a machine that has one.

    python -m benchmarks rehearsal [--out runs/gpu-rehearsal] [--seconds 0.3]

Every process, compiler, file and line is the suite's own; only the GPU is pretended (:mod:`benchmarks.gpu.pretence`),
and shapes are a few sequences. No kernel's time comes out of it. It counts the processor seconds of compiling (Triton's
kernels, the extension by nvcc) and of the tests. :class:`Schedule` adds the rows' time, a fixed budget for each row,
and spreads all of it over the cores of a larger machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from benchmarks.gpu import clocks, device_tests, extension, plan, pretence
from benchmarks.gpu.device_tests import WORKERS, DeviceTests
from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.results import KINDS
from benchmarks.gpu.suite import GpuSuite, without_kind
from benchmarks.gpu.worker import Row

CORES = 16
COMPILERS = 8  # that setup.py runs side by side
# Assumed, in seconds: for a process to import torch with CUDA and open the device; for a row to allocate, check errors
# in float64 and measure memory; for the tests' work on the device; for one test of more than 2^31 elements.
STARTING, SETTING_UP, TESTING, LARGE_TEST = 12.0, 0.8, 20.0, 8.0
LARGE_TESTS = 4
# The most picoseconds per element that a call takes, forward and backward: attention's at 1,000 events of history, and
# everyone else's. From the design documents, rounded up; most calls stay far below a row's budget.
ATTENTION, OTHERS = 40.0, 100.0
LONGEST = 1024  # most events in rehearsed rows of which the CPU computes something


class Rehearsal(GpuSuite):
    """The suite on a pretended GPU."""

    patience = 10.0  # this machine may have few cores, and others at work on them
    processes = 4
    spent_on_tests = 0.0

    def order(self, row: Row) -> Row:
        """Replaces a million events by a few sequences."""
        small = without_kind(row)
        if "length" in small:
            if row.get("backend") != "triton" and row["what"] != "step":
                small["length"] = min(row["length"], LONGEST)
            small["tokens"] = 2 * small["length"]
        return small

    def test(self, rows: list[Row]) -> DeviceTests:
        """Runs the tests first and compiles afterwards, so that each has processor seconds of its own. Leaves out the
        cuda backend's tests: on a GPU they compile nothing, and without one they run its programs on the host."""
        before = processors_of_children()
        triton_alone = [name for name in device_tests.files() if "cuda" not in name]
        with (
            mock.patch.object(self, "compile", lambda rows: None),
            mock.patch.object(device_tests, "files", lambda: triton_alone),
        ):
            tests = super().test(rows)
        self.spent_on_tests = processors_of_children() - before
        self.compile(rows)
        return tests


class Schedule:
    """Seconds that each part of a rehearsed suite would take on ``CORES`` cores and a GPU."""

    def __init__(self, suite: Rehearsal, build: list[float], seconds: float) -> None:
        self.seconds, rest = seconds, suite.results.rest
        first, later = (rest[f"{name}, processor seconds"] for name in ("compiling", "compiling for other rows"))
        rows = suite.results.rows
        essential = len(list(plan.essential()))
        half = CORES // 2
        compiling = STARTING + spread(first, half)
        testing = STARTING + suite.spent_on_tests / WORKERS + TESTING
        self.parts = {
            "start": STARTING,
            "compiling, and the extension": max(compiling, spread(build, COMPILERS)),
            "essential rows": STARTING + sum(map(self.row, rows[:essential])),
            "tests, and compiling": max(testing, STARTING + spread(later, half)),
            "other rows": sum(map(self.row, rows[essential:])),
            "large tests": STARTING + LARGE_TESTS * LARGE_TEST,
        }

    def row(self, row: Row) -> float:
        """Seconds of a row: the budget of its clocks, or longer where a few calls take longer."""
        attention = "Flash" in row.get("rival", "") or row.get("system") == "attention"
        picoseconds = max(OTHERS, ATTENTION * row.get("length", 0) / 1000) if attention else OTHERS
        elements = row["tokens"] * row.get("dim", 64)
        call = 1e-12 * picoseconds * elements
        kinds = sum(kind in row for kind in KINDS)
        budget, rounds = self.seconds, clocks.ROUNDS + 1
        turns = max(budget, 2 * kinds * rounds * call) + kinds * (max(budget / 4, rounds * call) + rounds * call)
        return SETTING_UP + (turns if kinds else 0.0)

    def lines(self) -> list[str]:
        said = [f"{seconds:6.0f} s  {part}" for part, seconds in self.parts.items()]
        total = sum(self.parts.values())
        return [*said, f"{total:6.0f} s  in all, {total / 60:.1f} minutes: a rehearsal, not a measurement"]


def spread(jobs: Iterable[float], workers: int) -> float:
    """How long jobs take on ``workers`` side by side, the longest started first."""
    ends = [0.0] * workers
    for seconds in sorted(jobs, reverse=True):
        ends.sort()
        ends[0] += seconds
    return max(ends)


def processors_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prepare() -> None:
    """Called in every process that measures."""
    pretence.pretend()
    clocks.FLUSHED = 1


def build(folder: Path, log: Path) -> list[float]:
    """Compiles the extension for the one architecture into ``folder``. Returns the processor seconds of each compiler
    call."""
    folder.mkdir(parents=True)
    times = folder / "times"
    variables = os.environ | {"HYENAREC_CUDA_ARCHS": str(pretence.CAPABILITY), "HYENAREC_BUILD": "1"}
    variables |= {"CUDA_HOME": str(folder), "CC": str(folder / "bin/cc"), "CXX": str(folder / "bin/c++")}
    for name, real in {"nvcc": shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "cc": "gcc", "c++": "g++"}.items():
        wrapper = folder / "bin" / name
        wrapper.parent.mkdir(exist_ok=True)
        script = f'#!/bin/bash\nTIMEFORMAT="%U %S"\n{{ time {real} "$@" 2>&3; }} 3>&2 2>>{times}\n'
        wrapper.write_text(script)
        wrapper.chmod(0o755)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder / "lib")]
    command += ["--build-temp", str(folder / "temp")]
    with log.open("a") as file:
        subprocess.run(command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
    return [sum(map(float, line.split())) for line in times.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-rehearsal"))
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring a row, on the GPU machine")
    parser.add_argument("--minutes", type=float, default=120.0, help="on this machine, after which nothing runs")
    parser.add_argument("--skip-build", action="store_true", help="count no time for the extension")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        os.environ["TRITON_CACHE_DIR"] = str(scratch / "triton")  # nothing is compiled yet
        pretence.stub_driver(scratch / "stub")
        prepare()
        built: list[float] = []

        def ready(architecture: str, log: Path, limit: float) -> None:
            if not arguments.skip_build:
                built.extend(build(scratch / "build", log))

        with mock.patch.object(extension, "ready", ready):
            plugins = ("benchmarks.gpu.rehearsed_tests",)
            suite = Rehearsal(arguments.out, arguments.minutes, 0.0, None, prepare, plugins)
            suite.run(tests=True)
        clock = Schedule(suite, built, arguments.seconds)
        suite.results.save(rehearsal=clock.parts, built=built, spent_on_tests=suite.spent_on_tests)
    print("\n".join(["", *clock.lines()]))


if __name__ == "__main__":
    main()
