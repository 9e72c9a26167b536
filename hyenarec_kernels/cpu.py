"""The ``cpu`` backend: the operators' functions over the compiled kernels of ``csrc/cpu``.

This side chooses the plan, samples the filter at the plan's lags and takes the samples' gradient back to coefficients
and decay; the kernels do everything that is as long as the input.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from hyenarec_kernels import reference
from hyenarec_kernels.blocks import sampled_basis
from hyenarec_kernels.plan import MANY_ROWS, Plan, direct_plan, plan_for
from hyenarec_kernels.reference.rows import wide

# Explicit filters of more taps than this go through the reference's FFT. Both take about 4 ns an element at 1,024 taps
# (two AVX-512 cores, busy with other work, float32); the direct form's chunks leave the first-level cache well before.
DIRECT_TAPS = 512


def probe() -> str | None:
    """None where the compiled kernels load, otherwise the reason why not."""
    return _probe()


@lru_cache(maxsize=1)
def _probe() -> str | None:
    if find_spec("hyenarec_kernels._C") is None:
        return "the compiled extension was not built (no C++ compiler, no torch beside pip, or HYENAREC_BUILD=0)"
    try:
        import_module("hyenarec_kernels._C")
        torch.ops.hyenarec_cpu.isa()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    return None


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, activation: str
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.short_conv(
        x, _lag_major(weight, x), _wide(bias, x), starts, ends, activation == "silu"
    )
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
    dx, dweight, dbias = torch.ops.hyenarec_cpu.short_conv_backward(
        grad, x, _lag_major(weight, x), _wide(bias, x), starts, ends, activation == "silu", list(needs)
    )
    if needs[1]:
        dweight = dweight.T.contiguous().to(weight.dtype)
    return dx, dweight, dbias if bias is None else dbias.to(bias.dtype)


def long_conv(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    last_only: bool,
) -> Tensor:
    longest = _longest(x, starts, ends)
    taps = min(filter.shape[1], longest)
    if last_only:
        return _last(x, _per_channel(_lag_major(filter[:, :taps], x), x), skip, pre_gate, post_gate, starts, ends)
    if not 0 < taps <= DIRECT_TAPS:
        return reference.long_conv(x, filter, skip, pre_gate, post_gate, starts, ends, last_only)
    plan = direct_plan(taps, longest)
    samples = _per_channel(_lag_major(filter[:, :taps], x), x)
    return _conv(x, samples, skip, pre_gate, post_gate, starts, ends, plan)


def long_conv_backward(
    grad: Tensor,
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    last_only: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    longest = _longest(x, starts, ends)
    taps = min(filter.shape[1], longest)
    if taps == 0 or (taps > DIRECT_TAPS and not last_only):
        return reference.long_conv_backward(grad, x, filter, skip, pre_gate, post_gate, starts, ends, last_only, needs)
    plan = None if last_only else direct_plan(taps, longest)
    samples = _per_channel(_lag_major(filter[:, :taps], x), x)
    dx, dsamples, dskip, dpre, dpost = _conv_backward(
        grad, x, samples, skip, pre_gate, post_gate, starts, ends, plan, needs
    )
    dfilter = dsamples
    if needs[1]:
        unused = filter.shape[1] - taps
        dfilter = pad(_per_group(dsamples, filter.shape[0]).T, (0, unused)).contiguous()
    return dx, dfilter.to(filter.dtype), dskip, dpre, dpost


def legendre_conv(
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
    longest = _longest(x, starts, ends)
    if longest == 0:
        return reference.legendre_conv(
            x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only
        )
    if last_only:
        every = _taps_plan(min(horizon, longest), horizon)
        taps = _per_channel(_sample(every, coefficients, decay, x.dtype)[0], x)
        return _last(x, taps, skip, pre_gate, post_gate, starts, ends)
    plan = _plan(x, coefficients, decay, horizon, longest)
    if plan is None:
        return reference.legendre_conv(
            x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only
        )
    samples = _per_channel(_sample(plan, coefficients, decay, x.dtype)[0], x)
    return _conv(x, samples, skip, pre_gate, post_gate, starts, ends, plan)


def legendre_conv_backward(
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
    longest = _longest(x, starts, ends)
    if last_only and longest > 0:
        plan: Plan | None = _taps_plan(min(horizon, longest), horizon)
    else:
        plan = _plan(x, coefficients, decay, horizon, longest) if longest > 0 else None
    if plan is None:
        return reference.legendre_conv_backward(
            grad, x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only, needs
        )
    values, window = _sample(plan, coefficients, decay, x.dtype)  # (Q, G)
    kernel_needs = [needs[0], needs[1] or (needs[2] and decay is not None), *needs[3:]]
    dx, dsamples, dskip, dpre, dpost = _conv_backward(
        grad,
        x,
        _per_channel(values, x),
        skip,
        pre_gate,
        post_gate,
        starts,
        ends,
        None if last_only else plan,
        kernel_needs,
    )
    dcoefficients, ddecay = x.new_empty(0), x.new_empty(0)
    if kernel_needs[1]:
        dvalues = _per_group(dsamples, coefficients.shape[0])
        if needs[1]:
            damped = dvalues if window is None else dvalues * window
            basis = _basis(plan, coefficients.shape[1], values.dtype)
            dcoefficients = (damped.T @ basis).to(coefficients.dtype)
        if needs[2] and decay is not None:
            age = _age(plan, values.dtype)[:, None]
            slope = decay.to(values.dtype).sigmoid()
            ddecay = (-slope * (age * values * dvalues).sum(0)).to(decay.dtype)
    return dx, dcoefficients, ddecay, dskip, dpre, dpost


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.conv_step(x, history, taps, steps, pre_gate, post_gate)
    return out


def _plan(x: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int, longest: int) -> Plan | None:
    """The plan of a Legendre convolution; None where neither form of this backend beats the FFT."""
    rate = 0.0
    if decay is not None:
        # Plans are made for the fastest decay, rounded up to a power of two so that training keeps its plan.
        fastest = float(softplus(decay.detach().double()).max())
        rate = 2.0 ** math.ceil(math.log2(max(fastest, 1.0))) if math.isfinite(fastest) else math.inf
    length = min(_bucket(longest), horizon) if longest <= horizon else _bucket(longest)
    rows = min(1 << (x.numel() // x.shape[-1]).bit_length(), MANY_ROWS)
    plan = plan_for(coefficients.shape[1], horizon, length, x.dtype, rate, rows)
    return plan if plan.levels or min(horizon, longest) <= DIRECT_TAPS else None


def _bucket(length: int) -> int:
    """Lengths share plans: rounded up to the next of eight steps an octave."""
    step = 1 << max((length - 1).bit_length() - 4, 2)
    return -(-length // step) * step


@lru_cache(maxsize=64)
def _taps_plan(taps: int, horizon: int) -> Plan:
    """All of the first `taps` taps, as samples of a filter of `horizon`."""
    return Plan(horizon, taps, taps, (), 0.0)


@lru_cache(maxsize=64)
def _basis(plan: Plan, terms: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(sampled_basis(plan.lags, terms, plan.horizon)).to(dtype)


@lru_cache(maxsize=64)
def _age(plan: Plan, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(plan.lags / plan.horizon).to(dtype)


def _sample(plan: Plan, coefficients: Tensor, decay: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The filter at the plan's lags and its window there, (Q, G) in arithmetic type."""
    arithmetic = wide(dtype)
    with torch.autocast("cpu", enabled=False):
        values = _basis(plan, coefficients.shape[1], arithmetic) @ coefficients.to(arithmetic).T
        if decay is None:
            return values, None
        window = torch.exp(-_age(plan, arithmetic)[:, None] * softplus(decay.to(arithmetic)))
        return values * window, window


def _conv(
    x: Tensor,
    samples: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    plan: Plan,
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.conv(
        x, samples, _wide(skip, x), pre_gate, post_gate, starts, ends, plan.numbers, plan.constants(wide(x.dtype))
    )
    return out


def _conv_backward(
    grad: Tensor,
    x: Tensor,
    samples: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    plan: Plan | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Without a plan: of the last rows alone, whose samples are all the taps."""
    inputs = (grad, x, samples, _wide(skip, x), pre_gate, post_gate, starts, ends)
    if plan is None:
        dx, dsamples, dskip, dpre, dpost = torch.ops.hyenarec_cpu.conv_last_backward(*inputs, list(needs))
    else:
        dx, dsamples, dskip, dpre, dpost = torch.ops.hyenarec_cpu.conv_backward(
            *inputs, plan.numbers, plan.constants(wide(x.dtype)), list(needs)
        )
    return dx, dsamples, dskip if skip is None else dskip.to(skip.dtype), dpre, dpost


def _last(
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.conv_last(x, taps, _wide(skip, x), pre_gate, post_gate, starts, ends)
    return out


def _longest(x: Tensor, starts: Tensor | None, ends: Tensor | None) -> int:
    """Rows of the longest sequence."""
    if ends is None:
        return x.shape[-2] if x.shape[0] else 0
    if ends.shape[0] == 0:
        return 0
    return int((ends if starts is None else ends - starts).max())


def _wide(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else t.to(wide(x.dtype)).contiguous()


def _lag_major(weight: Tensor, x: Tensor) -> Tensor:  # (D, W) -> (W, D)
    return weight.to(wide(x.dtype)).T.contiguous()


def _per_channel(values: Tensor, x: Tensor) -> Tensor:  # (Q, G) -> (Q, D)
    shared = x.shape[-1] // values.shape[1]
    return values if shared == 1 else values.repeat_interleave(shared, 1)


def _per_group(values: Tensor, groups: int) -> Tensor:  # (Q, D) -> (Q, G)
    return values.view(values.shape[0], groups, -1).sum(-1)
