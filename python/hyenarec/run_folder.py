"""A training run kept in a folder: saved, resumed bit for bit, and finished with a result.

    last.safetensors   weights, optimiser and progress: what resuming needs
    best.safetensors   weights of the best epoch and the id maps: what using the model needs
    config.json        the options and the log
    metrics.jsonl      one row per epoch
    result.json        test metrics of the best epoch, once training has ended
    timing.json        seconds of every epoch, apart because equal runs differ in them

One process at a time trains in a folder (:mod:`hyenarec.folder_lock`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyenarec import checkpoint, distributed, environment
from hyenarec.breakdown import TargetKinds
from hyenarec.config import ModelConfig, TrainingConfig, from_json
from hyenarec.continuing import Start, trained_until
from hyenarec.data.item_features import Features
from hyenarec.data.splits import Split, training_counts
from hyenarec.data.store import SequenceStore
from hyenarec.display import console
from hyenarec.errors import DamagedError, UserError
from hyenarec.featured_items import LearnedFeatures
from hyenarec.files import as_path, remove_unfinished, write_text
from hyenarec.folder_lock import lock, unlock
from hyenarec.mixers import MIXERS
from hyenarec.repeats import settled
from hyenarec.source import Source
from hyenarec.stopping import Interrupted
from hyenarec.trained import BEST, Trained, save_trained
from hyenarec.training import Progress, Timing, Trainer

LAST, CONFIG, METRICS = "last.safetensors", "config.json", "metrics.jsonl"
RESULT, TIMING = "result.json", "timing.json"

# Options that change nothing about the epochs trained so far, except that a cosine schedule depends on ``epochs``.
FREE_OPTIONS = ("epochs", "patience", "checkpoint_minutes", "device", "shard_items")
FILES = {"data": "the log", "item_features": "the table of item features", "start": "the run to go on from"}
MADE_AGAIN = "remove it, and the same command makes it again"
SLOW_HOURS = 1.0  # for the loss of an epoch: if it takes longer, a warning says so


class Run:
    """A training run in a folder, which is created, or resumed if it holds a run with the same options and log."""

    def __init__(
        self,
        folder: Path,
        store: SequenceStore,
        split: Split,
        model_config: ModelConfig,
        config: TrainingConfig,
        source: Source,
        start: Start | None = None,
        features: Features | None = None,
    ) -> None:
        """Raises :class:`UserError` for a folder that cannot be used, is in use, or holds another run."""
        check_folder(folder)
        self.folder, self.store, self.start = folder, store, start
        config = config.for_items(store.n_items)
        wanted = model_config.repeats
        model_config = settled(model_config, store, split, None if start is None else start.trained.model.config)
        self.description: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "model": asdict(model_config),
                    "training": asdict(config),
                    "source": asdict(source),
                    "data": {**store.describe(), "time_unit": store.time_unit, "fingerprint": store.fingerprint()},
                    **({"start": start.describe()} if start else {}),
                    **({"item_features": features.describe()} if features else {}),
                }
            )
        )
        self._refuse_differing()
        self.trainer = Trainer(store, split, model_config, config, start.trained if start else None, features)
        self._lock = lock(folder) if distributed.is_main() else None
        self.environment: dict[str, Any] = {}
        try:
            self._resume()
            distributed.refuse_differing("option out", asdict(self.trainer.progress))
        except BaseException:
            self._unlock()
            raise
        if wanted == "auto" and model_config.repeats == "on":
            console.print(
                f"{model_config.mixer}: with a repeat head, as events repeat earlier ones (--repeats off: without)",
                highlight=False,
            )
        if MIXERS[model_config.mixer].knows_time and store.timestamps is None:
            console.print(
                f"{model_config.mixer}: the log has no timestamps; positions take their place", highlight=False
            )

    def train(self) -> dict[str, Any]:
        """Train to the end, from the start or from where the folder's run stopped, and return the result, which is also
        in ``result.json``.

        Raises :class:`Interrupted`, after saving, when SIGINT or SIGTERM asks to stop.
        """
        trainer = self.trainer
        try:
            self._write(CONFIG, json.dumps(self.description, indent=2) + "\n")
            if trainer.progress.best_epoch and not (self.folder / BEST).exists():
                self._rebuild_best()
            if not trainer.finished:
                self._warn_of_slow_loss()
            trainer.train(self)
            return self._finish()
        except Interrupted as stop:
            trainer.refuse_divergence()
            self.save_last()
            place = f"epoch {trainer.progress.epoch + 1}, step {trainer.progress.step}"
            message = f"interrupted in {place}; saved: the same command goes on from there"
            raise Interrupted(stop.number, message) from None
        finally:
            self._unlock()

    def save_best(self) -> None:
        self._write_best(self.trainer)

    def save_last(self) -> None:
        trainer = self.trainer
        trainer.measure()
        if not self._writes:
            return
        optimizer = checkpoint.optimizer_tensors(trainer.model, trainer.optimizer)
        tensors = checkpoint.with_prefix("model", trainer.model.state_dict())
        tensors |= checkpoint.with_prefix("optimizer", optimizer)
        if trainer.rows:
            tensors |= checkpoint.with_prefix("rows", trainer.rows.optimizer.tensors())
        header = {
            "config": self.description,
            "progress": asdict(trainer.progress),
            "environment": self.environment,
        }
        self._write(TIMING, json.dumps(asdict(trainer.timing)) + "\n")
        checkpoint.save(self.folder / LAST, tensors, header, trainer.model.shard)
        self._write_metrics()

    @property
    def _writes(self) -> bool:
        """Whether this process takes part in writing checkpoints: process 0 does, or with shards of the items all
        do."""
        return distributed.is_main() or self.trainer.model.shard is not None

    def _write_best(self, trainer: Trainer) -> None:
        if not self._writes:
            return
        ids = self.store.user_ids, self.store.item_ids
        with self.store.unchanged():
            trained = Trained(
                trainer.model.folded(),
                *ids,
                self.description,
                trained_until(self.store, trainer.split),
                LearnedFeatures.of(trainer.model.items, training_counts(self.store, trainer.split)),
            )
        save_trained(self.folder / BEST, trained, trainer.progress.epoch)

    def _write_metrics(self) -> None:
        rows = self.trainer.progress.history
        self._write(METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def _write(self, name: str, text: str) -> None:
        if distributed.is_main():
            write_text(self.folder / name, text)

    def _unlock(self) -> None:
        if self._lock is not None:
            unlock(self._lock, self.folder)

    def _refuse_differing(self) -> None:
        """Refuse processes with different options. To be called before a model is made: processes whose models have
        different shapes would wait for each other."""
        given = self.description
        split = given["source"]["split"]
        distributed.refuse_differing("option data", given["data"])
        distributed.refuse_differing("options", given["model"], given["training"], split, [*given])
        for option, part in (("from", "start"), ("item_features", "item_features")):
            if part in given:
                distributed.refuse_differing(f"option {option}", given[part])

    def _resume(self) -> None:
        try:
            if distributed.is_main():
                remove_unfinished(self.folder)
        except OSError as error:
            raise UserError(f"cannot clear {self.folder} of half-written files: {error.strerror}") from error
        if (self.folder / LAST).exists():
            try:
                self._read_last(self.folder / LAST)
            except DamagedError as error:
                best = f" ({BEST}, the best epoch so far, serves until then)" if (self.folder / BEST).exists() else ""
                way_out = f"remove it, and the same command trains from the start{best}"
                raise DamagedError(f"{error}; {way_out}") from error
        else:
            self._refuse_other_files()
            self.environment = environment.describe(self.trainer.device)
        if (self.folder / BEST).exists():
            self._refuse_other_best(self.folder / BEST)

    def _refuse_other_files(self) -> None:
        """Refuse to replace a file that has a name of a run's files but that no run wrote: it is somebody's own."""
        config = self.folder / CONFIG
        try:
            ours = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        except (OSError, ValueError, RecursionError):
            ours = None
        if not isinstance(ours, dict) or (config.exists() and not ours.keys() >= self.description.keys()):
            raise UserError(f"{config} is not of a training run: choose another folder")
        others = [name for name in (METRICS, RESULT, TIMING) if (self.folder / name).exists()]
        if others and not config.exists():
            raise UserError(f"{self.folder / others[0]} is not of a training run: choose another folder")

    def _read_last(self, last: Path) -> None:
        arrays, header = checkpoint.load_mapped(last)
        differing = _differences(header.get("config", {}), self.description)
        if differing:
            raise UserError(
                f"{self.folder} holds a run with other options ({'; '.join(differing)}): {_way_out(differing)}"
            )
        tensors = checkpoint.copied(arrays, last, self.trainer.model.shard)
        progress = from_json(Progress, header.get("progress"), f"{last}: progress")
        if not _is_whole(progress):
            raise DamagedError(f"{last}: damaged checkpoint: its progress does not fit its history")
        checkpoint.fill(self.trainer.model, checkpoint.without_prefix("model", tensors), last)
        try:
            checkpoint.restore_optimizer(
                self.trainer.model, self.trainer.optimizer, checkpoint.without_prefix("optimizer", tensors)
            )
            if self.trainer.rows:
                self.trainer.rows.optimizer.restore(checkpoint.without_prefix("rows", tensors))
        except ValueError as error:
            raise DamagedError(f"{last}: {error}") from error
        self.trainer.progress, self.environment = progress, header.get("environment", {})
        self.trainer.timing = _read_timing(self.folder, progress.epoch)
        if progress.epoch > self.trainer.config.epochs:
            asked = self.trainer.config.epochs
            console.print(
                f"{self.folder} has trained {progress.epoch} epochs already, more than the {asked} asked for",
                highlight=False,
            )

    def _refuse_other_best(self, path: Path) -> None:
        """Refuse a ``best`` that this run did not write: it would be tested and served as this run's."""
        try:
            config = checkpoint.load_mapped(path)[1].get("config", {})
        except DamagedError as error:
            raise DamagedError(f"{error}; {MADE_AGAIN}") from error
        differing = _differences(config, self.description)
        if differing:
            raise UserError(
                f"{path} belongs to another run ({'; '.join(differing)}): choose another folder, or remove it, and the "
                "same command makes its own"
            )

    def _rebuild_best(self) -> None:
        """Restore a lost ``best``: from ``last`` if its epoch was the best, otherwise by training up to the best epoch
        again, which gives the same bits."""
        trainer, best_epoch = self.trainer, self.trainer.progress.best_epoch
        if (trainer.progress.epoch, trainer.progress.batch) != (best_epoch, 0):
            console.print(f"{BEST} is missing: training up to its epoch, {best_epoch}, again", highlight=False)
            start = self.start.trained if self.start else None
            trainer = Trainer(self.store, trainer.split, trainer.model.config, trainer.config, start, trainer.features)
            trainer.train_only(best_epoch)
        self._write_best(trainer)

    def _warn_of_slow_loss(self) -> None:
        hours = self.trainer.full_loss_seconds() / 3600
        if hours > SLOW_HOURS:
            console.print(
                f"cross entropy over all {self.store.n_items:,} items will take about {hours:,.0f} hours an epoch on "
                "this machine; --loss sampled draws --negatives items instead",
                highlight=False,
            )

    def _finish(self) -> dict[str, Any]:
        trainer, progress = self.trainer, self.trainer.progress
        self._write_metrics()
        distributed.wait()  # until the best epoch is written
        path = self.folder / BEST
        tensors, header = checkpoint.load(path, trainer.model.shard)
        if header.get("epoch") != progress.best_epoch:
            raise UserError(
                f"{path} is of epoch {header.get('epoch')}, but the best of this run is epoch {progress.best_epoch}: "
                f"{MADE_AGAIN}"
            )
        trainer.model = trainer.model.folded()
        checkpoint.fill(trainer.model, checkpoint.without_prefix("model", tensors), path)
        test = trainer.validate(trainer.split.test, count_shown=True)
        validation = progress.history[progress.best_epoch - 1]["validation"]
        self._say_ties(validation)
        result = {
            **self.description,
            "environment": self.environment,
            "parameters": trainer.model.parameter_count(),
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "seconds_per_epoch": trainer.timing.median(),
            "validation": validation,
            **TargetKinds.of(self.store, trainer.split, trainer.split.test).report(test),
        }
        self._write(RESULT, json.dumps(result, indent=2) + "\n")
        return result

    def _say_ties(self, best: Mapping[str, float]) -> None:
        progress, metric = self.trainer.progress, self.trainer.config.metric
        tied = [
            row["epoch"] for row in progress.history if row.get("validation", {}).get(metric) == best[metric]
        ]  # fmt: skip
        if len(tied) > 1:
            console.print(
                f"validation {metric} is {best[metric]:.4f} in {len(tied)} epochs alike; of these epoch "
                f"{progress.best_epoch} was kept for its MRR, {best['MRR']:.4f}, and where that ties too for its loss",
                highlight=False,
            )


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, one per epoch."""
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def check_folder(folder: Path) -> None:
    """Raises :class:`UserError` where no run can be kept in ``folder``. It creates nothing, and is called before a log
    is read."""
    place = folder = as_path(folder, "option out")
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"option out: {place} is no folder, so no run can be kept in {folder}")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"option out: {place} may not be written, so no run can be kept in {folder}")
    except OSError as error:
        raise UserError(f"option out: {folder}: {error.strerror or error}") from error


def _is_whole(progress: Progress) -> bool:
    """Whether the history has one row per epoch, and the best epoch has its place and its values in it."""
    if progress.epoch != len(progress.history) or not 0 <= progress.best_epoch <= progress.epoch:
        return False
    if not all(isinstance(row, dict) and isinstance(row.get("validation", {}), dict) for row in progress.history):
        return False
    evaluated = progress.best_epoch > 0 and bool(progress.history[progress.best_epoch - 1].get("validation"))
    numbers = [value for value in progress.best if isinstance(value, int | float)]
    return evaluated == (len(numbers) == 3) == (len(progress.best) > 0) and len(numbers) == len(progress.best)


def _read_timing(folder: Path, epochs: int) -> Timing:
    """The seconds of the epochs so far; 0 for those missing from a file that was lost or is older than ``last``."""
    try:
        timing = from_json(Timing, json.loads((folder / TIMING).read_text(encoding="utf-8")), TIMING)
    except (OSError, ValueError, UserError):
        timing = Timing()
    kept = [float(seconds) for seconds in timing.epochs[:epochs] if isinstance(seconds, int | float)]
    return Timing(kept + [0.0] * (epochs - len(kept)), timing.current if len(timing.epochs) == epochs else 0.0)


def _differences(there: Any, here: dict[str, Any]) -> list[str]:
    """Why this command cannot continue that run: options and data in which the two configurations differ."""
    there, here = _that_matters(there), _that_matters(here)
    why = {"training.epochs": " (a cosine schedule is laid out over its epochs)"}
    return [
        f"{name}: {there.get(name)} there, {here.get(name)} here{why.get(name, '')}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _way_out(differing: list[str]) -> str:
    changed = [what for part, what in FILES.items() if any(line.startswith(f"{part}.") for line in differing)]
    if not changed:
        return "choose another folder"
    what = " and ".join(changed)
    return f"{what} changed since, or is another one; put back what was there, or choose another folder"


def _that_matters(config: Any) -> dict[str, Any]:
    """The values in a run's description that its weights depend on, by their dotted names."""
    leaves = dict(_leaves(config if isinstance(config, dict) else {}))
    cosine = leaves.get("training.schedule") == "cosine"
    free = {f"training.{name}" for name in FREE_OPTIONS if not (cosine and name == "epochs")}
    # Of the source only the split matters: whatever its path and columns, the fingerprint tells what was read.
    return {
        name: value
        for name, value in leaves.items()
        if name not in free and (not name.startswith("source.") or name == "source.split")
    }


def _leaves(config: dict[str, Any], prefix: str = "") -> Any:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
