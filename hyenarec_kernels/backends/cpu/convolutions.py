"""The long convolutions of the ``cpu`` backend, computed by the compiled kernels of ``csrc/cpu``.

This module says which calls the kernels take, chooses the plan, and converts parameters to the kernels' form and
gradients back; the kernels do the rest.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec_kernels.backends import compiled, settings
from hyenarec_kernels.backends.calls import Call, Slower
from hyenarec_kernels.backends.cpu.parameters import in_arithmetic, lag_major, per_channel, per_group, rows_per_channel
from hyenarec_kernels.backends.cpu.plan import MANY_ROWS, Plan, direct_plan, plan_for
from hyenarec_kernels.backends.crossovers import CPU_DIRECT
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import event_rate, filter_gradients, legendre_basis, taps_of, too_fast
from hyenarec_kernels.lowrank.blocks import sampled_basis

INSTRUCTION_SETS = ("avx512", "avx2", "portable")
MANY_TAPS = Slower(f"over {CPU_DIRECT} taps, not computed as blocks: an FFT is faster", than="reference")


def probe() -> str | None:
    """None if the compiled kernels load, otherwise the reason why not.

    Raises:
        ValueError: HYENAREC_CPU_ISA is none of ``INSTRUCTION_SETS``.
        NotImplementedError: this machine does not have the instruction set that it names.
    """
    return _probe()


@lru_cache(maxsize=1)
def _probe() -> str | None:
    named = settings.value("HYENAREC_CPU_ISA", INSTRUCTION_SETS)
    reason = compiled.probe()
    if reason is None:
        try:
            torch.ops.hyenarec_cpu.isa()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if named is not None:
                raise NotImplementedError(reason) from None
    return reason


def accepts(call: Call) -> str | None:
    """None for a call that the kernels take, otherwise the reason why not."""
    if call.operator == "long_conv":
        x, filter, *_, starts, ends, last_only = call.arguments
        taps = 1 if last_only else filter.shape[1]
    elif call.operator == "legendre_conv":
        x, coefficients, decay, *_, starts, ends, horizon, last_only = call.arguments
        taps = 1 if last_only else horizon
    elif call.operator in ("mixer_step", "block_step"):
        x = call.arguments[0]
        return None if x.dtype == wide(x.dtype) else "it has steps of whole mixers in float32 and float64 only"
    else:
        return None
    # Lengths are read only if the shape alone does not decide.
    if taps <= CPU_DIRECT or x.shape[-2] <= CPU_DIRECT or (longest := _longest(x, starts, ends)) <= CPU_DIRECT:
        return None
    if call.operator == "legendre_conv" and _plan(x, _terms(coefficients, decay), horizon, longest).levels:
        return None
    return MANY_TAPS


def algorithm(call: Call) -> str:
    if call.operator not in ("long_conv", "legendre_conv"):
        return "direct"
    *_, last_only = call.arguments
    if last_only:
        return "last rows"
    if call.operator == "legendre_conv":
        x, coefficients, decay, *_, starts, ends, horizon, _ = call.arguments
        if _plan(x, _terms(coefficients, decay), horizon, _longest(x, starts, ends)).levels:
            return "blocks"
    return "direct"


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
    used = per_channel(lag_major(filter[:, :taps], x), x)
    if last_only:
        return _last(x, used, skip, pre_gate, post_gate, starts, ends)
    return _conv(x, used, skip, pre_gate, post_gate, starts, ends, direct_plan(taps, longest))


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
    used = filter[:, : min(filter.shape[1], longest)]
    unused = filter.shape[1] - used.shape[1]
    if last_only:
        dx, dtaps, dskip, dpre, dpost = _last_backward(grad, x, used, skip, pre_gate, post_gate, starts, ends, needs)
        return dx, pad(dtaps, (0, unused)).to(filter.dtype) if needs[1] else dtaps, dskip, dpre, dpost
    dx, dfilter, _, dskip, dpre, dpost = _conv_backward(
        grad, x, per_channel(lag_major(used, x), x), skip, pre_gate, post_gate, starts, ends,
        direct_plan(used.shape[1], longest), [needs[0], needs[1], False, *needs[2:]],
    )  # fmt: skip
    if needs[1]:
        dfilter = pad(per_group(dfilter, filter.shape[0]).T, (0, unused)).contiguous()
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
    filter, rate = rows_per_channel(coefficients, x), _rate(decay, horizon, x)
    if last_only:
        basis = _basis_at_taps(coefficients.shape[1], horizon, wide(x.dtype))[:longest]
        return _last(x, filter, skip, pre_gate, post_gate, starts, ends, basis, rate)
    plan = _plan(x, _terms(coefficients, decay), horizon, longest)
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
    if last_only:
        taps = taps_of(coefficients.to(wide(x.dtype)), horizon, decay, taps=longest)
        tap_needs = [needs[0], needs[1] or need_decay, *needs[3:]]
        dx, dtaps, dskip, dpre, dpost = _last_backward(
            grad, x, taps, skip, pre_gate, post_gate, starts, ends, tap_needs
        )
        if tap_needs[1]:
            both = filter_gradients(dtaps, taps, coefficients, decay, horizon)
            dcoefficients = both[0] if needs[1] else dcoefficients
            ddecay = both[1] if need_decay and both[1] is not None else ddecay
        return dx, dcoefficients, ddecay, dskip, dpre, dpost
    plan = _plan(x, _terms(coefficients, decay), horizon, longest)
    basis = _basis(plan, coefficients.shape[1], wide(x.dtype))
    filter, rate = rows_per_channel(coefficients, x), _rate(decay, horizon, x)
    kernel_needs = [needs[0], needs[1], need_decay, *needs[3:]]
    dx, dfilter, drate, dskip, dpre, dpost = _conv_backward(
        grad, x, filter, skip, pre_gate, post_gate, starts, ends, plan, kernel_needs, basis, rate
    )
    if needs[1]:
        dcoefficients = per_group(dfilter.T, groups).T.contiguous().to(coefficients.dtype)
    if need_decay and decay is not None:
        drate = per_group(drate[None], groups)[0] / horizon
        ddecay = torch.where(too_fast(decay.to(drate.dtype), horizon), 0, drate).to(decay.dtype)
    return dx, dcoefficients, ddecay, dskip, dpre, dpost


def _terms(coefficients: Tensor, decay: Tensor | None) -> int:
    """How many terms a plan must serve: one more with a decay, whose gradient is a convolution with ``lag`` times the
    filter."""
    return coefficients.shape[1] + (decay is not None)


def _plan(x: Tensor, terms: int, horizon: int, longest: int) -> Plan:
    """The plan of a Legendre convolution."""
    return _plan_of(terms, horizon, longest, x.numel() // x.shape[-1], x.dtype)


@lru_cache(maxsize=4096)  # a call asks twice: to choose the backend, and to run
def _plan_of(terms: int, horizon: int, longest: int, rows: int, dtype: torch.dtype) -> Plan:
    length = min(_bucket(longest), horizon) if longest <= horizon else _bucket(longest)
    return plan_for(terms, horizon, length, dtype, min(1 << rows.bit_length(), MANY_ROWS))


def _rate(decay: Tensor | None, horizon: int, x: Tensor) -> Tensor | None:  # (G,) -> (D,), per row
    return None if decay is None else rows_per_channel(event_rate(decay.to(wide(x.dtype)), horizon), x)


def _bucket(length: int) -> int:
    """Rounds a length up to one of eight steps per octave, so that similar lengths share a plan."""
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
    """`filter` holds the filter's values at the plan's lags, (Q, D), or its coefficients (D, N) if there is a `basis`
    (Q, N). Either way it is still to be multiplied by the window of `rate` (D,), the decay per event."""
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
    """The last outputs alone. Arguments as for `_conv`, at every lag that the longest sequence can use."""
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
    """Rows of the longest sequence; 1 if there are none, so that plans and taps are never empty."""
    if ends is None:
        return max(x.shape[-2], 1)
    if ends.shape[0] == 0:
        return 1
    lengths = ends.numpy() if starts is None else ends.numpy() - starts.numpy()  # torch's own calls take longer
    return max(min(int(lengths.max()), x.shape[-2]), 1)  # capped: no plan for lengths that the kernels then refuse
