"""One more event of every sequence, for serving: each ring of past inputs is read once and updated in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tile_channels
from hyenarec_kernels.backends.triton.configs import CHUNK, TABLE
from hyenarec_kernels.backends.triton.launching import launch, with_strides


@triton.jit
def conv_step_kernel(
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    history_ptr,
    history_sequence,
    history_row,
    taps_ptr,
    steps_ptr,
    out_ptr,
    slots,
    channels,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One program per sequence (axis 0) and tile of channels (axis 1): history (B, slots, D), taps (slots + 1, D) with
    the largest lag first."""
    sequence = tl.program_id(0).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = channel < channels
    u = tl.load(x_ptr + sequence * x_row + channel, mask=inside, other=0).to(ACC)
    if pre_ptr is not None:
        u *= tl.load(pre_ptr + sequence * pre_row + channel, mask=inside, other=0).to(ACC)
    y = u * tl.load(taps_ptr + slots * channels + channel, mask=inside, other=0)
    if slots > 0:
        oldest = (tl.load(steps_ptr + sequence) % slots).to(tl.int32)
        oldest += tl.where(oldest < 0, slots, 0)  # a remainder has the sign of its dividend
        ring = history_ptr + sequence * history_sequence + channel
        total = tl.zeros((CHUNK, CHANNELS), ACC)
        for begin in range(0, slots, CHUNK):
            slot = begin + tl.arange(0, CHUNK)[:, None]
            order = slot - oldest
            order += tl.where(order < 0, slots, 0)
            real = (slot < slots) & inside
            weight = tl.load(taps_ptr + order * channels + channel, mask=real, other=0)
            total += weight * tl.load(ring + slot * history_row, mask=real, other=0)
        y += tl.sum(total, 0)[None, :]
        tl.debug_barrier()  # no thread may write the oldest row before all have read it
        tl.store(ring + oldest * history_row, u, mask=inside)
    if post_ptr is not None:
        y *= tl.load(post_ptr + sequence * post_row + channel, mask=inside, other=0).to(ACC)
    tl.store(out_ptr + sequence * channels + channel, y.to(out_ptr.dtype.element_ty), mask=inside)


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    channels = x.shape[1]
    tile = tile_channels(channels)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        conv_step_kernel,
        (x.shape[0], triton.cdiv(channels, tile)),
        **with_strides(x=x, pre=pre_gate, post=post_gate),
        history_ptr=history,
        history_sequence=history.stride(0),
        history_row=history.stride(1),
        taps_ptr=taps.contiguous(),
        steps_ptr=steps.contiguous(),
        out_ptr=out,
        slots=history.shape[1],
        channels=channels,
        CHUNK=CHUNK,
        ACC=Arithmetic(x.dtype).kernel_dtype,
        CHANNELS=tile,
        **TABLE["step"].options,
    )
    return out
