"""Histories with a known long memory: the prediction is Bayes' rule, and metrics computed from it have no noise."""

import itertools
import math

import numpy as np
import pytest

from hyenarec.data.seasons import PLACES, SEASONS, FloatArray, Seasons, expected_metrics

SMALL = Seasons(season_lengths=(5, 10), concentration=3.0, songs=2, lives=2, burst=0.3, going_on=0.8)


def evidence(process: Seasons, history: list[int], cut: int = 0) -> float:
    """The probability of a history, whose first ``cut`` events were left out. It uses the formula of Dirichlet and
    multinomial distributions: one sum over all season lengths and places, instead of step by step."""
    after, chance = process.follower
    prior = process.concentration * process.popularity
    total = 0.0
    for length, place in itertools.product(process.season_lengths, range(PLACES)):
        counts = np.zeros((SEASONS, process.n_items))
        log = 0.0
        for t, item in enumerate(history):
            before = history[t - 1] if t else None
            if process.popularity[item] == 0:
                assert before is not None and after[before] == item
                log += math.log(chance[before])
                continue
            log += math.log(1 - chance[before]) if before is not None else 0.0
            counts[(t + cut + length // PLACES * place) // length % SEASONS, item] += 1
        for of_season in counts:
            log += math.lgamma(prior.sum()) - math.lgamma(prior.sum() + of_season.sum())
            songs = prior > 0
            log += sum(math.lgamma(p + c) - math.lgamma(p) for p, c in zip(prior[songs], of_season[songs], strict=True))
        total += math.exp(log) / (len(process.season_lengths) * PLACES)
    return total


@pytest.mark.parametrize("cut", [0, 7])
def test_the_prediction_is_bayes_rule(cut: int) -> None:
    histories = SMALL.draw([19, 33, 2])
    predicted = SMALL.predict([history[cut:] if len(history) > cut else history for history in histories], [cut] * 3)
    assert predicted.sum(1) == pytest.approx(1)
    for history, row in zip(histories[:2], predicted, strict=False):
        known = history[cut:].tolist()
        if SMALL.popularity[known[0]] == 0:  # began inside a burst: the first event was not drawn
            known[0:1] = []
            row = SMALL.predict([np.array(known)], [cut + 1])[0]
            before = evidence(SMALL, known, cut + 1)
            after = [evidence(SMALL, [*known, item], cut + 1) for item in np.flatnonzero(row)]
        else:
            before = evidence(SMALL, known, cut)
            after = [evidence(SMALL, [*known, item], cut) for item in np.flatnonzero(row)]
        assert row[row > 0] == pytest.approx(np.array(after) / before, rel=1e-6)


def test_what_is_drawn_follows_the_prediction() -> None:
    """Over many histories, the next event is on average as probable as the prediction says."""
    process = Seasons(season_lengths=(20, 40), concentration=8.0)
    histories = process.draw([120] * 1500)
    predicted = process.predict([history[:-1] for history in histories])
    drawn = np.array([history[-1] for history in histories])
    ranks = (predicted > predicted[np.arange(len(drawn)), drawn][:, None]).sum(1)
    hits = [np.mean(ranks < 10), np.mean((ranks < 10) / np.log2(ranks + 2))]
    found = expected_metrics(predicted, predicted)
    assert hits == pytest.approx([found["Recall@10"], found["NDCG@10"]], abs=0.03)


def test_favourites_come_back_and_more_history_predicts_better() -> None:
    process = Seasons(season_lengths=(50,), concentration=15.0, burst=0.0)
    histories = process.draw([400] * 60)
    truth = process.predict(histories)

    def value(last: int) -> float:
        scores = process.predict([history[-last:] for history in histories], [400 - last] * 60)
        return expected_metrics(truth, scores)["NDCG@10"]

    popular = expected_metrics(truth, np.tile(process.popularity, (60, 1)))["NDCG@10"]
    values = [popular, value(10), value(40), value(200), value(400)]
    assert values == sorted(values) and values[-1] > values[2] * 1.1 > popular * 1.5

    def shared(lag: int) -> float:
        """How often an event's item is among the 20 events about ``lag`` events earlier."""
        return float(np.mean([h[t] in h[t - lag - 10 : t - lag + 10] for h in histories for t in range(250, 400, 5)]))

    assert shared(150) > 1.5 * shared(75)  # one cycle ago it was the same season, half a cycle ago another


def test_bursts_go_through_live_recordings_in_order() -> None:
    process = Seasons()
    names = process.names()
    assert len(names) == process.n_items == len(set(names))
    (history,) = process.draw([3000])
    follows = {name: names[after] for name, after in zip(names, process.follower[0], strict=True)}
    live = [place for place in range(1, 3000) if "live" in names[history[place]]]
    assert len(live) > 100
    assert all(follows[names[history[place - 1]]] == names[history[place]] for place in live)
    assert follows["jazz-003"] == "jazz-live-1" and follows["jazz-live-1"] == "jazz-live-2"


def test_the_same_seed_gives_the_same_histories() -> None:
    first, again, other = SMALL.draw([30], 1), SMALL.draw([30], 1), SMALL.draw([30], 2)
    assert np.array_equal(first[0], again[0]) and not np.array_equal(first[0], other[0])


def test_expected_metrics_by_hand() -> None:
    truth: FloatArray = np.zeros((1, 12))
    truth[0, [3, 7]] = 0.75, 0.25
    scores = np.arange(12.0)[None]  # 11 is first, 7 fifth, 3 ninth
    found = expected_metrics(truth, scores)
    assert found["Recall@10"] == 1
    assert found["MRR"] == pytest.approx(0.75 / 9 + 0.25 / 5)
    assert found["NDCG@10"] == pytest.approx(0.75 / math.log2(10) + 0.25 / math.log2(6))
    assert expected_metrics(truth, truth)["NDCG@10"] == pytest.approx(0.75 + 0.25 / math.log2(3))
