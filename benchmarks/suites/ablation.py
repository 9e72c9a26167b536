"""Ablation of the hyena mixer on one log: each option changed alone from the defaults, several seeds, one table.

    python -m benchmarks ablation ../shared/data/ml-100k.parquet runs/ablation

Each run has its own folder and can be resumed, so an interrupted ablation continues where it stopped. Writes
benchmarks/results/ablation-LOG.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.harness.recording import RESULTS, write
from hyenarec.config import HyenaConfig, ModelConfig, TrainingConfig
from hyenarec.display import console, show_table
from hyenarec.experiments import summarise, train
from hyenarec.source import Source, load_source

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no window": {"window": False},
    "8 terms": {"terms": 8},
    "32 terms": {"terms": 32},
    "chebyshev": {"filter": "chebyshev"},
    "cosine": {"filter": "cosine"},
    "implicit": {"filter": "implicit"},
    "explicit": {"filter": "explicit"},
    "logsparse": {"filter": "logsparse"},
    "silu gate": {"gate": "silu"},
    "no gates": {"gate": "none"},
    "attention to the last 32": {"local": 32},
}
TRAINING = TrainingConfig(
    epochs=20, batch_size=32, learning_rate=2e-3, schedule="cosine", evaluate_every=5, seen="input", device="cpu"
)
COLUMNS = ("NDCG@10", "Recall@10", "MRR", "s/epoch")


@dataclass(frozen=True)
class Ablation:
    """Train the hyena mixer with each option changed alone."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    runs: Annotated[Path, tyro.conf.Positional]
    """Folder for the runs."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of each variant."""

    def run(self) -> None:
        source = Source(str(self.data))
        store, split = load_source(source)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for seed in self.seeds:
            for name, options in VARIANTS.items():
                console.rule(f"{name}, seed {seed}")
                model = ModelConfig(hyena=HyenaConfig(**options))
                folder = self.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
                results[name].append(train(store, split, model, replace(TRAINING, seed=seed), source, folder))
        summary = summarise(results)
        rows = [
            {"variant": name, **{column: round(values[column]["mean"], 4) for column in COLUMNS}}
            for name, values in summary.items()
        ]
        title = f"hyena on {self.data.stem}, test, mean of seeds {', '.join(map(str, self.seeds))}"
        show_table(title, ("variant", *COLUMNS), rows)
        runs = [
            {
                "log": self.data.stem,
                "mixer": "hyena",
                "variant": name,
                "length": result["model"]["max_length"],
                "seed": seed,
                "validation": result["validation"],
                "test": result["test"],
                "epochs": result["epochs"],
                "seconds_per_epoch": result["seconds_per_epoch"],
            }
            for name, of_seeds in results.items()
            for seed, result in zip(self.seeds, of_seeds, strict=True)
        ]
        content = {"settings": {"training": asdict(TRAINING), "variants": VARIANTS}, "runs": runs}
        write(RESULTS / f"ablation-{self.data.stem}.json", "ablation", title, content)


def main() -> None:
    tyro.cli(Ablation, description=__doc__).run()
