"""The gated long convolution with explicit taps: as Toeplitz products where groups of channels share them, otherwise
one by one."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from hyenarec_kernels.backends.triton import toeplitz
from hyenarec_kernels.backends.triton.arithmetic import (
    CHUNK,
    Arithmetic,
    tile_channels,
    tiles,
    wide_parameter,
    with_strides,
)
from hyenarec_kernels.backends.triton.configs import config
from hyenarec_kernels.backends.triton.kernels import direct as kernels
from hyenarec_kernels.backends.triton.kernels import last as last_kernels
from hyenarec_kernels.backends.triton.rows import Rows, launch

SHARES = 64  # programs that split the sum over rows of one tap's gradient


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
    taps = filter[:, : rows.columns]
    return (convolve_last if last_only else convolve)(x, taps, skip, pre_gate, post_gate, rows)


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
    rows = Rows.of(x, starts, ends)
    taps = filter[:, : rows.columns]
    backward = convolve_last_backward if last_only else convolve_backward
    dx, dtaps, dskip, dpre, dpost = backward(grad, x, taps, skip, pre_gate, post_gate, rows, needs)
    if needs[1]:
        dtaps = pad(dtaps, (0, filter.shape[1] - taps.shape[1])).to(filter.dtype)
    return dx, dtaps, dskip, dpre, dpost


def convolve(
    x: Tensor, taps: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None, rows: Rows
) -> Tensor:
    """The convolution with taps (G, k), k as large as one likes."""
    if toeplitz.shared(x, taps):
        return toeplitz.convolve(x, taps, skip, pre_gate, post_gate, rows)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, where, options = tiles("direct", x, x.shape[-1], rows)
    weights = _lag_major(taps, x)
    inputs = with_strides(x, pre_gate, post_gate)
    launch(kernels.direct, grid, *inputs, weights, len(weights), wide_parameter(skip, x), out, *where, **options)
    return out


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    rows: Rows,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, taps (in arithmetic type), skip and the gates."""
    need_x, need_taps, need_skip, need_pre, need_post = needs
    dtaps, dskip = x.new_empty(0), x.new_empty(0)
    dx, dpre, dpost = outputs = row_gradients(x, [need_x, need_pre, need_post], pre_gate, post_gate)
    if toeplitz.shared(x, taps):
        needed = (need_taps, need_skip)
        dtaps, dskip = toeplitz.convolve_backward(grad, x, taps, skip, pre_gate, post_gate, rows, outputs, *needed)
        return dx, dtaps, dskip, dpre, dpost
    wanted = [t if t.numel() else None for t in outputs]
    weights = _lag_major(taps, x)
    grid, where, options = tiles("direct", x, x.shape[-1], rows)
    inputs = with_strides(grad, x, pre_gate, post_gate)
    if any(t is not None for t in wanted):
        arguments = (*inputs, weights, len(weights), wide_parameter(skip, x), *wanted)
        launch(kernels.direct_backward, grid, *arguments, *where, **options)
    if need_taps or (need_skip and skip is not None):
        # Lag 0 is the gradient of the skip, whether or not the other lags are wanted.
        count = len(weights) if need_taps else 1
        shares = torch.empty(min(SHARES, grid[0]), count, x.shape[-1], dtype=Arithmetic(x.dtype).wide, device=x.device)
        launch(kernels.tap_gradient, (count, grid[1], len(shares)), *inputs, shares, *where, **options)
        dtaps, dskip = _parameter_gradients(shares, taps, skip, need_taps, need_skip)
    return dx, dtaps, dskip, dpre, dpost


def convolve_last(
    x: Tensor, taps: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None, rows: Rows
) -> Tensor:
    """Each sequence's last output, (S, D)."""
    out = torch.empty(rows.batch, x.shape[-1], dtype=x.dtype, device=x.device)
    weights = _lag_major(taps, x)
    tile, options = _last_tiles(x, rows)
    launch(
        last_kernels.last,
        (rows.batch, tile),
        *with_strides(x, pre_gate, post_gate),
        weights,
        len(weights),
        wide_parameter(skip, x),
        out,
        rows.starts,
        rows.ends,
        rows.columns,
        x.shape[-1],
        **options,
    )
    return out


def convolve_last_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    rows: Rows,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `convolve_backward`, for the last outputs alone."""
    need_x, need_taps, need_skip, need_pre, need_post = needs
    dtaps, dskip, dpost = (x.new_empty(0) for _ in range(3))
    dx, dpre, _ = outputs = row_gradients(x, [need_x, need_pre, False], pre_gate, None)
    weights, inputs = _lag_major(taps, x), with_strides(grad, x, pre_gate, post_gate)
    if dx.numel() or dpre.numel():
        grid, where, options = tiles("direct", x, x.shape[-1], rows)
        wanted = [t if t.numel() else None for t in outputs[:2]]
        arguments = (*inputs, weights, len(weights), wide_parameter(skip, x), *wanted)
        launch(last_kernels.last_backward, grid, *arguments, *where, **options)
    if need_taps or (need_skip and skip is not None):
        count = len(weights) if need_taps else 1
        tile, options = _last_tiles(x, rows)
        shape = (min(SHARES, rows.batch), count, x.shape[-1])
        shares = torch.empty(shape, dtype=Arithmetic(x.dtype).wide, device=x.device)
        ends = (count, rows.starts, rows.ends, rows.columns, rows.batch, x.shape[-1])
        programs = (triton.cdiv(count, CHUNK), tile, len(shares))
        launch(last_kernels.last_tap_gradient, programs, *inputs, shares, *ends, **options)
        dtaps, dskip = _parameter_gradients(shares, taps, skip, need_taps, need_skip)
    if need_post and post_gate is not None:
        dpost = convolve_last(x, taps, skip, pre_gate, grad, rows)
    return dx, dtaps, dskip, dpre, dpost


def _last_tiles(x: Tensor, rows: Rows) -> tuple[int, dict[str, Any]]:
    """Tiles of channels, and options of the kernels that look at sequences' ends."""
    tuned, tile = config("direct", x.device), tile_channels(x.shape[-1])
    options = {"PACKED": rows.packed, "CHUNK": CHUNK, "ACC": Arithmetic(x.dtype).kernel_dtype, "CHANNELS": tile}
    return triton.cdiv(x.shape[-1], tile), options | tuned.options


def _parameter_gradients(
    shares: Tensor, taps: Tensor, skip: Tensor | None, need_taps: bool, need_skip: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of taps, and of the skip, which is that of lag 0, from programs' shares (programs, count, D)."""
    total, empty = shares.sum(0), shares.new_empty(0)
    return (
        total.T.reshape(taps.shape[0], -1, len(total)).sum(1) if need_taps else empty,  # (G, count)
        total[0].to(skip.dtype) if need_skip and skip is not None else shares.new_empty(0),
    )


def _lag_major(taps: Tensor, x: Tensor) -> Tensor:  # (G, k) to (k, D)
    wide = taps.to(Arithmetic(x.dtype).wide)
    return wide.repeat_interleave(x.shape[-1] // taps.shape[0], 0).T.contiguous()


def row_gradients(
    x: Tensor, needs: list[bool], pre_gate: Tensor | None, post_gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of x and the gates; (0,) for those that are absent or not wanted."""
    present = (x, pre_gate, post_gate)
    dx, dpre, dpost = (
        torch.empty(x.shape if need and t is not None else (0,), dtype=x.dtype, device=x.device)
        for t, need in zip(present, needs, strict=True)
    )
    return dx, dpre, dpost
