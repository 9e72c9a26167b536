"""One event more of a long convolution whose past is a compact state."""

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
    """The next output of :func:`hyenarec_kernels.long_conv` for each of B sequences, about C/2 multiply-adds a
    channel, and more at the first event of a chunk. It has no gradients, since it writes to the state.

    Args:
        x: (B, D), the newest event of each sequence.
        page: (B, F, C, D) as in :class:`hyenarec_kernels.nn.CompactState`, in float32 (float64 beside float64), as
            everything below but moments, which may be bfloat16. Written to.
        levels: of the lowest level ``moments`` (B, F, slots, R, D) alone, of each level above ``sums`` and ``incoming``
            (B, F, R, D) and ``moments``. Written to. Empty, like ``tables``, where ``page`` is the ring of pages of a
            :class:`hyenarec_kernels.nn.MixerState` and ``near`` all its taps (F, K, D).
        near: (F, C, D).
        tables: of each level ``basis`` (C, R), ``enter`` and ``leave`` (F, C, D) and ``blocks`` (F, slots, R, R, D).
        steps: (B,) int64; the caller counts on, one a call.
        number: of the filter, below F.
        pre_gate, post_gate: the shape and dtype of ``x``.

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        NotImplementedError: a gradient of the output would be wanted, or a transform of `torch.func` calls it.
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
