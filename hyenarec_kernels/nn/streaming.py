"""The state of a Hyena mixer that reads one event at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixerState:
    """What a mixer of ``order`` remembers of ``B`` sequences: its size does not grow with their length.

    Histories are rings, which :meth:`HyenaMixer.step` writes to: of ``n`` rows the oldest is row ``steps % n``, and
    zeros stand for what lies before a sequence's start. Sequences are independent, so states of different users can be
    joined and picked along the batch whatever their lengths. ``(W-1)*C + (order-1)*(K-1)*D`` values a sequence, in
    float32 (float64 for a float64 mixer); C is ``(order+1)*D``, or D without gates.

    Attributes:
        projected: (B, W-1, C) the last inputs of the short convolution.
        gated: (B, order-1, K-1, D) the last inputs ``u`` of each long convolution.
        steps: (B,) int64 steps taken since ``init_state`` or ``prefill``.
        short_taps: (W, C) the short filter, largest lag first.
        taps: (order-1, K, D) the long filters, skip included, largest lag first. Like the short one captured by
            ``init_state`` and shared by all sequences; after a change of the parameters, states must be made anew.
    """

    projected: Tensor
    gated: Tensor
    steps: Tensor
    short_taps: Tensor
    taps: Tensor

    def index(self, rows: Tensor) -> MixerState:
        """A copy of the state of some sequences: ``rows`` int64 indices (n,) or a bool mask (B,)."""
        return replace(self, projected=self.projected[rows], gated=self.gated[rows], steps=self.steps[rows])

    @staticmethod
    def cat(states: Sequence[MixerState]) -> MixerState:
        """Copies of states of one mixer, joined along the batch."""
        return replace(
            states[0],
            projected=torch.cat([state.projected for state in states]),
            gated=torch.cat([state.gated for state in states]),
            steps=torch.cat([state.steps for state in states]),
        )
