"""What changes if attention is replaced in other people's recommenders: accuracy, time and memory, in each library.

    make hosts
    python -m benchmarks hosts ../shared/data/ml-100k.parquet

Each library trains in its environment, build/hosts/NAME, by the script that is its example, once for each mixer and
seed, in a process of its own. Libraries without an environment are left out. Writes
``benchmarks/results/hosts-LOG.json`` after each library, and keeps there what it already has of other libraries under
the same settings.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro

from benchmarks.harness.recording import RESULTS, read, write
from benchmarks.harness.registry import OURS, RIVAL
from hyenarec.display import console
from hyenarec.errors import UserError

CHECKOUT = Path(__file__).parents[2]
NAMES = tuple(sorted(path.parent.name for path in CHECKOUT.glob("examples/hosts/*/train.py")))
EPOCHS = {"recbole": 20}  # an example for each event: as many epochs of others would be days
MOST_EPOCHS = 100


@dataclass(frozen=True)
class Hosts:
    """Train attention and HyenaMixer in other libraries on a log."""

    data: Annotated[Path, tyro.conf.Positional]
    """Parquet log with columns user_id, item_id and timestamp."""
    hosts: tuple[str, ...] = NAMES
    """Libraries."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Both mixers take the same ones."""
    length: int = 200
    """Events of history that a model reads."""
    epochs: int | None = None
    """Epochs of every library; default: 100, RecBole 20."""
    environments: Path = Path("build/hosts")
    """Folder of environments, as `make hosts` makes them."""

    def run(self) -> None:
        unknown = set(self.hosts) - set(NAMES)
        if unknown:
            raise UserError(f"option hosts: no example for {', '.join(sorted(unknown))}: choose of {', '.join(NAMES)}")
        pythons = {name: (self.environments / name / "bin/python").absolute() for name in self.hosts}
        there = [name for name in self.hosts if pythons[name].exists()]
        if not there:
            raise UserError(f"{self.environments}: no environment of {', '.join(self.hosts)}; `make hosts` makes them")
        path = RESULTS / f"hosts-{self.data.stem}.json"
        settings = {"log": self.data.stem, "length": self.length, "seeds": list(self.seeds)}
        title = f"attention and HyenaMixer in other libraries on {self.data.stem}, leave-one-out, all items ranked"
        found = read(path)["hosts"] if path.exists() and read(path)["settings"] == settings else []
        with TemporaryDirectory() as folder:
            log = Path(folder) / "log.csv"
            write_csv(self.data, log)
            for name in there:
                found = [row for row in found if row["host"] != name]
                for seed, mixer in product(self.seeds, (RIVAL, OURS)):
                    console.rule(f"{name}, {mixer}, seed {seed}")
                    epochs = self.epochs or EPOCHS.get(name, MOST_EPOCHS)
                    options = {"log": log, "length": self.length, "epochs": epochs, "seed": seed, "mixers": mixer}
                    row = {"host": name, "seed": seed, "epochs": epochs} | trained(pythons[name], name, options)
                    console.print(row)
                    found.append(row)
                write(path, "hosts", title, {"settings": settings, "hosts": found})


def write_csv(log: Path, path: Path) -> None:
    """The three columns, in the log's order."""
    import polars as pl

    pl.read_parquet(log).select("user_id", "item_id", "timestamp").write_csv(path)


def trained(python: Path, host: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The line of JSON that an example prints last."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [str(python), "-m", f"examples.hosts.{host}.train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise UserError(f"examples/hosts/{host}/train.py exited with {done.returncode}: {reason[0]}")
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def main() -> None:
    tyro.cli(Hosts, description=__doc__).run()
