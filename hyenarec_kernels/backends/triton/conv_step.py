"""One event more of every sequence, for serving: rings of past inputs are read once, and written to where they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenarec_kernels.backends.triton.arithmetic import CHUNK, Arithmetic, tile_channels, with_strides
from hyenarec_kernels.backends.triton.configs import config
from hyenarec_kernels.backends.triton.rows import launch


@triton.jit
def step(
    x,
    x_row,
    pre,
    pre_row,
    post,
    post_row,
    history,
    history_sequence,
    history_row,
    taps,
    steps,
    out,
    slots,
    channels,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One sequence (axis 0): history (B, slots, D), taps (slots + 1, D), largest lag first."""
    sequence = tl.program_id(0).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = channel < channels
    u = tl.load(x + sequence * x_row + channel, mask=inside, other=0).to(ACC)
    if pre is not None:
        u *= tl.load(pre + sequence * pre_row + channel, mask=inside, other=0).to(ACC)
    y = u * tl.load(taps + slots * channels + channel, mask=inside, other=0)
    if slots > 0:
        oldest = (tl.load(steps + sequence) % slots).to(tl.int32)
        ring = history + sequence * history_sequence + channel
        total = tl.zeros((CHUNK, CHANNELS), ACC)
        for begin in range(0, slots, CHUNK):
            slot = begin + tl.arange(0, CHUNK)[:, None]
            order = slot - oldest
            order += tl.where(order < 0, slots, 0)
            real = (slot < slots) & inside
            weight = tl.load(taps + order * channels + channel, mask=real, other=0)
            total += weight * tl.load(ring + slot * history_row, mask=real, other=0)
        y += tl.sum(total, 0)[None, :]
        tl.debug_barrier()  # no thread may write the oldest row before all have read it
        tl.store(ring + oldest * history_row, u, mask=inside)
    if post is not None:
        y *= tl.load(post + sequence * post_row + channel, mask=inside, other=0).to(ACC)
    tl.store(out + sequence * channels + channel, y.to(out.dtype.element_ty), mask=inside)


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    channels = x.shape[1]
    tuned, tile = config("step", x.device), tile_channels(channels)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        step,
        (x.shape[0], triton.cdiv(channels, tile)),
        *with_strides(x, pre_gate, post_gate),
        history,
        history.stride(0),
        history.stride(1),
        taps.contiguous(),
        steps.contiguous(),
        out,
        history.shape[1],
        channels,
        CHUNK=CHUNK,
        ACC=Arithmetic(x.dtype).kernel_dtype,
        CHANNELS=tile,
        **tuned.options,
    )
    return out
