"""One event more of a long convolution whose past is a compact state (:class:`hyenarec_kernels.nn.CompactState`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenarec_kernels.backends.reference.conv_step import conv_step


def compact_step(
    x: Tensor,
    recent: Tensor,
    levels: Sequence[Tensor],
    near: Tensor,
    tables: Sequence[Tensor],
    steps: Tensor,
    number: int,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    count = len(tables) // 4
    states = [levels[3 * level : 3 * level + 3] for level in range(count)]  # sums, incoming, moments
    shared = [tables[4 * level : 4 * level + 4] for level in range(count)]  # basis, enter, leave, blocks
    _begin_chunks(recent[:, number], states, shared, steps, number)
    u = x.to(recent.dtype)
    if pre_gate is not None:
        u = pre_gate.to(u.dtype) * u
    y = conv_step(u, recent[:, number], near[number], steps, None, None)
    for (sums, incoming, _), (basis, enter, leave, _) in zip(states, shared, strict=True):
        row = steps % basis.shape[0]  # (B,)
        local = basis[row][..., None]  # (B, R, 1)
        y = y + leave[number, row] * (local * incoming[:, number]).sum(1)
        sums[:, number] += local * (enter[number, row] * u)[:, None]
    if post_gate is not None:
        y = y * post_gate.to(y.dtype)
    return y.to(x.dtype)


def _begin_chunks(
    recent: Tensor, states: Sequence[Sequence[Tensor]], shared: Sequence[Sequence[Tensor]], steps: Tensor, number: int
) -> None:
    """Of the sequences whose event is the first of a chunk: files the moments of the chunk before, and works out what
    all finished chunks add to the new one."""
    for level, ((sums, incoming, moments), (basis, *_, blocks)) in enumerate(zip(states, shared, strict=True)):
        chunk, slots = basis.shape[0], moments.shape[2]
        starts = ((steps % chunk == 0) & (steps > 0)).nonzero().flatten()
        if not len(starts):
            return  # nor does a chunk of a level above
        if level == 0:
            recent[starts] = 0
        finished = steps[starts] // chunk - 1  # the chunk that has just ended
        moments[starts, number, finished % slots] = sums[starts, number].to(moments.dtype)
        sums[starts, number] = 0
        if level + 1 < len(states):  # what lies before the parent is the levels' above
            parent = shared[level + 1][0].shape[0]
            moments[starts[steps[starts] % parent == 0], number] = 0
        # Distance d is slot (finished + 1 - d) % slots: roll the blocks, not the moments.
        distance = (finished[:, None] - torch.arange(slots, device=finished.device)) % slots  # (S, slots)
        found = moments[starts, number].to(blocks.dtype)  # (S, slots, R, D)
        incoming[starts, number] = (blocks[number, distance] * found[:, :, None]).sum((1, 3))
