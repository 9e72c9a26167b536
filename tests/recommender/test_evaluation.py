from __future__ import annotations

import numpy as np
import pytest
import torch
from generated import make_store
from torch import Tensor
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from hyenarec.baselines import Popularity, RepeatLast, RepeatOften, baselines
from hyenarec.data.batches import Batch, pack_histories
from hyenarec.data.ids import Ids
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.evaluation import (
    Ranking,
    Seen,
    exclude_history,
    known_part,
    rank_targets,
    repeats,
    repeats_line,
    target_ranks,
)


class RandomScorer:
    """Random scores that depend only on the history, so that all calls agree."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def scores(self, batch: Batch) -> Tensor:
        seeds = torch.zeros(batch.packing.sequences, dtype=torch.int64).index_add_(
            0, batch.packing.rows, batch.items + 1
        )
        return torch.stack([torch.randn(self.n_items, generator=torch.Generator().manual_seed(int(s))) for s in seeds])


def test_metrics_agree_with_torchmetrics() -> None:
    torch.manual_seed(0)
    scores, targets = torch.rand(50, 40), torch.randint(40, (50,))  # torchmetrics counts scores below 0 as misses
    metrics = Ranking(target_ranks(scores, targets).numpy(), np.full(50, 7)).metrics((1, 5, 10))
    relevant = torch.nn.functional.one_hot(targets, 40)
    pairs = list(zip(scores, relevant, strict=True))
    for k in (1, 5, 10):
        for name, function in (
            ("NDCG", retrieval_normalized_dcg),
            ("Recall", retrieval_recall),
            ("HR", retrieval_hit_rate),
        ):
            expected = np.mean([float(function(s, r, top_k=k)) for s, r in pairs])
            assert metrics[f"{name}@{k}"] == pytest.approx(expected, abs=1e-6)
    assert metrics["MRR"] == pytest.approx(
        np.mean([float(retrieval_reciprocal_rank(s, r)) for s, r in pairs]), abs=1e-6
    )


def test_ties_count_against_the_target() -> None:
    assert target_ranks(torch.tensor([[1.0, 1.0, 0.0], [1.0, 2.0, 0.0]]), torch.tensor([0, 0])).tolist() == [1, 1]
    assert target_ranks(torch.zeros(1, 9), torch.tensor([0])).tolist() == [8]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_meaningless_scores_are_refused(poison: float) -> None:
    scores = torch.zeros(2, 5)
    scores[1, 3] = poison
    with pytest.raises(ValueError, match=r"NaN or \+inf"):
        target_ranks(scores, torch.tensor([3, 3]))


def test_excluded_target_ranks_last() -> None:
    batch = pack_histories([np.array([2, 4], np.int32)], max_length=5)
    scores = exclude_history(torch.arange(6.0)[None], batch)
    assert scores.tolist() == [[0, 1, float("-inf"), 3, float("-inf"), 5]]
    assert target_ranks(scores, torch.tensor([4])).tolist() == [5]


@pytest.mark.parametrize(("exclude_seen", "seen"), [(True, "history"), (True, "input"), (False, "history")])
def test_rank_targets_against_a_loop_over_users(exclude_seen: bool, seen: Seen) -> None:
    store = make_store()
    targets = leave_one_out(store).test
    scorer = RandomScorer(store.n_items)
    ranking = rank_targets(scorer, store, targets, max_length=6, exclude_seen=exclude_seen, seen=seen)
    for place, event in enumerate(targets):
        user = int(np.searchsorted(store.offsets, event, side="right")) - 1
        history = store.items[store.offsets[user] : event]
        scores = scorer.scores(pack_histories([history], 6))[0]
        target = int(store.items[event])
        excluded = () if not exclude_seen else history if seen == "history" else history[-6:]
        allowed = [i for i in range(store.n_items) if i not in excluded]
        better = [i for i in allowed if i != target and scores[i] >= scores[target]]
        expected = len(better) if target in allowed else store.n_items - 1
        assert ranking.ranks[place] == expected
        assert ranking.history_lengths[place] == len(history)


def test_buckets_partition_the_targets_and_average_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    ranking = Ranking(rng.integers(0, 30, 500), rng.integers(1, 2_000, 500))
    rows = ranking.by_history_length()
    assert sum(row["targets"] for row in rows) == 500
    assert rows[0]["history"] == "1-10" and rows[-1]["history"] == "1001+"
    for metric, value in ranking.metrics().items():
        assert sum(row[metric] * row["targets"] for row in rows) / 500 == pytest.approx(value)


def test_nothing_to_rank_is_an_error() -> None:
    store = make_store()
    with pytest.raises(UserError, match="no targets"):
        rank_targets(RandomScorer(store.n_items), store, np.empty(0, np.int64), max_length=5)


def test_popularity_counts_training_events_only() -> None:
    store = make_store()
    split = leave_one_out(store)
    expected = torch.zeros(store.n_items)
    for user in range(store.n_users):
        for item in store.items[store.offsets[user] : split.train_ends[user]]:
            expected[item] += 1
    batch = pack_histories([store.history(1), store.history(2)], 5)
    assert torch.equal(Popularity(store, split).scores(batch), expected.repeat(2, 1))


def test_recent_popularity_counts_the_last_days() -> None:
    store = make_store()
    split = leave_one_out(store)
    assert store.timestamps is not None
    everything = Popularity(store, split).counts
    recent = Popularity(store, split, days=7).counts
    newest = max(store.timestamps[: split.train_ends[-1]].max(), 0)
    assert 0 < recent.sum() < everything.sum() and (recent <= everything).all()
    assert Popularity(store, split, days=newest).counts.equal(everything)


def test_repeat_last_ranks_the_history_backwards_then_by_popularity() -> None:
    store = make_store()
    popularity = Popularity(store, leave_one_out(store))
    batch = pack_histories([np.array([3, 5, 3, 8], np.int32), np.array([1], np.int32)], 10)
    order = RepeatLast(popularity).scores(batch).argsort(dim=1, descending=True, stable=True)
    assert order[0, :3].tolist() == [8, 3, 5]
    rest = [i for i in torch.argsort(popularity.counts, descending=True, stable=True).tolist() if i not in (3, 5, 8)]
    assert order[0, 3:].tolist() == rest
    assert order[1, 0] == 1


def test_repeat_often_weighs_events_by_their_lag() -> None:
    store = make_store()
    popularity = Popularity(store, leave_one_out(store))
    batch = pack_histories([np.array([3, 5, 5, 3, 3, 8, 8], np.int32), np.array([1, 2], np.int32)], 10)
    scores = RepeatOften(popularity).scores(batch)
    # Item 3 came 7, 4 and 3 events ago, item 8 in the last two, item 5 six and five events ago.
    want = {3: 7**-0.9 + 4**-0.9 + 3**-0.9, 8: 1 + 2**-0.9, 5: 6**-0.9 + 5**-0.9}
    assert scores[0, list(want)].tolist() == pytest.approx(list(want.values()), rel=1e-6)
    rest = [i for i in torch.argsort(popularity.counts, descending=True, stable=True).tolist() if i not in want]
    assert scores[0].argsort(descending=True, stable=True).tolist() == [8, 3, 5, *rest]
    assert scores[1].topk(2).indices.tolist() == [2, 1]


def test_recent_popularity_needs_timestamps() -> None:
    store = make_store()
    split = leave_one_out(store)
    found = {"popularity", "repeat-last", "repeat-often", "item-to-item", "popularity, 7 days"}
    assert set(baselines(store, split)) == found


def test_what_counts_as_seen_does_not_depend_on_what_the_model_reads() -> None:
    store = make_store()
    split = leave_one_out(store)
    scorer = Popularity(store, split)
    short, long = (rank_targets(scorer, store, split.test, max_length=length).ranks for length in (2, 200))
    assert np.array_equal(short, long)
    short, whole = (rank_targets(scorer, store, split.test, max_length=n, seen="input").ranks for n in (2, 200))
    assert not np.array_equal(short, whole) and np.array_equal(whole, long)


def test_scores_that_rank_nothing_are_the_users_to_mend() -> None:
    class Broken(RandomScorer):
        def scores(self, batch: Batch) -> Tensor:
            return super().scores(batch) * float("nan")

    store = make_store()
    with pytest.raises(UserError, match=r"^scores: NaN or \+inf found"):
        rank_targets(Broken(store.n_items), store, leave_one_out(store).test, max_length=5)


def test_repeats_are_counted_and_announced() -> None:
    store = make_store()
    targets = leave_one_out(store).test
    users = store.users_of(targets)
    expected = sum(
        int(store.items[target]) in store.items[store.offsets[user] : target].tolist()
        for user, target in zip(users, targets, strict=True)
    )
    assert 0 < expected < len(targets) and repeats(store, targets) == expected
    line = repeats_line(store, targets, exclude_seen=True)
    assert line is not None
    assert line.startswith(f"{expected} of {len(targets)} targets are in their own history")
    assert "--no-exclude-seen" in line
    assert repeats_line(store, targets, exclude_seen=False) is None


def test_a_log_that_grew_is_ranked_as_its_known_part() -> None:
    """Items that the model does not know are left out of histories. Targets that are unknown, or have no known item
    before them, count as missed."""
    old = SequenceStore(
        np.array([0, 3, 6]),
        np.array([0, 1, 2, 2, 1, 0], np.int32),
        None,
        Ids.from_values(["a", "b"]),
        Ids.from_values([10, 20, 30]),
    )
    grown = SequenceStore(  # 5 and 15 are new, so all indices change: 5, 10, 15, 20, 30
        np.array([0, 4, 7, 9]),
        np.array([1, 0, 3, 4, 4, 3, 2, 0, 1], np.int32),
        np.array([1, 2, 3, 4, 1, 2, 3, 1, 2]),
        Ids.from_values(["a", "b", "c"]),
        Ids.from_values([5, 10, 15, 20, 30]),
    )
    targets = np.array([3, 6, 8])
    known = known_part(grown, old.item_ids, targets)
    assert known is not None
    assert [known.store.history(user).tolist() for user in range(3)] == [[0, 1, 2], [2, 1], [0]]
    assert known.store.timestamps is not None and known.store.timestamps.tolist() == [1, 3, 4, 1, 2, 2]
    assert known.targets.tolist() == [2] and known.history_lengths[~known.kept].tolist() == [2, 1]
    ranking = known.with_lost(Ranking(np.array([0]), np.array([2])))
    assert ranking.ranks.tolist() == [0, 3, 3] and ranking.history_lengths.tolist() == [2, 2, 1]
    assert ranking.metrics((1,))["HR@1"] == pytest.approx(1 / 3)
    line = known.describe()
    assert line is not None and line.startswith("2 of the log's items are newer than the model") and "2 of 3" in line
    same = known_part(old, old.item_ids, np.array([2, 5]))
    assert same is not None and same.store is old and same.describe() is None
    assert known_part(old, grown.item_ids, np.array([2, 5])) is None
