"""A mixer's whole forward or backward pass (:mod:`hyenarec_kernels.nn.joint`) in one compiled call.

One call from Python makes all launches: one kernel computes the effective parameters from the stored ones, torch
multiplies by the two projections, and between them run the kernels of both convolutions. Stored parameters may have any
dtype that the kernels support.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.cuda.arguments import where
from hyenarec_kernels.backends.cuda.device import refusal
from hyenarec_kernels.backends.cuda.legendre_blocks import prepared
from hyenarec_kernels.backends.cuda.legendre_conv import MOST_TERMS
from hyenarec_kernels.backends.cuda.short_convolutions import MOST_TAPS
from hyenarec_kernels.backends.cuda.toeplitz import few_taps

COMPILED = torch.ops.hyenarec_cuda


def accepts(call: Call) -> str | None:
    """None if the kernels take both convolutions, otherwise the reason why not."""
    x, _, taps, _, terms, log_rate, _, _, scale, _, _, horizon, *_ = call.arguments
    reason = refusal(x)
    if reason is not None:
        return reason
    if taps.shape[1] > MOST_TAPS:
        return f"over {MOST_TAPS} taps of the short convolution"
    few = few_taps(horizon, x)
    if not few and terms.shape[0] > MOST_TERMS * scale.shape[0]:
        return f"over {MOST_TERMS} terms"
    return None if few or _plan(x, terms, log_rate, scale, horizon) is not None else "no plan is precise enough"


def mixer(
    x: Tensor,
    w_in: Tensor,
    taps: Tensor,
    offset: Tensor,
    terms: Tensor,
    log_rate: Tensor | None,
    skip: Tensor,
    w_out: Tensor,
    scale: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    origins: Tensor,
    factor: float,
) -> tuple[Tensor | None, ...]:
    """The output, then what the backward pass reads: projected, u, q, v, and the effective parameters."""
    plan = _plan(x, terms, log_rate, scale, horizon)
    stored = (w_in, taps, offset, terms, log_rate, skip, w_out, scale, origins)
    found: tuple[Tensor, ...] = COMPILED.mixer(x, *stored, *where(starts, ends), factor, horizon, *(plan or DIRECT))
    if log_rate is None:  # where the operator must return a tensor
        *rest, _, acting_skip = found
        return *rest, None, acting_skip
    return found


def mixer_backward(
    grad: Tensor,
    kept: Sequence[Tensor | None],
    x: Tensor,
    w_in: Tensor,
    taps: Tensor,
    offset: Tensor,
    terms: Tensor,
    log_rate: Tensor | None,
    skip: Tensor,
    w_out: Tensor,
    scale: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    origins: Tensor,
    factor: float,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x and of the seven stored parameters; empty where not needed. ``kept`` is what `mixer` returned
    after the output."""
    plan = _plan(x, terms, log_rate, scale, horizon)
    found: tuple[Tensor, ...] = COMPILED.mixer_backward(
        grad, x, *kept, scale, *where(starts, ends), factor, horizon, *(plan or DIRECT), needs
    )
    return found


DIRECT: tuple[list[int], None] = [], None  # no plan: by Toeplitz products


def _plan(
    x: Tensor, terms: Tensor, log_rate: Tensor | None, scale: Tensor, horizon: int
) -> tuple[list[int], Tensor] | None:
    if few_taps(horizon, x):
        return None
    each = terms.shape[0] // scale.shape[0]
    return prepared(each, horizon, log_rate is not None, x.shape[-2] > horizon, x.dtype, x.device)
