"""Which events a key-value cache holds, and that a step computes attention to exactly these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyenarec.config import AttentionConfig, ModelConfig
from hyenarec.mixers.attention import AttentionMixer
from hyenarec.packing import Packing

DIM, LENGTH = 8, 40


def make(policy: Any, room: int | None) -> AttentionMixer:
    torch.manual_seed(0)
    options = AttentionConfig(cache=policy, cache_events=room)
    mixer = AttentionMixer(ModelConfig(mixer="attention", dim=DIM, max_length=LENGTH, attention=options), 0).double()
    with torch.no_grad():
        mixer.qkv.weight *= 4  # some events then get more attention than others
    return mixer


def events(length: int = LENGTH, sequences: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(length, sequences, DIM, dtype=torch.float64)


def attend(mixer: AttentionMixer, event: Tensor, held: Tensor) -> Tensor:
    """The mixer's output for ``event`` (D,) if it attends to the events ``held`` (n, D)."""
    q = mixer.qkv(event)[:DIM].view(2, -1)
    k, v = (part.view(len(held), 2, -1) for part in mixer.qkv(held)[:, DIM:].chunk(2, -1))
    weights = (torch.einsum("hd,nhd->nh", q, k) / (DIM / 2) ** 0.5).softmax(0)
    return mixer.out(torch.einsum("nh,nhd->hd", weights, v).flatten())  # type: ignore[no-any-return]


def last(seen: list[int], room: int) -> list[int]:
    return seen[-room:]


def importance(mixer: AttentionMixer, x: Tensor, older: list[int], recent: list[int]) -> Tensor:
    """Mean attention of the ``recent`` events to each of the ``older`` ones, (n,)."""
    q = mixer.qkv(x[recent])[:, :DIM].view(len(recent), 2, -1)
    k = mixer.qkv(x[older])[:, DIM : 2 * DIM].view(len(older), 2, -1)
    return (torch.einsum("mhd,nhd->mhn", q, k) / (DIM / 2) ** 0.5).softmax(-1).mean((0, 1))


@pytest.mark.parametrize("policy", ["full", "window", "citrus"])
@torch.no_grad()
def test_with_room_for_all_a_step_is_the_forward(policy: str) -> None:
    mixer, x = make(policy, None), events()
    state = mixer.init_state(2)
    whole = [mixer(x[:, s], Packing.from_lengths(torch.tensor([LENGTH]))) for s in range(2)]
    for t in range(LENGTH):
        mixed, state = mixer.step(x[t], state)
        torch.testing.assert_close(mixed, torch.stack([one[t] for one in whole]))


@pytest.mark.parametrize("first", [0, 3, 5, 17])
@torch.no_grad()
def test_a_window_holds_the_last_events(first: int) -> None:
    """This holds from an empty state, and after histories that are shorter or longer than the window or fill it."""
    mixer, x, room = make("window", 5), events(), 5
    begun = [first, max(first - 2, 0)]
    if first:
        packing = Packing.from_lengths(torch.tensor(begun))
        mixed, state = mixer.prefill(torch.cat([x[:n, s] for s, n in enumerate(begun)]), packing)
        whole = mixer(torch.cat([x[:n, s] for s, n in enumerate(begun)]), packing)
        torch.testing.assert_close(mixed, whole)
    else:
        state = mixer.init_state(2)
    assert state["cache"].shape[1] == room
    for t in range(12):
        mixed, state = mixer.step(torch.stack([x[n + t, s] for s, n in enumerate(begun)]), state)
        for s, n in enumerate(begun):
            seen = last(list(range(n + t + 1)), room)
            torch.testing.assert_close(mixed[s], attend(mixer, x[n + t, s], x[seen, s]))


@torch.no_grad()
def test_citrus_keeps_what_the_last_events_attend_to() -> None:
    mixer, x, room = make("citrus", 16), events(sequences=1), 16
    chunk, state = 2, mixer.init_state(1)
    held: list[int] = []
    dropped_out_of_order = False
    for t in range(LENGTH):
        if len(held) == room:
            older, newest = held[:-chunk], held[-chunk:]
            best = importance(mixer, x[:, 0], older, list(range(t - chunk, t))).topk(room - 2 * chunk).indices
            kept = sorted(older[i] for i in best.tolist())
            dropped_out_of_order |= kept != older[chunk:]
            held = kept + newest
        held.append(t)
        mixed, state = mixer.step(x[t], state)
        torch.testing.assert_close(mixed[0], attend(mixer, x[t, 0], x[held, 0]))
    assert dropped_out_of_order  # otherwise a window would have passed too
    assert state["events"].tolist() == [LENGTH] and state["held"].tolist() == [len(held)]


@torch.no_grad()
def test_citrus_prefill_drops_at_once() -> None:
    """Prefill keeps histories that fit, and of longer ones the last chunk and the events with the most attention."""
    mixer, x, room = make("citrus", 16), events(), 16
    lengths = [30, 15]
    _, state = mixer.prefill(
        torch.cat([x[:n, s] for s, n in enumerate(lengths)]), Packing.from_lengths(torch.tensor(lengths))
    )
    best = importance(mixer, x[:, 0], list(range(28)), [28, 29]).topk(room - 4).indices
    held = [[*sorted(best.tolist()), 28, 29], list(range(15))]
    mixed, state = mixer.step(torch.stack([x[30, 0], x[15, 1]]), state)
    for s, n in enumerate(lengths):
        torch.testing.assert_close(mixed[s], attend(mixer, x[n, s], x[[*held[s], n], s]))


@pytest.mark.parametrize("policy", ["window", "citrus"])
@pytest.mark.parametrize("room", [2, 3, 8, 16])
@torch.no_grad()
def test_a_cache_never_holds_more_than_its_room(policy: str, room: int) -> None:
    mixer, x = make(policy, room), events(sequences=3)
    _, state = mixer.prefill(
        torch.cat([x[:n, s] for s, n in enumerate((1, 7, 20))]), Packing.from_lengths(torch.tensor([1, 7, 20]))
    )
    for t in range(20, LENGTH):
        mixed, state = mixer.step(x[t], state)
        assert mixed.isfinite().all()
    assert state["cache"].shape[1] == room
    if policy == "citrus":
        assert all(0 < held <= room for held in state["held"].tolist())
