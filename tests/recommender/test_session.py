"""Sessions answer what reading the whole history answers, while users come, act and leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyenarec.answers import Recommendation
from hyenarec.config import HyenaConfig, ModelConfig
from hyenarec.data.ids import Ids
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender

LONGEST = 12
ITEMS = [f"item-{i}" for i in range(40)]
CONFIG: dict[str, Any] = {"training": {"bf16": False, "exclude_seen": True}, "data": {"time_unit": "s"}}


def recommender(mixer: str) -> Recommender:
    torch.manual_seed(0)
    model = SequenceModel(
        ModelConfig(mixer=mixer, dim=8, max_length=LONGEST, repeats="on" if MIXERS[mixer].causal else "off"), len(ITEMS)
    )
    ids = Ids.from_values(ITEMS)
    return Recommender(model, ids, ids, CONFIG, torch.device("cpu"))


def same(got: list[list[Recommendation]], want: list[list[Recommendation]]) -> None:
    for one, other in zip(got, want, strict=True):
        assert [entry.item for entry in one] == [entry.item for entry in other]
        assert [entry.score for entry in one] == pytest.approx([entry.score for entry in other], abs=1e-4)


@pytest.mark.parametrize("mixer", ["hyena", "gru", "attention", "elastic"])
def test_users_come_act_and_go(mixer: str) -> None:
    reader = recommender(mixer)
    histories = [ITEMS[:5], [], ITEMS[7:10]]
    session = reader.session(histories)
    with pytest.raises(UserError, match=r"^user 1: no events yet"):
        session.recommend(3)
    same(session.recommend(3, users=[2, 0]), reader.recommend([histories[2], histories[0]], 3))

    session.append(["item-20", "item-21", "item-22"])
    histories = [[*ITEMS[:5], "item-20"], ["item-21"], [*ITEMS[7:10], "item-22"]]
    same(session.recommend(4), reader.recommend(histories, 4))

    session.append(["item-30"], users=[1])
    histories[1] = ["item-21", "item-30"]
    same(session.recommend(4), reader.recommend(histories, 4))

    assert session.join([["item-1"], []]) == range(3, 5)
    session.leave([0, 4])
    assert len(session) == 3
    histories = [histories[1], histories[2], ["item-1"]]
    same(session.recommend(4), reader.recommend(histories, 4))
    session.append(["item-3", "item-4"], users=[2, 0])
    same(
        session.recommend(4),
        reader.recommend([[*histories[0], "item-4"], histories[1], [*histories[2], "item-3"]], 4),
    )


@pytest.mark.parametrize("mixer", ["attention", "hydra"])
def test_positions_that_are_all_taken_are_given_back(mixer: str) -> None:
    """When all ``max_length`` positions are taken, the model starts again from the last three quarters of them."""
    reader = recommender(mixer)
    session, history = reader.session([ITEMS[:LONGEST], ITEMS[:3]]), ITEMS[:LONGEST]
    session.append(["item-30", "item-31"])
    kept = [*history[-9:], "item-30"]
    got = session.recommend(3, exclude_seen=False)
    same(got, reader.recommend([kept, [*ITEMS[:3], "item-31"]], 3, exclude_seen=False))
    assert not {entry.item for entry in session.recommend(20)[0]} & {*history, "item-30"}  # seen, though not read again


def test_others_remember_more_than_the_length_of_a_window() -> None:
    session = recommender("gru").session([ITEMS[:LONGEST]])
    other = recommender("gru").session([[*ITEMS[: LONGEST - 1], "item-39"]])
    for item in ITEMS[20:30]:
        session.append([item])
        other.append([item])
    assert session.recommend(3) != other.recommend(3)


@pytest.mark.parametrize("mixer", ["hyena", "gru"])
def test_compact_states_answer_alike(mixer: str) -> None:
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(mixer=mixer, dim=8, max_length=512), len(ITEMS))
    ids = Ids.from_values(ITEMS)
    reader = Recommender(model, ids, ids, CONFIG, torch.device("cpu"))
    histories = [[ITEMS[i % 40] for i in range(300)], []]
    sessions = [reader.session(histories, compact=compact) for compact in (False, True)]
    for session in sessions:
        for i in range(70):
            session.append([ITEMS[i % 31], ITEMS[i % 17]])
    same(sessions[1].recommend(4, exclude_seen=False), sessions[0].recommend(4, exclude_seen=False))
    exact, compact = (sum(t.numel() for t in session.state(0).tensors().values()) for session in sessions)
    assert compact < exact / 2 if mixer == "hyena" else compact == exact


def test_time_counts() -> None:
    reader = recommender("hytrec")
    history, times = ITEMS[:4], [100, 200, 90_000, 90_010]
    session = reader.session([history[:2]], timestamps=[times[:2]])
    for item, time in zip(history[2:], times[2:], strict=True):
        session.append([item], timestamps=[time])
    same(session.recommend(3), reader.recommend([history], 3, timestamps=[times]))
    with pytest.raises(UserError, match="older than the last one"):
        session.append(["item-9"], timestamps=[5])
    with pytest.raises(UserError, match="with every event or with none"):
        session.append(["item-9"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.append(["item-1"]), "items: one is needed for each of 2 users"),
        (lambda s: s.append("ab"), "items: one is needed for each of 2 users"),
        (lambda s: s.append(["item-1", "nothing"]), "history 2: .*'nothing'"),
        (lambda s: s.append(["item-1"], users=[2]), "users: 2 is none of the 2 users"),
        (lambda s: s.append(["item-1"], users=["0"]), "users"),
        (lambda s: s.append(["item-1", "item-2"], users=[0, 0]), "users: each at most once"),
        (lambda s: s.join([["nothing"]]), "history 1: .*'nothing'"),
        (lambda s: s.leave([7]), "users: 7"),
        (lambda s: s.recommend(0), "option k: 0"),
        (lambda s: s.recommend(39, users=[0]), "user 0 leaves 38"),
    ],
)
def test_what_cannot_be_read_changes_nothing(call: Any, message: str) -> None:
    session = recommender("hyena").session([ITEMS[:2], ITEMS[2:3]])
    before = session.recommend(5)
    with pytest.raises(UserError, match=message):
        call(session)
    assert session.recommend(5) == before and len(session) == 2


def test_bidirectional_models_have_none() -> None:
    with pytest.raises(UserError, match=r"bert4rec .* has no state"):
        recommender("bert4rec").session([ITEMS[:2]])


@pytest.mark.parametrize("filter", ["cosine", "explicit", "implicit", "logsparse"])
def test_filters_without_a_compact_state_have_the_exact_one(filter: Any) -> None:
    torch.manual_seed(0)
    options = HyenaConfig(filter=filter)
    model = SequenceModel(ModelConfig(mixer="hyena", dim=8, max_length=300, hyena=options), 40).eval()
    exact, compact = (model.init_state(2, compact=compact).tensors() for compact in (False, True))
    assert {name: t.shape for name, t in exact.items()} == {name: t.shape for name, t in compact.items()}
