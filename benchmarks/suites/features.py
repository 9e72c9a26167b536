"""What item features are worth on one log: for rare items, and for items that the model has never seen.

    python -m benchmarks features ../shared/data/ml-100k.parquet ../shared/data/ml-100k-items.parquet --columns genres

Some items are hidden: all their events are left out of the training log. Models with and without features are trained
on what is left, and tested on each user's last event there, by how often its item was trained on (``test``). Then the
hidden items join the catalogue, with embedding rows made from their features alone. For each user the model is asked
for the last hidden item, given the events before it (``hidden``, ranked among all items and among the hidden ones
alone). Beside it stand the same model with random rows, as far from the mean as learned ones are, and a model without
features. The latter starts all new items at the mean row, so that among them every target is last. The bias of new
items is the mean of all biases.

Writes benchmarks/results/features-LOG.json; run again, it continues where it stopped.
"""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.recording import RESULTS, read, write
from benchmarks.harness.recording import describe as describe_machine
from benchmarks.report import rankings
from hyenarec.breakdown import TargetKinds
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.continuing import take_over
from hyenarec.data.batches import Batch
from hyenarec.data.ids import Ids
from hyenarec.data.item_features import ItemTable, describe, encode, learn, read_item_table
from hyenarec.data.splits import leave_one_out, training_counts
from hyenarec.data.store import SequenceStore
from hyenarec.display import console
from hyenarec.evaluation import known_part, rank_targets
from hyenarec.featured_items import LearnedFeatures
from hyenarec.model import SequenceModel
from hyenarec.source import Source, load_source
from hyenarec.trained import Trained
from hyenarec.training import Trainer

TRAINING = TrainingConfig(batch_size=32, learning_rate=2e-3, schedule="cosine", loss="full", device="cpu")


@dataclass(frozen=True)
class Hidden:
    """A model's scores, restricted to the items ``shown`` (V,)."""

    model: SequenceModel
    shown: Tensor

    def scores(self, batch: Batch) -> Tensor:
        return self.model.scores(batch).masked_fill_(~self.shown, float("-inf"))


@dataclass(frozen=True)
class FeatureSuite:
    """Train with and without item features, some items hidden, and ask for rare and for hidden items."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    items: Annotated[Path, tyro.conf.Positional]
    """Table of its items."""
    columns: tuple[str, ...] = ()
    """Columns of the table to use; default: all."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the trainings; all hide the same items."""
    epochs: int = 10
    """Epochs of a training."""
    share: float = 0.1
    """Share of the items that are hidden."""
    every: int = 1
    """Take only every n-th user of the log, so that it has fewer events per item."""

    exclude_seen: bool = True
    """Rank only items that the user has not seen."""

    def run(self) -> None:
        whole, _ = load_source(Source(str(self.data)))
        store = some_users(whole, self.every)
        table = read_item_table(self.items, store.item_ids, chosen=self.columns)
        training, model = replace(TRAINING, epochs=self.epochs, exclude_seen=self.exclude_seen), ModelConfig()
        settings = {"model": asdict(model), "training": asdict(training), "share": self.share, "every": self.every}
        columns = describe(table, learn(table, store.item_ids), store.item_ids)[-1]
        title, path = f"item features on {self.data.stem}: {columns}", RESULTS / f"features-{self.data.stem}.json"
        runs = earlier(path, settings, title)
        for seed in self.seeds:
            for variant in ("plain", "features"):
                if any((run["seed"], run["variant"]) == (seed, variant) for run in runs):
                    continue
                found = one(store, table if variant == "features" else None, model, replace(training, seed=seed), self)
                shared = {"log": self.data.stem, "mixer": model.mixer, "length": model.max_length}
                runs.append({**shared, "variant": variant, "seed": seed, **found})
                write(path, "features", title, {"settings": settings, "runs": runs})
        for line in rankings.features({"runs": runs}):
            console.print(line)


def earlier(path: Path, settings: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """The runs of an earlier result with the same settings, title and environment, so that an interrupted suite
    continues."""
    if not path.exists():
        return []
    result, here = read(path), describe_machine(torch.device("cpu"))
    same = (result["settings"], result["title"], result["environment"]) == (settings, title, here)
    return list(result["runs"]) if same else []


def one(
    store: SequenceStore, table: ItemTable | None, config: ModelConfig, training: TrainingConfig, options: FeatureSuite
) -> dict[str, Any]:
    """Trains on ``store`` without the hidden items, with or without the features of ``table``. Returns the metrics."""
    hidden = np.sort(np.random.default_rng(0).choice(store.n_items, int(options.share * store.n_items), replace=False))
    kept = np.setdiff1d(np.arange(store.n_items), hidden)
    kept_ids = Ids.from_values(store.item_ids.decode(kept))
    part = known_part(store, kept_ids, np.zeros(0, np.int64))
    assert part is not None
    log, split = part.store, leave_one_out(part.store)
    encodings = learn(table, kept_ids) if table else []
    trainer = Trainer(log, split, config, training, features=encode(table, encodings, kept_ids) if table else None)
    began = time.perf_counter()
    trainer.train_only(training.epochs)
    seconds = (time.perf_counter() - began) / training.epochs
    report = TargetKinds.of(log, split, split.test).report(trainer.validate(split.test))
    learned = LearnedFeatures.of(trainer.model.items, training_counts(log, split))
    trained = Trained(trainer.model.folded(), log.user_ids, kept_ids, {}, features=learned)
    models = {"features" if table else "mean": SequenceModel(trainer.model.config, store.n_items).eval()}
    features = encode(table, encodings, store.item_ids) if table else None
    for extended in models.values():
        take_over(extended, trained, store.item_ids, features)
    if table:
        models["random"] = with_random_rows(models["features"], hidden, training.seed)
    asked, targets = questions(store, hidden)
    is_hidden = torch.zeros(store.n_items, dtype=torch.bool).index_fill_(0, torch.from_numpy(hidden), True)
    found = {}
    for name, extended in models.items():
        for among, shown in (("all", torch.ones_like(is_hidden)), ("hidden", is_hidden)):
            ranking = rank_targets(
                Hidden(extended, shown), asked, targets, max_length=config.max_length, exclude_seen=False
            )
            middle = {"median rank": float(np.median(ranking.ranks) + 1), "targets": len(targets)}
            found[f"{name}, among {among}"] = ranking.metrics() | middle
    return {**report, "hidden": found, "hidden_items": len(hidden), "seconds_per_epoch": seconds}


def some_users(store: SequenceStore, every: int) -> SequenceStore:
    """The log of every n-th user, with the items that these users have."""
    users = np.arange(0, store.n_users, every)
    rows = [store.history(user) for user in users.tolist()]
    places, items = np.unique(np.concatenate(rows), return_inverse=True)
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    ids = Ids.from_values(store.user_ids.decode(users)), Ids.from_values(store.item_ids.decode(places))
    return SequenceStore(offsets, items.astype(np.int32), None, *ids)


def with_random_rows(model: SequenceModel, hidden: NDArray[np.int64], seed: int) -> SequenceModel:
    """A copy of ``model`` whose rows of ``hidden`` items are drawn around the mean of the other rows, with their
    spread."""
    made = copy.deepcopy(model)
    known = np.setdiff1d(np.arange(len(model.bias)), hidden)
    rows = model.items.weight.detach()[known]
    noise = torch.randn(len(hidden), rows.shape[1], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        made.items.weight[hidden] = rows.mean(0) + rows.std(0) * noise
    return made


def questions(store: SequenceStore, hidden: NDArray[np.int64]) -> tuple[SequenceStore, NDArray[np.int64]]:
    """For each user, the last event of a hidden item after the earlier events of items that are not hidden; and where
    those last events are."""
    is_hidden = np.isin(store.items, hidden)
    histories = []
    for start, end in itertools.pairwise(store.offsets.tolist()):
        places = start + np.flatnonzero(is_hidden[start:end])
        if len(places):
            before = np.arange(start, places[-1])
            histories.append(store.items[[*before[~is_hidden[before]], places[-1]]])
    histories = [history for history in histories if len(history) > 1]
    ends = np.cumsum([len(history) for history in histories])
    offsets = np.concatenate(([0], ends)).astype(np.int64)
    users = Ids.from_values(range(len(histories)))
    return SequenceStore(offsets, np.concatenate(histories), None, users, store.item_ids), ends - 1


def main() -> None:
    tyro.cli(FeatureSuite, description=__doc__).run()
