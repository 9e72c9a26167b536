"""The GPU, the versions and the commit that a file of the GPU suite comes from. Needs torch and numpy alone."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
import torch

from hyenarec_kernels import backends

ROOT = Path(__file__).parents[2]


def describe(commit: str | None) -> dict[str, Any]:
    """What :func:`benchmarks.harness.recording.describe` has, and the GPU's driver, capability, multiprocessors and
    memory. ``commit`` is recorded where the checkout has no git history."""
    device = torch.cuda.get_device_properties(0)
    return {
        "hyenarec": version_of("hyenarec"),
        "revision": said("git", "-C", str(ROOT), "rev-parse", "HEAD") or commit,
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "device": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "nvcc": (said("nvcc", "--version") or "").splitlines()[-1:],
        "threads": torch.get_num_threads(),
        "kind": "cuda",
        "backend": backends.forced() or "each row names its own",
    }


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def said(*command: str) -> str | None:
    """What a program prints; None where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
