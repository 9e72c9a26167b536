"""The state of a Hyena mixer that reads one event at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.lowrank.compact import PAGE
from hyenarec_kernels.ops.compact_step import compact_step
from hyenarec_kernels.ops.conv_step import conv_step

if TYPE_CHECKING:
    from typing import Self


class StreamingState(ABC):
    """The state of a batch of sequences. States can be indexed along the batch dimension, and concatenated."""

    projected: Tensor
    steps: Tensor
    short_taps: Tensor
    short_bias: Tensor
    gate: str

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that differ between sequences, batch dimension first, by name: all that has to be stored for each
        sequence."""

    @abstractmethod
    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """This state, but with the :meth:`tensors` of other sequences."""

    @abstractmethod
    def shared(self) -> dict[str, Tensor]:
        """The tensors, by name, that were captured from the mixer and are the same for all sequences."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """How many of a long convolution's last inputs the state remembers something of."""

    @abstractmethod
    def shapes(self, filters: int, horizon: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes, by name, that some of its tensors must have to fit a mixer of these sizes."""

    @abstractmethod
    def filled(self, projected: Tensor, inputs: Tensor | None, length: Tensor) -> Self:
        """The state after histories of ``length`` (B,) events. ``projected`` (B, W-1, C) holds the last inputs of the
        short convolution, ``inputs`` (B, F, reach, D) those of the long ones, None if there are none; both have zeros
        before the first event."""

    @abstractmethod
    def memory(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the long convolutions remember, and their tables, as
        :func:`hyenarec_kernels.ops.mixer_step.mixer_step` takes them."""

    @abstractmethod
    def convolve(self, number: int, x: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None) -> Tensor:
        """The output (B, D) of long convolution ``number`` for the event's value ``x`` (B, D), which the state then
        remembers. Gates are as in :func:`hyenarec_kernels.conv_step`."""

    @torch.inference_mode(False)  # steps write to a state, and only inference mode may write to inference tensors
    def index(self, rows: Tensor | slice) -> Self:
        """A copy of the state of some sequences.

        Args:
            rows: integer indices (n,), a bool mask (B,), or a slice. Integers are always indices: convert a mask of 0
                and 1 to bool.

        Raises:
            ValueError: ``rows`` has another number of dimensions.
        """
        tensors = self.tensors()
        if isinstance(rows, slice):  # indexing with a slice would give views
            steps = tensors["steps"]
            rows = torch.arange(steps.shape[0], device=steps.device)[rows]
        if isinstance(rows, Tensor) and rows.dim() != 1:
            raise ValueError(
                f"{type(self).__name__}.index: rows must be indices (n,) or a mask (B,), got {tuple(rows.shape)}"
            )
        return self.with_tensors({name: values[rows] for name, values in tensors.items()})

    @classmethod
    @torch.inference_mode(False)
    def cat(cls, states: Sequence[Self]) -> Self:
        """Concatenates states of one mixer along the batch dimension, as a copy.

        Raises:
            ValueError: there are none, or they are of different mixers. This compares the filters that they captured,
                and on an accelerator waits for the device.
        """
        op = f"{cls.__name__}.cat"
        if not states:
            raise ValueError(f"{op}: there must be at least one state")
        for i, state in enumerate(states):
            check_state(op, f"state {i}", state, cls)
        first, shared = states[0], states[0].shared()
        for i, state in enumerate(states[1:], 1):
            if state.gate != first.gate:
                raise ValueError(
                    f"{op}: states must be of one mixer, but gate of state {i}, {state.gate!r}, differs from "
                    f"that of state 0, {first.gate!r}"
                )
            for name, theirs in state.shared().items():
                ours = shared[name]
                same = ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
                if not (same and (ours is theirs or torch.equal(ours, theirs))):
                    raise ValueError(
                        f"{op}: states must be of one mixer, but {name} of state {i}, {tuple(theirs.shape)} "
                        f"{theirs.dtype}, differs {'in its values ' if same else ''}from that of state 0, "
                        f"{tuple(ours.shape)} {ours.dtype}"
                    )
        each = [state.tensors() for state in states]
        return first.with_tensors({name: torch.cat([tensors[name] for tensors in each]) for name in each[0]})


@dataclass(frozen=True)
class MixerState(StreamingState):
    """What a mixer of ``order`` remembers of ``B`` sequences, exactly; its size does not grow with their length.

    Histories are ring buffers, which :meth:`HyenaMixer.step` writes to: of ``n`` rows, row ``steps % n`` is the oldest,
    and rows before a sequence's start are zeros. Sequences are independent, so states of different users can be
    concatenated and indexed along the batch dimension, whatever their lengths. A sequence takes
    ``(W-1)*C + (order-1)*(K-1)*D`` values, in float32 (float64 for a float64 mixer); C is ``(order+1)*D``, or D without
    gates.

    On a CPU, with a horizon of over 16 events, histories are rings of pages of 8 rows, K rounded up to whole pages. In
    the current page, rows up to the newest event hold inputs; later rows hold what all events before the page will add
    to their outputs. That is computed once per page, so that the steps in between read 8 rows and not K (256 users with
    200 taps of 64 channels, one core: medians of .4 ms instead of 3.0, means of 1.2).

    Attributes:
        projected: (B, W-1, C) the last inputs of the short convolution.
        gated: (B, order-1, K-1, D) the last inputs ``u`` of each long convolution, or their pages.
        steps: (B,) int64 steps taken since ``init_state`` or ``prefill``; with pages, the number of all events.
        short_taps: (W, C) the short filter, largest lag first.
        short_bias: (C,) the short convolution's bias.
        taps: (order-1, K, D) the long filters, skip included, largest lag first. Like the short filter they are
            captured by ``init_state`` and shared by all sequences; after a change of the parameters, states must be
            made anew.
        gate: the mixer's kind of gate. A mixer refuses states of another kind or size. It cannot recognise states of
            other weights: comparing these at every step would take longer than the step.
    """

    projected: Tensor
    gated: Tensor
    steps: Tensor
    short_taps: Tensor
    short_bias: Tensor
    taps: Tensor
    gate: str

    def tensors(self) -> dict[str, Tensor]:
        return {"projected": self.projected, "gated": self.gated, "steps": self.steps}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> MixerState:
        return replace(self, projected=tensors["projected"], gated=tensors["gated"], steps=tensors["steps"])

    def shared(self) -> dict[str, Tensor]:
        return {"short_taps": self.short_taps, "short_bias": self.short_bias, "taps": self.taps}

    @property
    def reach(self) -> int:
        return self.gated.shape[2]

    @property
    def paged(self) -> bool:
        return self.gated.shape[2] >= self.taps.shape[1]

    def shapes(self, filters: int, horizon: int, dim: int) -> dict[str, tuple[int, ...]]:
        rows = in_pages(horizon) if self.paged else horizon - 1
        return {"gated": (self.steps.shape[0], filters, rows, dim), "taps": (filters, horizon, dim)}

    def filled(self, projected: Tensor, inputs: Tensor | None, length: Tensor) -> MixerState:
        if inputs is None or not self.paged:
            return replace(self, projected=projected, gated=self.gated if inputs is None else inputs)
        steps = length.to(torch.int64, copy=True)
        return replace(self, projected=ring(projected, length), gated=self._pages(inputs, length), steps=steps)

    def _pages(self, inputs: Tensor, length: Tensor) -> Tensor:
        """The last inputs (B, F, n, D) of sequences of ``length`` (B,) as a ring of pages."""
        (_, filters, rows, dim), horizon = inputs.shape, self.taps.shape[1]
        first = (length.clamp(min=1) - 1) // PAGE * PAGE  # the current page's first event, (B,)
        page = torch.arange(PAGE, device=length.device)
        seen = torch.arange(horizon + PAGE - 2, device=length.device) + (first - horizon + 1)[:, None]  # event numbers
        place = seen - (length - rows)[:, None]  # of each event among the inputs
        there = (place >= 0) & (seen < first[:, None])
        index = place.clamp(0, rows - 1)[:, None, :, None].expand(-1, filters, -1, dim)
        before = (inputs.gather(2, index) * there[:, None, :, None]).transpose(2, 3).flatten(1, 2)  # (B, F D, n)
        past_taps = self.taps[:, :-1].transpose(1, 2).flatten(0, 1)[:, None]  # (F D, 1, K-1)
        added = conv1d(before, past_taps, groups=filters * dim)  # (B, F D, 8)
        added = added.view(-1, filters, dim, PAGE).transpose(2, 3)
        slot = ((first[:, None] + page) % rows)[:, None, :, None].expand_as(added)
        known, come = ring(inputs, length, 2), page < (length - first)[:, None]  # (B, 8)
        return known.scatter(2, slot, added.where(~come[:, None, :, None], known.gather(2, slot)))

    def memory(self) -> tuple[list[Tensor], list[Tensor]]:
        return [self.gated], [self.taps]

    def convolve(self, number: int, x: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None) -> Tensor:
        if self.paged:
            given = (x, self.gated, (), self.taps, (), self.steps, number)
            return compact_step(*given, pre_gate=pre_gate, post_gate=post_gate)
        history, taps = self.gated[:, number], self.taps[number]
        return conv_step(x, history, taps, self.steps, pre_gate=pre_gate, post_gate=post_gate)


def in_pages(rows: int) -> int:
    """``rows``, rounded up to whole pages."""
    return -(-rows // PAGE) * PAGE


def ring(newest: Tensor, length: Tensor, dim: int = 1) -> Tensor:
    """The last rows of sequences of ``length`` (B,) events, given oldest first along ``dim``, as a ring of n rows:
    event e is in row ``e % n``."""
    count = newest.shape[dim]
    order = (torch.arange(count, device=length.device) - length[:, None]) % max(count, 1)  # (B, n)
    shape = [1] * newest.dim()
    shape[0], shape[dim] = order.shape
    return newest.gather(dim, order.view(shape).expand_as(newest))


def check_state(op: str, name: str, given: object, kind: type[StreamingState] | None = None) -> None:
    """Raises ValueError unless ``given`` is a state, of class ``kind`` if there is one."""
    if not isinstance(given, kind or StreamingState):
        wanted = kind.__name__ if kind else "StreamingState"
        raise ValueError(f"{op}: {name} must be a {wanted}, got {type(given).__qualname__}")


def check_fits(
    op: str, state: StreamingState, gate: str, shapes: Mapping[str, tuple[int, ...]], weight: Tensor
) -> None:
    """Raises ValueError unless ``state`` has the mixer's kind of gate, these shapes, and the dtype and device that
    belong to its ``weight``."""
    if state.gate != gate:
        raise ValueError(f"{op}: this is no state of this mixer: gate must be {gate!r}, got {state.gate!r}")
    dtype = wide(weight.dtype)
    found = state.tensors() | state.shared()
    for name, shape in shapes.items():
        given = found[name]
        if given.shape != shape or given.dtype != dtype or given.device != weight.device:
            raise ValueError(
                f"{op}: this is no state of this mixer: {name} must be {shape} {dtype} on {weight.device}, got "
                f"{tuple(given.shape)} {given.dtype} on {given.device}"
            )


torch.serialization.add_safe_globals([MixerState])  # for torch.load(weights_only=True)
