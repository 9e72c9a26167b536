"""Products with the matrices that all channels share, one tile of chunks at a time: inside a chunk, at the filter's
end, and from moments back to rows.

A sum over the terms m of a filter is ``sum_m s_m (T_m v)``, where ``s_m`` differs from channel to channel and ``T_m`` is
a matrix (C, C). Its gradient to ``s_m`` is ``sum_i g_i (T_m v)_i``. One product of matrices takes GROUP terms: matrices
(rank, C, C) and scales (D, rank) have zeros at the end, up to a multiple of it.

Operands and results are (n, C), a row for each channel of each chunk: then a channel's sums over the rows of a chunk
stay within four lanes of a warp.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def terms_of(
    matrices_ptr, m, v, TRANSPOSED: tl.constexpr, GROUP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """matrices[m + g] v for g < GROUP, (n, GROUP, C)."""
    C: tl.constexpr = v.shape[1]
    k, column = tl.arange(0, C)[:, None], tl.arange(0, GROUP * C)[None, :]
    at = column // C * (C * C) + k * C + column % C if TRANSPOSED else column * C + k
    matrix = tl.load(matrices_ptr + m * (C * C) + at)
    return tl.reshape(tl.dot(v, matrix, input_precision=PRECISION, out_dtype=ACC), (v.shape[0], GROUP, C))


@triton.jit
def scales_of(scales_ptr, m, channel, channels, rank, GROUP: tl.constexpr):
    """scales[channel, m + g], (n, GROUP): channel (n,)."""
    at = channel[:, None] * rank + m + tl.arange(0, GROUP)[None, :]
    return tl.load(scales_ptr + at, mask=(channel < channels)[:, None], other=0)


@triton.jit
def scaled(
    matrices_ptr, scales_ptr, v, channel, channels, rank, TRANSPOSED: tl.constexpr, GROUP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_m scales[m] (matrices[m] v)."""
    total = tl.zeros(v.shape, ACC)
    for m in range(0, rank, GROUP):
        terms = terms_of(matrices_ptr, m, v, TRANSPOSED, GROUP, ACC, PRECISION)
        total += tl.sum(scales_of(scales_ptr, m, channel, channels, rank, GROUP)[:, :, None] * terms, 1)
    return total


@triton.jit
def weighed(
    matrices_ptr, scales_ptr, v, g, sums, channel, channels, rank, GROUP: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`scaled` of v, and the scales' gradient for the output's gradient g added to column m of `sums` (n, padded)."""
    total, g = tl.zeros(v.shape, ACC), g.to(ACC)
    group = tl.arange(0, sums.shape[1] // GROUP)[None, :, None]
    for m in range(0, rank, GROUP):
        terms = terms_of(matrices_ptr, m, v, False, GROUP, ACC, PRECISION)
        total += tl.sum(scales_of(scales_ptr, m, channel, channels, rank, GROUP)[:, :, None] * terms, 1)
        here = tl.where(group * GROUP == m, tl.sum(g[:, None, :] * terms, 2)[:, None, :], 0)
        sums += tl.reshape(here, sums.shape)
    return total, sums


@triton.jit
def from_moments(
    nu_ptr, basis_ptr, slot, slots, channel, channels, rank, total, CHUNK: tl.constexpr, PADDED: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Added to `total`: Q nu with basis (CHUNK, PADDED), nu (slots, D, rank); slot and channel (n,)."""
    r = tl.arange(0, PADDED)
    q = tl.load(basis_ptr + tl.arange(0, CHUNK)[None, :] * PADDED + r[:, None])  # (PADDED, CHUNK)
    at = (slot.to(tl.int64) * channels + channel)[:, None] * rank + r[None, :]
    inside = (slot < slots) & (channel < channels)
    values = tl.load(nu_ptr + at, mask=inside[:, None] & (r < rank)[None, :], other=0).to(q.dtype)
    return tl.dot(values, q, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def flat(t, operand):
    """A tile (CHUNK, SLOTS, CHANNELS) as an operand (n, CHUNK)."""
    return tl.trans(tl.reshape(t.to(operand), (t.shape[0], t.shape[1] * t.shape[2])))


@triton.jit
def tiled(y, SLOTS: tl.constexpr):
    """A result (n, CHUNK) as a tile (CHUNK, SLOTS, CHANNELS)."""
    return tl.reshape(tl.trans(y), (y.shape[1], SLOTS, y.shape[0] // SLOTS))
