"""What the scripts in these folders share: the log, the options, and the line that each run prints."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

MIXERS = ("attention", "hyena")


@dataclass(frozen=True)
class Task:
    """A log whose columns are user_id and item_id, numbered from 0, and timestamp in whole seconds, in order of user
    and time; what to train on it, and for how long."""

    log: pd.DataFrame
    length: int
    epochs: int
    seed: int

    @property
    def train(self) -> pd.DataFrame:
        """All events but each user's last, which :attr:`test` holds."""
        return self.log[self.log.duplicated("user_id", keep="last")]

    @property
    def test(self) -> pd.DataFrame:
        return self.log.drop_duplicates("user_id", keep="last")

    @property
    def repeats(self) -> bool:
        """Whether an item comes back to a user, so that what was seen may be recommended."""
        return bool(self.log.duplicated(["user_id", "item_id"]).any())


Run = Callable[[str, Task], tuple[float, float]]
"""Trains and tests "attention" or "hyena": NDCG@10 of the users' last events among all items, seconds of training."""


def generated_log(users: int = 300, items: int = 200, seed: int = 0) -> pd.DataFrame:
    """Users walk through a circle of items by steps of 1 to 3, and jump now and then to where they started."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start = item = int(rng.integers(items))
        for hour in range(int(rng.integers(8, 60))):
            rows.append((user, item, 3600 * hour))
            item = start if rng.random() < 0.15 else (item + int(rng.choice(3, p=(0.7, 0.2, 0.1))) + 1) % items
    return numbered(pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]))


def numbered(log: pd.DataFrame) -> pd.DataFrame:
    """Users and items by numbers from 0, in order of user and time."""
    log = log.assign(**{name: log[name].factorize(sort=True)[0] for name in ("user_id", "item_id")})
    return log.sort_values(["user_id", "timestamp"], kind="stable", ignore_index=True)


def ndcg(ranks: np.ndarray) -> float:
    """NDCG@10 where one item is right: from the place of that item, 0 the first."""
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def main(run: Run, epochs: int = 10, length: int = 50, users: int = 300) -> None:
    """Runs attention and HyenaMixer, and prints a line of JSON for each; ``users`` are those of the generated log."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--log", type=Path, help="CSV with user_id, item_id and timestamp; a generated log by default")
    parser.add_argument("--length", type=int, default=length, help="events of history that the model reads")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    options = parser.parse_args()
    log = numbered(pd.read_csv(options.log)) if options.log else generated_log(users)
    for mixer in options.mixers:
        value, seconds = run(mixer, Task(log, options.length, options.epochs, options.seed))
        line = {
            "mixer": mixer,
            "NDCG@10": round(value, 4),
            "seconds_per_epoch": round(seconds / options.epochs, 3),
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,  # of the process so far
        }
        print(json.dumps(line), flush=True)
