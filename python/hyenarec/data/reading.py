"""From an interaction log in a file to a sequence store. Needs polars, imported when the first log is read."""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.ids import Ids
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError

if TYPE_CHECKING:
    import polars as pl

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
PARQUET = (".parquet", ".pq")

WHOLE_NUMBER = r"^-?(0|[1-9][0-9]*)(\.0+)?$"  # what its integer prints as, so not "007"
ISO_DATE = r"^\d{4}-\d{2}-\d{2}"  # polars would also guess at 01/02/2021
PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


def open_data(
    path: str | Path, *, user: str = "user_id", item: str = "item_id", timestamp: str | None = "timestamp"
) -> SequenceStore:
    """The store in the folder ``path``, or the log in the file ``path``; the column names are for logs only.

    Raises :class:`UserError` as :meth:`SequenceStore.load` and :func:`read_log` do.
    """
    path = Path(path)
    return SequenceStore.load(path) if path.is_dir() else read_log(path, user=user, item=item, timestamp=timestamp)


def read_log(
    path: str | Path, *, user: str = "user_id", item: str = "item_id", timestamp: str | None = "timestamp"
) -> SequenceStore:
    """Read an interaction log: one row an event, rows in any order.

    Formats, by suffix: Parquet (.parquet, .pq), and with a header line in UTF-8 CSV (.csv), tab-separated (.tsv) and
    RecBole (.inter: tab-separated, header of ``name:type``). ``user``, ``item`` and ``timestamp`` name the columns. A
    user's events are ordered by time, and where times are equal by row; with ``timestamp=None`` by row alone.

    Ids are integers or strings. In text files they are integers where every one of the column is a whole number
    (``42``, or ``42.0`` as tables with gaps have it, but not ``007``), and strings otherwise. Times are numbers, kept
    in the log's own unit, or dates (ISO 8601 in text), kept as seconds since 1970 in UTC; fractions count for the order
    and are then rounded down.

    Raises :class:`UserError` with the file and, where it applies, column and first offending row for: a missing,
    damaged or empty file, an unknown suffix or column, missing ids, missing, NaN or negative times, columns of other
    types, and logs where every user has a single event.
    """
    path = Path(path)
    columns = {"user": user, "item": item} | ({} if timestamp is None else {"timestamp": timestamp})
    frame = _read_columns(path, columns)
    if not frame.height:
        raise UserError(f"{path}: empty log: no events")
    users, user_ids = _encode_ids(frame.drop_in_place("user"), _Column(path, "user", user))
    items, item_ids = _encode_ids(frame.drop_in_place("item"), _Column(path, "item", item))
    if timestamp is None:
        times, order = None, np.argsort(users, kind="stable")
    else:
        exact, unit = _read_times(frame.drop_in_place("timestamp"), _Column(path, "timestamp", timestamp))
        order = np.lexsort((exact, users))  # stable: equal times stay in the order of rows
        times = np.floor_divide(exact[order], unit).astype(np.int64, copy=False)
    lengths = np.bincount(users, minlength=len(user_ids))
    if lengths.max() < 2:
        raise UserError(f"{path}: every user has a single event, so there is no sequence to learn from")
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    return SequenceStore(offsets, items[order], times, user_ids, item_ids)


@dataclass(frozen=True)
class _Column:
    """A column by its role (which is also the option's name) and its name in the file, for messages."""

    path: Path
    role: str
    name: str

    @property
    def is_text(self) -> bool:
        return self.path.suffix.lower() in SEPARATORS

    def error(self, what: str, row: int | None = None) -> UserError:
        """``row`` counts from 0; people count from 1."""
        where = f"{self.path}: column {self.name!r}"
        if row is not None:
            where += f", row {row + 1}" + (" (header not counted)" if self.is_text else "")
        return UserError(f"{where}: {what}")


def _read_columns(path: Path, columns: dict[str, str]) -> pl.DataFrame:
    """The columns ``{role: name}`` of the file under their roles; text formats give strings only."""
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: {'is a folder, not a log' if path.is_dir() else 'no such file'}")
    suffix = path.suffix.lower()
    if suffix not in (*PARQUET, *SEPARATORS):
        known = ", ".join((*PARQUET, *SEPARATORS))
        raise UserError(f"{path}: unknown kind of log {path.suffix!r}: the suffix must be one of {known}")
    try:
        import polars as pl
    except ImportError as error:
        raise UserError(
            f"{path}: reading a log needs polars: install hyenarec[rec], or prepare a store where it is installed"
        ) from error
    text: dict[str, Any] = {"separator": SEPARATORS.get(suffix), "infer_schema_length": 0}  # 0: all strings
    if suffix == ".inter":
        text["quote_char"] = None
    try:
        header = pl.read_parquet_schema(path) if suffix in PARQUET else pl.read_csv(path, n_rows=0, **text).columns
        chosen = {role: _find_column(path, role, name, list(header)) for role, name in columns.items()}
        names = list(dict.fromkeys(chosen.values()))
        frame = pl.read_parquet(path, columns=names) if suffix in PARQUET else pl.read_csv(path, columns=names, **text)
        return frame.select(pl.col(name).alias(role) for role, name in chosen.items())
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: empty log: not even a header") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        reason = None if suffix in PARQUET else _first_bad_row(path)
        raise UserError(f"{path}: cannot read it: {reason or str(error).splitlines()[0]}") from error


def _find_column(path: Path, role: str, name: str, header: list[str]) -> str:
    """``name`` in ``header``, where RecBole writes it as ``name:type``."""
    for column in header:
        if name in (column, column.rpartition(":")[0]):
            return column
    way_out = ", or None where the rows are in order" if role == "timestamp" else ""
    raise UserError(f"{path}: no column {name!r}; option {role} must name one of {', '.join(header)}{way_out}")


def _first_bad_row(path: Path) -> str | None:
    """The first row that is not UTF-8, longer than the header or badly quoted, in words; polars does not name it."""
    number, separator = 0, SEPARATORS[path.suffix.lower()]
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() == ".inter":
            rows = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(file, delimiter=separator, strict=True)
        try:
            width = len(next(rows))
            for number, row in enumerate(rows, 1):
                if len(row) > width:
                    return f"row {number} (header not counted) has {len(row)} fields, the header {width}"
                if any("\udc80" <= letter <= "\udcff" for field in row for letter in field):
                    return f"row {number} (header not counted) is not UTF-8"
        except csv.Error as error:
            return f"row {number + 1} (header not counted): {error}"
    return None


def _encode_ids(column: pl.Series, place: _Column) -> tuple[NDArray[np.int32], Ids]:
    """Dense indices of the ids, (E,), and the ids themselves."""
    import polars as pl

    column = _clean_ids(column, place)
    known = column.unique().sort()  # strings by their bytes, as Ids has them
    dense = pl.int_range(len(known), dtype=pl.Int32, eager=True)
    indices = column.replace_strict(known, dense, return_dtype=pl.Int32).to_numpy()
    if column.dtype == pl.Int64:
        return indices, Ids.from_arrays({"values": known.to_numpy()})
    if place.is_text and known.str.contains(WHOLE_NUMBER).all():
        numbers = known.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
        if not numbers.has_nulls():  # beyond int64 they stay strings
            values, merged = np.unique(numbers.to_numpy(), return_inverse=True)  # 42 and 42.0 are one
            return merged.astype(np.int32)[indices], Ids.from_arrays({"values": values})
    utf8 = np.frombuffer(known.str.join("").item().encode(), dtype=np.uint8)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(known.str.len_bytes().to_numpy(), dtype=np.int64)))
    return indices, Ids.from_arrays({"utf8": utf8, "offsets": offsets})


def _clean_ids(column: pl.Series, place: _Column) -> pl.Series:
    """The column as int64, or as strings, none missing."""
    import polars as pl

    kind = column.dtype
    if not (kind.is_integer() or kind.is_float() or kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum)):
        raise place.error(f"holds {kind}; ids are integers or strings")
    missing = column.is_null()
    if kind.is_float():
        missing |= column.is_nan().fill_null(True)
        bad = ((column != column.floor()) | (column.abs() > 2**53)).fill_null(False) & ~missing
        if bad.any():
            row = _first(bad)
            raise place.error(f"{column[row]} is no id: ids are integers or strings", row)
    elif not kind.is_integer():
        column = column.cast(pl.String)
        missing |= (column == "").fill_null(True)
    if missing.any():
        raise place.error("the id is missing", _first(missing))
    if column.dtype == pl.String:
        return column
    integers = column.cast(pl.Int64, strict=False)
    return column.cast(pl.String) if integers.has_nulls() else integers  # uint64 beyond int64


def _read_times(column: pl.Series, place: _Column) -> tuple[NDArray[Any], int]:
    """Times that order events exactly, (E,) int64 or float64, and how many of their units make one that is kept."""
    import polars as pl

    parsed = _parse_times(column) if column.dtype == pl.String else column
    kind, unit = parsed.dtype, 1
    if kind == pl.Date:
        parsed = parsed.cast(pl.Datetime("ms"))
    if isinstance(parsed.dtype, pl.Datetime):
        unit = PER_SECOND[parsed.dtype.time_unit]
        parsed = parsed.to_physical()
    elif kind.is_integer():
        parsed = parsed.cast(pl.Int64, strict=False)
    elif kind.is_numeric():
        parsed = parsed.cast(pl.Float64)
    else:
        raise place.error(f"holds {kind}; times are numbers or dates")
    # NaN is above every number for polars.
    bad = ((parsed < 0) | (parsed >= 2**63 if parsed.dtype.is_float() else False)).fill_null(True)
    if bad.any():
        row = _first(bad)
        value = "the time is missing" if column[row] is None else f"{column[row]!s} is no time"
        raise place.error(f"{value}; times are numbers from 0 up, or ISO 8601 dates from 1970 on", row)
    return parsed.to_numpy(), unit


def _parse_times(text: pl.Series) -> pl.Series:
    """Text as integers where all are, else as dates where the first is one, else as floats; null where that fails."""
    import polars as pl

    integers = text.cast(pl.Int64, strict=False)
    if integers.null_count() == text.null_count():
        return integers
    if text.head(1).str.contains(ISO_DATE).any():
        with suppress(pl.exceptions.ComputeError):  # what looked like a date is none
            return text.str.to_datetime(strict=False, time_unit="us")
    return text.cast(pl.Float64, strict=False)


def _first(mask: pl.Series) -> int:
    row = mask.arg_max()
    assert row is not None
    return row
