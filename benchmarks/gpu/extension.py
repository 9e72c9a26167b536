"""The compiled extension for this machine's GPU: one that works already is used, otherwise it is compiled here."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import commands
from benchmarks.gpu.machine import ROOT

PROBE = """
from hyenarec_kernels.backends import compiled, registry
reason = compiled.probe()
if reason is None and not compiled.has_cuda():
    reason = "the compiled extension has no CUDA kernels (nvcc was missing, or failed, when it was built)"
print(reason or registry.BACKENDS["cuda"].probe() or "")
"""


def missing() -> str | None:
    """None where the extension loads, has CUDA kernels and they run on this GPU; otherwise the reason why not. A
    process of its own finds out, because a process that has loaded a library does not load it again after it was
    recompiled."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else None


def ready(architecture: str, log: Path, limit: float) -> str | None:
    """As :func:`missing`, but where something is missing, the extension is first compiled for one architecture, such as
    "90". The compilers' output is appended to ``log``."""
    reason = missing()
    if reason is None:
        return None
    print(f"extension: {reason}; compiling it for sm_{architecture}", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    build = commands.start(command, log, {"HYENAREC_CUDA_ARCHS": architecture, "HYENAREC_BUILD": "1"})
    if commands.finish(build, limit) is None:
        return f"not compiled within {limit:.0f} s; the compilers' output is in {log}"
    reason = missing()
    print(f"extension: compiled in {time.perf_counter() - began:.0f} s: {reason or 'it works'}", flush=True)
    return reason and f"{reason}; the compilers' output is in {log}"
