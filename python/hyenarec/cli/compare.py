"""``hyenarec compare``: several mixers over several seeds, in one table."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hyenarec.cli.options import Columns, DataPath, ItemFeatures, refuse_options_of_logs
from hyenarec.config import ModelConfig, TrainingConfig, refuse_unused
from hyenarec.errors import UserError

REPORT, PICTURE = "compare.json", "compare.png"


@dataclass(frozen=True)
class SharedModel(ModelConfig):
    """Shape of all models; ``--mixers`` says which."""

    mixer: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "hyena"


@dataclass(frozen=True)
class SharedTraining(TrainingConfig):
    """How to train all of them, in one process; ``--seeds`` has their seeds."""

    seed: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 0
    shard_items: tyro.conf.Suppress[tyro.conf.Fixed[bool]] = False


@dataclass(frozen=True)
class Compare:
    """Train several mixers with several seeds each, and print one table with mean and spread.

    Each run has its own folder and resumes like ``train``, so an interrupted comparison goes on where it stopped.
    """

    data: DataPath
    """Log (Parquet, CSV, TSV, RecBole .inter) or store."""
    out: Path
    """Folder for the runs, compare.json and compare.png."""
    mixers: tuple[str, ...] = ("hyena", "attention", "gru")
    """Mixers to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each mixer is trained once with each of them."""
    features: Annotated[ItemFeatures, tyro.conf.arg(name="")] = field(default_factory=ItemFeatures)
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """leave-one-out: each user's last event tests, the one before it validates; temporal: two cuts in time, the same
    for everyone."""
    model: Annotated[SharedModel, tyro.conf.arg(name="")] = field(default_factory=SharedModel)
    training: Annotated[SharedTraining, tyro.conf.arg(name="")] = field(default_factory=SharedTraining)
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    def run(self) -> None:
        from hyenarec.breakdown import KINDS, averaged
        from hyenarec.display import console, show_table
        from hyenarec.experiments import (
            COLUMNS,
            announce_repeats,
            baseline_rows,
            mean_and_spread,
            show_log,
            show_loss,
            summarise,
            train,
        )
        from hyenarec.files import JSON, PNG, refuse_foreign, write_report
        from hyenarec.plots import breakdowns
        from hyenarec.run_folder import check_folder
        from hyenarec.source import Source, load_source

        cells = self._cells()
        check_folder(self.out)
        refuse_foreign(self.out / REPORT, JSON)
        refuse_foreign(self.out / PICTURE, PNG)
        refuse_options_of_logs(self.data, self.columns)
        self.features.refuse_unused(self.training.shard_items)
        source = Source(str(self.data), self.split, **asdict(self.columns))
        store, split = load_source(source)
        shared = self.training.for_items(store.n_items)
        refuse_unused(self.model, shared, self.mixers)
        show_log(store)
        show_loss(self.training, store)
        announce_repeats(store, split, self.training)
        features = self.features.of(store, self.columns)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in self.mixers}
        for model, training in ((model, dataclasses.replace(own, loss=shared.loss)) for model, own in cells):
            console.rule(f"{model.mixer}, seed {training.seed}")
            folder = self.out / f"{model.mixer}-{training.seed}"
            results[model.mixer].append(train(store, split, model, training, source, folder, features=features))
        baseline = baseline_rows(store, split, self.model, self.training)
        summary = summarise(results)
        command = shlex.join(["hyenarec", *sys.argv[1:]])
        report = {"command": command, "summary": summary, "baselines": baseline, "results": results}
        write_report(self.out / REPORT, "compare", report)
        rows = [{"model": name, **mean_and_spread(values, len(self.seeds))} for name, values in summary.items()]
        title = f"test, {self.data.name}, mean ± s.d. of seeds {', '.join(map(str, self.seeds))}"
        show_table(title, ("model", *COLUMNS), rows + baseline)
        reports = results | {row["model"]: [{"test": row, **row}] for row in baseline}
        show_table("test, by what the target is, and what the best ten items are like", *kinds_table(reports))
        by_kind = {name: {kind: averaged(runs, kind) for kind in KINDS} for name, runs in reports.items()}
        breakdowns(by_kind, "NDCG@10", self.out / PICTURE)
        console.print(f"written to {self.out}: {REPORT}, {PICTURE}")

    def _cells(self) -> list[tuple[ModelConfig, TrainingConfig]]:
        """The model and training options of every run, all of them checked before the first run begins."""
        from hyenarec.mixers import MIXERS
        from hyenarec.model import SequenceModel

        unknown = [name for name in self.mixers if name not in MIXERS]
        if unknown or not self.mixers or not self.seeds:
            raise UserError(f"options mixers and seeds: name at least one seed, and mixers out of {', '.join(MIXERS)}")
        for option, names in (("mixers", self.mixers), ("seeds", self.seeds)):
            if len(set(names)) < len(names):
                raise UserError(f"option {option}: one is named twice in {', '.join(map(str, names))}")
        refuse_unused(self.model, self.training, self.mixers)
        models = [dataclasses.replace(self.model, mixer=name) for name in self.mixers]
        trainings = [dataclasses.replace(self.training, seed=seed) for seed in self.seeds]
        for model in models:
            SequenceModel(model, n_items=1)  # only to check it: some mixers ask more of dim than others
        return [(model, training) for training in trainings for model in models]


def kinds_table(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Columns and rows of a table: each system's NDCG@10 for targets that their user has had before and for others, and
    the coverage and novelty of its best ten items, as means over its runs."""
    from hyenarec.breakdown import seen_and_unseen

    rows: list[dict[str, Any]] = []
    for name, runs in reports.items():
        found: dict[str, Any] = {"model": name}
        parts = [seen_and_unseen(run) | {m: run["test"][m] for m in ("coverage@10", "novelty@10")} for run in runs]
        for column in parts[0]:
            values = [part[column] for part in parts]
            found[column] = None if None in values else statistics.mean(values)
        rows.append(found)
    return tuple(rows[0]), rows
