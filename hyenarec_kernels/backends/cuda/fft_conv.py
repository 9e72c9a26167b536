"""The ``cuda`` backend: explicit filters of any shape, over the compiled kernels of ``csrc/cuda``.

Served: the long convolution of float32, bfloat16 and float16 on CUDA devices of compute capability 8.0 and later, by
FFTs in float32 with gates and skip fused into them; filters of more than 16,384 taps, or 1,024 where a block has 99 KiB
of shared memory (8.6, 8.9, 12.0), go in parts. Explicit are also the filters of the bases that have no block form:
implicit, cosine. Not served: last positions, float64, a GPU that cannot run the kernels; nor, where Triton works, few
taps, and taps that many channels share, which tensor cores multiply (`accepts`).

No call waits for the device, so that all of it can be captured in a CUDA graph. Gradients are sums in a fixed order,
the same run to run. NaN and Inf stay within their channel and sequence; in time they spread over all of it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hyenarec_kernels.backends import compiled, crossovers
from hyenarec_kernels.backends.calls import Call, DeviceUnable, Slower

SERVED = (torch.float32, torch.bfloat16, torch.float16)


def probe() -> str | None:
    """None where the kernels run, otherwise the reason why not."""
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
    # The current GPU first: loading the kernels takes memory on every one that is asked.
    here = torch.cuda.current_device()
    devices = [here, *(i for i in range(torch.cuda.device_count()) if i != here)]
    if any(unsupported(torch.device("cuda", i)) is None for i in devices):
        return None
    return f"GPU {here}: {unsupported(torch.device('cuda', here))}"


@lru_cache
def unsupported(device: torch.device) -> str | None:
    """None where this GPU can run the kernels and they were compiled for it, otherwise the reason why not."""
    with torch.cuda.device(device):
        reason: str = torch.ops.hyenarec_cuda.unsupported()
    return reason or None


def accepts(call: Call) -> str | None:
    """None for a long convolution that goes through the FFT here, otherwise the reason why not."""
    x, filter, *_, last_only = call.arguments
    if last_only:
        return "last rows alone need no FFT"
    if x.dtype not in SERVED:
        return f"{x.dtype} is not among {', '.join(map(str, SERVED))}"
    if x.numel() == 0:
        return "x has no elements"
    reason = unsupported(x.device)
    if reason is not None:
        return DeviceUnable(reason)
    taps, groups = min(filter.shape[1], x.shape[-2]), filter.shape[0]
    if taps <= crossovers.CUDA_DIRECT:
        return Slower(f"up to {crossovers.CUDA_DIRECT} taps, going direct is faster", than="triton")
    if crossovers.toeplitz(taps, groups, x.shape[-1]):
        return Slower("groups of channels share the taps: Toeplitz products are faster", than="triton")
    return None


def algorithm(call: Call) -> str:
    return "FFT"


def long_conv(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    last_only: bool,
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cuda.long_conv(
        x, _values(filter), _values(skip), pre_gate, post_gate, *where(starts, ends), x.shape[-2]
    )
    return out


def long_conv_backward(
    grad: Tensor,
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    last_only: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dfilter, dskip, dpre, dpost = torch.ops.hyenarec_cuda.long_conv_backward(
        grad, x, _values(filter), _values(skip), pre_gate, post_gate, *where(starts, ends), x.shape[-2], list(needs)
    )
    if needs[1]:
        dfilter = dfilter.to(filter.dtype)
    if needs[2] and skip is not None:
        dskip = dskip.to(skip.dtype)
    return dx, dfilter, dskip, dpre, dpost


def _values(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float().contiguous()


def where(starts: Tensor | None, ends: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both contiguous, and of one type: ``starts`` may be int32 beside int64 ``ends``."""
    if starts is None or ends is None:
        return starts, None if ends is None else ends.contiguous()
    if starts.dtype is ends.dtype and starts.is_contiguous() and ends.is_contiguous():
        return starts, ends
    wider = torch.promote_types(starts.dtype, ends.dtype)
    return starts.to(wider).contiguous(), ends.to(wider).contiguous()
