"""What a person sees in the terminal: text that is never markup, tables, and progress that is a bar on a terminal and
plain lines elsewhere."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

# Unicode categories of characters that move the cursor, reorder text, end lines or are no characters at all.
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # in Cf too, but harmless: parts of words in Persian and Hindi, and of emoji
IN_ASCII = {"±": "+-", "…": "...", "─": "-", "━": "-"}
SECONDS_A_LINE = 30.0  # between two lines about progress where there is no bar
FOLDED = 16  # columns that a long text keeps when a table is too wide


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: characters that a terminal lacks become their ASCII form, or an escape where none is
    known."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing), error.end


codecs.register_error("hyenarec-ascii", in_ascii)


def shown(text: str) -> str:
    """``text`` as it may be printed: one line, control characters escaped, within what the terminal can encode."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(_escaped(character) for character in text)
    encoding = console.encoding
    return text if text.isascii() else text.encode(encoding, "hyenarec-ascii").decode(encoding)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN or character in JOINERS:
        return character
    return character.encode("unicode_escape").decode()


class PlainConsole(Console):
    """A console that takes every string as text, not as markup: most of what it prints comes from somebody's data."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def status(self, status: Any, **options: Any) -> Status:
        # A spinner takes a string as markup, whatever its console says; its dots are Braille characters.
        spinner = "dots" if self.encoding.startswith("utf") else "line"
        return super().status(Text(shown(str(status))), spinner=spinner, **options)


console = PlainConsole()


def complain(text: str) -> None:
    """Print one line to standard error."""
    print(shown(text), file=sys.stderr, flush=True)


def make_output_safe() -> None:
    """Let standard output and error write any character in any terminal, whoever prints it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="hyenarec-ascii")


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], text: Sequence[str] | None = None
) -> None:
    """Print ``rows`` under ``columns``: floats with four decimals, missing cells as a dash.

    Figures are never cut. A table wider than the terminal first loses its borders; then the columns ``text`` (default:
    the first) are folded; at last every row becomes a block of lines. Output that does not go to a terminal may have
    any width, unless the environment variable COLUMNS gives one.
    """
    text = columns[:1] if text is None else text
    cells = [[shown(_cell(row.get(column))) for column in columns] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    folded = [
        min(width, max(FOLDED, cell_len(name))) if name in text else width
        for name, width in zip(columns, widths, strict=True)
    ]
    bordered, bare = sum(widths) + 3 * len(columns) + 1, sum(widths) + len(columns) - 1
    room = console.width if console.is_terminal or "COLUMNS" in os.environ else bordered
    console.print(title, style="italic")
    if bordered > room and sum(folded) + len(columns) - 1 > room:
        for row in cells:
            _show_stacked(columns, row)
        return
    if bordered <= room:
        table = Table(width=bordered)
    else:
        table = Table(width=min(bare, room), box=None, pad_edge=False, collapse_padding=True)
    for column, widest, narrow in zip(columns, widths, folded, strict=True):
        if column in text:
            table.add_column(column, overflow="fold", min_width=narrow, max_width=widest)
        else:
            table.add_column(column, justify="right", no_wrap=True, min_width=widest)
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _show_stacked(columns: Sequence[str], row: Sequence[str]) -> None:
    """One row as lines: the first cell, and the others below it under their columns' names."""
    console.print(row[0])
    widest = max(map(cell_len, columns[1:]), default=0)
    for column, cell in zip(columns[1:], row[1:], strict=True):
        console.print(f"  {column}{' ' * (widest - cell_len(column))}  {cell}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class TrainingDisplay:
    """One bar for the current epoch and one line for each finished epoch."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, pace="")

    def start_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        self._progress.reset(
            self._task, total=batches, completed=done, description=f"epoch {epoch + 1}/{epochs}", visible=True, pace=""
        )

    def advance(self, pace: str = "") -> None:
        """One more step is done; ``pace`` says how long steps take."""
        self._progress.update(self._task, advance=1, pace=pace)

    def line(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


@contextmanager
def training_display() -> Iterator[TrainingDisplay]:
    pace = TextColumn("{task.fields[pace]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), pace)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield TrainingDisplay(progress)


@contextmanager
def counting(what: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that adds to the number ``done``. Meanwhile people see how many of ``total`` are done and how
    long the rest will take: as a bar, or without a terminal as a line now and then, the first at once."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done)
        began, before, count, said = time.monotonic(), done, done, -SECONDS_A_LINE

        def advance(more: int) -> None:
            nonlocal count, said
            count += more
            progress.advance(task, more)
            seconds = time.monotonic() - began
            if progress.disable and count < total and seconds - said >= SECONDS_A_LINE:
                said = seconds
                left = timedelta(seconds=round(seconds / (count - before) * (total - count)))
                console.print(f"{count:,} of {total:,} {what} done, about {left} left")

        yield advance
