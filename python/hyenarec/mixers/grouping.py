"""Sequences of similar length are mixed together, so that the rectangles of a mixer hold little padding.

Most histories of a shop are short, and a rectangle is as wide as its longest: on Amazon Beauty (8 events a user, at
most 50 read) nine tenths of it are padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec.mixers.base import Mixer
from hyenarec.packing import Packing

WORTH = 2  # a rectangle is divided if it has more than so many places per event
NARROW = 4  # rectangles of so many events are not divided: there the cost of another call is all that counts


def mix(mixer: Mixer, x: Tensor, packing: Packing, *, timestamps: Tensor | None, last_only: bool) -> Tensor:
    """``mixer(x, packing, ...)``, computed in several calls where its rectangle would be mostly padding.

    On a GPU it is always one call: there the host would have to wait for the lengths, and launches cost more than
    padding.
    """
    here = mixer.rectangular and x.device.type == "cpu" and not torch.compiler.is_compiling()
    chosen = _similar(packing) if here else []
    if len(chosen) < 2:
        mixed: Tensor = mixer(x, packing, timestamps=timestamps, last_only=last_only)
        return mixed
    groups = [packing.group(sequences) for sequences in chosen]
    events = [packing.events_of(sequences) for sequences in chosen]
    sizes, order = [len(rows) for rows in events], torch.cat(events)
    parts = x.index_select(0, order).split(sizes)  # type: ignore[no-untyped-call]
    times = [None] * len(groups) if timestamps is None else timestamps[order].split(sizes)  # type: ignore[no-untyped-call]
    outputs = [
        mixer(part, group, timestamps=when, last_only=last_only)
        for part, group, when in zip(parts, groups, times, strict=True)
    ]
    mixed = torch.cat(outputs)  # (T, D) or (S, D), in the order of the groups
    return torch.empty_like(mixed).index_copy(0, torch.cat(chosen) if last_only else order, mixed)


def _similar(packing: Packing) -> list[Tensor]:
    """The sequences by length: those longer than a half of the longest, than a quarter, and so on; none if a single
    rectangle is good enough."""
    longest = packing.max_length
    if packing.sequences * longest <= WORTH * int(packing.cu_seqlens[-1]):
        return []
    bounds = []
    while longest > NARROW:
        longest //= 2
        bounds.append(longest)
    classes = torch.bucketize(packing.lengths, torch.tensor(bounds[::-1]))  # a length at a bound is below it
    found = [(classes == number).nonzero()[:, 0] for number in range(len(bounds) + 1)]
    return [sequences for sequences in found if len(sequences)]
