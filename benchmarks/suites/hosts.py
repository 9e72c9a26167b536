"""What changes if attention is replaced in other people's recommenders: accuracy, time and memory, in each library.

    make hosts
    python -m benchmarks hosts ../shared/data/ml-100k.parquet

Each library trains in its own environment, build/hosts/NAME, by its example script, once for each mixer and seed. Each
training is a process of its own with one thread, and ends when validation no longer improves. Libraries without an
environment are left out. Writes ``benchmarks/results/hosts-LOG.json`` and ``.png`` after each training. A training that
is already there under the same settings is not repeated: delete the file to measure again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro

from benchmarks.harness import plots
from benchmarks.harness.recording import RESULTS, read, write
from benchmarks.harness.registry import OURS, RIVAL
from hyenarec.display import console
from hyenarec.errors import UserError

CHECKOUT = Path(__file__).parents[2]
MIXERS = {RIVAL: "attention", OURS: "HyenaMixer"}
NAMES = tuple(sorted(path.parent.name for path in CHECKOUT.glob("examples/hosts/*/train.py")))
MOST_EPOCHS = {"recbole": 20}  # one training example per event: as many epochs as the others' would take days
FIGURES = {  # plotted: the name in a row, and the label of the axis
    "NDCG@10": "NDCG@10",
    "cpu_seconds_per_epoch": "CPU seconds an epoch",
    "peak_megabytes": "peak memory (MB)",
}


@dataclass(frozen=True)
class Hosts:
    """Train attention and HyenaMixer in other libraries on a log."""

    data: Annotated[Path, tyro.conf.Positional]
    """Parquet log with columns user_id, item_id and timestamp."""
    hosts: tuple[str, ...] = NAMES
    """Libraries."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; both mixers use the same ones."""
    length: int = 100
    """Events of history that a model reads."""
    epochs: int | None = None
    """Most epochs of every library; default: 100, RecBole 20."""
    patience: int = 10
    """Epochs without a better validation result after which a training stops."""
    environments: Path = Path("build/hosts")
    """Folder of environments, which `make hosts` creates."""

    def run(self) -> None:
        unknown = set(self.hosts) - set(NAMES)
        if unknown:
            raise UserError(f"option hosts: no example for {', '.join(sorted(unknown))}: choose of {', '.join(NAMES)}")
        pythons = {name: (self.environments / name / "bin/python").absolute() for name in self.hosts}
        there = [name for name in self.hosts if pythons[name].exists()]
        if not there:
            raise UserError(f"{self.environments}: no environment of {', '.join(self.hosts)}; `make hosts` makes them")
        path = RESULTS / f"hosts-{self.data.stem}.json"
        settings = {"log": self.data.stem, "length": self.length, "patience": self.patience, "threads": 1}
        title = f"attention and HyenaMixer in other libraries on {self.data.stem}, leave-one-out, all items ranked"
        found = read(path)["hosts"] if path.exists() and read(path)["settings"] == settings else []
        with TemporaryDirectory() as folder:
            log = Path(folder) / "log.csv"
            write_csv(self.data, log)
            for seed, name, mixer in product(self.seeds, there, (RIVAL, OURS)):
                most = self.epochs or MOST_EPOCHS.get(name, 100)
                key = {"host": name, "seed": seed, "mixer": mixer, "most_epochs": most}
                if any(key.items() <= row.items() for row in found):
                    continue
                console.rule(f"{name}, {mixer}, seed {seed}")
                options = {"log": log, "length": self.length, "epochs": most, "patience": self.patience}
                row = key | trained(pythons[name], name, options | {"seed": seed, "mixers": mixer})
                console.print(row)
                found.append(row)
                found.sort(key=lambda row: (row["host"], row["seed"], row["mixer"]))
                write(path, "hosts", title, {"settings": settings, "hosts": found})
                picture(title, found, path.with_suffix(".png"))


def write_csv(log: Path, path: Path) -> None:
    """Writes the three columns as CSV, in the log's order."""
    import polars as pl

    pl.read_parquet(log).select("user_id", "item_id", "timestamp").write_csv(path)


def trained(python: Path, host: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Runs an example. Returns the line of JSON that it prints last; raises :class:`UserError` if it fails."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [str(python), "-m", f"examples.hosts.{host}.train", *arguments]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # waiting for each other would count as CPU time
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, env=one_thread)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise UserError(f"examples/hosts/{host}/train.py exited with {done.returncode}: {reason[0]}")
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def picture(title: str, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plots a bar for each library and mixer, the mean over seeds, with a dot for each seed."""
    hosts = sorted({row["host"] for row in rows}, reverse=True)
    figure, all_axes = plots.new_figure(len(FIGURES))
    for axes, (name, label) in zip(all_axes, FIGURES.items(), strict=True):
        for (place, host), (offset, mixer) in product(enumerate(hosts), ((0.2, RIVAL), (-0.2, OURS))):
            values = [row[name] for row in rows if (row["host"], row["mixer"]) == (host, mixer)]
            if values:
                axes.barh(place + offset, mean(values), 0.4, color=plots.COLORS[mixer], label=MIXERS[mixer])
                axes.plot(values, [place + offset] * len(values), "k.", markersize=4)
        axes.set_yticks(range(len(hosts)), hosts)
        axes.set(xlabel=label)
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Hosts, description=__doc__).run()
