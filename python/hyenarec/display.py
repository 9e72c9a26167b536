"""What a person sees in the terminal: tables, and progress that is a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print ``rows`` under ``columns``; floats with four digits, missing cells as a dash."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class TrainingDisplay:
    """One bar for the epoch at hand and one line for each finished epoch."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def start_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        self._progress.reset(
            self._task, total=batches, completed=done, description=f"epoch {epoch + 1}/{epochs}", visible=True
        )

    def advance(self) -> None:
        self._progress.advance(self._task)

    def line(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


@contextmanager
def training_display() -> Iterator[TrainingDisplay]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield TrainingDisplay(progress)
