"""Seconds of one training epoch by mixer, and for hyena by backend, on one log.

    python benchmarks/epoch.py ../shared/data/ml-1m.parquet --timestamp position

The contestants take turns step by step in one process and in alternating order; the figure is the median step times the
steps of an epoch. Writes benchmarks/results/epoch-LOG.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from hyenarec.cli.options import load_source
from hyenarec.config import ModelConfig
from hyenarec.display import show_table
from hyenarec.training import Run, Source, TrainingConfig
from measuring import take_turns
from recording import RESULTS, write_report

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
    """Steps of each contestant."""

    def run(self) -> None:
        store, split = load_source(Source(str(self.data), timestamp=self.timestamp))
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                (mixer, backend): Run(
                    Path(folder) / f"{mixer}-{backend}", store, split, ModelConfig(mixer=mixer), TRAINING, Source("")
                )
                for mixer, backend in CONTESTANTS
                if backend is None or backend in backends.available("cpu")
            }
            times = take_turns({key: next_step(run, key[1]) for key, run in runs.items()}, 0, self.steps)
            rows = [
                {
                    "mixer": mixer,
                    "backend": backend,
                    "ms/step": round(milliseconds["median"], 1),
                    "s/epoch": round(1e-3 * milliseconds["median"] * len(runs[mixer, backend].windows), 1),
                }
                for (mixer, backend), milliseconds in times.items()
            ]
        title = f"training on {self.data.stem}, batch {TRAINING.batch_size}, length 200, d=64, 2 blocks"
        show_table(title, ("mixer", "backend", "ms/step", "s/epoch"), rows)
        content = {"training": asdict(TRAINING), "rows": rows}
        write_report(RESULTS / f"epoch-{self.data.stem}.json", title, content)


def next_step(run: Run, backend: str | None) -> Callable[[], None]:
    """A function that trains on the next batch of the first epoch."""
    run.model.train()
    batches = run.windows.epoch(0, 0)

    def step() -> None:
        with backends.use(backend) if backend else nullcontext():
            run.step(next(batches), TRAINING.learning_rate)

    return step


if __name__ == "__main__":
    tyro.cli(Epoch, description=__doc__).run()
