"""The gated long convolution with explicit taps: by Toeplitz products where groups of channels share them, otherwise
one tap after the other."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from hyenarec_kernels.backends.triton import toeplitz
from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tile_channels, tiles, wide_parameter
from hyenarec_kernels.backends.triton.configs import CHUNK, TABLE, TAP_SHARES
from hyenarec_kernels.backends.triton.kernels import direct as kernels
from hyenarec_kernels.backends.triton.kernels import last as last_kernels
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.rows import ChunkedRows


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
    rows = ChunkedRows.of(x, starts, ends)
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
    rows = ChunkedRows.of(x, starts, ends)
    taps = filter[:, : rows.columns]
    backward = convolve_last_backward if last_only else convolve_backward
    dx, dtaps, dskip, dpre, dpost = backward(grad, x, taps, skip, pre_gate, post_gate, rows, needs)
    if needs[1]:
        dtaps = pad(dtaps, (0, filter.shape[1] - taps.shape[1])).to(filter.dtype)
    return dx, dtaps, dskip, dpre, dpost


def convolve(
    x: Tensor, taps: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None, rows: ChunkedRows
) -> Tensor:
    """The convolution with any number k of taps (G, k)."""
    if toeplitz.shared(x, taps):
        return toeplitz.convolve(x, taps, skip, pre_gate, post_gate, rows)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, tile = tiles("direct", x, x.shape[-1], rows)
    weights = _lag_major(taps, x)
    launch(
        kernels.long_conv_direct_kernel,
        grid,
        **with_strides(x=x, pre=pre_gate, post=post_gate),
        taps_ptr=weights,
        count=len(weights),
        skip_ptr=wide_parameter(skip, x),
        out_ptr=out,
        **tile,
    )
    return out


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    rows: ChunkedRows,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, taps (in the arithmetic dtype), skip and the gates."""
    need_x, need_taps, need_skip, need_pre, need_post = needs
    dtaps, dskip = x.new_empty(0), x.new_empty(0)
    dx, dpre, dpost = outputs = row_gradients(x, [need_x, need_pre, need_post], pre_gate, post_gate)
    if toeplitz.shared(x, taps):
        needed = (need_taps, need_skip)
        dtaps, dskip = toeplitz.convolve_backward(grad, x, taps, skip, pre_gate, post_gate, rows, outputs, *needed)
        return dx, dtaps, dskip, dpre, dpost
    weights = _lag_major(taps, x)
    grid, tile = tiles("direct", x, x.shape[-1], rows)
    inputs = with_strides(grad=grad, x=x, pre=pre_gate, post=post_gate)
    if any(t.numel() for t in outputs):
        launch(
            kernels.long_conv_direct_backward_kernel,
            grid,
            **inputs,
            taps_ptr=weights,
            count=len(weights),
            skip_ptr=wide_parameter(skip, x),
            dx_ptr=dx if dx.numel() else None,
            dpre_ptr=dpre if dpre.numel() else None,
            dpost_ptr=dpost if dpost.numel() else None,
            **tile,
        )
    if need_taps or (need_skip and skip is not None):
        # The gradient of lag 0 is also the skip's: it is computed even if those of other lags are not wanted.
        count = len(weights) if need_taps else 1
        shape = (min(TAP_SHARES, grid[0]), count, x.shape[-1])
        shares = torch.empty(shape, dtype=Arithmetic(x.dtype).wide, device=x.device)
        programs = (count, grid[1], len(shares))
        launch(kernels.long_conv_tap_gradient_kernel, programs, **inputs, dtaps_ptr=shares, **tile)
        dtaps, dskip = _parameter_gradients(shares, taps, skip, need_taps, need_skip)
    return dx, dtaps, dskip, dpre, dpost


def convolve_last(
    x: Tensor, taps: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None, rows: ChunkedRows
) -> Tensor:
    """Each sequence's last output, (S, D)."""
    out = torch.empty(rows.batch, x.shape[-1], dtype=x.dtype, device=x.device)
    weights = _lag_major(taps, x)
    across, tile = _last_tiles(x, rows)
    launch(
        last_kernels.long_conv_last_kernel,
        (rows.batch, across),
        **with_strides(x=x, pre=pre_gate, post=post_gate),
        taps_ptr=weights,
        count=len(weights),
        skip_ptr=wide_parameter(skip, x),
        out_ptr=out,
        **tile,
    )
    return out


def convolve_last_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    rows: ChunkedRows,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `convolve_backward`, for the last outputs alone."""
    need_x, need_taps, need_skip, need_pre, need_post = needs
    dtaps, dskip, dpost = (x.new_empty(0) for _ in range(3))
    dx, dpre, _ = row_gradients(x, [need_x, need_pre, False], pre_gate, None)
    weights, inputs = _lag_major(taps, x), with_strides(grad=grad, x=x, pre=pre_gate, post=post_gate)
    if dx.numel() or dpre.numel():
        grid, tile = tiles("direct", x, x.shape[-1], rows)
        launch(
            last_kernels.long_conv_last_backward_kernel,
            grid,
            **inputs,
            taps_ptr=weights,
            count=len(weights),
            skip_ptr=wide_parameter(skip, x),
            dx_ptr=dx if dx.numel() else None,
            dpre_ptr=dpre if dpre.numel() else None,
            **tile,
        )
    if need_taps or (need_skip and skip is not None):
        count = len(weights) if need_taps else 1
        across, tile = _last_tiles(x, rows)
        shape = (min(TAP_SHARES, rows.batch), count, x.shape[-1])
        shares = torch.empty(shape, dtype=Arithmetic(x.dtype).wide, device=x.device)
        launch(
            last_kernels.long_conv_last_tap_gradient_kernel,
            (triton.cdiv(count, CHUNK), across, len(shares)),
            **inputs,
            dtaps_ptr=shares,
            count=count,
            batch=rows.batch,
            **tile,
        )
        dtaps, dskip = _parameter_gradients(shares, taps, skip, need_taps, need_skip)
    if need_post and post_gate is not None:
        dpost = convolve_last(x, taps, skip, pre_gate, grad, rows)
    return dx, dtaps, dskip, dpre, dpost


def _last_tiles(x: Tensor, rows: ChunkedRows) -> tuple[int, dict[str, Any]]:
    """The number of channel tiles, and the arguments of the kernels that look at the ends of sequences: as `tiles`,
    without slots."""
    channels, tile = x.shape[-1], tile_channels(x.shape[-1])
    where = {"starts_ptr": rows.starts, "ends_ptr": rows.ends, "columns": rows.columns, "PACKED": rows.packed}
    sizes = {"channels": channels, "CHUNK": CHUNK, "CHANNELS": tile}
    options = {"ACC": Arithmetic(x.dtype).kernel_dtype} | TABLE["direct"].options
    return triton.cdiv(channels, tile), where | sizes | options


def _parameter_gradients(
    shares: Tensor, taps: Tensor, skip: Tensor | None, need_taps: bool, need_skip: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the taps and of the skip (that of lag 0), summed over the programs' shares (programs, count, D)."""
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
    """Uninitialized tensors for the gradients of x and the gates; of shape (0,) where one is absent or not wanted."""
    present = (x, pre_gate, post_gate)
    dx, dpre, dpost = (
        torch.empty(x.shape if need and t is not None else (0,), dtype=x.dtype, device=x.device)
        for t, need in zip(present, needs, strict=True)
    )
    return dx, dpre, dpost
