"""Convolution with explicit taps that many channels share: products of Toeplitz blocks with tiles of channels.

    y_I = sum_b T_b u_(I-b),    T_b[i, j] = taps[b C + i - j],    dT_b = sum_I dy_I u_(I-b)^T

A block is a C x C matrix for each group of channels, and a tile holds C rows of one group's channels, so both products
run on tensor cores; taking one tap after the other would read every row once per tap. Another number of blocks
does not recompile the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec_kernels.backends import crossovers
from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tiles, wide_parameter
from hyenarec_kernels.backends.triton.configs import CHUNK, TAP_SHARES
from hyenarec_kernels.backends.triton.kernels import toeplitz as kernels
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.rows import ChunkedRows


def shared(x: Tensor, taps: Tensor) -> bool:
    """Whether the number of taps (G, k), and of channels that share them, suit these products."""
    return crossovers.toeplitz(taps.shape[1], taps.shape[0], x.shape[-1])


def convolve(
    x: Tensor, taps: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None, rows: ChunkedRows
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run((x, pre_gate), [(post_gate, out)], _matrices(taps, x), skip, rows)
    return out


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    rows: ChunkedRows,
    outputs: tuple[Tensor, Tensor, Tensor],
    need_taps: bool,
    need_skip: bool,
) -> tuple[Tensor, Tensor]:
    """Writes the gradients of x and the gates to those of `outputs` that are not empty, and returns the gradients of
    taps and skip."""
    dx, dpre, dpost = outputs
    matrices = _matrices(taps, x)
    if dx.numel() or dpre.numel():
        _run((grad, post_gate), [(pre_gate, dx), (x, dpre)], matrices, skip, rows, reverse=True)
    if dpost.numel():
        _run((x, pre_gate), [(grad, dpost)], matrices, skip, rows)
    dtaps, dskip = x.new_empty(0), x.new_empty(0)
    if need_taps or (need_skip and skip is not None):
        blocks = matrices.shape[1] if need_taps else 1
        grid, tile = _tiles("toeplitz_gradient", x, taps, rows)
        shape, wide = (min(TAP_SHARES, grid[0]), grid[1], blocks, CHUNK, CHUNK), Arithmetic(x.dtype).wide
        shares = torch.empty(shape, dtype=wide, device=x.device)
        own = torch.empty(shape[0], x.shape[-1], dtype=wide, device=x.device)
        launch(
            kernels.long_conv_toeplitz_gradient_kernel,
            (blocks, grid[1], shape[0]),
            **with_strides(grad=grad, x=x, pre=pre_gate, post=post_gate),
            out_ptr=shares,
            skip_out_ptr=own,
            operand_ptr=matrices,
            **tile,
        )
        if need_taps:
            dtaps = _along_diagonals(shares.sum(0).view(len(taps), -1, blocks, CHUNK, CHUNK).sum(1))[:, : taps.shape[1]]
        if need_skip and skip is not None:
            dskip = own.sum(0).to(skip.dtype)
    return dtaps, dskip


def _run(
    source: tuple[Tensor, Tensor | None],
    outputs: list[tuple[Tensor | None, Tensor]],
    matrices: Tensor,
    skip: Tensor | None,
    rows: ChunkedRows,
    *,
    reverse: bool = False,
) -> None:
    """Convolves the product of the two tensors in `source`.

    `outputs` are pairs of a factor and a tensor. The factor times the convolution is written to the tensor, unless that
    is empty.
    """
    x = source[0]
    (after, out), (other, other_out) = [*outputs, (None, x.new_empty(0))][:2]
    grid, tile = _tiles("toeplitz", x, matrices, rows)
    launch(
        kernels.long_conv_toeplitz_kernel,
        grid,
        **with_strides(
            x=x,
            gate=source[1],
            after=after if out.numel() else None,
            other=other if other_out.numel() else None,
        ),
        out_ptr=out if out.numel() else None,
        other_out_ptr=other_out if other_out.numel() else None,
        matrices_ptr=matrices,
        blocks=matrices.shape[1],
        group=x.shape[-1] // len(matrices),
        skip_ptr=wide_parameter(skip, x),
        REVERSE=reverse,
        **tile,
    )


def _tiles(config: str, x: Tensor, grouped: Tensor, rows: ChunkedRows) -> tuple[tuple[int, int], dict[str, Any]]:
    """As `tiles`, but all channels of a tile are of one group."""
    grid, tile = tiles(config, x, x.shape[-1], rows, within=x.shape[-1] // len(grouped))
    return grid, tile | {"PRECISION": Arithmetic(x.dtype).precision}


def _matrices(taps: Tensor, x: Tensor) -> Tensor:  # (G, k) to (G, blocks, C, C)
    blocks = (taps.shape[1] + CHUNK - 2) // CHUNK + 1
    row = torch.arange(CHUNK, device=taps.device)
    lag = CHUNK * torch.arange(blocks, device=taps.device)[:, None, None] + row[:, None] - row
    # Lags before 0 and after the last tap read the zeros on either side.
    padded = pad(taps.to(Arithmetic(x.dtype).operand), (CHUNK - 1, blocks * CHUNK - taps.shape[1]))
    matrices: Tensor = padded[:, lag + CHUNK - 1]
    return matrices


def _along_diagonals(blocks: Tensor) -> Tensor:  # (G, blocks, C, C) to (G, blocks * C)
    """The gradient of the taps from that of the blocks: sums along diagonals."""
    sheared = pad(blocks.flip(-1), (0, CHUNK)).flatten(-2)[..., : CHUNK * (2 * CHUNK - 1)]
    sums = sheared.unflatten(-1, (CHUNK, -1)).sum(-2)  # (G, blocks, 2 C - 1): i - j from 1 - C to C - 1
    joined: Tensor = sums[..., CHUNK - 1 :] + pad(sums[:, 1:, : CHUNK - 1], (1, 0, 0, 1))
    return joined.flatten(1)
