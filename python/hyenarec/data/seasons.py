"""Histories with a long memory whose best possible prediction is known exactly.

Every user cycles through three seasons, with different favourites in each: a distribution over all songs, drawn from a
Dirichlet distribution around the songs' popularity. A season lasts some hundreds of events, the same number for all
seasons of a user, so its favourites come back after hundreds or thousands of events. An event is a song drawn from the
current season, or part of a short burst: after a song, some people go on with its topic's live recordings, in order.

A predictor that knows the process and has read a history, but does not know the user's favourites, season length and
position in the first season, can do no better than Bayes' rule, which :meth:`Seasons.predict` applies: for each
possible season length and position, a song's probability follows from its count in the current season (the Dirichlet
distribution is conjugate to draws), and each of these hypotheses is weighted by how well it has predicted the history
so far. So a model's ranking can be compared with the best one there is, for whole histories and for their last events
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

TOPICS = (
    *("ambient", "blues", "choral", "country", "disco", "dub", "electro", "folk", "funk", "gospel"),
    *("house", "indie", "jazz", "klezmer", "latin", "metal", "opera", "punk", "soul", "swing"),
)
SEASONS = 3
PLACES = 5  # possible positions in the first season at which a history begins, evenly spaced

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Seasons:
    """The process. A topic has ``songs`` and ``lives`` of its own; items are numbered topic by topic, songs first."""

    season_lengths: tuple[int, ...] = (250, 500, 1000, 1500)
    """Possible lengths of a season, in events, all equally likely; multiples of 5."""
    concentration: float = 100.0
    """Of the Dirichlet distribution: a smaller one makes fewer favourites."""
    songs: int = 10
    lives: int = 3
    burst: float = 0.15
    """Chance that a song is followed by its topic's first live recording."""
    going_on: float = 0.9
    """Chance that a live recording is followed by the next, where there is one."""

    @property
    def n_items(self) -> int:
        return len(TOPICS) * (self.songs + self.lives)

    def names(self) -> list[str]:
        """The name of each item, (V,)."""
        return [
            f"{topic}-{number:03}" if number <= self.songs else f"{topic}-live-{number - self.songs}"
            for topic in TOPICS
            for number in range(1, self.songs + self.lives + 1)
        ]

    @cached_property
    def popularity(self) -> FloatArray:
        """The share of every song, adding up to 1, and 0 for live recordings; (V,)."""
        ranks = np.random.default_rng(0).permutation(len(TOPICS) * self.songs) + 1
        found = np.zeros((len(TOPICS), self.songs + self.lives))
        found[:, : self.songs] = (1 / ranks**0.3).reshape(len(TOPICS), self.songs)
        shares: FloatArray = (found / found.sum()).ravel()
        return shares

    @cached_property
    def follower(self) -> tuple[NDArray[np.int64], FloatArray]:
        """The live recording that may follow each item, and the chance that it does, 0 where none may; (V,) each."""
        size = self.songs + self.lives
        place = np.arange(self.n_items) % size
        live = place >= self.songs
        after = np.where(live, np.arange(self.n_items) + 1, np.arange(self.n_items) - place + self.songs)
        chance = np.where(live, np.where(place == size - 1, 0.0, self.going_on), self.burst)
        return np.minimum(after, self.n_items - 1), chance

    def draw(self, events: Sequence[int], seed: int = 0) -> list[NDArray[np.int64]]:
        """A history for each entry of ``events``, its length: item indices, oldest first."""
        return [self._history(np.random.default_rng((seed, user)), many) for user, many in enumerate(events)]

    def _history(self, rng: np.random.Generator, events: int) -> NDArray[np.int64]:
        length = int(rng.choice(self.season_lengths))
        season = (np.arange(events) + length // PLACES * rng.integers(PLACES)) // length % SEASONS
        is_song = self.popularity > 0
        favourites = np.zeros((SEASONS, self.n_items))
        favourites[:, is_song] = rng.dirichlet(self.concentration * self.popularity[is_song], SEASONS)
        songs = [rng.choice(self.n_items, events, p=own) for own in favourites]
        after, chance = self.follower
        goes_on = rng.random(events)
        items = np.empty(events, dtype=np.int64)
        items[0] = songs[season[0]][0]
        for t in range(1, events):
            before = items[t - 1]
            items[t] = after[before] if goes_on[t] < chance[before] else songs[season[t]][t]
        return items

    def predict(self, histories: Sequence[NDArray[np.int64]], cut: Sequence[int] | None = None) -> FloatArray:
        """The probability of every item to be the next one after each history, (n, V): no better prediction exists.

        ``cut`` (n,) says how many events were left out at the start of each history: the prediction is then the best
        for a reader of the remaining events alone.
        """
        many, longest = len(histories), max(map(len, histories))
        skipped = np.zeros(many, dtype=np.int64) if cut is None else np.asarray(cut)
        lengths, places = (
            a.ravel() for a in np.meshgrid(self.season_lengths, np.arange(PLACES), indexing="ij")
        )  # (H,) hypotheses
        row, hypothesis = np.arange(many)[:, None], np.arange(len(lengths))
        first = np.array([longest - len(history) for history in histories])  # the column of each one's first event
        items = np.zeros((many, longest), dtype=np.int64)
        for place, history in enumerate(histories):
            items[place, first[place] :] = history
        # A season's songs then have probability (concentration x popularity + counts) / (concentration + their sum).
        counts = np.zeros((many, len(lengths), SEASONS, self.n_items), dtype=np.float32)
        sums = np.zeros((many, len(lengths), SEASONS))
        evidence = np.zeros((many, len(lengths)))  # log-likelihoods
        prior = self.concentration * self.popularity  # (V,)

        def season(column: int) -> NDArray[np.int64]:
            event = (column - first + skipped)[:, None]
            now: NDArray[np.int64] = (event + lengths // PLACES * places) // lengths % SEASONS  # (n, H)
            return now

        for column in range(longest):
            item, now = items[:, column, None], season(column)  # (n, 1), (n, H)
            song = ((column >= first) & (self.popularity[item[:, 0]] > 0))[:, None]  # (n, 1)
            known, total = counts[row, hypothesis, now, item], sums[row, hypothesis, now]
            chance = (prior[item] + known) / (self.concentration + total)
            evidence += np.log(np.where(song, chance, 1.0))
            counts[row, hypothesis, now, item] += song
            sums[row, hypothesis, now] += song
        weight = np.exp(evidence - evidence.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)  # (n, H)
        now = season(longest)
        weight /= self.concentration + sums[row, hypothesis, now]
        songs = prior * weight.sum(1, keepdims=True)  # (n, V)
        for one in hypothesis:
            songs += weight[:, one, None] * counts[np.arange(many), one, now[:, one]]
        after, chance = self.follower
        last = items[:, -1]
        found: FloatArray = songs * (1 - chance[last])[:, None]
        found[np.arange(many), after[last]] += chance[last]
        return found


def expected_metrics(predicted: FloatArray, scores: FloatArray) -> dict[str, float]:
    """NDCG@10, Recall@10 and MRR of ranking items by ``scores`` (n, V), averaged exactly over all possible next items,
    which are distributed as ``predicted`` (n, V): the result of many draws of the next item, without their noise. The
    best ``scores`` are ``predicted`` itself."""
    chances = np.take_along_axis(predicted, np.argsort(-scores, axis=1, kind="stable"), 1)  # (n, V), best first
    place = np.arange(predicted.shape[1])
    gains = {"NDCG@10": (place < 10) / np.log2(place + 2), "Recall@10": place < 10, "MRR": 1 / (place + 1)}
    return {name: float((chances @ gain).mean()) for name, gain in gains.items()}
