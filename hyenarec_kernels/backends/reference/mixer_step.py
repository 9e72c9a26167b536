"""One more event of a whole Hyena mixer, and of a block around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hyenarec_kernels.backends.reference.compact_step import compact_step
from hyenarec_kernels.backends.reference.conv_step import conv_step
from hyenarec_kernels.blocks import BlockWeights, in_block
from hyenarec_kernels.gates import GATES


def mixer_step(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    projected: Tensor,
    short_taps: Tensor,
    short_bias: Tensor,
    memory: Sequence[Tensor],
    tables: Sequence[Tensor],
    steps: Tensor,
    gate: str,
) -> Tensor:
    new = x @ w_in  # (B, C)
    z = conv_step(new.to(short_taps.dtype), projected, short_taps, steps, None, None)
    *q, v = (z + short_bias).to(new.dtype).chunk(w_in.shape[1] // w_out.shape[0], -1)
    last = GATES[gate](q[-1]) if q else None
    page, *levels = memory
    near, *of_levels = tables
    filters = near.shape[0]
    for i in range(filters):
        gates = q[i] if q else None, last if i == filters - 1 else None
        if page.shape[2] != near.shape[1] - 1:
            v = compact_step(v, page, levels, near, of_levels, steps, i, *gates)
        else:
            v = conv_step(v, page[:, i], near[i], steps, *gates)
    if not filters and last is not None:
        v = last * v
    steps.add_(1)
    return v @ w_out


def block_step(x: Tensor, norms: Sequence[Tensor], feed_forward: Sequence[Tensor], eps: float, *mixer: Any) -> Tensor:
    return in_block(x, BlockWeights(norms, feed_forward, eps), lambda normed: mixer_step(normed, *mixer))
