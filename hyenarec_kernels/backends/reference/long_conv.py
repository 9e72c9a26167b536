"""The gated long convolution and its gradients.

    u = pre_gate * x,    y = conv(u, filter) + skip * u,    o = post_gate * y

``skip`` is added to the tap at lag 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.crossovers import REFERENCE_DIRECT
from hyenarec_kernels.backends.reference import direct, fourier
from hyenarec_kernels.backends.reference.rows import Rows
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.segments import last_rows


def form(taps: int) -> ModuleType:
    """The module for this many taps. Without taps it is `fourier`, which sums over no blocks and returns zeros."""
    return direct if 0 < taps <= REFERENCE_DIRECT else fourier


def algorithm(call: Call) -> str:
    """How a call of any operator is computed, for the log."""
    if call.operator == "long_conv":
        x, filter, *_, starts, ends, last_only = call.arguments
        taps = filter.shape[1]
    elif call.operator == "legendre_conv":
        x, *_, starts, ends, taps, last_only = call.arguments
    else:
        return "direct"
    if last_only:
        return "last rows"
    return "direct" if form(min(taps, Rows.of(x, starts, ends).longest)) is direct else "FFT"


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
    rows = Rows.of(x, starts, ends)
    taps = _taps(filter, skip, x, rows)
    if last_only:
        y = (_tail(x, pre_gate, rows, taps.shape[1]) * _oldest_first(taps)).sum(1)  # (S, D)
    else:
        y = form(taps.shape[1]).convolve(rows.keep_real(_gated(x, pre_gate)), taps, rows)  # (R, D)
    real = rows.length[:, None] > 0 if last_only else rows.real
    if post_gate is not None:
        y = y * _flat(post_gate)
    if real is not None:
        y = torch.where(real, y, 0)
    y = y.to(x.dtype)
    return y if last_only else y.view(x.shape)


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
    need_x, need_filter, need_skip, need_pre, need_post = needs
    rows = Rows.of(x, starts, ends)
    taps = _taps(filter, skip, x, rows)
    wanted = {"y": need_post, "du": need_x or need_pre, "dtaps": need_filter}
    do = _flat(grad)
    dy = do if post_gate is None else do * _flat(post_gate)
    real = rows.length[:, None] > 0 if last_only else rows.real
    if real is not None:
        dy = torch.where(real, dy, 0)
    if last_only:
        u = _tail(x, pre_gate, rows, taps.shape[1])  # (S, k, D)
        y, du, dtaps = _last_backward(dy, u, taps, rows, **wanted)
    else:
        u = rows.keep_real(_gated(x, pre_gate))  # (R, D)
        y, du, dtaps = form(taps.shape[1]).convolve_backward(dy, u, taps, rows, **wanted)

    dx, dfilter, dskip, dpre, dpost = (x.new_empty(0) for _ in needs)  # no two outputs may be the same tensor
    if need_x:
        dx = rows.keep_real(du if pre_gate is None else du * _flat(pre_gate)).to(x.dtype).view(x.shape)
    if need_pre and pre_gate is not None:
        dpre = rows.keep_real(du * _flat(x)).to(x.dtype).view(x.shape)
    if need_filter:
        groups = filter.shape[0]
        grouped = dtaps.reshape(groups, x.shape[-1] // groups, taps.shape[1]).sum(1)  # (G, k)
        dfilter = pad(grouped, (0, filter.shape[1] - taps.shape[1])).to(filter.dtype)
    if need_skip and skip is not None:
        # Not taken from `dtaps`: the sum through the FFT is four times less accurate than this one.
        dskip = (dy * (u[:, -1:].sum(1) if last_only else u)).sum(0).to(skip.dtype)
    if need_post and post_gate is not None:
        dpost = do * y
        dpost = (dpost if real is None else torch.where(real, dpost, 0)).to(x.dtype).view(post_gate.shape)
    return dx, dfilter, dskip, dpre, dpost


def _last_backward(
    dy: Tensor, u: Tensor, taps: Tensor, rows: Rows, *, y: bool, du: bool, dtaps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``convolve_backward`` for the last positions alone: ``dy`` (S, D), ``u`` (S, k, D) with the oldest row first."""
    empty = u.new_empty(0)
    input_gradient = empty
    if du:
        lag = (rows.length[rows.sequence] - 1 - rows.position)[:, None]  # (R, 1) rows from here to its sequence's last
        reached = (lag >= 0) & (lag < taps.shape[1]) & (rows.position[:, None] >= 0)
        response = pad(taps, (0, 1)).T.index_select(0, torch.where(reached, lag, taps.shape[1])[:, 0])  # (R, D)
        input_gradient = torch.where(reached, response * dy.index_select(0, rows.sequence), 0)
    return (
        (u * _oldest_first(taps)).sum(1) if y else empty,
        input_gradient,
        (dy[:, None] * u).sum(0).flip(0).T if dtaps else empty,
    )


def _taps(filter: Tensor, skip: Tensor | None, x: Tensor, rows: Rows) -> Tensor:
    """The taps that can reach a row, one row per channel, ``skip`` added at lag 0: (D, k) with
    k = min(K, longest sequence)."""
    dtype = wide(x.dtype)
    grouped = filter[:, : rows.longest].to(dtype)
    taps = grouped.repeat_interleave(x.shape[-1] // filter.shape[0], 0)
    if skip is None or taps.shape[1] == 0:
        return taps
    return taps + pad(skip.to(dtype)[:, None], (0, taps.shape[1] - 1))


def _flat(values: Tensor) -> Tensor:
    """(..., D) to (R, D), in the arithmetic dtype."""
    return values.reshape(-1, values.shape[-1]).to(wide(values.dtype))


def _gated(x: Tensor, pre_gate: Tensor | None) -> Tensor:  # (R, D)
    return _flat(x) if pre_gate is None else _flat(pre_gate) * _flat(x)


def _tail(x: Tensor, pre_gate: Tensor | None, rows: Rows, count: int) -> Tensor:
    """``u`` at each sequence's last ``count`` positions, oldest first: (S, count, D)."""

    def last(values: Tensor) -> Tensor:
        rows_of_values = values.reshape(-1, values.shape[-1])
        return last_rows(rows_of_values, rows.first, rows.length, count).to(wide(values.dtype))

    return last(x) if pre_gate is None else last(pre_gate) * last(x)


def _oldest_first(taps: Tensor) -> Tensor:  # (D, k) to (k, D), the largest lag first
    return taps.flip(1).T
