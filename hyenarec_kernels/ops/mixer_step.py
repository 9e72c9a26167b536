"""One step of a whole Hyena mixer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyenarec_kernels.ops.conv_step import define_step


def mixer_step(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    projected: Tensor,
    short_taps: Tensor,
    short_bias: Tensor,
    memory: Sequence[Tensor],
    tables: Sequence[Tensor],
    steps: Tensor,
    gate: str,
) -> Tensor:
    """What :meth:`hyenarec_kernels.nn.HyenaMixer.step` computes for each of B sequences, in one call. It updates the
    state in place and so has no gradients.

    Args:
        x: (B, E), the newest event of each sequence, with all E input channels of the mixer.
        w_in: (E, C), the matrix that ``x`` is multiplied by, in the dtype of ``x``; any strides.
        w_out: (D, D), likewise, the matrix of the output projection.
        projected: (B, W-1, C) as in :class:`hyenarec_kernels.nn.MixerState`. Like the whole state, it is float32
            (float64 if ``x`` is float64) and is written to.
        short_taps, short_bias: (W, C) and (C,), as there.
        memory: of an exact state only ``gated``, a ring (B, F, K-1, D) or its pages; of a
            :class:`hyenarec_kernels.nn.CompactState` ``page``, then the levels as ``compact_step`` takes them.
        tables: of an exact state only ``taps`` (F, K, D); of a compact one ``near``, then the tables as
            ``compact_step`` takes them.
        steps: (B,) int64, as in the state; increased by 1.
        gate: the mixer's gate, "identity", "sigmoid", "silu" or "none".

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        NotImplementedError: gradients are enabled and an argument requires one, or a transform of `torch.func` is
            active.
    """
    out: Tensor = torch.ops.hyenarec.mixer_step(
        x, w_in, w_out, projected, short_taps, short_bias, list(memory), list(tables), steps, gate
    )
    return out


define_step(
    "mixer_step",
    "(Tensor x, Tensor w_in, Tensor w_out, Tensor(a!) projected, Tensor short_taps, Tensor short_bias, "
    "Tensor(b!)[] memory, Tensor[] tables, Tensor(c!) steps, str gate) -> Tensor",
    lambda x, w_in, w_out, *rest: w_out.shape[1],
)
