"""The state of a Hyena mixer that reads one event at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyenarec_kernels.dtypes import wide


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
        short_bias: (C,) what it adds.
        taps: (order-1, K, D) the long filters, skip included, largest lag first. Like the short one captured by
            ``init_state`` and shared by all sequences; after a change of the parameters, states must be made anew.
        gate: the mixer's kind of gate. A mixer refuses states of another kind or size. It cannot tell states of other
            weights: comparing them at every step would take longer than the step.
    """

    projected: Tensor
    gated: Tensor
    steps: Tensor
    short_taps: Tensor
    short_bias: Tensor
    taps: Tensor
    gate: str

    @torch.inference_mode(False)  # steps write to a state, which for inference tensors no other mode allows
    def index(self, rows: Tensor | slice) -> MixerState:
        """A copy of the state of some sequences.

        Args:
            rows: integer indices (n,), a bool mask (B,), or a slice. Integers are always indices, those of a mask of 0
                and 1 too: make it bool.
        """
        if isinstance(rows, slice):  # indexing with it would give views
            rows = torch.arange(self.steps.shape[0], device=self.steps.device)[rows]
        if isinstance(rows, Tensor) and rows.dim() != 1:
            raise ValueError(f"MixerState.index: rows must be indices (n,) or a mask (B,), got {tuple(rows.shape)}")
        return replace(self, projected=self.projected[rows], gated=self.gated[rows], steps=self.steps[rows])

    def tensors(self) -> dict[str, Tensor]:
        """What differs from sequence to sequence, the sequences first: what has to be stored for each of them."""
        return {"projected": self.projected, "gated": self.gated, "steps": self.steps}

    @staticmethod
    @torch.inference_mode(False)
    def cat(states: Sequence[MixerState]) -> MixerState:
        """Copies of states of one mixer, joined along the batch.

        Raises:
            ValueError: there are none, or they hold the filters of different mixers (which is looked at: on an
                accelerator this waits for the device).
        """
        if not states:
            raise ValueError("MixerState.cat: there must be at least one state")
        for i, state in enumerate(states):
            check_state("MixerState.cat", f"state {i}", state)
        first = states[0]
        for i, state in enumerate(states[1:], 1):
            if state.gate != first.gate:
                raise ValueError(
                    f"MixerState.cat: states must be of one mixer, but gate of state {i}, {state.gate!r}, differs from "
                    f"that of state 0, {first.gate!r}"
                )
            for name in ("short_taps", "short_bias", "taps"):
                ours, theirs = getattr(first, name), getattr(state, name)
                same = ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
                if not (same and (ours is theirs or torch.equal(ours, theirs))):
                    raise ValueError(
                        f"MixerState.cat: states must be of one mixer, but {name} of state {i}, {tuple(theirs.shape)} "
                        f"{theirs.dtype}, differs {'in its values ' if same else ''}from that of state 0, "
                        f"{tuple(ours.shape)} {ours.dtype}"
                    )
        return replace(
            first,
            projected=torch.cat([state.projected for state in states]),
            gated=torch.cat([state.gated for state in states]),
            steps=torch.cat([state.steps for state in states]),
        )


def check_state(op: str, name: str, given: object) -> None:
    """``given`` is a state."""
    if not isinstance(given, MixerState):
        raise ValueError(f"{op}: {name} must be a MixerState, got {type(given).__qualname__}")


def check_fits(op: str, state: MixerState, gate: str, shapes: Mapping[str, tuple[int, ...]], weight: Tensor) -> None:
    """``state`` has the kind of gate and the sizes of a mixer's states, and belongs beside its ``weight``."""
    if state.gate != gate:
        raise ValueError(f"{op}: this is no state of this mixer: gate must be {gate!r}, got {state.gate!r}")
    dtype = wide(weight.dtype)
    for name, shape in shapes.items():
        given: Tensor = getattr(state, name)
        if given.shape != shape or given.dtype != dtype or given.device != weight.device:
            raise ValueError(
                f"{op}: this is no state of this mixer: {name} must be {shape} {dtype} on {weight.device}, got "
                f"{tuple(given.shape)} {given.dtype} on {given.device}"
            )


torch.serialization.add_safe_globals([MixerState])  # so `torch.load` need not trust whoever stored one
