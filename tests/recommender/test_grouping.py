"""Mixing groups of similar length gives the outputs and gradients of mixing the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyenarec.config import ModelConfig
from hyenarec.mixers import MIXERS, grouping
from hyenarec.packing import Packing

LENGTHS = torch.tensor([50, 3, 1, 7, 20, 2, 2, 5, 9, 1, 13, 4])
EVENTS = int(LENGTHS.sum())


def longest_called(monkeypatch: pytest.MonkeyPatch, mixer: Any) -> list[int]:
    """The longest sequence of every call that ``mixer`` gets from now on."""
    longest: list[int] = []
    forward = mixer.forward

    def counted(x: Tensor, packing: Packing, **options: Any) -> Any:
        longest.append(packing.max_length)
        return forward(x, packing, **options)

    monkeypatch.setattr(mixer, "forward", counted)
    return longest


@pytest.mark.parametrize("timed", [False, True], ids=["positions", "timestamps"])
@pytest.mark.parametrize("last_only", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if mixer.rectangular])
def test_groups_give_the_same(name: str, last_only: bool, timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer = MIXERS[name](ModelConfig(mixer=name, dim=16, max_length=50), 0).double().eval()
    packing = Packing.from_lengths(LENGTHS)
    x = torch.randn(EVENTS, 16, dtype=torch.float64, requires_grad=True)
    times = torch.randint(10**6, (EVENTS,)).sort().values if timed else None

    def gradients(mixed: Tensor) -> list[Tensor]:
        weights = torch.linspace(-1, 1, mixed.numel(), dtype=torch.float64).view(mixed.shape)
        return list(torch.autograd.grad((mixed * weights).sum(), (x, *mixer.parameters()), materialize_grads=True))

    whole = mixer(x, packing, timestamps=times, last_only=last_only)
    want = [whole, *gradients(whole)]
    longest = longest_called(monkeypatch, mixer)
    mixed = grouping.mix(mixer, x, packing, timestamps=times, last_only=last_only)
    assert longest == [3, 5, 9, 20, 50]
    for found, wanted in zip([mixed, *gradients(mixed)], want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", [[50, 50, 3], [4, 1, 1, 1, 1], [7], [26, 25, 40]], ids=str)
def test_a_rectangle_with_little_padding_stays_whole(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = MIXERS["gru"](ModelConfig(mixer="gru", dim=4), 0)
    packing = Packing.from_lengths(torch.tensor(lengths))
    longest = longest_called(monkeypatch, mixer)
    grouping.mix(mixer, torch.randn(sum(lengths), 4), packing, timestamps=None, last_only=False)
    assert longest == [max(lengths)]


def test_a_group_is_packed_in_its_own_order() -> None:
    packing = Packing.from_lengths(torch.tensor([2, 3, 1, 2]))
    chosen = torch.tensor([3, 1])
    group = packing.group(chosen)
    assert packing.events_of(chosen).tolist() == [6, 7, 2, 3, 4]
    assert (group.cu_seqlens.tolist(), group.max_length, group.batch_lengths.tolist()) == ([0, 2, 5], 3, [2, 3, 1, 2])
