"""The ``cuda`` backend: explicit filters of any shape, over the compiled kernels of ``csrc/cuda``.

Served: the long convolution of float32, bfloat16 and float16 on CUDA devices of compute capability 8.0 and later, by
FFTs in float32 with gates and skip fused into them; filters of more than 16,384 taps, or 1,024 where a block has 99 KiB
of shared memory (8.6, 8.9, 12.0), go in parts. Explicit are also the filters of the bases that have no block form:
implicit, Chebyshev, cosine. Last positions and float64 go on, as do tensors on a GPU that cannot run the kernels, few
taps, and taps that many channels share, which tensor cores multiply: see `transforms`.

No call waits for the device, so that all of it can be captured in a CUDA graph. Gradients are sums in a fixed order,
the same run to run. NaN and Inf stay within their channel and sequence; in time they spread over all of it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from hyenarec_kernels.backends import compiled, reference, registry, triton

SERVED = (torch.float32, torch.bfloat16, torch.float16)

# Filters of up to this many taps are convolved tap by tap, in Triton. By arithmetic and not measured, in cycles of a
# multiprocessor of an H200 for an element of bfloat16 (128 lanes; 4.3 bytes a picosecond for 132 at 1.75 GHz):
#   memory, either way, 3 inputs and 1 output of 2 bytes at 19 a cycle: 0.4
#   direct: a tap is 2 loads, 2 conversions, 2 multiply-adds and 3 of index and mask, 9 / 128 = 0.07
#   FFT of as many complex points as rows, M = 64 to 16,384, there and back: 4.2 operations a point and octave and 14
#       for twist, spectrum and untwist, (8.4 log2 M + 14) / 128 = 0.5 to 1.0; two exchanges through shared memory each
#       way, 64 bytes at 128 a cycle, 0.5; together 1.0 to 1.5, and up to twice that where M is not the length
# They meet at 14 to 21 taps. A Legendre filter goes as blocks instead, nearly all of it on tensor cores.
DIRECT_TAPS = 16


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


def transforms(x: Tensor, filter: Tensor, last_only: bool) -> bool:
    """The plan: whether a call is for the FFT; what is not goes to Triton's kernels, or where they do not run to the
    reference."""
    if last_only or x.dtype not in SERVED or x.numel() == 0:
        return False
    forced, reason = registry.forced() == "cuda", unsupported(x.device)
    if reason is not None:
        if forced:
            raise NotImplementedError(f"long_conv: the forced backend 'cuda' does not run on {x.device}: {reason}")
        return False
    if forced or triton.probe() is not None:
        return True
    taps = filter[:, : x.shape[-2]]
    toeplitz = import_module("hyenarec_kernels.backends.triton.toeplitz")
    return taps.shape[1] > DIRECT_TAPS and not toeplitz.shared(x, taps)


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
    if not transforms(x, filter, last_only):
        elsewhere: Tensor = _elsewhere().long_conv(x, filter, skip, pre_gate, post_gate, starts, ends, last_only)
        return elsewhere
    out: Tensor = torch.ops.hyenarec_cuda.long_conv(
        x, _values(filter), _values(skip), pre_gate, post_gate, *_where(starts, ends), x.shape[-2]
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
    if not transforms(x, filter, last_only):
        gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _elsewhere().long_conv_backward(
            grad, x, filter, skip, pre_gate, post_gate, starts, ends, last_only, needs
        )
        return gradients
    dx, dfilter, dskip, dpre, dpost = torch.ops.hyenarec_cuda.long_conv_backward(
        grad, x, _values(filter), _values(skip), pre_gate, post_gate, *_where(starts, ends), x.shape[-2], list(needs)
    )
    if needs[1]:
        dfilter = dfilter.to(filter.dtype)
    if needs[2] and skip is not None:
        dskip = dskip.to(skip.dtype)
    return dx, dfilter, dskip, dpre, dpost


def _elsewhere() -> Any:
    return import_module("hyenarec_kernels.backends.triton.operators") if triton.probe() is None else reference


def _values(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float().contiguous()


def _where(starts: Tensor | None, ends: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both contiguous, and of one type: ``starts`` may be int32 beside int64 ``ends``."""
    if starts is None or ends is None:
        return starts, None if ends is None else ends.contiguous()
    wider = torch.promote_types(starts.dtype, ends.dtype)
    return starts.to(wider).contiguous(), ends.to(wider).contiguous()
