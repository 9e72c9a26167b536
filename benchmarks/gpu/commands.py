"""Programs with a time limit; a killed program's own children are killed with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gpu.machine import ROOT


def start(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a program in the checkout. Its output is appended to ``log``; ``variables`` are added to the
    environment."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The program's exit code; None where it was not done within ``limit`` seconds and was killed."""
    try:
        return process.wait(max(limit, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # compilers and pytest's workers too
        process.wait()
        return None
