"""States of mixers and models: reading events one at a time gives what reading the whole history gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.model_state import ModelState
from hyenarec.packing import Packing

ITEMS, LONGEST = 30, 80  # longer than two chunks of any recurrence, and than HyTRec's attention window
CAUSAL = [name for name, mixer in MIXERS.items() if mixer.causal]
BOUNDED = [name for name in CAUSAL if MIXERS[name].needs_positions or MIXERS[name].bounded]


def make(name: str, blocks: int = 2) -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(mixer=name, dim=8, max_length=LONGEST, blocks=blocks, repeats="on")
    model = SequenceModel(config, ITEMS).double().eval()
    with torch.no_grad():  # away from the initial filters, which hide mistakes in gates
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def histories(lengths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(1)
    items = [torch.randint(ITEMS, (length,)) for length in lengths]
    return items, [torch.randint(0, 3 * 86_400, (length,)).cumsum(0) for length in lengths]


def batch_of(items: list[Tensor], times: list[Tensor] | None) -> Batch:
    packing = Packing.from_lengths(torch.tensor([len(one) for one in items]))
    return Batch(torch.cat(items), packing, None if times is None else torch.cat(times))


def forwards(model: SequenceModel, items: list[Tensor], times: list[Tensor] | None) -> list[Tensor]:
    batch = batch_of(items, times)
    return list(model(batch).split(batch.packing.lengths.tolist()))


def assert_equal(streamed: Tensor, whole: Tensor) -> None:
    torch.testing.assert_close(streamed, whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("name", CAUSAL)
@torch.inference_mode()
def test_steps_are_the_forward_at_every_position(name: str, timed: bool) -> None:
    """This holds from an empty state, and after histories of several lengths."""
    model, (items, times) = make(name), histories([LONGEST, LONGEST - 7])
    given = times if timed else None
    want = forwards(model, items, given)
    for first in (0, 1, 34):
        if first:
            head = [one[:first] for one in items], None if given is None else [one[:first] for one in given]
            hidden, state = model.prefill(batch_of(*head))
            assert_equal(hidden, torch.stack([one[first - 1] for one in want]))
        else:
            state = model.init_state(2)
        for t in range(first, LONGEST - 7):
            now = torch.stack([one[t] for one in items])
            hidden, state = model.step(now, state, torch.stack([one[t] for one in times]) if timed else None)
            assert_equal(hidden, torch.stack([one[t] for one in want]))
        assert state.events.tolist() == [LONGEST - 7] * 2


@pytest.mark.parametrize("name", CAUSAL)
@torch.inference_mode()
def test_users_join_and_leave(name: str) -> None:
    """Users of different lengths, one of them new, share a batch. A copy of a state does not change with it."""
    model, (items, times) = make(name), histories([70, 5, 20, 33])
    want = forwards(model, items, times)
    prefixes = [one[:k] for one, k in zip(items, (67, 2, 17), strict=False)]
    _, state = model.prefill(batch_of(prefixes, [one[: len(p)] for one, p in zip(times, prefixes, strict=False)]))
    state = ModelState.cat([state, model.init_state(1)])  # the fourth user is new
    place = [67, 2, 17, 0]

    def step(state: ModelState, users: list[int]) -> ModelState:
        at = [(items[u][place[u]], times[u][place[u]]) for u in users]
        now, when = (torch.stack(column) for column in zip(*at, strict=True))
        hidden, state = model.step(now, state, when)
        assert_equal(hidden, torch.stack([want[u][place[u]] for u in users]))
        for u in users:
            place[u] += 1
        return state

    state = step(state, [0, 1, 2, 3])
    stays = state.index(torch.tensor([2]))
    state = step(state.index(torch.tensor([3, 1])), [3, 1])
    step(ModelState.cat([stays, state]), [2, 3, 1])


@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_stored_of_a_user_restores_it(name: str) -> None:
    """``tensors`` holds all that differs between users: copied over another user's state, it replaces that user."""
    model, (items, times) = make(name), histories([40, 40])
    with torch.inference_mode():
        _, state = model.prefill(batch_of([one[:39] for one in items], [one[:39] for one in times]))
        last = torch.stack([one[39] for one in items]), torch.stack([one[39] for one in times])
        first, second = (state.index(torch.tensor([u])) for u in (0, 1))
        for name_, values in second.tensors().items():
            first.tensors()[name_].copy_(values)
        hidden, _ = model.step(last[0][1:], first, last[1][1:])
        want, _ = model.step(last[0][1:], second, last[1][1:])
    assert torch.equal(hidden, want)


@pytest.mark.parametrize("name", BOUNDED)
@torch.inference_mode()
def test_positions_end(name: str) -> None:
    model, (items, _) = make(name), histories([LONGEST])
    _, state = model.prefill(batch_of(items, None))
    with pytest.raises(UserError, match=f"{LONGEST} positions"):
        model.step(torch.tensor([0]), state)


@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in BOUNDED])
@torch.inference_mode()
def test_others_go_on_for_ever(name: str) -> None:
    model, (items, _) = make(name, blocks=1), histories([LONGEST])
    _, state = model.prefill(batch_of(items, None))
    for _ in range(5):
        hidden, state = model.step(torch.tensor([0]), state)
    assert model.most_events is None and hidden.isfinite().all()


@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if not mixer.causal])
def test_bidirectional_models_have_no_state(name: str) -> None:
    model: Any = SequenceModel(ModelConfig(mixer=name, dim=8, max_length=8), ITEMS)
    for call in (lambda: model.init_state(1), lambda: model.prefill(batch_of([torch.tensor([1])], None))):
        with pytest.raises(UserError, match="has no state"):
            call()
