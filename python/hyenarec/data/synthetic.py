"""A synthetic interaction log with two time scales: favourites that last for hundreds of events, and bursts of a few
minutes.

Users listen to what :class:`hyenarec.data.seasons.Seasons` draws. Their songs are their favourites of the present
season, of 100 to 400 events, and come back two seasons later. These favourites are many, so the next song can only be
told from a long history. Now and then a song is followed at once by its topic's live recordings, in order; these can be
told from the last event.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from hyenarec.data.seasons import TOPICS, Seasons
from hyenarec.errors import UserError
from hyenarec.files import write_text

DAY = 86_400
START = 1_672_531_200  # 2023-01-01 00:00 UTC
DAYS_BETWEEN_VISITS = 1.0
BURST_SECONDS = (20, 300)  # from a song to its topic's live recording, and from one to the next
SEASON_LENGTHS = (100, 200, 400)  # events
CONCENTRATION = 25.0
BURST_CHANCE = 0.05
SHORTEST_HISTORY = 5
LEAST_ITEMS = 4  # of a topic: three songs and a live recording


def write_synthetic_log(
    path: str | Path, users: int = 1000, items: int = 500, mean_history: float = 120, seed: int = 0
) -> None:
    """Generate a log and write it as CSV, rows in order of time; the same arguments give the same file.

    Columns: user_id (``user-0007``), item_id (``jazz-017``, ``jazz-live-2``), timestamp (whole seconds since 1970).
    History lengths are log-normal around ``mean_history``. Items come back. Raises ValueError where ``items`` are not
    as many for each of the 20 topics, or fewer than 4, and :class:`UserError` where a different file is at ``path``
    already.
    """
    size = items // len(TOPICS)
    if items % len(TOPICS) or size < LEAST_ITEMS:
        least = LEAST_ITEMS * len(TOPICS)
        raise ValueError(f"items: {items} given, a multiple of {len(TOPICS)} from {least} on needed")
    lives = max(1, size // 5)
    process = Seasons(SEASON_LENGTHS, CONCENTRATION, songs=size - lives, lives=lives, burst=BURST_CHANCE)
    names, is_song = process.names(), process.popularity > 0
    rng = np.random.default_rng(seed)
    drawn = mean_history * rng.lognormal(-0.125, 0.5, users)  # -s^2/2 keeps the mean
    lengths = np.maximum(SHORTEST_HISTORY, np.rint(drawn)).astype(int)
    rows: list[tuple[int, str, str]] = []
    for user, history in enumerate(process.draw(lengths.tolist(), seed)):
        within_burst = rng.integers(*BURST_SECONDS, len(history))
        between_visits = rng.exponential(DAYS_BETWEEN_VISITS * DAY, len(history))
        gaps = np.where(is_song[history], between_visits, within_burst)
        times = START + rng.uniform(0, 365 * DAY) + gaps.cumsum()
        rows += [(int(time), f"user-{user:04}", names[item]) for item, time in zip(history, times, strict=True)]
    rows.sort(key=lambda row: row[0])  # stable: a user's events keep their order
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("user_id", "item_id", "timestamp"))
    table.writerows((user, item, time) for time, user, item in rows)
    path = Path(path)
    if path.exists() and path.read_bytes() != text.getvalue().encode():
        raise UserError(f"{path}: there already, and another log; choose another place or remove it")
    write_text(path, text.getvalue())
