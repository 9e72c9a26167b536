"""The ``cuda`` backend's long convolution with explicit filters of any shape, by the compiled kernels of ``csrc/cuda``.

It serves float32, bfloat16 and float16 on CUDA devices of compute capability 8.0 and later. Up to 512 taps are computed
as Toeplitz products (``toeplitz``), more by FFTs in float32 with gates and skip fused into them. Filters of more than
16,384 taps are taken in sections; the limit is 1,024 where a block has 99 KiB of shared memory (8.6, 8.9, 12.0). The
filters of the bases without a block form, implicit and cosine, are explicit too. Not served: last positions with more
than 512 taps, float64, and GPUs that cannot run the kernels.

No call waits for the device, so a CUDA graph can capture all of it. Gradients are summed in a fixed order and are the
same from run to run. NaN and Inf stay within their channel and sequence, but spread over the whole sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.crossovers import CUDA_TOEPLITZ
from hyenarec_kernels.backends.cuda import toeplitz
from hyenarec_kernels.backends.cuda.arguments import values, where
from hyenarec_kernels.backends.cuda.device import refusal


def accepts(call: Call) -> str | None:
    """None for a long convolution that the kernels take, otherwise the reason why not."""
    x, filter, *_, last_only = call.arguments
    if filter.shape[1] == 0:
        return "filter has no elements"
    if last_only and not toeplitz.few_taps(filter.shape[1], x):
        return f"last rows of over {CUDA_TOEPLITZ} taps"
    return refusal(x)


def algorithm(call: Call) -> str:
    x, filter, *_, last_only = call.arguments
    return "last rows" if last_only else "Toeplitz products" if toeplitz.few_taps(filter.shape[1], x) else "FFT"


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
    if toeplitz.few_taps(filter.shape[1], x):
        return toeplitz.convolve(x, filter, None, skip, pre_gate, post_gate, starts, ends, 0, last_only)
    out: Tensor = torch.ops.hyenarec_cuda.long_conv(
        x, values(filter), values(skip), pre_gate, post_gate, *where(starts, ends), x.shape[-2]
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
    if toeplitz.few_taps(filter.shape[1], x):
        dx, dfilter, _, dskip, dpre, dpost = toeplitz.convolve_backward(
            grad,
            x,
            filter,
            None,
            skip,
            pre_gate,
            post_gate,
            starts,
            ends,
            0,
            last_only,
            [*needs[:2], False, *needs[2:]],
        )
        return dx, dfilter, dskip, dpre, dpost
    dx, dfilter, dskip, dpre, dpost = torch.ops.hyenarec_cuda.long_conv_backward(
        grad, x, values(filter), values(skip), pre_gate, post_gate, *where(starts, ends), x.shape[-2], list(needs)
    )
    if needs[1]:
        dfilter = dfilter.to(filter.dtype)
    if needs[2] and skip is not None:
        dskip = dskip.to(skip.dtype)
    return dx, dfilter, dskip, dpre, dpost
