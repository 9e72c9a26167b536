"""The state of a Hyena mixer that reads one event at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixerState:
    """What a mixer of ``order`` remembers of ``B`` sequences: its size does not grow with their length.

    Histories run from the oldest event to the newest and hold zeros before a sequence's start; rows are independent, so
    states of different users can be joined and picked along the batch whatever their lengths. ``(W-1)*(order+1)*D +
    (order-1)*(K-1)*D`` values a sequence, in float32 (float64 for a float64 mixer).

    Attributes:
        projected: (B, W-1, (order+1)*D) the last inputs of the short convolution.
        gated: (B, order-1, K-1, D) the last inputs ``u`` of each long convolution.
        taps: (order-1, K, D) the long filters, skip included, ordered as the histories are: largest lag first. Captured
            by ``init_state``, shared by all sequences; after a change of the parameters, states must be made anew.
    """

    projected: Tensor
    gated: Tensor
    taps: Tensor

    def index(self, rows: Tensor) -> MixerState:
        """The state of some sequences: ``rows`` int64 indices (n,) or a bool mask (B,)."""
        return replace(self, projected=self.projected[rows], gated=self.gated[rows])

    @staticmethod
    def cat(states: Sequence[MixerState]) -> MixerState:
        """States of one mixer joined along the batch."""
        projected = torch.cat([state.projected for state in states])
        return replace(states[0], projected=projected, gated=torch.cat([state.gated for state in states]))


def advance(history: Tensor, newest: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a causal convolution, K multiply-adds a channel.

    ``history`` (B, K-1, D), ``newest`` (B, D), ``taps`` (K, D) with the largest lag first, to the output (B, D) and the
    next history.
    """
    window = torch.cat([history, newest[:, None]], 1)  # (B, K, D)
    return (window * taps).sum(1), window[:, 1:]
