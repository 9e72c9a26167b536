"""What kernels share: loading a tile of rows, multiplied by its gate, and storing one."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(x_ptr, x_row, row, i, channel, real, ACC: tl.constexpr):
    """x at (row + i, channel), and 0 where not `real`, whatever memory holds there: row and channel (1, n), i (m, 1).

    Only `row` is 64 bits wide: a tile of 64-bit offsets would take as many registers as two tiles of values.
    """
    return tl.load(x_ptr + (row * x_row + channel) + i * x_row, mask=real, other=0).to(ACC)


@triton.jit
def gated(x_ptr, x_row, gate_ptr, gate_row, row, i, channel, real, ACC: tl.constexpr):
    """gate * x, loaded as by `rows_of`."""
    u = rows_of(x_ptr, x_row, row, i, channel, real, ACC)
    if gate_ptr is not None:
        u *= rows_of(gate_ptr, gate_row, row, i, channel, real, ACC)
    return u


@triton.jit
def store_scaled(out_ptr, y, factor_ptr, factor_row, row, i, channel, real, to, written_here, ACC: tl.constexpr):
    """Writes factor * y, and 0 in padding; writes nothing if `out_ptr` is None."""
    if out_ptr is not None:
        if factor_ptr is not None:
            y *= rows_of(factor_ptr, factor_row, row, i, channel, real, ACC)
        tl.store(out_ptr + to, tl.where(real, y, 0).to(out_ptr.dtype.element_ty), mask=written_here)
