"""Finding the columns of a log by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyenarec.errors import UserError

if TYPE_CHECKING:
    import polars as pl


OTHER = "column "  # prefix of the roles of columns that have no other role


class MissingColumn(UserError):
    """A table lacks a column that was asked for; ``header`` lists the columns that it has."""

    def __init__(self, message: str, header: list[str]) -> None:
        super().__init__(message)
        self.header = header


class WithOthers(dict[str, str]):
    """Columns ``{role: name}``, and a request for every other column, under the role :data:`OTHER` + its name."""


def complete(name: str, columns: dict[str, str], header: list[str]) -> dict[str, str]:
    """``columns`` and, if it is a :class:`WithOthers`, all other columns of ``header``."""
    if not isinstance(columns, WithOthers):
        return columns
    taken = {find_column(name, role, column, header) for role, column in columns.items()}
    return columns | {OTHER + entry: entry for place, entry in enumerate(header) if place not in taken}


def choose(name: str, scan: pl.LazyFrame, columns: dict[str, str]) -> pl.DataFrame:
    """Read the columns ``{role: name}`` of ``scan``; the result calls them by their roles."""
    import polars as pl

    header = scan.collect_schema().names()
    columns = complete(name, columns, header)
    chosen = {role: header[find_column(name, role, column, header)] for role, column in columns.items()}
    return scan.select(pl.col(column).alias(role) for role, column in chosen.items()).collect()


def find_column(name: str, role: str, column: str, header: list[str], *, is_text: bool = False) -> int:
    """The index of ``column`` in ``header``. Raises :class:`UserError` where it is missing or ambiguous."""
    found = matches(column, header)
    if len(found) > 1 and header[found[0]] == header[found[1]]:
        raise UserError(f"{name}: {len(found)} columns are named {column!r}; rename all but one")
    if found:
        return found[0]
    way_out = ", or None where the rows are in order" if role == "timestamp" else ""
    if is_text and all(entry.replace(".", "", 1).isdigit() for entry in header):
        way_out += ". There seems to be no header; add a first line with the names of the columns"
    message = f"{name}: no column {column!r}; option {role} must name one of {', '.join(header)}{way_out}"
    raise MissingColumn(message, header)


def matches(column: str, header: list[str]) -> list[int]:
    """The indices of ``column`` in ``header``, which RecBole writes as ``name:type``."""
    return [place for place, entry in enumerate(header) if column in (entry, entry.rpartition(":")[0])]
