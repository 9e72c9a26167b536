"""A synthetic interaction log with two time scales: interests that drift over months, and bursts of a few minutes.

Every user's interest in each topic follows a smooth random curve. A visit picks a topic by the interest of that day and
an item by its popularity within the topic; some visits go on as a burst through the items that follow in the topic's
order (``jazz-017``, ``jazz-018``, ``jazz-020``). So the next item of a burst can be told from the last event or two,
but the topic of the next visit only from the history of the last months.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyenarec.errors import UserError
from hyenarec.files import write_text

TOPICS = (
    *("ambient", "blues", "choral", "country", "disco", "dub", "electro", "folk", "funk", "gospel"),
    *("house", "indie", "jazz", "klezmer", "latin", "metal", "opera", "punk", "soul", "swing"),
)
DAY = 86_400
START = 1_672_531_200  # 2023-01-01 00:00 UTC
DAYS_BETWEEN_VISITS = 4.0
WAVES = 3  # sinusoids that make one interest curve
WAVE_DAYS = (120.0, 480.0)  # their periods
SHARPNESS = 3.0  # of the choice among topics: a larger one follows the strongest interest more strictly
BURST_CHANCE = 0.25
BURST_EVENTS = (3, 8)
BURST_SECONDS = (20, 300)  # between events of a burst
STEP_CHANCES = (0.7, 0.2, 0.1)  # of stepping one, two or three items on in the topic
SHORTEST_HISTORY = 5


def write_synthetic_log(
    path: str | Path, users: int = 1000, items: int = 500, mean_history: float = 120, seed: int = 0
) -> None:
    """Generate a log and write it as CSV, rows in order of time; the same arguments give the same file.

    Columns: user_id (``user-0007``), item_id (``jazz-017``), timestamp (whole seconds since 1970). History lengths are
    log-normal around ``mean_history``. Items come back, but never twice in a row. Raises ValueError where a topic would
    have too few items for a burst's largest step, and :class:`UserError` where a different file is at ``path`` already.
    """
    least = len(TOPICS) * (len(STEP_CHANCES) + 1)
    if items < least:
        raise ValueError(f"items: {items} given, {least} or more needed")
    catalogue = _Catalogue(np.random.default_rng(seed), items)
    rows: list[tuple[int, str, str]] = []
    for user in range(users):
        rng = np.random.default_rng((seed, user))
        length = max(SHORTEST_HISTORY, round(mean_history * rng.lognormal(-0.125, 0.5)))  # -s^2/2 keeps the mean
        events = islice(_events(rng, catalogue), length)
        rows += [(time, f"user-{user:04}", catalogue.names[item]) for item, time in events]
    rows.sort(key=lambda row: row[0])  # stable: a user's events keep their order
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("user_id", "item_id", "timestamp"))
    table.writerows((user, item, time) for time, user, item in rows)
    path = Path(path)
    if path.exists() and path.read_bytes() != text.getvalue().encode():
        raise UserError(f"{path}: there already, and another log; choose another place or remove it")
    write_text(path, text.getvalue())


class _Catalogue:
    """Items in order of topic: those of topic ``g`` are ``bounds[g]:bounds[g+1]``."""

    def __init__(self, rng: np.random.Generator, items: int) -> None:
        self.bounds = np.linspace(0, items, len(TOPICS) + 1).astype(np.int64)
        self.names: list[str] = []
        self.popularity = np.empty(items)
        for topic, (begin, end) in zip(TOPICS, zip(self.bounds, self.bounds[1:], strict=False), strict=True):
            self.names += [f"{topic}-{number:03}" for number in range(1, end - begin + 1)]
            self.popularity[begin:end] = 1 / rng.permutation(np.arange(1, end - begin + 1))  # Zipf


def _events(rng: np.random.Generator, catalogue: _Catalogue) -> Iterator[tuple[int, int]]:
    """One user's endless stream of items and their times, in whole seconds."""
    period = rng.uniform(*WAVE_DAYS, (len(TOPICS), WAVES)) * DAY
    phase = rng.uniform(0, 2 * np.pi, (len(TOPICS), WAVES))
    time = START + rng.uniform(0, 365 * DAY)
    item = -1
    while True:
        time += rng.exponential(DAYS_BETWEEN_VISITS * DAY)
        interest = np.sin(2 * np.pi * time / period + phase).sum(1)  # (topics,)
        topic = _draw(rng, np.exp(SHARPNESS * interest))
        begin, end = catalogue.bounds[topic : topic + 2].tolist()
        weights = catalogue.popularity[begin:end] * (np.arange(begin, end) != item)
        item = begin + _draw(rng, weights)
        yield item, int(time)
        if rng.random() < BURST_CHANCE:
            for _ in range(rng.integers(*BURST_EVENTS, endpoint=True) - 1):
                time += rng.integers(*BURST_SECONDS)
                step = 1 + _draw(rng, np.array(STEP_CHANCES))
                item = begin + (item - begin + step) % (end - begin)
                yield item, int(time)


def _draw(rng: np.random.Generator, weights: NDArray[np.float64]) -> int:
    """An index with probability proportional to its weight."""
    total = np.cumsum(weights)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
