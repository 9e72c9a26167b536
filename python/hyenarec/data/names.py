"""Files about items: a catalogue of their names, and lists of some items, for filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyenarec.data.columns import MissingColumn, WithOthers
from hyenarec.data.ids import Id, Ids
from hyenarec.data.places import STANDARD_INPUT, SUFFIXES, Origin, files_at, read_columns
from hyenarec.data.reading import ids_of_column
from hyenarec.errors import UserError
from hyenarec.files import as_path, unwritten

if TYPE_CHECKING:
    import polars as pl

ITEM_COLUMNS = ("item_id", "id", "item")
NAME_COLUMNS = ("name", "title")
UNKNOWN_NAMED = 5


def read_names(path: str | Path, item_ids: Ids, item: str | None = None) -> dict[Id, str]:
    """The names of items, by the log's own ids, for those of ``item_ids`` that the catalogue at ``path`` names.

    A catalogue is a table in any format that logs may have (Parquet, CSV, tab-separated, JSON lines). Its ids are in
    the column ``item``, or else in ``item_id``, ``id`` or ``item``; its names in ``name`` or ``title``. If an item has
    several names the first counts. Anybody may have written the names: show them as text, never as markup.

    Raises :class:`UserError` for a file that cannot be read, has no such columns, or names none of the items.
    """
    import polars as pl

    path = as_path(path, "option names")
    with unwritten(files_at(path), str(path), "the catalogue"):  # else names and ids might be of different versions
        ids = _read_ids(path, item)
        names = read_table(path, "name", NAME_COLUMNS).frame["name"].cast(pl.String)
    places = item_ids.find([given for given, _ in ids])  # (n,), -1 where unknown
    found: dict[Id, str] = {}
    for known, name in zip(_decode_known(item_ids, places), names, strict=True):
        if known is not None and name is not None:
            found.setdefault(known, name)
    if not found:
        raise UserError(f"{path}: names none of the model's {len(item_ids)} items; do its ids come from another log?")
    return found


@dataclass(frozen=True)
class ItemList:
    """The known items that a file lists, and a line about the unknown ones, if there are any."""

    items: list[Id]
    unknown: str | None


def read_item_list(path: str | Path, item_ids: Ids, item: str | None = None) -> ItemList:
    """The items that the file at ``path`` lists: one id per line, or a column of a table.

    A file whose suffix is that of a log (.parquet, .csv, .tsv, .jsonl, ...) is a table. Its ids are in the column
    ``item``, or else in ``item_id``, ``id`` or ``item``, or in its only column. Any other file has one id per line;
    blanks around it and empty lines are ignored. Raises :class:`UserError` where the file cannot be read.
    """
    path = as_path(path, "list of items")
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    is_table = path.is_dir() or plain.suffix.lower() in SUFFIXES
    given = _read_ids(path, item, single=True) if is_table else _read_lines(path)
    places = item_ids.find([one for one, _ in given])
    known = [one for one in dict.fromkeys(_decode_known(item_ids, places)) if one is not None]
    unknown = [entry for entry, place in zip(given, places.tolist(), strict=True) if place < 0]
    return ItemList(known, _about(path, unknown, len(given)) if unknown else None)


def _about(path: Path, unknown: Sequence[tuple[Id, str]], total: int) -> str:
    named = ", ".join(f"{item!r} ({row})" for item, row in unknown[:UNKNOWN_NAMED])
    rest = len(unknown) - UNKNOWN_NAMED
    more = f" and {rest:,} more" if rest > 0 else ""
    return f"{path}: {len(unknown):,} of its {total:,} items are unknown to the model and left out: {named}{more}"


def _decode_known(item_ids: Ids, places: np.ndarray[tuple[int], np.dtype[np.int32]]) -> list[Id | None]:
    """The log's own ids at ``places``, None for -1."""
    known = iter(item_ids.decode(places[places >= 0]))
    return [next(known) if place >= 0 else None for place in places.tolist()]


def _read_lines(path: Path) -> list[tuple[Id, str]]:
    """The ids of a file with one per line, each with its row for messages."""
    _refuse_standard_input(path)
    try:
        with unwritten(files_at(path), str(path), "the list"):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text with an item id a line, nor named as a table") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from error
    return [(line.strip(), f"row {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read_ids(path: Path, item: str | None, *, single: bool = False) -> list[tuple[Id, str]]:
    """The ids of a table, read as a log's are, each with its row for messages."""
    return ids_of_table(read_table(path, "item", columns_of_ids(item), single=single))


def columns_of_ids(item: str | None) -> tuple[str, ...]:
    """The names that a column of item ids may have: the log's own, ``item``, first."""
    return tuple(dict.fromkeys((item or ITEM_COLUMNS[0], *ITEM_COLUMNS)))


@dataclass(frozen=True)
class Table:
    """Columns of a table by their roles; ``name`` is the table's own name for the column that was asked for."""

    frame: pl.DataFrame
    origin: Origin
    name: str


def ids_of_table(table: Table) -> list[tuple[Id, str]]:
    """The item ids of a table, each with its row for messages."""
    if not table.frame.height:
        return []
    indices, ids = ids_of_column(table.frame["item"], table.origin, table.name)
    return [(one, table.origin.row(row)) for row, one in enumerate(ids.decode(indices))]


def read_table(path: Path, role: str, names: Sequence[str], *, single: bool = False, others: bool = False) -> Table:
    """Read the column called by the first of ``names`` that the table has. With ``single`` the table's only column will
    do; with ``others`` all other columns are read too (:class:`WithOthers`)."""
    _refuse_standard_input(path)
    header: list[str] = []
    for name in names:
        try:
            columns = WithOthers({role: name}) if others else {role: name}
            frame, origin = read_columns(path, columns, None)
            return Table(frame, origin, name)
        except MissingColumn as missing:
            header = missing.header
    if single and len(header) == 1:
        return read_table(path, role, header)
    raise UserError(f"{path}: {role}s must be in a column {' or '.join(names)}; it has {', '.join(header)}")


def _refuse_standard_input(path: Path) -> None:
    if str(path) == STANDARD_INPUT:
        raise UserError("-: files about items cannot be standard input")
