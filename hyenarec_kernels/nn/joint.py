"""A mixer's whole pass as one autograd function, for calls that are not traced or transformed.

With small batches a GPU waits for the host. There `HyenaMixer`, run operation by operation with an autograd node for
each, takes more than twice as long: 250 us instead of 98 for the forward pass (`python -m benchmarks host`). This
module computes the same with the same backends, for the mixers that most people train: of order 2, with Legendre
filters and the identity as the gate. Second derivatives are computed operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from hyenarec_kernels import backends
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.nn.filters import LegendreFilter
from hyenarec_kernels.nn.linear import hooked, is_plain
from hyenarec_kernels.nn.projections import SCALE, Projections
from hyenarec_kernels.nn.starts import first, gate_starts, last_identity, log_rates
from hyenarec_kernels.ops.checks import autocast_dtype
from hyenarec_kernels.ops.gated_short_conv import gated_short_conv
from hyenarec_kernels.ops.legendre_conv import legendre_conv
from hyenarec_kernels.ops.registration import without_autocast
from hyenarec_kernels.segments import Segments, zero_padding
from hyenarec_kernels.tracing import direct

Origins: TypeAlias = tuple[tuple[Tensor, ...], list[Tensor], Tensor]


class Learned(NamedTuple):
    """A mixer's parameters, as they are stored."""

    w_in: Tensor  # (3 D, D)
    taps: Tensor  # (3 D, W)
    offset: Tensor  # (3 D,)
    terms: Tensor  # (G * N,)
    log_rate: Tensor | None  # (G,)
    skip: Tensor  # (1, D)
    w_out: Tensor  # (D, D)


class Settings(NamedTuple):
    """What a call depends on besides ``x`` and the parameters."""

    scale: Tensor  # (G,) of the filter
    starts: Tensor | None
    ends: Tensor | None
    horizon: int
    dtype: torch.dtype  # of activations


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass besides ``x``: activations, (..., D) each unless noted, and the
    effective parameters."""

    projected: Tensor  # (..., 3 D)
    u: Tensor  # the values times the first gate
    q: Tensor  # the last gate
    v: Tensor  # the last gate times the long convolution's output
    w_in: Tensor
    w_out: Tensor
    taps: Tensor
    offset: Tensor
    coefficients: Tensor  # (G, N)
    decay: Tensor | None  # (G,)
    skip: Tensor  # (D,)


def learned(mixer: Projections, x: Tensor) -> Learned | None:
    """The parameters of ``mixer``; None if ``x`` must be processed operation by operation (`separate`)."""
    if mixer.order != 2 or mixer.gate != "identity" or mixer.bidirectional or mixer.gate_dim or mixer.frozen:
        return None
    # Read from the modules' own dictionaries, since attribute access takes ten times as long. A tensor that is
    # computed, by a parametrization or a hook, is not in them; and a host library may have replaced a layer or a
    # method.
    modules: dict[str, Any] = mixer._modules
    into, out, filter = modules["in_proj"], modules["out_proj"], modules["filters"]._modules["0"]
    if not (is_plain(into) and is_plain(out)) or mixer.replaced():
        return None
    if type(filter) is not LegendreFilter or hooked(filter):
        return None
    own, weights = mixer._parameters, filter._parameters
    log_rate = weights.get("log_rate")
    if log_rate is None and filter.log_rate is not None:
        return None
    found: tuple[Any, ...] = (
        into._parameters.get("weight"), own.get("short_weight"), own.get("short_bias"), weights.get("weight"),
        log_rate, own.get("skip"), out._parameters.get("weight"),
    )  # fmt: skip
    if any(t is None for t in found if t is not log_rate) or not direct((x, *found)):
        return None
    return Learned(*found)


def mix(mixer: Projections, given: Learned, x: Tensor, where: Segments, drawn: Tensor | None) -> Tensor:
    """The mixer's output, with gradients; ``drawn`` is what dropout multiplies the projected channels by."""
    settings = _settings(mixer, x, where)
    # Multiplying the stored weight is enough: where `drawn` is not 1, in the gates' rows, W_in has no constant part.
    if drawn is not None:
        given = given._replace(w_in=given.w_in * drawn[:, None])
    if torch.is_grad_enabled() and (x.requires_grad or any(t is not None and t.requires_grad for t in given)):
        y: Tensor = _Mix.apply(settings, x, *given)  # type: ignore[no-untyped-call]
        return y
    return _forward(settings, x, given)[1]


def mix_and_keep(mixer: Projections, given: Learned, x: Tensor, where: Segments) -> tuple[Tensor, Kept]:
    """The output and the tensors that it was computed from, without gradients."""
    return _forward(_settings(mixer, x, where), x, given)[1:]


def _settings(mixer: Projections, x: Tensor, where: Segments) -> Settings:
    modules: dict[str, Any] = mixer._modules
    filter = modules["filters"]._modules["0"]
    dtype = autocast_dtype(x) if torch._C._is_any_autocast_enabled() else x.dtype
    return Settings(filter._buffers["scale"], *where, filter.horizon, dtype)


def _own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off, so that matrix products are in the dtype of their factors."""
    return without_autocast(x.device.type) if torch._C._is_any_autocast_enabled() else nullcontext()


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, x: Tensor, *parameters: Any) -> Tensor:
        read, y, kept = _forward(settings, x, Learned(*parameters))
        ctx.save_for_backward(*settings[:TENSORS], x, *parameters, read, *kept)
        ctx.options = settings[TENSORS:]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        settings, x = Settings(*saved[:TENSORS], *ctx.options), saved[TENSORS]
        given, read, kept = Learned(*saved[TENSORS + 1 : ARGUMENTS]), saved[ARGUMENTS], Kept(*saved[ARGUMENTS + 1 :])
        needs = ctx.needs_input_grad[1:]
        with _own_precision(grad):
            if torch.is_grad_enabled():
                return None, *_differentiable_backward(settings, x, given, needs, grad)
            with torch._C._AutoDispatchBelowAutograd():
                found = _backward(settings, read, given, kept, needs, grad)
        return None, *(gradient if need else None for gradient, need in zip(found, needs, strict=True))


TENSORS = 3  # the fields of Settings that are tensors, which come first
ARGUMENTS = TENSORS + 1 + len(Learned._fields)


def _forward(settings: Settings, x: Tensor, given: Learned) -> tuple[Tensor, Tensor, Kept]:
    """``x`` in the dtype to compute in and with zeros in padding, the output, and the tensors it was computed from."""
    with _own_precision(x), torch._C._AutoDispatchBelowAutograd():
        read = _read(settings, x)
        whole = _whole("mixer", settings, read, given)
        if whole is None:
            return read, *_compute(settings, read, given, _short, _long)
        function, arguments = whole
        y, *kept = function(*arguments)
        return read, y, Kept(*kept)


def _read(settings: Settings, x: Tensor) -> Tensor:
    x = x if x.dtype == settings.dtype else x.to(settings.dtype)
    return x if x.dim() == 2 else zero_padding(x, Segments(settings.starts, settings.ends))


def _whole(
    function: str, settings: Settings, x: Tensor, given: Learned
) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """The function of a backend that computes the whole pass, and its arguments; None if no backend has one."""
    origins = _origins_of(settings, given)[2]
    arguments = (x, *given, *settings[:4], origins, SCALE)
    served = backends.whole(backends.Call(function, "mixer", arguments))
    return None if served is None else (served, arguments)


def _compute(
    settings: Settings, x: Tensor, given: Learned, short: Callable[..., Any], long: Callable[..., Any]
) -> tuple[Tensor, Kept]:
    """The output and the tensors it was computed from; ``short`` and ``long`` compute the two convolutions."""
    scale, starts, ends, horizon, dtype = settings
    channels, groups = given.taps.shape[0], scale.shape[0]
    matrices, vectors, _ = _origins_of(settings, given)
    w_in, w_out = torch._foreach_add(matrices, (given.w_in, given.w_out), alpha=SCALE)
    if w_in.dtype != dtype:
        w_in, w_out = w_in.to(dtype), w_out.to(dtype)
    stored, precise = [t for t in given[1:5] if t is not None], wide(scale.dtype)
    if scale.dtype != precise:
        stored, scale = [t.to(precise) for t in stored], scale.to(precise)
    taps, offset, terms, *log_rates = torch._foreach_add(vectors, stored)
    coefficients = scale[:, None] * terms.view(groups, -1)  # (G, N)
    decay, skip = log_rates[0].exp() if log_rates else None, given.skip[0]
    projected = linear(x, w_in)  # (..., 3 D)
    u, q = short(projected, taps, offset, starts, ends, channels // 3)
    v = long(u, coefficients, decay, skip, None, q, starts, ends, horizon, False)
    return linear(v, w_out), Kept(projected, u, q, v, w_in, w_out, taps, offset, coefficients, decay, skip)


def _backward(
    settings: Settings, x: Tensor, given: Learned, kept: Kept, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of x and of the parameters; those not needed may be anything."""
    whole = _whole("mixer_backward", settings, x, given)
    if whole is not None:
        function, arguments = whole
        dx, dw_in, dtaps, doffset, dterms, drate, dskip, dw_out = function(grad, kept, *arguments, needs)
        return dx, dw_in, dtaps, doffset, dterms, drate, dskip[None], dw_out
    scale, starts, ends, horizon, _ = settings
    need_x, need_w_in, need_taps, need_offset, need_terms, need_rate, need_skip, need_w_out = needs
    projected, u, q, v, w_in, w_out, taps, offset, coefficients, decay, skip = kept
    channels, dim = w_in.shape
    grad = grad.reshape(-1, dim)
    dv = torch.mm(grad, w_out).view(u.shape)
    du, dcoefficients, ddecay, dskip, _, dq = _served(
        "legendre_conv", "legendre_conv_backward", (dv,),
        (u, coefficients, decay, skip, None, q, starts, ends, horizon, False),
        [True, need_terms, need_rate, need_skip, False, True],
    )  # fmt: skip
    dprojected, dtaps, doffset = _served(
        "gated_short_conv", "gated_short_conv_backward", (du, dq), (projected, taps, offset, starts, ends, dim),
        [need_x or need_w_in, need_taps, need_offset],
    )  # fmt: skip
    return (
        torch.mm(dprojected.view(-1, channels), w_in).view(x.shape) if need_x else None,
        _stored_gradient(w_in, dprojected, x) if need_w_in else None,
        dtaps,
        doffset,
        (dcoefficients * scale[:, None]).view(-1) if need_terms else None,
        ddecay * decay if need_rate else None,
        dskip[None],
        _stored_gradient(w_out, grad, v) if need_w_out else None,
    )


def _stored_gradient(whole: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the stored weight that ``whole`` (O, I) was made from. `grad` (..., O) is that of the product of
    x (..., I) and ``whole``."""
    outputs, inputs = whole.shape
    grad, x = grad.reshape(-1, outputs), x.reshape(-1, inputs)
    if outputs > inputs and x.device.type == "cpu":  # faster if the wider side is the columns: see nn/linear.py
        return torch.addmm(whole.t(), x.t(), grad, beta=0, alpha=SCALE).t()
    return torch.addmm(whole, grad.t(), x, beta=0, alpha=SCALE)  # beta 0: `whole` is not read


def _differentiable_backward(
    settings: Settings, x: Tensor, given: Learned, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    # Views, so that a tensor that is passed as two arguments gets a gradient for each, and not their sum for both.
    inputs = [None if t is None else t.view_as(t) for t in (x, *given)]
    read: Any = _read(settings, inputs[0])  # type: ignore[arg-type]
    y, _ = _compute(settings, read, Learned(*inputs[1:]), _differentiable_short, _differentiable_long)  # type: ignore[arg-type]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needs)


def _served(operator: str, function: str, grads: tuple[Tensor, ...], arguments: tuple[Any, ...], *needs: Any) -> Any:
    """The result of the backend that serves the call."""
    return backends.implementation(backends.Call(function, operator, arguments))(*grads, *arguments, *needs)


def _short(*arguments: Any) -> Any:
    return _served("gated_short_conv", "gated_short_conv", (), arguments)


def _long(*arguments: Any) -> Any:
    return _served("legendre_conv", "legendre_conv", (), arguments)


def _differentiable_short(
    x: Tensor, taps: Tensor, offset: Tensor, starts: Tensor | None, ends: Tensor | None, dim: int
) -> Any:
    return gated_short_conv(x, taps, offset, dim, segments=Segments(starts, ends))


def _differentiable_long(
    x: Tensor, coefficients: Tensor, decay: Tensor | None, skip: Tensor, _: None, gate: Tensor, *rest: Any
) -> Any:
    starts, ends, horizon, _ = rest
    where = Segments(starts, ends)
    return legendre_conv(x, coefficients, skip, horizon=horizon, decay=decay, post_gate=gate, segments=where)


def _origins_of(settings: Settings, given: Learned) -> Origins:
    scale, windowed = settings.scale, given.log_rate is not None
    (channels, width), groups = given.taps.shape, scale.shape[0]
    terms, horizon = given.terms.shape[0] // groups, settings.horizon if windowed else 0
    return _origins(channels // 3, width, groups, terms, horizon, scale.dtype, scale.device)


@lru_cache(maxsize=64)
def _origins(
    dim: int, width: int, groups: int, terms: int, horizon: int, dtype: torch.dtype, device: torch.device
) -> Origins:
    """The constants that are added to the stored matrices, and to taps, offset, terms and log_rate (the last only if
    the horizon is not 0); then all of them flattened into one vector. They are cached: do not write to them."""
    precise = wide(dtype)
    with torch.inference_mode(False), torch.no_grad():
        matrices = (last_identity(3 * dim, dim, dtype, device), last_identity(dim, dim, dtype, device))
        vectors = [first(width, precise, device).repeat(3 * dim, 1), gate_starts(2, dim, precise, device)]
        vectors += [first(terms, precise, device).repeat(groups)]
        vectors += [log_rates(groups, horizon, precise, device)] if horizon else []
        return matrices, vectors, torch.cat([t.flatten().to(precise) for t in (*matrices, *vectors)])
