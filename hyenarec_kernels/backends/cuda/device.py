"""Whether the ``cuda`` backend's kernels can run: what they need from the extension, from torch and from the GPU."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hyenarec_kernels.backends import compiled
from hyenarec_kernels.backends.calls import DeviceUnable

SERVED = (torch.float32, torch.bfloat16, torch.float16)


def probe() -> str | None:
    """None if the kernels run here, otherwise the reason why not."""
    return _probe()


@lru_cache(maxsize=1)
def _probe() -> str | None:
    reason = compiled.probe()
    if reason is not None:
        return reason
    if not compiled.has_cuda():
        return "the extension was compiled without CUDA (no nvcc, or it failed: pip install -v says which)"
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU"
    # The current GPU first: asking a GPU loads the kernels on it, which takes memory.
    here = torch.cuda.current_device()
    devices = [here, *(i for i in range(torch.cuda.device_count()) if i != here)]
    if any(unsupported(torch.device("cuda", i)) is None for i in devices):
        return None
    return f"GPU {here}: {unsupported(torch.device('cuda', here))}"


@lru_cache
def unsupported(device: torch.device) -> str | None:
    """None if this GPU can run the kernels and they were compiled for it, otherwise the reason why not."""
    with torch.cuda.device(device):
        reason: str = torch.ops.hyenarec_cuda.unsupported()
    return reason or None


def refusal(x: Tensor) -> str | None:
    """The reason why no kernel takes ``x``, or None."""
    if x.dtype not in SERVED:
        return f"{x.dtype} is not among {', '.join(map(str, SERVED))}"
    if x.numel() == 0:
        return "x has no elements"
    reason = unsupported(x.device)
    return None if reason is None else DeviceUnable(reason)
