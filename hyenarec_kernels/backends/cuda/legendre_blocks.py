"""Legendre convolutions of long filters in block low-rank form (``csrc/cuda/legendre_blocks.h``).

A call reads its inputs twice and writes its output once: one pass computes the moments of tiles (chunks of 256 rows),
small launches go through the levels above, and a last pass does the rest. If one level is enough, up to about 4,096
taps, a large forward call reads its inputs only once. The work per element does not grow with the horizon.

Gradients are summed in a fixed order and are the same from run to run. float16 and bfloat16 rows are multiplied as they
are, with products of gates rounded to their dtype; float32 is computed as three TF32 products. The moments of float16
are float32, those of bfloat16 are rounded to bfloat16. Sums are float32. NaN and Inf stay within their channel and
sequence; they may reach up to 63 rows back in time. The first call with a horizon makes its plan; later calls wait for
nothing. Speed is not measured; ``csrc/cuda/block_schedule.h`` has estimates.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hyenarec_kernels.backends.cuda.arguments import values, where
from hyenarec_kernels.backends.cuda.block_plan import constants, plan_for


def serves(x: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int) -> bool:
    """Whether there is a plan whose bound is within the dtype's tolerance."""
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


@cache  # never evicts: a captured CUDA graph may read the result as long as the process lives
def prepared(
    terms: int, horizon: int, windowed: bool, beyond: bool, dtype: torch.dtype, device: torch.device
) -> tuple[list[int], Tensor] | None:
    """The plan's numbers and constants, as the operator takes them; None if no plan is precise enough."""
    plan = plan_for(terms, horizon, windowed, beyond, dtype)
    return None if plan is None else (plan.numbers, constants(plan, windowed, device))
