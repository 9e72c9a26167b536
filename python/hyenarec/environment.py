"""The machine and the versions behind a figure."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, threads and versions, as JSON: every recorded figure carries them."""
    return {
        "hyenarec": _version(),
        "revision": _revision(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def _version() -> str | None:
    """None for a checkout that is not installed, only on the path."""
    try:
        return version("hyenarec")
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit of the checkout that this package is imported from; None for an installed copy."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
