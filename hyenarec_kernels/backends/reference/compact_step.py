"""One more event of a long convolution whose past is a compact state (:class:`hyenarec_kernels.nn.CompactState`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenarec_kernels.lowrank.compact import PAGE


def compact_step(
    x: Tensor,
    page: Tensor,
    levels: Sequence[Tensor],
    near: Tensor,
    tables: Sequence[Tensor],
    steps: Tensor,
    number: int,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    shared = [tables[first : first + 4] for first in range(0, len(tables), 4)]  # basis, enter, leave, blocks
    rows, slots = near.shape[1] if tables else PAGE, page.shape[2]
    users, row = torch.arange(len(x), device=x.device), steps % rows  # (B,)
    place = ((steps - row)[:, None] + torch.arange(rows, device=x.device)) % slots  # slots of the page's rows, (B, C)
    starts = ((row == 0) & (steps > 0)).nonzero().flatten()
    if len(starts):
        if tables:
            new = _next_page(page[starts, number], levels, shared, steps[starts], starts, number)
        else:
            new = _next_of_ring(page[starts, number], near[number], steps[starts])
        page[starts[:, None], number, place[starts]] = new
    u = x.to(page.dtype)
    if pre_gate is not None:
        u = pre_gate.to(u.dtype) * u
    here = (steps % slots).long()
    y = page[users, number, here]  # what earlier pages add
    page[users, number, here] = u
    lag = row[:, None] - torch.arange(rows, device=x.device)  # (B, C)
    come = page[users[:, None], number, place].where((lag >= 0)[..., None], 0)  # the page's rows so far, (B, C, D)
    y = y + (near[number].flip(0)[lag.clamp(min=0)] * come).sum(1)
    if post_gate is not None:
        y = y * post_gate.to(y.dtype)
    return y.to(x.dtype)


def _next_of_ring(ring: Tensor, taps: Tensor, steps: Tensor) -> Tensor:
    """What the past inputs in rings (S, n, D) add to the outputs of the rows of each new page, (S, 8, D)."""
    past = torch.arange(len(taps) - 1, device=ring.device)  # inputs that the page's first row reaches, oldest first
    event = steps[:, None] - len(past) + past
    inputs = ring[torch.arange(len(ring), device=ring.device)[:, None], event % ring.shape[1]]  # (S, K-1, D)
    return torch.stack([(inputs[:, row:] * taps[: len(past) - row]).sum(1) for row in range(PAGE)], 1)


def _next_page(
    page: Tensor,
    levels: Sequence[Tensor],
    shared: Sequence[Sequence[Tensor]],
    steps: Tensor,
    users: Tensor,
    number: int,
) -> Tensor:
    """For ``users`` whose event is the first of a chunk: stores the moments of their full pages (S, C, D), and returns
    what all finished chunks add to the outputs of the new pages' rows, (S, C, D)."""
    rows = torch.arange(page.shape[1], device=page.device)
    added = torch.zeros_like(page)
    for level, (basis, enter, leave, blocks) in enumerate(shared):
        chunk, moments = basis.shape[0], levels[3 * level]
        past = ((steps - len(rows)) % chunk)[:, None] + rows  # (S, C)
        found = torch.einsum("scr,scd->srd", basis[past], enter[number][past] * page)
        if level == 0:
            incoming = _file(found, moments, blocks, number, steps, users, shared, level)
        else:
            sums, kept = levels[3 * level - 2], levels[3 * level - 1]
            sums[users, number] += found
            ends = steps % chunk == 0
            over = users[ends]
            if len(over):
                kept[over, number] = _file(
                    sums[over, number], moments, blocks, number, steps[ends], over, shared, level
                )
                sums[over, number] = 0
            incoming = kept[users, number]
        now = (steps % chunk)[:, None] + rows
        added += leave[number][now] * torch.einsum("scr,srd->scd", basis[now], incoming)
    return added


def _file(
    found: Tensor,
    moments: Tensor,
    blocks: Tensor,
    number: int,
    steps: Tensor,
    users: Tensor,
    shared: Sequence[Sequence[Tensor]],
    level: int,
) -> Tensor:
    """Stores the moments ``found`` (S, R, D) of the chunks that have ended, and returns what all finished chunks of
    this level add to the chunks that begin, as coefficients of local polynomials (S, R, D)."""
    chunk, slots = shared[level][0].shape[0], moments.shape[2]
    finished = steps // chunk - 1
    moments[users, number, finished % slots] = found.to(moments.dtype)
    if level + 1 < len(shared):  # the levels above cover what lies before the parent
        parent = shared[level + 1][0].shape[0]
        moments[users[steps % parent == 0], number] = 0
    # The chunk at distance d is in slot (finished + 1 - d) % slots: reorder the blocks, not the moments.
    distance = (finished[:, None] - torch.arange(slots, device=users.device)) % slots  # (S, slots)
    kept = moments[users, number].to(blocks.dtype)  # (S, slots, R, D)
    return (blocks[number, distance] * kept[:, :, None]).sum((1, 3))
