"""The part of the block low-rank convolution that reads and writes (B, L, D): one pass over it each way.

    y_i = exp(-a' (i - C/2)) sum_m near_m (T_m v)_i,    v_j = exp(a' (j - C/2)) u_j,    T_m[i, j] = phi_m(i - j)
        + exp(-a i) (Q nu)_i                                  what earlier chunks contribute
        + the two chunks that the filter's end cuts           (`EDGE`; only where a sequence reaches that far)
        + skip u_i
    out = gate y

The matrices ``T_m``, ``Q`` are shared by all channels, so a tile of SLOTS chunks times CHANNELS channels is one operand
of a matrix product; ``near_m`` scales its columns. ``a'`` is the decay an event, or `fastest` if that is smaller.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.triton.direct import store_gradients
from hyenarec_kernels.triton.moments import gated
from hyenarec_kernels.triton.rows import locate, written

LENGTHS = ["slots", "columns", "per_row"]


@triton.jit
def shared_product(
    matrices, scales, v, channel, channels, TRANSPOSED: tl.constexpr, RANK: tl.constexpr, STEP: tl.constexpr,
    CHUNK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_m scales[m] (matrices[m] v): matrices (RANK, CHUNK, CHUNK) STEP elements apart, scales (RANK, D)."""
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    at = j * CHUNK + i if TRANSPOSED else i * CHUNK + j
    total = tl.zeros((CHUNK, v.shape[1]), ACC)
    for m in range(RANK):
        scale = tl.load(scales + m * channels + channel, mask=channel < channels, other=0)
        total += scale[None, :] * tl.dot(
            tl.load(matrices + m * STEP + at), v, input_precision=PRECISION, out_dtype=ACC
        )
    return total


@triton.jit
def reconstructed(
    basis, nu, slot, channel, exists, channels, RANK: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Q nu: basis (CHUNK, PADDED), nu (slots, RANK, D)."""
    r = tl.arange(0, PADDED)
    q = tl.load(basis + tl.arange(0, CHUNK)[:, None] * PADDED + r[None, :])
    at = (slot.to(tl.int64)[None, :] * RANK + r[:, None]) * channels + channel[None, :]
    values = tl.load(nu + at, mask=(r < RANK)[:, None] & exists[None, :], other=0)
    return tl.dot(q, values.to(basis.dtype.element_ty), input_precision=PRECISION, out_dtype=ACC)


@triton.jit(do_not_specialize=LENGTHS)
def chunks(
    x,
    x_row,
    pre,
    pre_row,
    post,
    post_row,
    toeplitz,
    near,
    basis,
    nu,
    edges,
    edge,
    skip,
    rate,
    fastest,
    out,
    sequences,
    starts,
    ends,
    slots,
    columns,
    per_row,
    channels,
    edge_first,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    NEAR_RANK: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    EDGE_RANK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gated convolution of SLOTS chunks; `nu` None without a far part, EDGE_RANK 0 without an edge."""
    column = tl.arange(0, SLOTS * CHANNELS)
    slot = tl.program_id(0) * SLOTS + column // CHANNELS
    channel = tl.program_id(1) * CHANNELS + column % CHANNELS
    inside = channel < channels
    sequence, first, length, index = locate(slot, slots, sequences, starts, ends, columns, per_row, CHUNK, PACKED)
    i = tl.arange(0, CHUNK)[:, None]
    position = index[None, :] * CHUNK + i
    real = (position < length[None, :]) & inside[None, :]
    row = first[None, :] + position
    operand = toeplitz.dtype.element_ty
    u = gated(x, x_row, pre, pre_row, row, channel[None, :], real, ACC)
    v = u
    if rate is not None:
        a = tl.load(rate + channel, mask=inside, other=0)
        centred = tl.minimum(a, fastest)[None, :] * (i - CHUNK // 2)
        v = u * tl.exp(centred)
    y = shared_product(
        toeplitz, near, v.to(operand), channel, channels, False, NEAR_RANK, CHUNK * CHUNK, CHUNK, ACC, PRECISION
    )
    if rate is not None:
        y *= tl.exp(-centred)
    exists = inside & (index * CHUNK < length)
    if nu is not None:
        far = reconstructed(basis, nu, slot, channel, exists, channels, RANK, PADDED, CHUNK, ACC, PRECISION)
        if rate is not None:
            far *= tl.exp(-a[None, :] * i)
        y += far
    if EDGE_RANK > 0:
        if tl.max(tl.where(index * CHUNK < length, index, 0), 0) >= edge_first:
            cut = tl.zeros_like(y)
            for b in range(2):
                reaches = (exists & (index >= edge_first + b))[None, :] & (i >= 0)
                source = gated(
                    x, x_row, pre, pre_row, row - (edge_first + b) * CHUNK, channel[None, :], reaches, ACC
                )
                if rate is not None:
                    source *= tl.exp(-a[None, :] * (CHUNK - i + b * CHUNK))
                cut += shared_product(
                    edges + b * CHUNK * CHUNK, edge, source.to(operand), channel, channels, False, EDGE_RANK,
                    2 * CHUNK * CHUNK, CHUNK, ACC, PRECISION,
                )  # fmt: skip
            if rate is not None:
                cut *= tl.exp(-a[None, :] * i)
            y += cut
    if skip is not None:
        y += tl.load(skip + channel, mask=inside, other=0)[None, :] * u
    if post is not None:
        y *= tl.load(post + row * post_row + channel[None, :], mask=real, other=0).to(ACC)
    to, exists_to = written(
        position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
    )
    y = tl.where(real, y, 0)
    tl.store(out + to * channels + channel[None, :], y.to(out.dtype.element_ty), mask=exists_to & inside[None, :])


@triton.jit(do_not_specialize=LENGTHS)
def chunks_backward(
    grad,
    grad_row,
    x,
    x_row,
    pre,
    pre_row,
    post,
    post_row,
    toeplitz,
    near,
    basis,
    nu,
    xi,
    edges,
    edge,
    skip,
    rate,
    fastest,
    dx,
    dpre,
    dpost,
    dnear,
    dedge,
    dskip,
    sequences,
    starts,
    ends,
    slots,
    columns,
    per_row,
    channels,
    edge_first,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    NEAR_RANK: tl.constexpr,
    NEAR_PADDED: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    EDGE_RANK: tl.constexpr,
    EDGE_PADDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of x and the gates, and a program's share of those of near, edge and skip: (programs, rank, D).

    `xi` is to the output's gradient what `nu` is to the input, from later chunks. An absent output is None.
    """
    column = tl.arange(0, SLOTS * CHANNELS)
    channel = tl.program_id(1) * CHANNELS + column % CHANNELS
    inside = channel < channels
    i = tl.arange(0, CHUNK)[:, None]
    square = i * CHUNK + tl.arange(0, CHUNK)[None, :]
    operand = toeplitz.dtype.element_ty
    m_near, m_edge = tl.arange(0, NEAR_PADDED)[:, None], tl.arange(0, EDGE_PADDED)[:, None]
    near_total = tl.zeros((NEAR_PADDED, SLOTS * CHANNELS), ACC)
    edge_total = tl.zeros((EDGE_PADDED, SLOTS * CHANNELS), ACC)
    skip_total = tl.zeros((SLOTS * CHANNELS,), ACC)
    if rate is not None:
        a = tl.load(rate + channel, mask=inside, other=0)
        spread = tl.exp(tl.minimum(a, fastest)[None, :] * (i - CHUNK // 2))
        beta = tl.exp(-a[None, :] * i)
    for tile in range(tl.program_id(0), tl.cdiv(slots, SLOTS), tl.num_programs(0)):
        slot = tile * SLOTS + column // CHANNELS
        sequence, first, length, index = locate(slot, slots, sequences, starts, ends, columns, per_row, CHUNK, PACKED)
        position = index[None, :] * CHUNK + i
        real = (position < length[None, :]) & inside[None, :]
        exists = inside & (index * CHUNK < length)
        row = first[None, :] + position
        u = gated(x, x_row, pre, pre_row, row, channel[None, :], real, ACC)
        dy = gated(grad, grad_row, post, post_row, row, channel[None, :], real, ACC)
        v, g = u, dy
        if rate is not None:
            v, g = u * spread, dy / spread
        v_operand, g_operand = v.to(operand), g.to(operand)
        y, du = tl.zeros((CHUNK, SLOTS * CHANNELS), ACC), tl.zeros((CHUNK, SLOTS * CHANNELS), ACC)
        for m in range(NEAR_RANK):
            t = tl.load(toeplitz + m * CHUNK * CHUNK + square)
            scale = tl.load(near + m * channels + channel, mask=inside, other=0)[None, :]
            if dpost is not None or dnear is not None:
                term = tl.dot(t, v_operand, input_precision=PRECISION, out_dtype=ACC)
                y += scale * term
                if dnear is not None:
                    near_total += tl.where(m_near == m, tl.sum(g * term, 0)[None, :], 0)
            if dx is not None or dpre is not None:
                du += scale * tl.dot(tl.trans(t), g_operand, input_precision=PRECISION, out_dtype=ACC)
        if rate is not None:
            y, du = y / spread, du * spread
        if nu is not None:
            far = reconstructed(basis, nu, slot, channel, exists, channels, RANK, PADDED, CHUNK, ACC, PRECISION)
            if rate is not None:
                far *= beta
            y += far
        if xi is not None:
            far = reconstructed(basis, xi, slot, channel, exists, channels, RANK, PADDED, CHUNK, ACC, PRECISION)
            if rate is not None:
                far *= tl.exp(-a[None, :] * (CHUNK - i))
            du += far
        if EDGE_RANK > 0:
            if tl.max(tl.where(index * CHUNK < length, length, 0), 0) > edge_first * CHUNK:
                dy_beta = dy
                if rate is not None:
                    dy_beta = dy * beta
                y_cut, du_cut = tl.zeros_like(y), tl.zeros_like(du)
                for b in range(2):
                    back = (edge_first + b) * CHUNK
                    earlier = (exists & (index >= edge_first + b))[None, :] & (i >= 0)
                    before = gated(x, x_row, pre, pre_row, row - back, channel[None, :], earlier, ACC)
                    later = (position + back < length[None, :]) & inside[None, :]
                    after = gated(grad, grad_row, post, post_row, row + back, channel[None, :], later, ACC)
                    if rate is not None:
                        before *= tl.exp(-a[None, :] * (CHUNK - i + b * CHUNK))
                        after *= beta
                    for m in range(EDGE_RANK):
                        t = tl.load(edges + (2 * m + b) * CHUNK * CHUNK + square)
                        scale = tl.load(edge + m * channels + channel, mask=inside, other=0)[None, :]
                        term = tl.dot(t, before.to(operand), input_precision=PRECISION, out_dtype=ACC)
                        y_cut += scale * term
                        if dedge is not None:
                            edge_total += tl.where(m_edge == m, tl.sum(dy_beta * term, 0)[None, :], 0)
                        term = tl.dot(tl.trans(t), after.to(operand), input_precision=PRECISION, out_dtype=ACC)
                        if rate is not None:
                            term *= tl.exp(-a[None, :] * (b * CHUNK))
                        du_cut += scale * term
                if rate is not None:
                    y_cut, du_cut = y_cut * beta, du_cut * tl.exp(-a[None, :] * (CHUNK - i))
                y += y_cut
                du += du_cut
        if skip is not None:
            scale = tl.load(skip + channel, mask=inside, other=0)[None, :]
            y += scale * u
            du += scale * dy
        if dskip is not None:
            skip_total += tl.sum(dy * u, 0)
        to, exists_to = written(
            position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
        )
        store_gradients(
            y, du, grad, grad_row, x, x_row, pre, pre_row, dx, dpre, dpost, row, channel[None, :], real,
            to * channels + channel[None, :], exists_to & inside[None, :], ACC,
        )  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    share = tl.program_id(0).to(tl.int64)
    if dnear is not None:
        total = tl.sum(tl.reshape(near_total, (NEAR_PADDED, SLOTS, CHANNELS)), 1)
        at = (share * NEAR_RANK + m_near) * channels + channel[None, :]
        tl.store(dnear + at, total, mask=(m_near < NEAR_RANK) & (channel < channels)[None, :])
    if dedge is not None:
        total = tl.sum(tl.reshape(edge_total, (EDGE_PADDED, SLOTS, CHANNELS)), 1)
        at = (share * EDGE_RANK + m_edge) * channels + channel[None, :]
        tl.store(dedge + at, total, mask=(m_edge < EDGE_RANK) & (channel < channels)[None, :])
    if dskip is not None:
        total = tl.sum(tl.reshape(skip_total, (SLOTS, CHANNELS)), 0)
        tl.store(dskip + share * channels + channel, total, mask=channel < channels)
