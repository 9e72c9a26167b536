"""Shared by the scripts in these folders: the log, early stopping, the options, and the line that each run prints."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

MIXERS = ("attention", "hyena")


@dataclass(frozen=True)
class Task:
    """A log, and how to train on it. The columns of ``log`` are user_id and item_id, numbered from 0, and timestamp in
    whole seconds; rows are in order of user and time. Training ends after ``epochs``, or after ``patience`` epochs that
    were no better than the best."""

    log: pd.DataFrame
    length: int
    epochs: int
    seed: int
    patience: int = 10

    @property
    def train(self) -> pd.DataFrame:
        """All events but each user's last two, which :attr:`validation` and :attr:`test` hold."""
        return self.before(1)

    @property
    def validation(self) -> pd.DataFrame:
        return self.log[self._later == 1]

    @property
    def test(self) -> pd.DataFrame:
        return self.log[self._later == 0]

    def before(self, later: int) -> pd.DataFrame:
        """Each user's events before the one that ``later`` events follow: 1 for the validation event, 0 for the test
        event."""
        return self.log[self._later > later]

    def histories(self, later: int) -> Tensor:
        """:meth:`before` of each user with at least three events: items (U, L), numbered from 1, left-padded with 0."""
        rows = [torch.tensor(user[: len(user) - 1 - later]) + 1 for user in self._users]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")

    def ndcg(self, scores: Tensor, later: int) -> float:
        """NDCG@10 of the events that come after :meth:`histories`, ranked among all items by ``scores`` (U, items + 1),
        of the padding and the items."""
        targets = torch.tensor([[user[len(user) - 1 - later] + 1] for user in self._users])  # (U, 1)
        left_out = torch.zeros_like(targets) if self.repeats else self.histories(later)
        scores = scores.scatter(1, left_out, -torch.inf)
        ranks = (scores > scores.gather(1, targets)).sum(1)  # 0 the first
        return float(torch.where(ranks < 10, 1 / torch.log2(ranks + 2), 0).mean())

    @property
    def repeats(self) -> bool:
        """Whether a user has an item more than once, so that seen items may be recommended."""
        return bool(self.log.duplicated(["user_id", "item_id"]).any())

    @property
    def _users(self) -> list[np.ndarray]:
        items = (user.to_numpy() for _, user in self.log.groupby("user_id").item_id)
        return [user for user in items if len(user) > 2]

    @property
    def _later(self) -> pd.Series:
        """How many events of its user follow each event."""
        return self.log.groupby("user_id").cumcount(ascending=False)


class Progress:
    """Epochs and CPU seconds of a training, and the weights of the epoch that ranked the validation events best.

    ``model`` returns the module in training. CPU seconds are those of all threads; other work on the machine does not
    count.
    """

    def __init__(self, task: Task, model: Callable[[], nn.Module]) -> None:
        self.limit, self.patience, self.model = task.epochs, task.patience, model
        self.epochs = self.best_epoch = 0
        self.best, self.seconds = -1.0, 0.0
        self._began = process_time()

    def until_best(self, validate: Callable[[], float]) -> Iterator[int]:
        """The numbers of the epochs to train, until none is left or ``patience`` epochs were no better than the
        best."""
        stop = False
        while not stop:
            yield self.epochs
            self.trained()
            stop = self.validated(validate())

    def trained(self) -> None:
        """Stops the clock: what follows is not training."""
        self.seconds += process_time() - self._began

    def validated(self, value: float) -> bool:
        """Ends an epoch whose NDCG@10 on the validation events is ``value``. Returns whether it was the last one."""
        self.epochs += 1
        if value > self.best:
            self.best, self.best_epoch = value, self.epochs
            self._weights = {name: weight.clone() for name, weight in self.model().state_dict().items()}
        self._began = process_time()
        return self.epochs >= self.limit or self.epochs - self.best_epoch >= self.patience

    def restore(self) -> None:
        """Gives the model the weights of its best epoch."""
        self.model().load_state_dict(self._weights)


Run = Callable[[str, Task], tuple[float, Progress]]
"""Trains and tests "attention" or "hyena". Returns NDCG@10 of the users' last events, ranked among all items."""


def generated_log(users: int = 300, items: int = 200, seed: int = 0) -> pd.DataFrame:
    """A log in which users walk through a circle of items by steps of 1 to 3, and now and then jump to where they
    started."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start = item = int(rng.integers(items))
        for hour in range(int(rng.integers(8, 60))):
            rows.append((user, item, 3600 * hour))
            item = start if rng.random() < 0.15 else (item + int(rng.choice(3, p=(0.7, 0.2, 0.1))) + 1) % items
    return numbered(pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]))


def numbered(log: pd.DataFrame) -> pd.DataFrame:
    """The log with users and items numbered from 0, in order of user and time."""
    log = log.assign(**{name: log[name].factorize(sort=True)[0] for name in ("user_id", "item_id")})
    return log.sort_values(["user_id", "timestamp"], kind="stable", ignore_index=True)


def main(run: Run, epochs: int = 10, length: int = 50, users: int = 300) -> None:
    """Runs attention and HyenaMixer, and prints a line of JSON for each; the generated log has ``users`` users."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--log", type=Path, help="CSV with user_id, item_id and timestamp; a generated log by default")
    parser.add_argument("--length", type=int, default=length, help="events of history that the model reads")
    parser.add_argument("--epochs", type=int, default=epochs, help="most epochs to train")
    parser.add_argument("--patience", type=int, default=Task.patience, help="epochs without improvement, then it stops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    options = parser.parse_args()
    log = numbered(pd.read_csv(options.log)) if options.log else generated_log(users)
    for mixer in options.mixers:
        value, progress = run(mixer, Task(log, options.length, options.epochs, options.seed, options.patience))
        line = {
            "mixer": mixer,
            "NDCG@10": round(value, 4),
            "epochs": progress.epochs,
            "best_epoch": progress.best_epoch,
            "validation NDCG@10": round(progress.best, 4),
            "cpu_seconds_per_epoch": round(progress.seconds / progress.epochs, 3),
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,  # of the process so far
        }
        print(json.dumps(line), flush=True)
