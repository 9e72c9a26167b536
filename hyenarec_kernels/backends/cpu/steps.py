"""Steps of streaming states, computed by the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.conv_step(x, history, taps, steps, pre_gate, post_gate)
    return out


def compact_step(
    x: Tensor,
    page: Tensor,
    levels: Sequence[Tensor],
    near: Tensor,
    tables: Sequence[Tensor],
    steps: Tensor,
    number: int,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.compact_step(x, page, levels, near, tables, steps, number, pre_gate, post_gate)
    return out


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
    out: Tensor = torch.ops.hyenarec_cpu.mixer_step(
        x, w_in, w_out, projected, short_taps, short_bias, memory, tables, steps, gate
    )
    return out


def block_step(x: Tensor, norms: Sequence[Tensor], feed_forward: Sequence[Tensor], eps: float, *mixer: Any) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.block_step(x, norms, feed_forward, eps, *mixer)
    return out
