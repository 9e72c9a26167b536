from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
    history = [100 + i for i in range(25)]  # longer than the model's max_length of 8
    answer = recommender.recommend([history], k=5)[0]
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
    """The times of each user's own events, cut with them, in the scores; without them a warning and positions."""
    store, folder = make_store(), tmp_path / "run"
    model = replace(MODEL, mixer="hytrec")
    assert store.timestamps is not None
    Run(folder, store, leave_one_out(store), model, replace(CONFIG, epochs=1), SOURCE).train()
    recommender, users = Recommender.load(folder), [3, 1, 5]  # user 1 has 25 events, and the model reads 8
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
            recommender.recommend(histories, k=k)
    assert len(recommender.recommend([[100]], k=30, exclude_seen=False)[0]) == 30


def test_pictures(trained: tuple[Path, SequenceStore], tmp_path: Path) -> None:
    folder, _ = trained
    learned_filters(Recommender.load(folder).model, tmp_path / "filters.png")
    training_curves({"hyena": read_history(folder)}, "Recall@10", tmp_path / "curve.png")
    for name in ("filters.png", "curve.png"):
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5_000
