"""The ``triton`` backend: the operators as Triton kernels for NVIDIA GPUs.

It serves float32, bfloat16 and float16 on CUDA devices of compute capability 8.0 and later (`operators.accepts` tells
which calls). With ``TRITON_INTERPRET=1`` set before the first import, the same kernels run on CPU tensors, slowly, so
that they can be tested without a GPU. They then serve float64 too, but not bfloat16, which the interpreter gets wrong.

No launch waits for the device, so a CUDA graph can capture all of them: where the host needs the length of the longest
sequence, it takes the most that the shape allows, L for padded and T for packed input. Gradients are summed in a fixed
order, so they are the same from run to run. NaN and Inf stay within their channel and sequence; backwards in time they
reach at most the start of their chunk of 32 rows.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch

# Triton reads this variable when its functions are defined, and this package when it is first imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")  # as Triton reads it
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
CAPABILITY = (8, 0)


def probe() -> str | None:
    """None if the kernels run here, otherwise the reason why not."""
    return _probe()


@lru_cache(maxsize=1)
def _probe() -> str | None:
    try:
        installed = find_spec("triton") is not None
    except ModuleNotFoundError:  # an import hook refuses it
        installed = False
    if not installed:
        return "triton is not installed (pip install triton)"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU (TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly)"
    capability = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if capability < CAPABILITY:
        return f"it needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return None
