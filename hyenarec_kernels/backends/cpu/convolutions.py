"""The ``cpu`` backend: the operators' functions over the compiled kernels of ``csrc/cpu``.

This side chooses the plan and, where the filter is more than coefficients, samples it at the plan's lags and takes the
samples' gradient back; the kernels do the rest.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from hyenarec_kernels.backends import compiled, reference
from hyenarec_kernels.backends.cpu.parameters import in_arithmetic, lag_major, per_channel, per_group, rows_per_channel
from hyenarec_kernels.backends.cpu.plan import CHUNKS, MANY_ROWS, Plan, direct_plan, plan_for
from hyenarec_kernels.backends.reference.legendre_conv import filter_gradients
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import legendre_basis, legendre_filter, product
from hyenarec_kernels.lowrank.blocks import sampled_basis
from hyenarec_kernels.lowrank.fit import condition, fits, gram_at
from hyenarec_kernels.lowrank.levels import TOLERANCE

# Explicit filters of more taps than this go as blocks where they are smooth, otherwise through the reference's FFT.
# Nanoseconds an element, direct and FFT (two AVX-512 cores, float32): 2.9 to 3.5 and 6 to 7 at 512 taps, 5.0 to 5.6 and
# 8 to 12 at 1,024, 8 to 11 and 7 to 18 at 2,048; blocks take about 1.3 at any length, so direct stops where they begin
# to pay.
DIRECT_TAPS = 512


def probe() -> str | None:
    """None where the compiled kernels load, otherwise the reason why not."""
    return _probe()


@lru_cache(maxsize=1)
def _probe() -> str | None:
    reason = compiled.probe()
    if reason is None:
        try:
            torch.ops.hyenarec_cpu.isa()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
    return reason


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
        used = per_channel(lag_major(filter[:, :taps], x), x)
        return _last(x, used, skip, pre_gate, post_gate, starts, ends)
    sampled = _sample_taps(x, filter, longest)
    if sampled is None:
        return reference.long_conv(x, filter, skip, pre_gate, post_gate, starts, ends, last_only)
    plan, samples = sampled
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
    """Many taps get their gradient from the FFT, smooth or not.

    The gradient of a smooth filter is as rough as the data; taken back from the blocks' samples it would be the
    polynomial part of it alone.
    """
    longest = _longest(x, starts, ends)
    used = filter[:, : min(filter.shape[1], longest)]
    unused = filter.shape[1] - used.shape[1]
    if last_only and longest > 0:
        dx, dtaps, dskip, dpre, dpost = _last_backward(grad, x, used, skip, pre_gate, post_gate, starts, ends, needs)
        return dx, pad(dtaps, (0, unused)).to(filter.dtype) if needs[1] else dtaps, dskip, dpre, dpost
    arguments = (grad, x, filter, skip, pre_gate, post_gate, starts, ends, last_only)
    sampled = _sample_taps(x, filter, longest)
    if sampled is None:
        return reference.long_conv_backward(*arguments, needs)
    plan, samples = sampled
    every = not plan.levels  # the samples are all the taps
    dx, dfilter, _, dskip, dpre, dpost = _conv_backward(
        grad, x, samples, skip, pre_gate, post_gate, starts, ends, plan,
        [needs[0], needs[1] and every, False, *needs[2:]],
    )  # fmt: skip
    if needs[1] and every:
        dfilter = pad(per_group(dfilter, filter.shape[0]).T, (0, unused)).contiguous()
    elif needs[1]:
        dfilter = reference.long_conv_backward(*arguments, [False, True, False, False, False])[1]
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
    filter, rate = rows_per_channel(coefficients, x), _rate(decay, horizon, x)
    if last_only:
        basis = _basis_at_taps(coefficients.shape[1], horizon, wide(x.dtype))[:longest]
        return _last(x, filter, skip, pre_gate, post_gate, starts, ends, basis, rate)
    plan = _plan(x, _terms(coefficients, decay), horizon, longest)
    if plan is None:
        return reference.legendre_conv(
            x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only
        )
    basis = _basis(plan, coefficients.shape[1], wide(x.dtype))
    return _conv(x, filter, skip, pre_gate, post_gate, starts, ends, plan, basis, rate)


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
    longest, groups = _longest(x, starts, ends), coefficients.shape[0]
    need_decay = needs[2] and decay is not None
    dcoefficients, ddecay = x.new_empty(0), x.new_empty(0)
    if last_only and longest > 0:
        taps = legendre_filter(coefficients.to(wide(x.dtype)), horizon, decay, taps=longest)
        tap_needs = [needs[0], needs[1] or need_decay, *needs[3:]]
        dx, dtaps, dskip, dpre, dpost = _last_backward(
            grad, x, taps, skip, pre_gate, post_gate, starts, ends, tap_needs
        )
        if tap_needs[1]:
            both = filter_gradients(dtaps, taps, coefficients, decay, horizon)
            dcoefficients = both[0] if needs[1] else dcoefficients
            ddecay = both[1] if need_decay and both[1] is not None else ddecay
        return dx, dcoefficients, ddecay, dskip, dpre, dpost
    plan = _plan(x, _terms(coefficients, decay), horizon, longest) if longest > 0 else None
    if plan is None:
        return reference.legendre_conv_backward(
            grad, x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only, needs
        )
    basis = _basis(plan, coefficients.shape[1], wide(x.dtype))
    filter, rate = rows_per_channel(coefficients, x), _rate(decay, horizon, x)
    kernel_needs = [needs[0], needs[1], need_decay, *needs[3:]]
    dx, dfilter, drate, dskip, dpre, dpost = _conv_backward(
        grad, x, filter, skip, pre_gate, post_gate, starts, ends, plan, kernel_needs, basis, rate
    )
    if needs[1]:
        dcoefficients = per_group(dfilter.T, groups).T.contiguous().to(coefficients.dtype)
    if need_decay and decay is not None:
        slope = decay.to(drate.dtype).sigmoid() / horizon
        ddecay = (slope * per_group(drate[None], groups)[0]).to(decay.dtype)
    return dx, dcoefficients, ddecay, dskip, dpre, dpost


def conv_step(
    x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.conv_step(x, history, taps, steps, pre_gate, post_gate)
    return out


def _terms(coefficients: Tensor, decay: Tensor | None) -> int:
    """Of a plan: the gradient of a decay is that of a filter ``lag`` times the first, of one term more."""
    return coefficients.shape[1] + (decay is not None)


def _plan(x: Tensor, terms: int, horizon: int, longest: int) -> Plan | None:
    """The plan of a Legendre convolution; None where neither form of this backend beats the FFT."""
    length = min(_bucket(longest), horizon) if longest <= horizon else _bucket(longest)
    rows = min(1 << (x.numel() // x.shape[-1]).bit_length(), MANY_ROWS)
    plan = plan_for(terms, horizon, length, x.dtype, rows)
    return plan if plan.levels or min(horizon, longest) <= DIRECT_TAPS else None


def _rate(decay: Tensor | None, horizon: int, x: Tensor) -> Tensor | None:  # (G,) -> (D,), a row
    return None if decay is None else rows_per_channel(softplus(decay.to(wide(x.dtype))) / horizon, x)


def _bucket(length: int) -> int:
    """Lengths share plans: rounded up to the next of eight steps an octave."""
    step = 1 << max((length - 1).bit_length() - 4, 2)
    return -(-length // step) * step


@lru_cache(maxsize=64)
def _basis(plan: Plan, terms: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(sampled_basis(plan.lags, terms, plan.horizon)).to(dtype).contiguous()


@lru_cache(maxsize=64)
def _basis_at_taps(terms: int, horizon: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return legendre_basis(terms, horizon, dtype, torch.device("cpu")).T.contiguous()  # (K, N)


def _sample_taps(x: Tensor, filter: Tensor, longest: int) -> tuple[Plan, Tensor] | None:
    """A plan and an explicit filter's samples there, (Q, D): all of few taps, those of a polynomial in place of many.

    None where no polynomial is as good: one that changes a chunk I of the output by at most twice the tolerance of the
    dtype, ||error_I|| <= 2 tolerance ||h|| ||u||, whatever the input, `h` the taps that the longest sequence uses. What
    the fit leaves of the taps reaches each row of a chunk by Cauchy-Schwarz; the plan's own error is within its bound.
    """
    taps = min(filter.shape[1], longest)
    if taps == 0:
        return None
    if taps <= DIRECT_TAPS:
        return direct_plan(taps, longest), per_channel(lag_major(filter[:, :taps], x), x)
    horizon, arithmetic = filter.shape[1], wide(x.dtype)
    with torch.autocast("cpu", enabled=False):
        h = filter.to(arithmetic)
        allowed = TOLERANCE[x.dtype] * h[:, :taps].norm(dim=1)
        for coefficients in fits(h, allowed / CHUNKS[-1] ** 0.5):
            terms = coefficients.shape[1]
            plan = _plan(x, terms, horizon, longest)
            if plan is None:
                continue
            bound = plan.bound * condition(horizon, terms) * coefficients.norm(dim=1)
            if (bound <= allowed).all():
                return plan, per_channel(product(_gram(plan, terms, arithmetic), coefficients.T), x)
    return None


@lru_cache(maxsize=64)
def _gram(plan: Plan, terms: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(gram_at(plan.lags, terms, plan.horizon)).to(dtype)


def _conv(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    plan: Plan,
    basis: Tensor | None = None,
    rate: Tensor | None = None,
) -> Tensor:
    """`filter`: samples (Q, D), or coefficients (D, N) of `basis` (Q, N), before a window of `rate` (D,)."""
    gates = (in_arithmetic(skip, x), pre_gate, post_gate)
    constants = plan.constants(wide(x.dtype))
    out: Tensor = torch.ops.hyenarec_cpu.conv(x, filter, basis, rate, *gates, starts, ends, plan.numbers, constants)
    return out


def _conv_backward(
    grad: Tensor,
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    plan: Plan,
    needs: list[bool],
    basis: Tensor | None = None,
    rate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, filter, rate, skip, pre_gate and post_gate."""
    layout = (in_arithmetic(skip, x), pre_gate, post_gate, starts, ends)
    dx, dfilter, drate, dskip, dpre, dpost = torch.ops.hyenarec_cpu.conv_backward(
        grad, x, filter, basis, rate, *layout, plan.numbers, plan.constants(wide(x.dtype)), list(needs)
    )
    return dx, dfilter, drate, dskip if skip is None else dskip.to(skip.dtype), dpre, dpost


def _last(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    basis: Tensor | None = None,
    rate: Tensor | None = None,
) -> Tensor:
    """As `_conv`, at every lag that the longest sequence can use."""
    gates = (in_arithmetic(skip, x), pre_gate, post_gate)
    out: Tensor = torch.ops.hyenarec_cpu.conv_last(x, filter, basis, rate, *gates, starts, ends)
    return out


def _last_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, taps (G, k), skip, pre_gate and post_gate."""
    layout = (in_arithmetic(skip, x), pre_gate, post_gate, starts, ends)
    dx, dtaps, dskip, dpre, dpost = torch.ops.hyenarec_cpu.conv_last_backward(
        grad, x, per_channel(lag_major(taps, x), x), *layout, list(needs)
    )
    if needs[1]:
        dtaps = per_group(dtaps, taps.shape[0]).T.contiguous()
    return dx, dtaps, dskip if skip is None else dskip.to(skip.dtype), dpre, dpost


def _longest(x: Tensor, starts: Tensor | None, ends: Tensor | None) -> int:
    """Rows of the longest sequence."""
    if ends is None:
        return x.shape[-2] if x.shape[0] else 0
    if ends.shape[0] == 0:
        return 0
    return int((ends.numpy() if starts is None else ends.numpy() - starts.numpy()).max())  # torch's calls take longer
