"""What commands and benchmarks do with runs: train one, rank the baselines beside it, sum up seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from hyenarec import distributed
from hyenarec.baselines import baselines
from hyenarec.breakdown import TargetKinds
from hyenarec.config import FULL_LOSS_ITEMS, ModelConfig, TrainingConfig
from hyenarec.continuing import Start
from hyenarec.data.item_features import Features
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import console
from hyenarec.evaluation import rank_targets, repeats_line
from hyenarec.files import PNG, refuse_foreign
from hyenarec.run_folder import Run
from hyenarec.source import Source

CURVE = "curve.png"
COLUMNS = ("NDCG@10", "Recall@10", "MRR", "s/epoch")


def train(
    store: SequenceStore,
    split: Split,
    model: ModelConfig,
    training: TrainingConfig,
    source: Source,
    out: Path,
    start: Start | None = None,
    features: Features | None = None,
) -> dict[str, Any]:
    """Train (or finish) the run in ``out`` and draw its curve; returns the run's result."""
    from hyenarec.plots import training_curves  # imports matplotlib, which a command that draws nothing does without

    refuse_foreign(out / CURVE, PNG)
    run = Run(out, store, split, model, training, source, start, features)
    result = run.train()
    if distributed.is_main():
        training_curves({model.mixer: run.trainer.progress.history}, training.metric, out / CURVE)
    return result


def baseline_rows(
    store: SequenceStore, split: Split, model: ModelConfig, training: TrainingConfig
) -> list[dict[str, Any]]:
    """Test metrics of the baselines that need no training, as table rows; each also has its breakdowns."""
    rows, kinds = [], TargetKinds.of(store, split, split.test)
    for name, scorer in baselines(store, split).items():
        ranking = rank_targets(
            scorer,
            store,
            split.test,
            max_length=model.max_length,
            exclude_seen=training.exclude_seen,
            seen=training.seen,
            count_shown=True,
        )
        report = kinds.report(ranking)
        rows.append({"model": name, **report.pop("test"), **report})
    return rows


def summarise(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation over seeds of every test metric and of the seconds per epoch."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, runs in results.items():
        values = {metric: [run["test"][metric] for run in runs] for metric in runs[0]["test"]}
        values["s/epoch"] = [run["seconds_per_epoch"] for run in runs]
        summary[name] = {
            metric: {"mean": statistics.mean(v), "sd": statistics.stdev(v) if len(v) > 1 else 0.0}
            for metric, v in values.items()
        }
    return summary


def mean_and_spread(summary: dict[str, dict[str, float]], seeds: int) -> dict[str, str]:
    """A system's part of :func:`summarise` as table cells: mean and spread, narrow enough for four columns on an
    80-column terminal; for a single seed only the mean."""
    cells = {}
    for metric, value in summary.items():
        digits = 1 if metric == "s/epoch" else 4
        spread = f"{value['sd']:.{digits}f}".removeprefix("0")
        cells[metric] = f"{value['mean']:.{digits}f}" + (f" ±{spread}" if seeds > 1 else "")
    return cells


def result_cells(result: dict[str, Any]) -> dict[str, Any]:
    """A run's result as a row of the table with ``COLUMNS``."""
    return {**result["test"], "s/epoch": round(result["seconds_per_epoch"], 2)}


def show_log(store: SequenceStore) -> None:
    mean = store.n_events / store.n_users
    console.print(
        f"{store.n_users:,} users, {store.n_items:,} items, {store.n_events:,} events, mean history {mean:.1f}",
        highlight=False,
    )


def show_loss(training: TrainingConfig, store: SequenceStore) -> None:
    """Say which loss was chosen, and why, if the user chose none."""
    if training.loss == "auto":
        which, than = {
            "full": ("full, over all", "no more than"),
            "sampled": (f"sampled, --negatives {training.negatives:,} a step out of", "more than"),
        }[training.for_items(store.n_items).loss]
        console.print(
            f"loss: {which} {store.n_items:,} items, as there are {than} {FULL_LOSS_ITEMS:,}; --loss chooses otherwise",
            highlight=False,
        )


def announce_repeats(store: SequenceStore, split: Split, training: TrainingConfig) -> None:
    """Say so where test targets count as missed because their users have seen them before."""
    line = repeats_line(store, split.test, training.exclude_seen)
    if line:
        console.print(line)
