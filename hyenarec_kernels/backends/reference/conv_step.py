"""One more event of a gated causal convolution whose past inputs are kept in a ring of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    u = x.to(history.dtype)
    if pre_gate is not None:
        u = pre_gate.to(u.dtype) * u
    y = u * taps[-1]
    slots = history.shape[1]
    if slots > 0:
        sequence, slot = torch.arange(len(x), device=x.device), torch.arange(slots, device=x.device)
        oldest = steps % slots  # (B,)
        y = y + (history * taps[:-1][(slot - oldest[:, None]) % slots]).sum(1)  # taps in each ring's order
        history[sequence, oldest] = u
    if post_gate is not None:
        y = y * post_gate.to(y.dtype)
    return y.to(x.dtype)
