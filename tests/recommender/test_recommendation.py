from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE

from hyenarec.data.batches import Batch, pack_histories
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.packing import Packing
from hyenarec.plots import learned_filters, training_curves
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import Run, read_history


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SequenceStore]:
    folder, store = tmp_path_factory.mktemp("run"), make_store()
    Run(folder, store, leave_one_out(store), MODEL, CONFIG, SOURCE).train()
    return folder, store


def test_recommendations_are_the_best_scores_in_the_logs_own_ids(trained: tuple[Path, SequenceStore]) -> None:
    folder, store = trained
    recommender = Recommender.load(folder)
    history = store.item_ids.decode(store.history(3))
    scores = recommender.scores(pack_histories([store.history(3)], MODEL.max_length))[0].detach().numpy()
    answer = recommender.recommend([history], k=5, exclude_seen=False)[0]
    assert [entry.item for entry in answer] == [100 + int(i) for i in np.argsort(-scores)[:5]]
    assert [entry.score for entry in answer] == pytest.approx(sorted(scores.tolist(), reverse=True)[:5])


def test_seen_items_are_excluded_over_the_whole_history(trained: tuple[Path, SequenceStore]) -> None:
    folder, _ = trained
    recommender = Recommender.load(folder)
    history = [100 + i for i in range(25)]  # longer than the model's max_length, 8
    answer = recommender.recommend([history], k=5, exclude_seen=True)[0]
    assert {entry.item for entry in answer} == {125, 126, 127, 128, 129}


def test_a_batch_answers_as_each_history_alone(
    trained: tuple[Path, SequenceStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = trained
    recommender = Recommender.load(folder / "best.safetensors")
    histories = [store.item_ids.decode(store.history(user)) for user in range(10)]
    monkeypatch.setattr("hyenarec.recommendation.HISTORIES_AT_A_TIME", 4)
    together = recommender.recommend(histories, k=3)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.recommend([history], k=3)[0]
        assert [entry.item for entry in alone] == [entry.item for entry in answer]
        assert [entry.score for entry in alone] == pytest.approx([entry.score for entry in answer], abs=1e-4)


def test_models_that_know_time_take_it(tmp_path: Path) -> None:
    """The scores use the times of each user's own events, cut off as the events are. Without times there is a warning,
    and positions take their place."""
    store, folder = make_store(), tmp_path / "run"
    model = replace(MODEL, mixer="hytrec")
    assert store.timestamps is not None
    Run(folder, store, leave_one_out(store), model, replace(CONFIG, epochs=1), SOURCE).train()
    recommender, users = Recommender.load(folder), [3, 1, 5]  # user 1 has 25 events, of which the model reads 8
    rows = [slice(store.offsets[user], store.offsets[user + 1]) for user in users]
    histories = [store.item_ids.decode(store.items[row]) for row in rows]
    times = [store.timestamps[row].tolist() for row in rows]
    answers = recommender.recommend(histories, k=3, timestamps=times, exclude_seen=False)
    with pytest.warns(UserWarning, match="^hytrec: no timestamps given; positions take their place$"):
        untimed = recommender.recommend(histories, k=3, exclude_seen=False)
    assert answers != untimed
    for row, answer in zip(rows, answers, strict=True):
        part = slice(max(row.start, row.stop - 8), row.stop)
        packing = Packing.from_lengths(torch.tensor([part.stop - part.start]))
        items = torch.from_numpy(store.items[part].astype(np.int64))
        scores = recommender.scores(Batch(items, packing, torch.from_numpy(store.timestamps[part])))
        assert [entry.score for entry in answer] == pytest.approx(scores[0].topk(3).values.tolist(), abs=1e-5)
    with pytest.raises(UserError, match=r"^timestamps: one is needed for each event of each history$"):
        recommender.recommend(histories, k=3, timestamps=[row[1:] for row in times])


def test_bad_requests_are_one_line(trained: tuple[Path, SequenceStore]) -> None:
    recommender = Recommender.load(trained[0])
    for histories, k, message in (
        ([[100], [101, 7]], 3, "history 2: .*7"),
        ([[100], []], 3, "history 2: empty"),
        ([[100]], 30, "option k: 30 items asked for, but history 1 leaves 29 of the catalogue"),
        ([[100]], 0, "option k: 0 is below 1"),
    ):
        with pytest.raises(UserError, match=message):
            recommender.recommend(histories, k=k, exclude_seen=True)
    assert len(recommender.recommend([[100]], k=30, exclude_seen=False)[0]) == 30


def test_histories_come_from_anywhere_but_nested(trained: tuple[Path, SequenceStore]) -> None:
    recommender = Recommender.load(trained[0])
    histories = [[100, 101], [102]]
    want = recommender.recommend(histories, k=3)
    assert recommender.recommend((history for history in histories), k=3) == want
    assert recommender.recommend((np.array(history) for history in histories), k=3) == want
    flat: list[Any] = [["100", "101"], [100, 101], "100"]
    for given in flat:
        with pytest.raises(UserError, match=r"is an item, not a history; nest them, as in recommend\(\[\["):
            recommender.recommend(given)


def test_no_history_costs_another_its_answer(trained: tuple[Path, SequenceStore]) -> None:
    recommender = Recommender.load(trained[0])
    everything = list(range(100, 130))
    histories = [[100], [], [101, 7, "new"], ["new"], everything, everything[:-2], [100]]
    answers = list(recommender.answers(histories, k=3, exclude_seen=True))
    assert [len(answer.recommendations) for answer in answers] == [3, 0, 3, 0, 0, 2, 3]
    assert [answer.unknown for answer in answers] == [[], [], [7, "new"], ["new"], [], [], []]
    reasons = [answer.error or "" for answer in answers]
    for reason, part in zip(reasons, ("", "empty; at least", "", "knows none", "every item", "", ""), strict=True):
        assert part in reason and bool(part) == bool(reason)
    assert [entry.item for entry in answers[2].recommendations] == [
        entry.item for entry in recommender.recommend([[101]], k=3, exclude_seen=True)[0]
    ]
    strict = list(recommender.answers(histories[:3], k=3, unknown="error"))
    assert strict[2].error is not None and strict[2].error.startswith("unknown item 7: the 30 known ones")


def test_answers_come_before_all_histories_are_read(
    trained: tuple[Path, SequenceStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyenarec.recommendation.HISTORIES_AT_A_TIME", 4)
    read = 0

    def histories() -> Iterator[list[int]]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield [100]

    next(Recommender.load(trained[0]).answers(histories()))
    assert read == 4


def test_seen_items_are_left_out_as_the_model_was_trained(trained: tuple[Path, SequenceStore]) -> None:
    recommender = Recommender.load(trained[0])  # was trained with exclude_seen=False
    assert len(recommender.recommend([[100]], k=30)[0]) == 30
    recommender.config["training"]["exclude_seen"] = True
    with pytest.raises(UserError, match="leaves 29"):
        recommender.recommend([[100]], k=30)


def test_times_that_no_log_has_are_refused(tmp_path: Path) -> None:
    store, folder = make_store(), tmp_path / "run"
    config = replace(CONFIG, epochs=1)
    Run(folder, store, leave_one_out(store), replace(MODEL, mixer="fuxi_linear"), config, SOURCE).train()
    recommender = Recommender.load(folder)
    history = [100, 101, 102]
    second = 1_700_000_000
    for times, message in (
        ([30, 20, 10], r"timestamps: time 2 is before time 1; histories and their times go oldest first"),
        ([second, second + 5, 0], r"time 3 is before time 2"),
        ([second, second * 1000, second * 1000 + 5], r"times of more than one unit"),
        (
            [second * 1000, second * 1000 + 5, second * 1000 + 9],
            r"looks like a time in ms, but",
        ),
        ([1.0, float("nan"), 3.0], r"time 2 is nan"),
        ([-1, 2, 3], r"-1 is no time"),
        (["a", "b", "c"], r"'a' is no time"),
    ):
        rows: Any = [[1, 2, 3], times]
        with pytest.raises(UserError, match=f"^history 2: .*{message}"):
            recommender.recommend([history, history], timestamps=rows)
    seconds = recommender.recommend([history], timestamps=[[second, second + 60, second + 120]])
    for same in (
        [second + 0.5, second + 60.5, second + 120.5],
        np.array([second, second + 60, second + 120], "datetime64[s]").astype("datetime64[ns]"),
        ["2023-11-14T22:13:20", "2023-11-14T22:14:20", "2023-11-14T22:15:20"],
    ):
        given: Any = [same]
        assert recommender.recommend([history], timestamps=given) == seconds


def test_no_score_that_is_no_number_leaves(trained: tuple[Path, SequenceStore]) -> None:
    recommender = Recommender.load(trained[0])
    with torch.no_grad():
        recommender.model.bias[3] = float("nan")
    with pytest.raises(UserError, match=r"^history 1: the model.s scores are NaN"):
        recommender.recommend([[100]])
    assert [answer.recommendations for answer in recommender.answers([[100], [101]])] == [[], []]


def test_a_model_trained_in_bfloat16_answers_in_it(trained: tuple[Path, SequenceStore]) -> None:
    folder, store = trained
    recommender = Recommender.load(folder)
    batch = pack_histories([store.history(3)], MODEL.max_length)
    exact = recommender.scores(batch)
    recommender.config["training"]["bf16"] = True
    with torch.autocast("cpu", torch.bfloat16):
        want = recommender.model.scores(batch)
    assert torch.equal(recommender.scores(batch), want) and not torch.equal(want, exact)


def test_pictures(trained: tuple[Path, SequenceStore], tmp_path: Path) -> None:
    folder, _ = trained
    learned_filters(Recommender.load(folder).model, tmp_path / "filters.png")
    training_curves({"hyena": read_history(folder)}, "Recall@10", tmp_path / "curve.png")
    for name in ("filters.png", "curve.png"):
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5_000
