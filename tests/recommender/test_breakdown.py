"""Metrics by kind of target, coverage and novelty, and the item-to-item baseline equal loops or figures by hand."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from hyenarec.baselines import FOLLOWING, LAST, NEIGHBOURS, ItemToItem, Popularity
from hyenarec.breakdown import TargetKinds, averaged, metrics_of, seen_and_unseen, transitions
from hyenarec.data import Ids, SequenceStore, Split, leave_one_out
from hyenarec.data.batches import Batch, pack_histories
from hyenarec.data.splits import training_counts
from hyenarec.evaluation import Ranking, ages, rank_targets


def make_store(users: int = 30, n_items: int = 12, longest: int = 60) -> SequenceStore:
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, longest, users)
    items = rng.integers(0, n_items, lengths.sum()).astype(np.int32)
    offsets = np.concatenate(([0], lengths.cumsum()))
    return SequenceStore(offsets, items, None, Ids.from_values(range(users)), Ids.from_values(range(n_items)))


def test_ages_against_a_loop() -> None:
    store = make_store(n_items=40)
    targets = leave_one_out(store).test
    expected = []
    for target, user in zip(targets.tolist(), store.users_of(targets).tolist(), strict=True):
        history = store.items[store.offsets[user] : target].tolist()[::-1]
        item = int(store.items[target])
        expected.append(history.index(item) + 1 if item in history else 0)
    assert 0 in expected and max(expected) > 5
    assert ages(store, targets).tolist() == expected


def test_buckets_are_named_after_what_they_hold() -> None:
    values = np.array([0, 1, 2, 5, 6, 600])
    ranking = Ranking(np.array([0, 99, 99, 0, 99, 0]), np.full(6, 9))
    rows = ranking.by("age", values, (0, 1, 5, 500))
    assert [(row["age"], row["targets"], row["HR@10"]) for row in rows] == [
        ("0", 1, 1.0),
        ("1", 1, 0.0),
        ("2-5", 2, 0.5),
        ("6-500", 1, 0.0),
        ("501+", 1, 1.0),
    ]


def test_coverage_and_novelty_by_hand() -> None:
    counts = np.array([7, 3, 1, 1])  # with one added to each: 8, 4, 2, 2 of 16 events
    shown = np.array([3, 0, 1, 0])
    found = metrics_of(Ranking(np.array([0]), np.array([1]), shown), counts)
    assert found["coverage@10"] == 0.5
    assert found["novelty@10"] == pytest.approx((3 * math.log2(2) + math.log2(8)) / 4)
    assert "coverage@10" not in metrics_of(Ranking(np.array([0]), np.array([1])), counts)


class Fixed:
    """Gives everyone the same scores, which grow with the index of the item."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def scores(self, batch: Batch) -> Tensor:
        return torch.arange(float(self.n_items)).repeat(batch.packing.sequences, 1)


def test_shown_are_the_best_ten_that_may_be_recommended() -> None:
    store = make_store(n_items=12)
    targets = leave_one_out(store).test
    everything = rank_targets(Fixed(12), store, targets, max_length=100, exclude_seen=False, count_shown=True).shown
    assert everything is not None and everything.tolist() == [0, 0] + 10 * [len(targets)]
    unseen = rank_targets(Fixed(12), store, targets, max_length=100, count_shown=True).shown
    expected = np.zeros(12, dtype=np.int64)
    for target, user in zip(targets.tolist(), store.users_of(targets).tolist(), strict=True):
        history = set(store.items[store.offsets[user] : target].tolist())
        expected[[item for item in range(12) if item not in history][-10:]] += 1
    assert unseen is not None and np.array_equal(unseen, expected)


def test_breakdowns_partition_the_targets() -> None:
    store = make_store()
    split = leave_one_out(store)
    ranking = rank_targets(Fixed(12), store, split.test, max_length=9, exclude_seen=False, count_shown=True)
    kinds, counts = TargetKinds.of(store, split, split.test), training_counts(store, split)
    parts = kinds.breakdown(ranking)
    assert set(parts) == {"by_history_length", "by_age", "by_popularity", "by_transition"}
    for rows in parts.values():
        assert sum(row["targets"] for row in rows) == len(split.test)
        average = sum(row["MRR"] * row["targets"] for row in rows) / len(split.test)
        assert average == pytest.approx(ranking.metrics()["MRR"])
    popular = next(row for row in parts["by_popularity"] if row["popularity"] == "21-100")
    assert popular["targets"] == sum(20 < counts[item] <= 100 for item in store.items[split.test])
    report = kinds.report(ranking)
    halves = seen_and_unseen(report)
    new = ages(store, split.test) == 0
    gains = np.where(ranking.ranks < 10, 1 / np.log2(ranking.ranks + 2), 0)
    assert halves["new to the user"] == pytest.approx(gains[new].mean())
    assert halves["seen before"] == pytest.approx(gains[~new].mean())
    better = {**report, "test_by_age": [{**row, "NDCG@10": row["NDCG@10"] + 0.1} for row in report["test_by_age"]]}
    both = averaged([report, better], "by_age")
    assert both["0"] == pytest.approx(halves["new to the user"] + 0.05)


@pytest.mark.parametrize("chunk", [1 << 24, 7])
def test_transitions_against_a_loop(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has a user with one event, users with none, and a target with no item before it."""
    monkeypatch.setattr("hyenarec.breakdown.CHUNK", chunk)
    offsets = np.array([0, 0, 1, 40, 41, 80, 80])
    items = np.random.default_rng(0).integers(0, 4, 80, dtype=np.int32)
    store = SequenceStore(offsets, items, None, Ids.from_values(range(6)), Ids.from_values(range(4)))
    ends = np.array([0, 1, 33, 40, 70, 80])
    split = Split(train_ends=ends, validation=np.array([33, 70]), test=np.array([0, 39, 79]))
    trained = [
        (int(store.items[event - 1]), int(store.items[event]))
        for start, end in zip(offsets[:-1].tolist(), ends.tolist(), strict=True)
        for event in range(start + 1, end)
    ]
    for targets in (split.test, split.validation):
        expected = [
            0 if target in offsets else trained.count((int(store.items[target - 1]), int(store.items[target])))
            for target in targets.tolist()
        ]
        assert transitions(store, split, targets).tolist() == expected
        assert max(expected) > 1


@pytest.mark.parametrize("every", [1, 3])
def test_item_to_item_against_a_loop(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large log, only every third user's events are counted."""
    store = make_store(n_items=12)
    monkeypatch.setattr(
        "hyenarec.baselines.MOST_EVENTS", int(training_counts(store, leave_one_out(store)).sum()) // every + 1
    )
    split = leave_one_out(store)
    popularity = Popularity(store, split)
    scorer = ItemToItem(store, split, popularity)
    follows: dict[tuple[int, int], float] = defaultdict(float)
    for user in range(0, store.n_users, every):
        events = store.items[store.offsets[user] : split.train_ends[user]].tolist()
        for place, item in enumerate(events):
            for lag, later in enumerate(events[place + 1 : place + 1 + FOLLOWING], 1):
                follows[item, later] += 1 / lag
    counts = popularity.counts.tolist()
    histories = [store.items[: LAST + 15], store.history(3)[:2]]
    found = scorer.scores(pack_histories(histories, 200))
    for history, scores in zip(histories, found, strict=True):
        expected = np.zeros(12)
        for age, item in enumerate(history[::-1][:LAST].tolist(), 1):
            for other in range(12):
                expected[other] += follows[item, other] / math.sqrt(counts[item] * counts[other]) / age
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_item_to_item_keeps_the_best_followers_and_falls_back_on_popularity() -> None:
    n_items = NEIGHBOURS + 20
    # Item 0 is followed by every other item, by the last five twice. One more user has two items of their own.
    pairs = [(0, item) for item in range(1, n_items - 2)] + [(0, item) for item in range(n_items - 7, n_items - 2)]
    histories = [*pairs, (n_items - 2, n_items - 1)]
    items = np.array(histories, dtype=np.int32).ravel()
    offsets = np.arange(0, len(items) + 1, 2)
    ids = Ids.from_values(range(len(histories)))
    store = SequenceStore(offsets, items, None, ids, Ids.from_values(range(n_items)))
    split = Split(offsets[1:], np.empty(0, np.int64), np.empty(0, np.int64))
    scorer = ItemToItem(store, split, Popularity(store, split))
    assert scorer.starts.diff().tolist()[0] == NEIGHBOURS
    (scores,) = scorer.scores(pack_histories([np.array([0], np.int32)], 5))
    followers = scores.topk(NEIGHBOURS).indices.tolist()
    assert set(range(n_items - 7, n_items - 2)) <= set(followers[:5])
    (scores,) = scorer.scores(pack_histories([np.array([n_items - 1], np.int32)], 5))  # nothing follows it
    assert scores.argmax() == 0 and scores.min() > 0


def test_item_to_item_without_any_pair() -> None:
    ids = Ids.from_values(range(3))
    store = SequenceStore(np.arange(4), np.array([0, 1, 1], np.int32), None, ids, ids)
    split = Split(np.array([1, 2, 3]), np.empty(0, np.int64), np.empty(0, np.int64))
    scorer = ItemToItem(store, split, Popularity(store, split))
    (scores,) = scorer.scores(pack_histories([np.array([0], np.int32)], 5))
    assert scores.argmax() == 1
