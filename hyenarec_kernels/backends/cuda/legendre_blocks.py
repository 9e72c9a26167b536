"""Legendre convolutions of long filters in block low-rank form (``csrc/cuda/legendre_blocks.h``).

A call reads its inputs twice and writes its output once: a pass for the moments of tiles of 256 rows, small launches
for levels of tiles, and a pass that does the rest. Where one level is enough, up to some 4,096 taps, a large forward
call reads them once. The work an element does not grow with the horizon. Gradients are
sums in a fixed order, the same run to run. float16 and bfloat16 rows are multiplied as they are, with the products of
gates rounded to their dtype; float32 goes as three products of TF32; moments of float16 are float32, those of bfloat16
rounded to it. Sums are float32. NaN and Inf stay within their channel and sequence; they may reach up to 63 rows back
in time. The first call of a horizon makes its plan; later ones wait for nothing. Not measured; predicted in
``csrc/cuda/block_schedule.h``.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hyenarec_kernels.backends.cuda.arguments import values, where
from hyenarec_kernels.backends.cuda.block_plan import constants, plan_for


def serves(x: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int) -> bool:
    """Whether there is a plan whose bound is within the tolerance of the dtype."""
    return prepared(*_key(x, coefficients, decay, horizon)) is not None


def convolve(
    x: Tensor,
    coefficients: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
) -> Tensor:
    plan = prepared(*_key(x, coefficients, decay, horizon))
    assert plan is not None
    parameters = (values(coefficients), values(decay), values(skip))
    rows = (pre_gate, post_gate, *where(starts, ends), horizon, x.shape[-2])
    out: Tensor = torch.ops.hyenarec_cuda.legendre_blocks(x, *parameters, *rows, *plan)
    return out


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = prepared(*_key(x, coefficients, decay, horizon))
    assert plan is not None
    parameters = (coefficients, decay, skip)
    rows = (pre_gate, post_gate, *where(starts, ends), horizon, x.shape[-2])
    dx, *found, dpre, dpost = torch.ops.hyenarec_cuda.legendre_blocks_backward(
        grad, x, *map(values, parameters), *rows, *plan, needs
    )
    dcoefficients, ddecay, dskip = (
        gradient.to(parameter.dtype) if needed and parameter is not None else gradient
        for gradient, parameter, needed in zip(found, parameters, needs[1:4], strict=True)
    )
    return dx, dcoefficients, ddecay, dskip, dpre, dpost


def _key(
    x: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int
) -> tuple[int, int, bool, bool, torch.dtype, torch.device]:
    return coefficients.shape[1], horizon, decay is not None, x.shape[-2] > horizon, x.dtype, x.device


@cache  # nothing is dropped: a captured CUDA graph may read it as long as the process lives
def prepared(
    terms: int, horizon: int, windowed: bool, beyond: bool, dtype: torch.dtype, device: torch.device
) -> tuple[list[int], Tensor] | None:
    """The plan as the operator takes it; None where none is precise enough."""
    plan = plan_for(terms, horizon, windowed, beyond, dtype)
    return None if plan is None else (plan.numbers, constants(plan, windowed, device))
