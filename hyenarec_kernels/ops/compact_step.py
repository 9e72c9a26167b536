"""One step of a long convolution whose past is a compact state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenarec_kernels.ops.conv_step import define_step


def compact_step(
    x: Tensor,
    page: Tensor,
    levels: Sequence[Tensor],
    near: Tensor,
    tables: Sequence[Tensor],
    steps: Tensor,
    number: int,
    *,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """The next output of :func:`hyenarec_kernels.long_conv` for each of B sequences, from a compact state. It takes
    about C/2 multiply-adds per channel, and more at the first event of a chunk. It writes to the state and so has no
    gradients.

    Args:
        x: (B, D), the newest event of each sequence.
        page: (B, F, C, D) for F filters and chunks of C events, as in :class:`hyenarec_kernels.nn.CompactState`.
            float32 (float64 if ``x`` is float64), like everything below except moments, which may be bfloat16. Written
            to.
        levels: one list for all levels: of the lowest only ``moments`` (B, F, slots, R, D), of each level above
            ``sums`` and ``incoming`` (B, F, R, D) and ``moments``. Written to. It is empty, like ``tables``, if
            ``page`` is the ring of pages of a :class:`hyenarec_kernels.nn.MixerState`; ``near`` then holds all its taps
            (F, K, D).
        near: (F, C, D), the taps inside a chunk, the largest lag first.
        tables: one list for all levels: of each ``basis`` (C, R), ``enter`` and ``leave`` (F, C, D), and then
            ``blocks`` (F, slots, R, R, D).
        steps: (B,) int64, how many events each sequence had before; not changed, so the caller adds 1 after each event.
        number: which of the F filters to apply, from 0 to F-1.
        pre_gate, post_gate: the shape and dtype of ``x``.

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        NotImplementedError: gradients are enabled and an argument requires one, or a transform of `torch.func` is
            active.
    """
    out: Tensor = torch.ops.hyenarec.compact_step(
        x, page, list(levels), near, list(tables), steps, number, pre_gate, post_gate
    )
    return out


define_step(
    "compact_step",
    "(Tensor x, Tensor(a!) page, Tensor(b!)[] levels, Tensor near, Tensor[] tables, Tensor steps, int number, "
    "Tensor? pre_gate, Tensor? post_gate) -> Tensor",
)
