"""Linear recurrences with constant coefficients, parallel over time.

Each channel has a state of K numbers and a K x K matrix, which covers what the mixers need: K = 1 is a real decay,
K = 2 a complex eigenvalue (:func:`complex_matrix`) or the position and speed of an oscillator. The scan uses no complex
dtype, no division and no logarithm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec.mixers.recurrences import at_least_float32
from hyenarec.packing import Packing

CHUNK = 32  # sequential steps, each of which all chunks of a packed batch take at once


def linear_scan(matrix: Tensor, x: Tensor, packing: Packing) -> Tensor:
    """``h_t = A h_{t-1} + x_t``, from ``h = 0`` at the start of every sequence.

    ``matrix`` (K, K, D), the A of every channel; ``x`` (T, K, D), packed; returns (T, K, D), float32 (float64 if ``x``
    is). The cost is linear in T: all chunks advance in parallel, and then the same function scans the chunks' last
    states, to carry the state of each chunk into the next. Powers of A must stay bounded. Use float64 for oscillations
    that last thousands of events: the rounding error of their phase grows with every event.
    """
    x = at_least_float32(x)
    keep = (packing.positions > 0).to(x.dtype)  # 0 at the start of a sequence
    matrix = matrix.to(torch.promote_types(matrix.dtype, x.dtype))
    return _LinearScan.apply(matrix, x, keep)  # type: ignore[no-any-return,no-untyped-call]


def complex_matrix(real: Tensor, imaginary: Tensor) -> Tensor:
    """The matrix (2, 2, D) that multiplies (Re h, Im h) as the complex ``real + i imaginary``, (D,), multiplies h."""
    return torch.stack((torch.stack((real, -imaginary)), torch.stack((imaginary, real))))


class _LinearScan(torch.autograd.Function):
    """The gradient of a scan is the scan of the transposed matrix backwards in time."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor, keep: Tensor) -> Tensor:
        h = _scan(matrix, x, keep)
        ctx.save_for_backward(matrix, h, keep)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        matrix, h, keep = ctx.saved_tensors
        keep_next = pad(keep[1:].flip(0), (1, 0))
        grad_x = _LinearScan.apply(matrix.transpose(0, 1), grad.flip(0), keep_next).flip(0)  # type: ignore[no-untyped-call]
        carried = grad_x[1:] * keep[1:, None, None]
        grad_matrix = torch.stack([(carried * h[:-1, j, None]).sum(0) for j in range(h.shape[1])], 1)  # (K, K, D)
        return grad_matrix.to(matrix.dtype), grad_x, None


def _scan(matrix: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    events, size, channels = x.shape
    length = max(1, min(CHUNK, events))
    spare = -events % length
    h = pad(x, (0, 0, 0, 0, 0, spare)) if spare else x.clone()
    h = h.view(-1, length, size, channels)  # (N, C, K, D)
    kept = pad(keep, (0, spare)).view(-1, length, 1, 1)
    step = matrix.to(x.dtype)
    for t in range(1, length):
        h[:, t] += kept[:, t] * advance(step, h[:, t - 1])
    if len(h) > 1:
        # Powers in float64: if they were rounded at every step, they would add 5 times the recurrence's own error over
        # 5,000 events.
        powers = [matrix.double()]
        for _ in range(1, length):
            powers.append((powers[0][:, :, None] * powers[-1]).sum(1))
        through = kept.cumprod(1)  # (N, C, 1, 1), 1 while no sequence has started in the chunk
        carried = _scan(powers[-1], h[:, -1], through[:, -1].flatten())  # (N, K, D), the states at the chunks' ends
        h[1:] += through[1:] * advance(torch.stack(powers).to(x.dtype), carried[:-1, None])
    return h.view(-1, size, channels)[:events]


def advance(matrix: Tensor, h: Tensor) -> Tensor:
    """A h, one step without its input: (..., K, K, D) times (..., K, D), channel by channel.

    It uses elementwise operations only, which autocast does not change to half precision.
    """
    out = matrix[..., 0, :] * h[..., :1, :]
    for j in range(1, h.shape[-2]):
        out = torch.addcmul(out, matrix[..., j, :], h[..., j : j + 1, :])
    return out
