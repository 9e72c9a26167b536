"""Accuracy of systems on one log: test metrics over seeds and lengths of history, beside baselines without training;
also metrics by kind of target, and what the systems recommend.

    python -m benchmarks accuracy ../shared/data/ml-100k.parquet runs/accuracy
    python -m benchmarks accuracy ../shared/data/email-eu-core.parquet runs/accuracy --mixers hyena --seeds 0
    python -m benchmarks accuracy ../shared/data/ml-100k.parquet runs/accuracy --split temporal

Logs named in ``PROTOCOLS`` have settings of their own, any other log the default ones. The options choose which part of
the protocol to train now. Each run has its own folder and can be resumed, so an interrupted table continues where it
stopped.

Writes benchmarks/results/accuracy-LOG.json and .png, or accuracy-LOG-temporal where the log is split in time. The
result has every run of the protocol that is finished by then, from this folder or from an earlier result of the same
log and settings. An earlier run stays until its system, length and seed are trained again; its ``environment`` says
where and at which revision it began.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import tyro

from benchmarks.harness import plots
from benchmarks.harness.recording import METRICS, RESULTS, read, write
from benchmarks.harness.registry import MAIN, OURS, SYSTEMS, check_names
from hyenarec.breakdown import KINDS, MEANING, averaged, seen_and_unseen
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.data.batches import TrainingSlices
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, show_table
from hyenarec.experiments import baseline_rows, train
from hyenarec.mixers import MIXERS
from hyenarec.source import Source, load_source

SPLITS = {"leave-one-out": "leave-one-out", "temporal": "the first event of each user after a moment"}
CLOZE_EPOCHS = 4  # times as many epochs for systems trained on masked items: they predict a fifth of the events


@dataclass(frozen=True)
class Protocol:
    """How one log is trained and tested: leave-one-out, all items ranked."""

    training: TrainingConfig
    batch_tokens: int
    """Events per training step, approximately; the number of slices follows from their mean length."""
    systems: tuple[str, ...] = MAIN
    lengths: tuple[int, ...] = (200,)
    """Events of history that a model reads."""
    seeds: tuple[int, ...] = (0, 1, 2)
    timestamp: str | None = "timestamp"
    dropout: float = 0.2

    def slices(self, store: SequenceStore, split: Split, length: int) -> int:
        """Training slices per step."""
        slices = TrainingSlices(store, split, length, batch_size=1)
        return max(1, round(self.batch_tokens * len(slices) / slices.tokens))

    def cell(self, name: str, length: int, seed: int, slices: int) -> tuple[ModelConfig, TrainingConfig]:
        """The configurations of one run's model and training."""
        model = replace(SYSTEMS[name].model(length), dropout=self.dropout)
        epochs = self.training.epochs * (1 if MIXERS[model.mixer].causal else CLOZE_EPOCHS)
        loss = SYSTEMS[name].loss or self.training.loss
        return model, replace(self.training, batch_size=slices, seed=seed, epochs=epochs, loss=loss)


SHORT = TrainingConfig(
    epochs=20, learning_rate=2e-3, schedule="cosine", evaluate_every=2, metric="NDCG@10", patience=20, seen="input"
)
DEFAULT = Protocol(SHORT, batch_tokens=3200)
PUBLISHED = ("hyena", "hyena_ungated", "attention", "lru", "gru")
PROTOCOLS = {
    "ml-100k": DEFAULT,
    # The published lru-loo protocol, but for 40 epochs of small steps instead of until convergence (hyena has .189
    # after 20 epochs, .199 after 40).
    "ml-1m": Protocol(
        replace(
            SHORT, epochs=40, patience=40, learning_rate=1.5e-3, warmup_steps=200, evaluate_every=4, metric="Recall@10"
        ),
        batch_tokens=2000,
        systems=PUBLISHED,
        timestamp=None,
    ),
    # 57,289 items, so the sampled softmax: the full one takes 0.45 s per 1,000 events on one core. With seven events
    # per item, strong weight decay helps: hyena's validation Recall@10 was .064 with 0.1, .067 with 0.3 and .072 with
    # 1, when the decay applied to its mixers too. With 2 it was behind at epoch 12 (.051, against .061 with 1).
    "beauty": Protocol(
        replace(
            SHORT,
            epochs=40,
            patience=40,
            evaluate_every=4,
            metric="Recall@10",
            loss="sampled",
            negatives=4096,
            weight_decay=1.0,
        ),
        batch_tokens=1600,
        systems=PUBLISHED,
        lengths=(50,),
        timestamp=None,
        dropout=0.5,
    ),
    # Nine events in ten repeat an earlier correspondent, so seen items may be recommended again.
    "email-eu-core": Protocol(
        replace(SHORT, exclude_seen=False),
        batch_tokens=3200,
        systems=("hyena", "attention"),
        lengths=(50, 200, 1024, 4096),
    ),
}

Rows = Sequence[Mapping[str, Any]]
BEYOND = ("seen before", "new to the user", "coverage@10", "novelty@10")  # the first two are METRICS[0] of such targets


@dataclass(frozen=True)
class Accuracy:
    """Train and test systems on a log by its protocol."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    runs: Annotated[Path, tyro.conf.Positional]
    """Folder for the runs."""
    mixers: tuple[str, ...] | None = None
    """Systems to train now; default: the protocol's."""
    lengths: tuple[int, ...] | None = None
    """Lengths to train now; default: the protocol's."""
    seeds: tuple[int, ...] | None = None
    """Seeds to train now; default: the protocol's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU where there is one."""
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """How to split the log: each user's last event tests and the one before it validates, or, temporal, the first
    events after two cuts in time that are the same for everyone."""

    def run(self) -> None:
        protocol = PROTOCOLS.get(self.data.stem, DEFAULT)
        log = self.data.stem + ("-temporal" if self.split == "temporal" else "")
        check_names(self.mixers or protocol.systems)
        protocol = replace(
            protocol,
            systems=tuple(dict.fromkeys((*protocol.systems, *(self.mixers or ())))),
            lengths=tuple(dict.fromkeys((*protocol.lengths, *(self.lengths or ())))),
            seeds=tuple(dict.fromkeys((*protocol.seeds, *(self.seeds or ())))),
        )
        source = Source(str(self.data), self.split, timestamp=protocol.timestamp)
        store, split = load_source(source)
        slices = {length: protocol.slices(store, split, length) for length in protocol.lengths}

        def folder(name: str, length: int, seed: int) -> Path:
            return self.runs / log / f"{name}-{length}-{seed}"

        for seed, length, name in product(
            self.seeds or protocol.seeds, self.lengths or protocol.lengths, self.mixers or protocol.systems
        ):
            console.rule(f"{name}, length {length}, seed {seed}")
            model, training = protocol.cell(name, length, seed, slices[length])
            training = replace(training, device=self.device)
            train(store, split, model, training, source, folder(name, length, seed))

        alike = replace(protocol, training=protocol.training.for_items(store.n_items))
        settings = asdict(alike) | {"slices": slices, "data": store.describe()}
        path = RESULTS / f"accuracy-{log}.json"
        found = {key(run): run for run in earlier_runs(path, settings)}
        for name, length, seed in product(SYSTEMS, protocol.lengths, protocol.seeds):
            result = folder(name, length, seed) / "result.json"
            if result.exists():
                run = {"log": log, "mixer": name, "length": length, "seed": seed}
                found[key(run)] = run | outcome(json.loads(result.read_text()))
        runs = list(found.values())
        baselines = [
            {"log": log, "length": length, "name": row.pop("model"), **row}
            for length in protocol.lengths
            for row in baseline_rows(store, split, SYSTEMS[OURS].model(length), protocol.training)
        ]
        title = f"test on {self.data.stem}, {SPLITS[self.split]}, all items ranked"
        rows = table(runs, baselines)
        show_table(f"{title}; mean ± s.d.", ("read", "system", "seeds", *METRICS), rows)
        show_table("by what the target is, and what the best ten items are like", ("read", "system", *BEYOND), rows)
        write(path, "accuracy", title, {"settings": settings, "runs": runs, "baselines": baselines})
        picture(title, runs, baselines, path.with_suffix(".png"))


def outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the result keeps of a run's ``result.json``; older runs have fewer breakdowns."""
    kept = ("parameters", "epochs", "best_epoch", "seconds_per_epoch", "validation", "test", "environment")
    parts = (f"test_{kind}" for kind in KINDS)
    return {name: result[name] for name in (*kept, *(part for part in parts if part in result))}


def key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["mixer"], run["length"], run["seed"]


def earlier_runs(path: Path, settings: Mapping[str, Any]) -> Rows:
    """The runs of the result at ``path`` if these settings would train them in the same way, else none. Options that
    the result does not name are newer than it, and had their default value then."""
    if not path.exists():
        return []
    result = read(path)
    trained = ("data", "batch_tokens", "timestamp", "dropout")
    now, then = (
        json.loads(json.dumps({name: of.get(name) for name in trained})) for of in (settings, result["settings"])
    )
    training = asdict(TrainingConfig()) | {"loss": settings["training"]["loss"]} | result["settings"]["training"]
    if now != then or training != settings["training"]:
        return []
    return [{"environment": result["environment"]} | run for run in result["runs"]]


def spread(runs: Rows, metric: str) -> dict[tuple[int, str], tuple[float, float, int]]:
    """Mean, sample standard deviation and number of seeds of every (length, system), by length, then best mean
    first."""
    values: dict[tuple[int, str], list[float]] = defaultdict(list)
    for run in runs:
        values[run["length"], run["mixer"]].append(run["test"][metric])
    found = {key: (mean(of), stdev(of) if len(of) > 1 else 0.0, len(of)) for key, of in values.items()}
    return dict(sorted(found.items(), key=lambda entry: (entry[0][0], -entry[1][0])))


def table(runs: Rows, baselines: Rows) -> list[dict[str, Any]]:
    """A row for every length and system and for every baseline."""
    spreads = {metric: spread(runs, metric) for metric in METRICS}
    found: list[dict[str, Any]] = []
    for length, name in spreads[METRICS[0]]:
        cells = {metric: spreads[metric][length, name] for metric in METRICS}
        shown = {metric: f"{m:.4f}" + (f" ±{sd:.4f}" if n > 1 else "") for metric, (m, sd, n) in cells.items()}
        same = [run for run in runs if (run["length"], run["mixer"]) == (length, name)]
        found.append({"read": length, "system": name, "seeds": cells[METRICS[0]][2], **shown, **beyond(same)})
    return found + [{"read": row["length"], "system": row["name"], **row, **beyond([row])} for row in baselines]


def beyond(runs: Rows) -> dict[str, float]:
    """The columns ``BEYOND``, as means over those of ``runs`` that have them; older results do not."""
    known = [{**run.get("test", run), **seen_and_unseen(run, METRICS[0])} for run in runs if "test_by_age" in run]
    values = {name: [run[name] for run in known if run[name] is not None] for name in BEYOND}
    return {name: mean(found) for name, found in values.items() if found}


def picture(title: str, runs: Rows, baselines: Rows, path: Path) -> None:
    """Plots the first metric by system or, where there are several lengths, by length; and by kind of target at the
    shortest and the longest length."""
    metric = METRICS[0]
    lengths = sorted({run["length"] for run in runs})
    values = spread(runs, metric)
    systems = list(dict.fromkeys(name for _, name in values))
    figure, (left, *kinds) = plots.new_figure(1 + len(KINDS))
    if len(lengths) > 1:
        for name in systems:
            read = [length for length in lengths if (length, name) in values]
            averages, deviations, _ = zip(*(values[length, name] for length in read), strict=True)
            left.errorbar(read, averages, deviations, capsize=3, **plots.style(name))
        for name in dict.fromkeys(row["name"] for row in baselines):
            rows = [row for row in baselines if row["name"] == name]
            left.plot([row["length"] for row in rows], [row[metric] for row in rows], "--", label=name)
        left.set(xscale="log", xlabel="events of history read", ylabel=metric)
        left.set_xticks(lengths, [f"{length:,}" for length in lengths])
        left.minorticks_off()
    else:
        for place, name in enumerate(reversed(systems)):
            average, deviation, _ = values[lengths[0], name]
            plots.bar(left, name, place, average, filled=True)
            left.errorbar(average, place, xerr=deviation, color="black", capsize=3)
        left.set_yticks(range(len(systems)), [SYSTEMS[name].title for name in reversed(systems)])
        for row, line in zip(baselines, ("--", ":", "-."), strict=False):
            left.axvline(row[metric], color="black", linestyle=line, label=row["name"])
        left.set(xlabel=f"{metric}, mean and s.d. over seeds")
    for kind, axes in zip(KINDS, kinds, strict=True):
        for length, name in product(sorted({lengths[0], lengths[-1]}), systems[:4]):
            same = [run for run in runs if (run["length"], run["mixer"]) == (length, name) and f"test_{kind}" in run]
            if same:
                parts = averaged(same, kind, METRICS[0])
                look = {
                    "label": f"{SYSTEMS[name].title}, {length:,} read",
                    "linestyle": "-" if length == lengths[-1] else ":",
                }
                plots.values(axes, name, list(parts), list(parts.values()), **look)
        axes.set(xlabel=MEANING[kind], ylabel=metric)
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Accuracy, description=__doc__).run()
