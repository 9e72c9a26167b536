"""Products with the matrices that all channels share, one tile of chunks at a time: inside a chunk, and at the filter's
end.

A sum over the terms m of a filter is ``sum_m s_m (T_m v)``, where ``s_m`` differs from channel to channel and scales
the columns of a product of matrices. Its gradient to ``s_m`` is ``sum_i g_i (T_m v)_i``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled(
    matrices_ptr, scales_ptr, v, channel, channels, rank, STEP: tl.constexpr, TRANSPOSED: tl.constexpr,
    CHUNK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_m scales[m] (matrices[m] v): matrices (rank, CHUNK, CHUNK) STEP elements apart, scales (rank, D)."""
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    at = j * CHUNK + i if TRANSPOSED else i * CHUNK + j
    total = tl.zeros((CHUNK, v.shape[1]), ACC)
    for m in range(rank):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)
        matrix = tl.load(matrices_ptr + m * STEP + at)
        total += scale * tl.dot(matrix, v, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def weighed(
    matrices_ptr, scales_ptr, v, g, sums, channel, channels, rank, STEP: tl.constexpr, CHUNK: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `scaled`, and the scales' gradient sum_i g (matrices[m] v) added to row m of `sums` (padded, n)."""
    at = tl.arange(0, CHUNK)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    number = tl.arange(0, sums.shape[0])[:, None]
    total = tl.zeros((CHUNK, v.shape[1]), ACC)
    for m in range(rank):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)
        term = tl.dot(tl.load(matrices_ptr + m * STEP + at), v, input_precision=PRECISION, out_dtype=ACC)
        total += scale * term
        sums += tl.where(number == m, tl.sum(g * term, 0)[None, :], 0)
    return total, sums


@triton.jit
def both_ways(
    matrices_ptr, scales_ptr, v, w, sums, channel, channels, rank, STEP: tl.constexpr, CHUNK: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`weighed` of v with g = w, and the transposed operator on w: a matrix is loaded once for both."""
    at = tl.arange(0, CHUNK)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    number = tl.arange(0, sums.shape[0])[:, None]
    total, back = tl.zeros((CHUNK, v.shape[1]), ACC), tl.zeros((CHUNK, v.shape[1]), ACC)
    operand = matrices_ptr.dtype.element_ty
    v, g = v.to(operand), w.to(operand)
    for m in range(rank):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)
        matrix = tl.load(matrices_ptr + m * STEP + at)
        term = tl.dot(matrix, v, input_precision=PRECISION, out_dtype=ACC)
        total += scale * term
        sums += tl.where(number == m, tl.sum(w * term, 0)[None, :], 0)
        back += scale * tl.dot(tl.trans(matrix), g, input_precision=PRECISION, out_dtype=ACC)
    return total, back, sums


@triton.jit
def from_moments(basis_ptr, nu_ptr, at, exists, rank, PADDED: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Q nu: basis (CHUNK, PADDED), nu (slots, D, rank), where `at` (PADDED, n) says."""
    r = tl.arange(0, PADDED)
    q = tl.load(basis_ptr + tl.arange(0, CHUNK)[:, None] * PADDED + r[None, :])
    values = tl.load(nu_ptr + at, mask=(r < rank)[:, None] & exists, other=0)
    return tl.dot(q, values.to(basis_ptr.dtype.element_ty), input_precision=PRECISION, out_dtype=ACC)
