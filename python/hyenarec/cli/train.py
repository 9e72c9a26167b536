"""``hyenarec train`` and ``hyenarec compare``."""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hyenarec.baselines import baselines
from hyenarec.cli.options import Columns, DataPath, load_source
from hyenarec.config import ModelConfig
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, show_table
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.files import write_text
from hyenarec.mixers import MIXERS
from hyenarec.plots import training_curves
from hyenarec.training import Run, Source, TrainingConfig

COLUMNS = ("NDCG@10", "Recall@10", "MRR", "s/epoch")


@dataclass(frozen=True)
class Train:
    """Train a recommender on a log or a prepared store.

    Run the same command again after an interruption: it goes on from the last checkpoint and ends with the same
    weights.
    """

    data: DataPath
    """Log (Parquet, CSV, TSV, RecBole .inter) or store."""
    out: Path
    """Folder of the run: checkpoints, metrics, curves, result."""
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """Last event of each user for testing and the one before for validation, or cuts in time for everyone."""
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    def run(self) -> None:
        source = Source(str(self.data), self.split, **asdict(self.columns))
        store, split = load_source(source)
        _describe(store)
        result = train(store, split, self.model, self.training, source, self.out)
        rows = [
            {"model": self.model.mixer, **result_cells(result)},
            *baseline_rows(store, split, self.model, self.training),
        ]
        show_table(f"test, {self.data.name}", ("model", *COLUMNS), rows)
        console.print(f"written to {self.out}", highlight=False)


@dataclass(frozen=True)
class Compare:
    """Train several mixers under several seeds and print one table with mean and spread.

    Each run has its own folder and resumes like ``train``, so an interrupted comparison goes on where it stopped.
    """

    data: DataPath
    """Log (Parquet, CSV, TSV, RecBole .inter) or store."""
    out: Path
    """Folder for the runs and compare.json."""
    mixers: tuple[str, ...] = ("hyena", "attention", "gru")
    """Mixers to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each mixer."""
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """Last event of each user for testing and the one before for validation, or cuts in time for everyone."""
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    def run(self) -> None:
        unknown = [name for name in self.mixers if name not in MIXERS]
        if unknown or not self.mixers or not self.seeds:
            raise UserError(f"options mixers and seeds: name at least one seed, and mixers out of {', '.join(MIXERS)}")
        source = Source(str(self.data), self.split, **asdict(self.columns))
        store, split = load_source(source)
        _describe(store)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in self.mixers}
        for seed in self.seeds:
            for name in self.mixers:
                console.rule(f"{name}, seed {seed}")
                model = dataclasses.replace(self.model, mixer=name)
                training = dataclasses.replace(self.training, seed=seed)
                results[name].append(train(store, split, model, training, source, self.out / f"{name}-{seed}"))
        baseline = baseline_rows(store, split, self.model, self.training)
        summary = summarise(results)
        command = shlex.join(["hyenarec", *sys.argv[1:]])
        report = {"command": command, "summary": summary, "baselines": baseline, "results": results}
        write_text(self.out / "compare.json", json.dumps(report, indent=2) + "\n")
        rows = [{"model": name, **_mean_cells(values, len(self.seeds))} for name, values in summary.items()]
        title = f"test, {self.data.name}, mean ± s.d. of seeds {', '.join(map(str, self.seeds))}"
        show_table(title, ("model", *COLUMNS), rows + baseline)


def train(
    store: SequenceStore, split: Split, model: ModelConfig, training: TrainingConfig, source: Source, out: Path
) -> dict[str, Any]:
    """Train (or finish) the run in ``out`` and draw its curve; returns the run's result."""
    run = Run(out, store, split, model, training, source)
    result = run.train()
    training_curves({model.mixer: run.progress.history}, training.metric, out / "curve.png")
    return result


def baseline_rows(
    store: SequenceStore, split: Split, model: ModelConfig, training: TrainingConfig
) -> list[dict[str, Any]]:
    """Test metrics of the baselines that need no training, as table rows."""
    rows = []
    for name, scorer in baselines(store, split).items():
        ranking = rank_targets(
            scorer, store, split.test, max_length=model.max_length, exclude_seen=training.exclude_seen
        )
        rows.append({"model": name, **ranking.metrics()})
    return rows


def summarise(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation over seeds of every test metric and of the seconds an epoch."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, runs in results.items():
        values = {metric: [run["test"][metric] for run in runs] for metric in runs[0]["test"]}
        values["s/epoch"] = [run["seconds_per_epoch"] for run in runs]
        summary[name] = {
            metric: {"mean": statistics.mean(v), "sd": statistics.stdev(v) if len(v) > 1 else 0.0}
            for metric, v in values.items()
        }
    return summary


def result_cells(result: dict[str, Any]) -> dict[str, Any]:
    """A run's result as a row of the table with ``COLUMNS``."""
    return {**result["test"], "s/epoch": round(result["seconds_per_epoch"], 2)}


def _mean_cells(summary: dict[str, dict[str, float]], seeds: int) -> dict[str, str]:
    """Mean and spread, narrow enough for four columns on an 80-column terminal; the mean alone of a single seed."""
    cells = {}
    for metric, value in summary.items():
        digits = 1 if metric == "s/epoch" else 4
        spread = f"{value['sd']:.{digits}f}".removeprefix("0")
        cells[metric] = f"{value['mean']:.{digits}f}" + (f" ±{spread}" if seeds > 1 else "")
    return cells


def _describe(store: SequenceStore) -> None:
    mean = store.n_events / store.n_users
    console.print(
        f"{store.n_users:,} users, {store.n_items:,} items, {store.n_events:,} events, mean history {mean:.1f}",
        highlight=False,
    )
