"""Accuracy of mixers on one log: test metrics over seeds and lengths of history, beside baselines without training.

    hyenarec bench accuracy ../shared/data/ml-100k.parquet runs/accuracy
    hyenarec bench accuracy ../shared/data/email-eu-core.parquet runs/accuracy --mixers hyena --seeds 0

Logs named in ``PROTOCOLS`` have settings of their own, any other log the default ones; the options choose a part of a
protocol. Each run has its own folder and resumes, so an interrupted table goes on where it stopped. Writes
benchmarks/results/accuracy-LOG.json and .png, from every run of the protocol that is finished by then.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import tyro
from hyenarec.cli.options import load_source
from hyenarec.cli.train import baseline_rows, train
from hyenarec.config import ModelConfig
from hyenarec.data.batches import TrainingWindows
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, show_table
from hyenarec.mixers import MIXERS
from hyenarec.plots import save_figure
from hyenarec.training import Source, TrainingConfig
from matplotlib.figure import Figure

from .recording import METRICS, RESULTS, write

CLOZE_EPOCHS = 4  # times the epochs for mixers that learn from masked items: they predict a fifth of the events


@dataclass(frozen=True)
class Protocol:
    """How one log is trained and tested: leave-one-out, all items ranked."""

    training: TrainingConfig
    batch_tokens: int
    """Events a training step, about: the number of windows follows from their mean length."""
    mixers: tuple[str, ...] = tuple(MIXERS)
    lengths: tuple[int, ...] = (200,)
    """Events of history that a model reads."""
    seeds: tuple[int, ...] = (0, 1, 2)
    timestamp: str | None = "timestamp"
    dropout: float = 0.2

    def model(self, mixer: str, length: int) -> ModelConfig:
        return ModelConfig(mixer=mixer, max_length=length, dropout=self.dropout)

    def windows(self, store: SequenceStore, split: Split, length: int) -> int:
        """Training windows a step."""
        windows = TrainingWindows(store, split, length, batch_size=1)
        return max(1, round(self.batch_tokens * len(windows) / windows.tokens))


SHORT = TrainingConfig(
    epochs=20, learning_rate=2e-3, schedule="cosine", evaluate_every=2, metric="NDCG@10", patience=20
)
DEFAULT = Protocol(SHORT, batch_tokens=3200)
PROTOCOLS = {
    "ml-100k": DEFAULT,
    # The published lru-loo protocol but for the epochs: to convergence takes 100 to 200.
    "ml-1m": Protocol(
        replace(SHORT, learning_rate=1.5e-3, warmup_steps=200, evaluate_every=4, metric="Recall@10"),
        batch_tokens=2000,
        mixers=("hyena", "attention", "lru", "gru"),
        seeds=(0,),
        timestamp=None,
    ),
    # 57,289 items: the sampled softmax, which is eight times cheaper here than the full one.
    "beauty": Protocol(
        replace(SHORT, evaluate_every=4, metric="Recall@10", loss="sampled", negatives=4096, weight_decay=0.1),
        batch_tokens=1600,
        mixers=("hyena", "attention", "lru", "gru"),
        lengths=(50,),
        seeds=(0,),
        timestamp=None,
        dropout=0.5,
    ),
    # Nine events in ten repeat an earlier correspondent, so what was seen may be recommended again.
    "email-eu-core": Protocol(
        replace(SHORT, exclude_seen=False),
        batch_tokens=3200,
        mixers=("hyena", "attention"),
        lengths=(50, 200, 1024, 4096),
    ),
}


@dataclass(frozen=True)
class Accuracy:
    """Train and test mixers on a log by its protocol."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    runs: Annotated[Path, tyro.conf.Positional]
    """Folder for the runs."""
    mixers: tuple[str, ...] | None = None
    """Mixers to train now; default: the protocol's."""
    lengths: tuple[int, ...] | None = None
    """Lengths to train now; default: the protocol's."""
    seeds: tuple[int, ...] | None = None
    """Seeds to train now; default: the protocol's."""

    def run(self) -> None:
        log = self.data.stem
        protocol = PROTOCOLS.get(log, DEFAULT)
        source = Source(str(self.data), timestamp=protocol.timestamp)
        store, split = load_source(source)
        windows = {length: protocol.windows(store, split, length) for length in protocol.lengths}

        def cell(mixer: str, length: int, seed: int) -> tuple[ModelConfig, TrainingConfig, Path]:
            epochs = protocol.training.epochs * (1 if MIXERS[mixer].causal else CLOZE_EPOCHS)
            training = replace(protocol.training, batch_size=windows[length], seed=seed, epochs=epochs, device="cpu")
            return protocol.model(mixer, length), training, self.runs / log / f"{mixer}-{length}-{seed}"

        chosen = product(self.seeds or protocol.seeds, self.lengths or protocol.lengths, self.mixers or protocol.mixers)
        for seed, length, mixer in chosen:
            console.rule(f"{mixer}, length {length}, seed {seed}")
            model, training, folder = cell(mixer, length, seed)
            train(store, split, model, training, source, folder)
        rows = [
            {"log": log, "mixer": mixer, "length": length, "seed": seed, **outcome(json.loads(result.read_text()))}
            for length, mixer, seed in product(protocol.lengths, protocol.mixers, protocol.seeds)
            if (result := cell(mixer, length, seed)[2] / "result.json").exists()
        ]
        baselines = [
            {"log": log, "length": length, "name": row.pop("model"), **row}
            for length in protocol.lengths
            for row in baseline_rows(store, split, protocol.model("hyena", length), protocol.training)
        ]
        content = {"settings": {**asdict(protocol), "batch_size": windows}, "runs": rows, "baselines": baselines}
        title = f"test on {log}, leave-one-out, all items ranked"
        show_table(f"{title}; mean ± s.d.", ("length", "mixer", "seeds", *METRICS), table(rows, baselines))
        write(RESULTS / f"accuracy-{log}.json", "accuracy", title, content)
        save_figure(picture(title, rows, baselines), RESULTS / f"accuracy-{log}.png")


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What the table keeps of a run's ``result.json``."""
    kept = ("parameters", "epochs", "best_epoch", "seconds_per_epoch", "validation", "test", "test_by_history_length")
    return {name: result[name] for name in (*kept, "environment")}


def spread(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[tuple[int, str], tuple[float, float, int]]:
    """Mean, sample standard deviation and number of the seeds of every (length, mixer), the best mean first."""
    values: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["length"], row["mixer"]].append(row["test"][metric])
    found = {key: (mean(v), stdev(v) if len(v) > 1 else 0.0, len(v)) for key, v in values.items()}
    return dict(sorted(found.items(), key=lambda entry: (entry[0][0], -entry[1][0])))


def table(rows: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    metrics = {metric: spread(rows, metric) for metric in METRICS}
    for key, (_, _, seeds) in metrics[METRICS[0]].items():
        cells = {m: f"{metrics[m][key][0]:.4f} ±{metrics[m][key][1]:.4f}".replace("±0.", "±.") for m in METRICS}
        found.append({"length": key[0], "mixer": key[1], "seeds": seeds, **cells})
    return found + [{"mixer": row["name"], **row} for row in baselines]


def picture(title: str, rows: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> Figure:
    """The first metric by mixer or, where there are several lengths, by length; then by a user's own history, at the
    longest length."""
    metric, lengths = METRICS[0], sorted({row["length"] for row in rows})
    values = spread(rows, metric)
    mixers = list(dict.fromkeys(mixer for _, mixer in values))
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    if len(lengths) > 1:
        for mixer in mixers:
            known = [length for length in lengths if (length, mixer) in values]
            means, deviations, _ = zip(*(values[length, mixer] for length in known), strict=True)
            left.errorbar(known, means, deviations, marker="o", capsize=3, label=mixer)
        for name in dict.fromkeys(row["name"] for row in baselines):
            chosen = [row for row in baselines if row["name"] == name]
            left.plot([r["length"] for r in chosen], [r[metric] for r in chosen], "--", label=name)
        left.set(xscale="log", xticks=lengths, xticklabels=lengths, xlabel="events of history read", ylabel=metric)
        left.legend(frameon=False)
    else:
        means, deviations, _ = zip(*values.values(), strict=True)
        left.barh(mixers[::-1], means[::-1], xerr=deviations[::-1], capsize=3, color="tab:blue", alpha=0.7)
        for row, style in zip(baselines, ("--", ":", "-."), strict=False):
            left.axvline(row[metric], color="black", linestyle=style, label=row["name"])
        left.set(xlabel=f"{metric}, mean and s.d. over seeds")
        left.legend(frameon=False)
    for length, mixer in ((length, mixer) for length in (lengths[0], lengths[-1]) for mixer in mixers[:4]):
        runs = [row["test_by_history_length"] for row in rows if (row["length"], row["mixer"]) == (length, mixer)]
        if runs and (length == lengths[-1] or mixer == mixers[0]):
            names = [bucket["history"] for bucket in runs[0]]
            buckets = [mean(bucket[metric] for bucket in same) for same in zip(*runs, strict=True)]
            right.plot(
                names, buckets, marker="o", linestyle="-" if length == lengths[-1] else ":", label=f"{mixer}, {length}"
            )
    right.set(xlabel="events in a user's history", ylabel=metric)
    right.legend(frameon=False, title="mixer, events read")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def main() -> None:
    tyro.cli(Accuracy, description=__doc__).run()
