"""Seconds of one training epoch by mixer, and for hyena by backend, on one log.

    python benchmarks/epoch.py ../shared/data/ml-1m.parquet --timestamp position

The contestants take turns step by step in one process and in alternating order; the figure is the median step times the
steps of an epoch. Writes benchmarks/results/epoch-LOG.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from hyenarec import environment
from hyenarec.cli.options import load_source
from hyenarec.config import ModelConfig
from hyenarec.display import console, show_table
from hyenarec.files import write_text
from hyenarec.training import Run, Source, TrainingConfig

from hyenarec_kernels import backends

CONTESTANTS = (("hyena", "cpu"), ("hyena", "reference"), ("attention", None), ("gru", None))
TRAINING = TrainingConfig(batch_size=64, device="cpu")


@dataclass(frozen=True)
class Epoch:
    """Time training steps of every mixer."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    timestamp: str = "timestamp"
    """Column of times."""
    steps: int = 15
    """Steps of each contestant, the first two not counted."""

    def run(self) -> None:
        store, split = load_source(Source(str(self.data), timestamp=self.timestamp))
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                (mixer, backend): Run(
                    Path(folder) / f"{mixer}-{backend}", store, split, ModelConfig(mixer=mixer), TRAINING, Source("")
                )
                for mixer, backend in CONTESTANTS
                if backend is None or backend in backends.available("cpu")
            }
            times: dict[tuple[str, str | None], list[float]] = {key: [] for key in runs}
            order = list(runs)
            for batch, _ in zip(next(iter(runs.values())).windows.epoch(0, 0), range(self.steps), strict=False):
                for mixer, backend in order:
                    run = runs[mixer, backend]
                    run.model.train()
                    with backends.use(backend) if backend else nullcontext():
                        began = time.perf_counter()
                        run.step(batch, TRAINING.learning_rate)
                        times[mixer, backend].append(time.perf_counter() - began)
                order.reverse()
            for (mixer, backend), seconds in times.items():
                step = statistics.median(seconds[2:])
                rows.append(
                    {
                        "mixer": mixer,
                        "backend": backend,
                        "ms/step": round(1e3 * step, 1),
                        "s/epoch": round(step * len(runs[mixer, backend].windows), 1),
                    }
                )
        title = f"training on {self.data.stem}, batch {TRAINING.batch_size}, length 200, d=64, 2 blocks"
        show_table(title, ("mixer", "backend", "ms/step", "s/epoch"), rows)
        out = Path(__file__).parent / "results" / f"epoch-{self.data.stem}.json"
        report = {
            "title": title,
            "environment": environment.describe(torch.device("cpu")),
            "training": asdict(TRAINING),
            "rows": rows,
        }
        write_text(out, json.dumps(report, indent=2) + "\n")
        console.print(f"written to {out.name}", highlight=False)


if __name__ == "__main__":
    tyro.cli(Epoch, description=__doc__).run()
