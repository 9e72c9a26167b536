"""``hyenarec prepare``: read a log once, keep it as a memory-mapped store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from hyenarec.cli.options import Columns
from hyenarec.data.big_logs import opened_log
from hyenarec.display import console, shown


@dataclass(frozen=True)
class Prepare:
    """Read an interaction log and write a sequence store, which loads at once and needs no polars."""

    log: Annotated[Path, tyro.conf.Positional]
    """Parquet, CSV, TSV, JSON lines or RecBole .inter file, folder of Parquet parts, or - for standard input."""
    store: Annotated[Path, tyro.conf.Positional]
    """Folder to write."""
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    def run(self) -> None:
        with console.status(f"reading {self.log}") as status:
            place = next(folder for folder in self.store.absolute().parents if folder.is_dir())

            def told(line: str) -> None:
                status.update(Text(shown(f"reading {self.log}: {line}")))

            with opened_log(self.log, place, told, **dataclasses.asdict(self.columns)) as store:
                told("writing the store")
                store.save(self.store)
                line = f"{self.store}: {store.n_users:,} users, {store.n_items:,} items, {store.n_events:,} events"
        console.print(line, highlight=False)
