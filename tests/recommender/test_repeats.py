"""The repeat head against its formula in float64, written event by event."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hyenarec.config import BIDIRECTIONAL, ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.data.ids import Ids
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.losses import full_cross_entropy, sampled_softmax
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.packing import Packing
from hyenarec.recommendation import Recommender
from hyenarec.repeats import REACH, Recent, RepeatHead, Repeats, settled, share_of_repeats

DIM, ROOM, ITEMS = 8, 11, 7
LENGTHS = [1, 20, 5, 12]


def made_head(dtype: torch.dtype = torch.float64) -> RepeatHead:
    torch.manual_seed(0)
    head = RepeatHead(DIM, ROOM, ITEMS).to(dtype)
    torch.nn.init.normal_(head.weight.weight)
    head.knots.data.add_(0.5 * torch.randn_like(head.knots))
    return head


def batch_of(lengths: list[int] = LENGTHS) -> Batch:
    items = torch.randint(ITEMS, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(ITEMS, (sum(lengths),), generator=torch.Generator().manual_seed(2))
    return Batch(items, Packing.from_lengths(torch.tensor(lengths)), targets=targets)


def shares_by_item(head: RepeatHead, history: list[int]) -> Tensor:
    """The share (V,) of each item among a history's repeats, by the formula."""
    knots = head.knots
    octaves = math.log2(head.room)
    found: list[Tensor] = [knots.new_zeros(()) for _ in range(ITEMS)]
    total = knots.new_zeros(())
    for lag, item in enumerate(reversed(history[-head.room :]), 1):
        place = math.log2(lag) / octaves * (len(knots) - 1)
        low = min(int(place + 1e-12), len(knots) - 2)
        weight = (knots[low] + (place - low) * (knots[low + 1] - knots[low])).exp()
        found[item] = found[item] + weight
        total = total + weight
    return torch.stack(found) / total


def mixed_scores(head: RepeatHead, scores: Tensor, hidden: Tensor, history: list[int]) -> Tensor:
    return (scores.exp() + head.weight(hidden).exp() * shares_by_item(head, history)).log()


def histories(batch: Batch, *, whole: bool) -> list[list[int]]:
    """The history up to every event, or only the whole ones."""
    found = []
    for first, last in zip(batch.packing.cu_seqlens[:-1].tolist(), batch.packing.cu_seqlens[1:].tolist(), strict=True):
        found += [batch.items[first:end].tolist() for end in ((last,) if whole else range(first + 1, last + 1))]
    return found


def test_the_first_weights_are_a_power_of_the_lag() -> None:
    for room in (1, 2, 3, 50, REACH):
        lags = torch.arange(1, room + 1, dtype=torch.float64)
        torch.testing.assert_close(RepeatHead(DIM, room, ITEMS).lags().double(), lags**-0.9, rtol=1e-5, atol=0)


def test_scores_are_those_of_the_mixture() -> None:
    head, batch = made_head(), batch_of()
    scores, hidden = torch.randn(len(LENGTHS), ITEMS).double(), torch.randn(len(LENGTHS), DIM).double()
    found = head.add_to(scores, hidden, Recent.of(batch))
    rows = zip(scores, hidden, histories(batch, whole=True), strict=True)
    torch.testing.assert_close(found, torch.stack([mixed_scores(head, *row) for row in rows]), rtol=1e-7, atol=1e-7)
    absent = torch.ones(ITEMS, dtype=torch.bool)
    absent[batch.items[:1]] = False
    assert torch.equal(found[0, absent], scores[0, absent]) and found[0, ~absent] > scores[0, ~absent]


def losses_by_formula(head: RepeatHead, batch: Batch, hidden: Tensor, scores: Tensor) -> Tensor:
    assert batch.targets is not None
    rows = zip(scores.detach(), hidden.detach(), histories(batch, whole=False), strict=True)
    mixed = torch.stack([mixed_scores(head, *row) for row in rows])  # (T, V)
    loss = torch.nn.functional.cross_entropy
    return loss(scores, batch.targets) + loss(mixed, batch.targets)


def leaves(head: RepeatHead, count: int) -> dict[str, Tensor]:
    torch.manual_seed(3)
    made = {"hidden": torch.randn(count, DIM), "weight": torch.randn(ITEMS, DIM), "bias": torch.randn(ITEMS)}
    return {name: value.double().requires_grad_() for name, value in made.items()} | dict(head.named_parameters())


def assert_same(found: Tensor, want: Tensor, of: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """The losses add up in float32."""
    torch.testing.assert_close(found.double(), want, rtol=tolerance, atol=tolerance)
    gradients = (torch.autograd.grad(loss.double(), list(of.values())) for loss in (found, want))
    for name, a, b in zip(of, *gradients, strict=True):
        torch.testing.assert_close(
            a, b, rtol=10 * tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [1, 1], [30]], ids=str)
def test_the_full_loss_and_its_gradients(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyenarec.repeats.COMPARED", 40)  # several parts
    monkeypatch.setattr("hyenarec.losses.CHUNK_SCORES", 3 * ITEMS)
    head, batch = made_head(), batch_of(lengths)
    of = leaves(head, sum(lengths))
    assert batch.targets is not None
    repeats = head.of_targets(of["hidden"], batch)
    found = full_cross_entropy(of["hidden"], of["weight"], of["bias"], batch.targets, repeats)
    scores = of["hidden"] @ of["weight"].T + of["bias"]
    assert_same(found, losses_by_formula(head, batch, of["hidden"], scores), of)


def test_the_sampled_loss_with_every_item_drawn_once_is_the_full_one() -> None:
    head, batch = made_head(), batch_of()
    of = leaves(head, sum(LENGTHS))
    assert batch.targets is not None
    repeats = head.of_targets(of["hidden"], batch)
    log_q = torch.full((ITEMS,), -math.log(ITEMS), dtype=torch.float64)  # so that no score is corrected
    found = sampled_softmax(of["hidden"], of["weight"], of["bias"], batch.targets, torch.arange(ITEMS), log_q, repeats)
    scores = of["hidden"] @ of["weight"].T + of["bias"]
    assert_same(found, losses_by_formula(head, batch, of["hidden"], scores), of)


def test_a_target_that_is_all_of_the_history_has_finite_gradients() -> None:
    head = made_head()
    batch = Batch(torch.tensor([2, 2]), Packing.from_lengths(torch.tensor([2])), targets=torch.tensor([2, 5]))
    of = leaves(head, 2)
    assert batch.targets is not None
    for loss in (
        full_cross_entropy(of["hidden"], of["weight"], of["bias"], batch.targets, head.of_targets(of["hidden"], batch)),
        sampled_softmax(
            *(of["hidden"], of["weight"], of["bias"], batch.targets, torch.arange(4), torch.zeros(ITEMS).double()),
            head.of_targets(of["hidden"], batch),
        ),
    ):
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, list(of.values())))


@pytest.mark.parametrize("broken", ["lag", "neighbour", "gate"])
def test_the_tolerance_tells_a_broken_head(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, batch = made_head(), batch_of()
    of = leaves(head, sum(LENGTHS))
    assert batch.targets is not None
    with torch.no_grad():
        want = losses_by_formula(head, batch, of["hidden"], of["hidden"] @ of["weight"].T + of["bias"])
        if broken == "lag":
            monkeypatch.setattr(head, "lags", lambda: RepeatHead.lags(head).roll(1))
        elif broken == "neighbour":  # the events of the sequence before are read, too
            object.__setattr__(batch.packing, "_positions", batch.packing.positions + 1)
        repeats = head.of_targets(of["hidden"], batch)
        if broken == "gate":
            repeats = Repeats(repeats.anything + 1, repeats.target)
        found = full_cross_entropy(of["hidden"], of["weight"], of["bias"], batch.targets, repeats)
    assert abs(float(found) - float(want)) > 1e-3


def model_of(mixer: str = "hyena", **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(mixer=mixer, dim=DIM, max_length=ROOM, repeats="on", dropout=0.0, **options)
    model = SequenceModel(config, ITEMS).eval()
    assert model.repeats is not None
    torch.nn.init.normal_(model.repeats.weight.weight)
    return model


@pytest.mark.parametrize("mixer", ["hyena", "gru", "lru"])
@torch.no_grad()
def test_steps_score_like_whole_histories(mixer: str) -> None:
    model = model_of(mixer)
    items = torch.randint(ITEMS, (3, 2 * ROOM + 3), generator=torch.Generator().manual_seed(4))
    state = model.init_state(3)
    for event in range(items.shape[1]):
        hidden, state = model.step(items[:, event], state)
        packing = Packing.from_lengths(torch.full((3,), event + 1))
        batch = Batch(items[:, : event + 1].flatten(), packing)
        want = model.scores_of(hidden, Recent.of(batch))
        torch.testing.assert_close(model.scores_of(hidden, state.recent()), want)
        if event in (0, ROOM - 1, ROOM + 4):
            reached, after = model.prefill(batch)
            torch.testing.assert_close(model.scores_of(reached, after.recent()), want, rtol=1e-4, atol=1e-4)
            state = after
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(model.scores_of(hidden[rows], state.recent(rows)), want[rows])
    joined = type(state).cat([state.index(rows), state.index(torch.tensor([1]))])
    assert joined.history is not None and state.history is not None
    assert torch.equal(joined.history, state.history[[2, 0, 1]])
    assert state.with_tensors(state.tensors()).history is state.history


@torch.inference_mode()
def test_a_session_knows_the_last_items() -> None:
    ids = Ids.from_values([f"item-{number}" for number in range(ITEMS)])
    config = {"training": {"bf16": False, "exclude_seen": False}, "data": {"time_unit": "s"}}
    reader = Recommender(model_of(), ids, ids, config, torch.device("cpu"))
    draw = np.random.default_rng(0)
    known = [[f"item-{item}" for item in draw.integers(ITEMS, size=size)] for size in (1, 9, 30)]
    session = reader.session(known)
    for new in draw.integers(ITEMS, size=(ROOM + 2, 3)):
        session.append([f"item-{item}" for item in new])
        known = [[*history, f"item-{item}"] for history, item in zip(known, new, strict=True)]
    answers = session.recommend(k=3)
    want = [reader.model.recent(reader.batch(reader.requests([history], None))) for history in known]
    for user, (answer, recent) in enumerate(zip(answers, want, strict=True)):
        state = session.state(user)
        found = reader.model.scores_of(session._hidden[user : user + 1], state.recent())
        expected = reader.model.scores_of(session._hidden[user : user + 1], recent)
        torch.testing.assert_close(found, expected)
        assert [one.item for one in answer] == ids.decode(expected[0].topk(3).indices.numpy())


def test_the_head_reaches_back_no_further_than_it_says() -> None:
    head = RepeatHead(DIM, 3 * REACH, 1000)
    items = torch.arange(REACH + 5)
    recent = Recent.of(Batch(items, Packing.from_lengths(torch.tensor([len(items)]))))
    scores = head.add_to(torch.zeros(1, 1000), torch.zeros(1, DIM), recent)
    assert head.room == REACH and scores[0].nonzero()[:, 0].tolist() == list(range(5, len(items)))


def test_large_scores_overflow_nothing() -> None:
    head = RepeatHead(DIM, 4, ITEMS)
    with torch.no_grad():
        head.knots += torch.linspace(-300, 300, len(head.knots))
    batch = batch_of([4])
    for base in (-300.0, 0.0, 300.0):
        scores = head.add_to(torch.full((1, ITEMS), base), torch.zeros(1, DIM), Recent.of(batch))
        assert scores.isfinite().all()
    assert batch.targets is not None
    repeats = head.of_targets(torch.zeros(4, DIM), batch)
    loss = repeats.loss(torch.zeros(4), torch.zeros(4))
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, list(head.parameters())))


@torch.no_grad()
def test_scores_need_the_items() -> None:
    model = model_of()
    with pytest.raises(TypeError, match="needs `recent`"):
        model.scores_of(torch.zeros(1, DIM))


def test_a_mixer_that_is_not_causal_has_none() -> None:
    assert {name for name, mixer in MIXERS.items() if not mixer.causal} == set(BIDIRECTIONAL)
    for mixer in BIDIRECTIONAL:
        with pytest.raises(UserError, match=f"option repeats: not used by {mixer}"):
            ModelConfig(mixer=mixer, repeats="on")


def store_of(*histories: list[int]) -> SequenceStore:
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    ids = Ids.from_values(range(len(histories))), Ids.from_values(range(6))
    return SequenceStore(offsets, np.concatenate(histories).astype(np.int32), None, *ids)


def test_auto_takes_it_where_people_come_back() -> None:
    back, new = store_of([1, 2, 1, 2, 1, 3], [3, 3, 3, 3, 3]), store_of([1, 2, 3, 4, 5], [3, 1, 2, 5, 4])
    tenth = store_of([0, 1, 2, 3, 4, 5, 4, 0, 0], [1, 2, 3, 0, 0])  # of 10 training events one is a repeat
    assert share_of_repeats(back, leave_one_out(back)) == pytest.approx(4 / 7)
    assert share_of_repeats(new, leave_one_out(new)) == 0
    for store, want in ((back, "on"), (new, "off"), (tenth, "on")):
        split = leave_one_out(store)
        assert settled(ModelConfig(), store, split).repeats == want
        assert settled(ModelConfig(repeats="on"), store, split).repeats == "on"
        assert settled(ModelConfig(mixer="bert4rec"), store, split).repeats == "off"


def test_parts_of_the_items_have_their_part_of_the_scores() -> None:
    head, batch = made_head(), batch_of()
    scores, hidden = torch.randn(len(LENGTHS), ITEMS).double(), torch.randn(len(LENGTHS), DIM).double()
    whole = head.add_to(scores, hidden, Recent.of(batch))
    parts = [
        head.add_to(scores[:, first:last], hidden, Recent.of(batch), first) for first, last in ((0, 3), (3, 4), (4, 7))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
