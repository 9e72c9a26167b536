"""A mixer's whole pass, operation by operation, for every mixer and every mode that `joint` does not support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from hyenarec_kernels.gates import GATES
from hyenarec_kernels.nn.filters import ConvOptions, Filter
from hyenarec_kernels.ops.gated_short_conv import gated_short_conv
from hyenarec_kernels.ops.short_conv import short_conv
from hyenarec_kernels.segments import Segments, inside, last_rows, spans, zero_padding
from hyenarec_kernels.tracing import jit_tracing


class MixerParts(Protocol):
    """What this module reads of a :class:`hyenarec_kernels.nn.HyenaMixer`."""

    dim: int
    num_gates: int
    order: int
    horizon: int
    short_width: int
    gate: Literal["identity", "sigmoid", "silu", "none"]
    bidirectional: bool
    filters: Sequence[Filter]
    ahead_filters: Sequence[Filter]
    skip: nn.Parameter | None

    @property
    def width(self) -> int: ...

    def project_in(self, x: Tensor) -> Tensor: ...
    def project_out(self, v: Tensor) -> Tensor: ...
    def short_taps(self) -> Tensor: ...
    def short_offset(self) -> Tensor: ...


# A long convolution's input as its two factors (q_i, v); q_i is None if v already is the product.
Factors = tuple[Tensor | None, Tensor]


def mix(mixer: MixerParts, x: Tensor, where: Segments, drawn: Tensor | None) -> tuple[Tensor, Tensor, list[Factors]]:
    """The output, the short convolution's input, and the factors of each long convolution's input; ``drawn`` holds
    dropout's factors for the projected channels, if any."""
    projected, (*q, gate), v = project(mixer, x, where, drawn)
    v, factors = convolve(mixer, v, q, gated(mixer, gate), where)
    return mixer.project_out(v), projected, factors


def mix_last(mixer: MixerParts, x: Tensor, where: Segments, drawn: Tensor | None) -> Tensor:
    """The output at each sequence's last position, (S, D)."""
    where = inside(x, where)
    first, length = spans(x, where)
    # The output depends on the last `reach` events of each sequence only. x is cut down to these, unless all of it is
    # less. A traced program, which serves any number of events and may not branch on it, always cuts.
    reach = (mixer.order - 1) * (mixer.horizon - 1) + mixer.short_width
    traced = torch.compiler.is_compiling() or jit_tracing()
    if not jit_tracing():  # which would record its example's number of events as a constant
        # At least 2, because an exported program treats a size of 1 as a special case and refuses it.
        events = torch.sym_max(x.shape[-2], 2) if traced else x.shape[-2]  # type: ignore[no-untyped-call]
        reach = torch.sym_min(reach, events)  # type: ignore[no-untyped-call]
    if traced or first.shape[0] * reach < x.shape[:-1].numel():
        kept = length.clamp(max=reach)
        x = last_rows(x.reshape(-1, mixer.width), first, length, reach)  # (S, reach, D), right-aligned
        where = Segments(reach - kept, torch.full_like(kept, reach))
        first, length = spans(x, where)
    _, (*q, gates), v = project(mixer, x, where, drawn)

    def newest(values: Tensor) -> Tensor:  # (..., D) to (S, D)
        return last_rows(values.reshape(-1, mixer.dim), first, length, 1)[:, 0]

    gate = None if gates is None else gated(mixer, newest(gates))
    v, _ = convolve(mixer, v if mixer.filters else newest(v), q, gate, where, last_only=True)
    return mixer.project_out(v)


def project(
    mixer: MixerParts, x: Tensor, where: Segments, drawn: Tensor | None
) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """The input of the short convolution, then what it gives: ``order`` gates, and the values. A gate is None if the
    values have been multiplied by it already, or if the mixer has no gates."""
    # The operators ignore padding, but the gradient of in_proj's weight would multiply zeros with what the padding
    # holds.
    projected = mixer.project_in(zero_padding(x, where))
    if drawn is not None:
        projected = projected * drawn.to(projected.dtype)
    weight, bias = mixer.short_taps(), mixer.short_offset()
    if not mixer.num_gates:
        return projected, [None] * mixer.order, short_conv(projected, weight, bias, segments=where)
    if mixer.order > 1:  # the first long convolution's gate
        v, q = gated_short_conv(projected, weight, bias, mixer.dim, segments=where)
        gates = [q] if mixer.order == 2 else q.chunk(mixer.order - 1, -1)  # chunk(1) costs a copy in backward
        return projected, [None, *gates], v
    gate, v = short_conv(projected, weight, bias, segments=where).chunk(2, -1)
    return projected, [gate], v


def convolve(
    mixer: MixerParts,
    v: Tensor,
    q: Sequence[Tensor | None],
    gate: Tensor | None,
    where: Segments,
    *,
    last_only: bool = False,
) -> tuple[Tensor, list[Factors]]:
    """The recurrence of long convolutions, from ``v`` to the last ``gate * v``; also the factors of each convolution's
    input."""
    factors: list[Factors] = []
    skips: Sequence[Tensor | None] = [None] * len(mixer.filters)
    if mixer.skip is not None:  # unbind of one row costs a copy in backward
        skips = [mixer.skip.squeeze(0)] if mixer.order == 2 else mixer.skip.unbind()
    for i, f in enumerate(mixer.filters):
        last = i == mixer.order - 2
        factors.append((q[i], v))
        options: ConvOptions = {
            "segments": where,
            "pre_gate": q[i],
            "post_gate": gate if last else None,
            "last_only": last and last_only,
        }
        u, v = v, f.convolve(v, skips[i], **options)
        if mixer.bidirectional:
            v = v + _ahead(mixer.ahead_filters[i], u, options)
    return (v if mixer.filters else product(gate, v)), factors


def gated(mixer: MixerParts, q: Tensor | None) -> Tensor | None:
    """The last gate ``q`` with the mixer's activation applied."""
    return None if q is None else GATES[mixer.gate](q)


def _ahead(filter: Filter, v: Tensor, options: ConvOptions) -> Tensor:
    """A long convolution backwards in time: reverses everything in time, convolves, and reverses the result."""
    where, gates = options["segments"], (options["pre_gate"], options["post_gate"])
    assert where is not None
    pre, post = (None if gate is None else gate.flip(-2) for gate in gates)
    y = filter.convolve(v.flip(-2), segments=where.reversed(v), pre_gate=pre, post_gate=post)
    return y.flip(-2)


def product(q: Tensor | None, v: Tensor) -> Tensor:
    """``q v``; ``v`` where there is no gate."""
    return v if q is None else q * v
