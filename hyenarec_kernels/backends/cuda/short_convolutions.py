"""The short convolutions and ``conv_step`` of the ``cuda`` backend, by ``csrc/cuda/fir.h`` and ``conv_step.h``.

The compiled operators take an operator's arguments as they are and return all of its results. So one call from Python
makes all launches; torch's operations neither convert parameters nor sum gradients.

A thread goes through 16 rows (32 in a backward pass) of a few channels and reads each row once; it looks up on the
device where sequences lie. Rows of no sequence are written as 0, whatever the input holds there. Calls that Triton
could take as well are served here, to save time on the host; on the device both backends are, by arithmetic, bound by
memory. Neither is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.cuda.arguments import where
from hyenarec_kernels.backends.cuda.device import refusal

COMPILED = torch.ops.hyenarec_cuda
MOST_TAPS = 8  # csrc/cuda/short_conv.h


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    x, second = call.arguments[:2]
    reason = refusal(x)
    if reason is not None:
        return reason
    if call.operator == "conv_step":
        adjacent = second.stride(2) == 1 or x.shape[1] == 1
        return None if adjacent else "the channels of history are not adjacent in memory"
    return None if second.shape[1] <= MOST_TAPS else f"over {MOST_TAPS} taps"


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, activation: str
) -> Tensor:
    out: Tensor = COMPILED.short_conv(x, weight, bias, *where(starts, ends), activation)
    return out


def short_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = COMPILED.short_conv_backward(grad, x, weight, bias, *where(starts, ends), activation, needs)
    return dx, dweight, dbias


def gated_short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, dim: int
) -> tuple[Tensor, Tensor]:
    u, q = COMPILED.gated_short_conv(x, weight, bias, *where(starts, ends), dim)
    return u, q


def gated_short_conv_backward(
    grad_u: Tensor,
    grad_q: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    dim: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = COMPILED.gated_short_conv_backward(
        grad_u, grad_q, x, weight, bias, *where(starts, ends), dim, needs
    )
    return dx, dweight, dbias


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    out: Tensor = COMPILED.conv_step(x, history, taps, steps, pre_gate, post_gate)
    return out
