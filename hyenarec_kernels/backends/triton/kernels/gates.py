"""What kernels share: loading a tile of rows, with its gate, and storing one."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(x, x_row, row, i, channel, real, ACC: tl.constexpr):
    """x at (row + i, channel), 0 where not `real`, whatever stands there: row and channel (1, n), i (m, 1).

    Only `row` is 64 bits wide: a tile of wide offsets would take as many registers as two tiles of values.
    """
    return tl.load(x + (row * x_row + channel) + i * x_row, mask=real, other=0).to(ACC)


@triton.jit
def gated(x, x_row, gate, gate_row, row, i, channel, real, ACC: tl.constexpr):
    """gate * x, as `rows_of`."""
    u = rows_of(x, x_row, row, i, channel, real, ACC)
    if gate is not None:
        u *= rows_of(gate, gate_row, row, i, channel, real, ACC)
    return u


@triton.jit
def store_scaled(out, y, factor, factor_row, row, i, channel, real, to, written_here, ACC: tl.constexpr):
    """Writes factor * y, 0 in padding; nothing where `out` is None."""
    if out is not None:
        if factor is not None:
            y *= rows_of(factor, factor_row, row, i, channel, real, ACC)
        tl.store(out + to, tl.where(real, y, 0).to(out.dtype.element_ty), mask=written_here)
