"""The machine and the versions that a figure was measured with, and whether what was asked for can run on it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyenarec.config import ModelConfig
from hyenarec.errors import UserError
from hyenarec_kernels import backends
from hyenarec_kernels.backends import log

BACKEND_VARIABLE = "HYENAREC_BACKEND"
TRAINED_BYTES = 16  # per parameter: itself, its gradient and AdamW's two averages, in float32


def check_backend(device: torch.device) -> None:
    """Raises :class:`UserError` where ``HYENAREC_BACKEND`` names a backend that does not work on this ``device``."""
    name = os.environ.get(BACKEND_VARIABLE)
    try:
        usable = backends.available(device.type)
        log.enabled()
    except (ValueError, NotImplementedError) as error:  # another variable of the kernels has an unknown value
        raise UserError(str(error)) from error
    if name and name not in usable:
        raise UserError(
            f"{BACKEND_VARIABLE}: {name!r} is no backend that works on {device.type} here; "
            f"there are {', '.join(usable)}"
        )


def check_memory(config: ModelConfig, n_items: int, device: torch.device) -> None:
    """Raises :class:`UserError` where the weights in training cannot fit the memory of this machine or its GPU."""
    parameters = n_items * config.dim + config.blocks * 8 * config.dim**2  # embeddings and feed-forward layers
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = TRAINED_BYTES * parameters
    if needed > memory:
        raise UserError(
            f"options dim and blocks: {parameters:,} parameters or more need {needed / 2**30:,.0f} GiB to train, "
            f"and {device.type} has {memory / 2**30:,.0f} here"
        )


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
