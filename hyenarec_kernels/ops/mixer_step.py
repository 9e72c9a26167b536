"""One event more of a whole Hyena mixer."""

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
    """What :meth:`hyenarec_kernels.nn.HyenaMixer.step` computes of each of B sequences, in one call. It has no
    gradients, since it writes to the state, which moves on by the event.

    Args:
        x: (B, E), the newest event of each sequence.
        w_in: (E, C), what ``x`` is multiplied with, in the dtype of ``x``; any strides.
        w_out: (D, D), likewise, for the way out.
        projected: (B, W-1, C) as in :class:`hyenarec_kernels.nn.MixerState`. Like the whole state in float32 (float64
            beside float64) and written to.
        short_taps, short_bias: (W, C) and (C,) as there.
        memory: of an exact state ``gated`` alone, a ring (B, F, K-1, D) or its pages; of a
            :class:`hyenarec_kernels.nn.CompactState` ``page``, and then the levels as ``compact_step`` takes them.
        tables: of an exact state ``taps`` (F, K, D) alone; of a compact one ``near``, and then its tables as there.
        steps: (B,) int64, counted on.
        gate: "identity", "sigmoid", "silu" or "none", as the mixer has it.

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        NotImplementedError: a gradient of the output would be wanted, or a transform of `torch.func` calls it.
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
