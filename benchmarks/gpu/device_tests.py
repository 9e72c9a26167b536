"""Runs the tests that need a GPU by pytest, beside other work, and collects what passed, what was skipped, and why."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from subprocess import Popen
from typing import Any

from benchmarks.gpu import commands
from benchmarks.gpu.machine import ROOT

FOLDER = "tests/kernels"
NEEDS_GPU = "with_device"  # how the cuda backend's files mark tests that need a GPU
LARGE = "two_to_the_31"  # in the names of tests that take most of the memory, and so run one at a time
WORKERS = 8
PRINTED = 20  # most failures to print; the files have all
Outcome = dict[str, Any]  # a line that benchmarks.gpu.outcomes wrote


def files() -> list[str]:
    """The test files of the portable GPU backend, and those of the cuda backend that have tests for a GPU."""
    folder = ROOT / FOLDER
    cuda = [path for path in folder.glob("test_cuda*.py") if NEEDS_GPU in path.read_text(encoding="utf-8")]
    return sorted(f"{FOLDER}/{path.name}" for path in (*folder.glob("test_gpu*.py"), *cuda))


class DeviceTests:
    """Writes ``gpu-tests.jsonl``, one line per test, and ``gpu-tests.txt``, what pytest prints, into a folder."""

    def __init__(self, folder: Path, head: dict[str, Any], plugins: tuple[str, ...] = ()) -> None:
        self.lines, self.log = folder / "gpu-tests.jsonl", folder / "gpu-tests.txt"
        for path in (self.lines, self.log):
            path.write_text(json.dumps(head) + "\n")
        self.plugins = ("benchmarks.gpu.outcomes", *plugins)

    def start(self) -> Popen[bytes] | None:
        """Starts all but the large tests, over several processes where pytest-xdist is installed; None without
        pytest."""
        if find_spec("pytest") is None:
            self.note("pytest", "pytest is not installed")
            return None
        spread = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if find_spec("xdist") is not None else []
        return self._pytest(["-k", f"not {LARGE}", *spread, *files()])

    def finish(self, process: Popen[bytes] | None, limit: float) -> None:
        if process is None:
            return
        code = commands.finish(process, limit)
        if code not in (0, 1):  # all passed, some failed
            self.note("tests", f"not done after {limit:.0f} s" if code is None else f"pytest ended ({code})")

    def large(self) -> list[str]:
        """The ids of the large tests, which the others' run left out."""
        return [line["test"] for line in self.outcomes() if line["outcome"] == "deselected"]

    def run_in_turn(self, tests: list[str], limit: float) -> list[str]:
        """Runs one test at a time, in one process. Returns the tests that have to run in another: where the process
        died or was killed, the first test without an outcome is blamed for it, and those after it are left."""
        code = commands.finish(self._pytest(tests), limit)
        known = {line["test"] for line in self.outcomes() if line["outcome"] != "deselected"}
        left = [test for test in tests if test not in known]
        if left:
            reason = f"not done after {limit:.0f} s" if code is None else f"the process ended ({code})"
            self.note(left[0], reason)
        return left[1:]

    def outcomes(self) -> list[Outcome]:
        lines = self.lines.read_text().splitlines()[1:]  # the first line is the machine
        return [json.loads(line) for line in lines]

    def note(self, test: str, why: str) -> None:
        """Records as a failed test what kept tests from running."""
        with self.lines.open("a") as file:
            file.write(json.dumps({"test": test, "outcome": "failed", "why": why, "seconds": 0}) + "\n")

    def _pytest(self, arguments: list[str]) -> Popen[bytes]:
        plugins = [word for name in self.plugins for word in ("-p", name)]
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *plugins, *arguments]
        return commands.start(command, self.log, {"HYENAREC_OUTCOMES": str(self.lines.resolve())})


def counted(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """By file, how many tests passed, failed and were skipped."""
    found: dict[str, Counter[str]] = {}
    for line in outcomes:
        if line["outcome"] != "deselected":
            found.setdefault(line["test"].split("::")[0], Counter())[line["outcome"]] += 1
    return {file: {kind: counts[kind] for kind in ("passed", "failed", "skipped")} for file, counts in found.items()}


def said(outcomes: list[Outcome]) -> list[str]:
    """The counts, then each failure, then the reasons why tests were skipped."""
    lines = [
        f"tests: {file}: " + ", ".join(f"{number} {kind}" for kind, number in counts.items())
        for file, counts in counted(outcomes).items()
    ]
    failed = [f"tests: FAILED {line['test']}: {line['why']}" for line in outcomes if line["outcome"] == "failed"]
    lines += failed[:PRINTED]
    if len(failed) > PRINTED:
        lines.append(f"tests: FAILED {len(failed) - PRINTED} more")
    reasons = Counter(line["why"] for line in outcomes if line["outcome"] == "skipped")
    return lines + [f"tests: {number} skipped: {why}" for why, number in reasons.items()]


def faults(outcomes: list[Outcome]) -> list[str]:
    """Why the tests prove less than they should: some failed, or none of a file passed. Large tests for which no time
    was left are no fault."""
    counts = counted(outcomes)
    failed = sum(count["failed"] for count in counts.values())
    found = [f"{failed} failed"] if failed else []
    return found + [f"no test of {file} passed" for file in files() if not counts.get(file, {}).get("passed")]
