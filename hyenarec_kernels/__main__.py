"""``python -m hyenarec_kernels``: what this machine offers, and which backends work on it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from shutil import which

import torch

from hyenarec_kernels.backends import compiled, log, registry


def report() -> str:
    """The environment report, as aligned plain text."""
    rows = [
        ("python", f"{platform.python_version()} on {platform.machine()}"),
        ("hyenarec", _installed("hyenarec")),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("triton", _installed("triton")),
        ("nvcc", _nvcc()),
        ("compiled extension", _extension()),
        ("GPU", _gpu()),
        ("forced backend", _forced()),
        ("log of choices", _log()),
    ]
    for name, backend in registry.BACKENDS.items():
        devices = "any device" if backend.devices is None else ", ".join(backend.devices)
        reason = _reason(backend)
        rows.append((f"backend {name}", f"available ({devices})" if reason is None else f"not available: {reason}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _reason(backend: registry.Backend) -> str | None:
    """Why the backend is not available; None if it is. An invalid environment variable, elsewhere an error, is such a
    reason here."""
    try:
        return backend.probe()
    except (ValueError, NotImplementedError) as error:
        return str(error)


def _log() -> str:
    try:
        return "on (HYENAREC_LOG=1)" if log.enabled() else "off (HYENAREC_LOG=1 switches it on)"
    except ValueError as error:
        return str(error)


def _forced() -> str:
    name = registry.forced()
    if name is None or name in registry.BACKENDS:
        return name or "none"
    return f"{name}, which is unknown; there are {', '.join(registry.BACKENDS)}"


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _nvcc() -> str:
    path = which("nvcc")
    if path is None:
        return "not on PATH"
    lines = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    release = next((line for line in lines if "release" in line), "version unknown")
    return f"{path}, {release.strip()}"


def _extension() -> str:
    reason = compiled.probe()
    if reason is not None:
        return f"none: {reason}"
    return "for CPU and CUDA" if compiled.has_cuda() else "for CPU"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return (
            f"none (torch built for CUDA {torch.version.cuda})" if torch.version.cuda else "none (torch without CUDA)"
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})"


if __name__ == "__main__":
    print(report())
