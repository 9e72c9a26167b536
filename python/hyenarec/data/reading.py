"""From an interaction log to a sequence store. Needs polars, which is imported when the first log is read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_type_hints

import numpy as np
from numpy.typing import NDArray

from hyenarec.config import check_types
from hyenarec.data.ids import Ids
from hyenarec.data.places import Column, LogFormat, Origin, parquet_parts, read_columns
from hyenarec.data.store import STORE, SequenceStore
from hyenarec.data.times import BadTime, TimeUnit, read_times
from hyenarec.errors import UserError
from hyenarec.files import as_path

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Unpack

WHOLE_NUMBER = r"^-?(0|[1-9][0-9]*)(\.0+)?$"  # text that an integer prints as, or with zero decimals; not "007"
FROM_R = r"^[1-9](\.[0-9]+)?e\+[01][0-9]$"  # R writes 100000 as 1e+05; it never rounds an integer to do so
SCIENTIFIC = r"^[0-9](\.[0-9]+)?[eE]\+?[0-9]+$"


class LogOptions(TypedDict, total=False):
    """The keyword arguments of :func:`read_log`."""

    user: str
    item: str
    timestamp: str | None
    time_unit: TimeUnit
    format: LogFormat | None
    drop_duplicates: bool


def open_data(path: str | Path, **options: Unpack[LogOptions]) -> SequenceStore:
    """Open the store in the folder ``path``, or read the log at ``path``, with the ``options`` of :func:`read_log`.

    Raises :class:`UserError` as :meth:`SequenceStore.load` and :func:`read_log` do.
    """
    path = as_path(path, "data")
    if path.is_dir() and ((path / STORE).exists() or not parquet_parts(path)):
        return SequenceStore.load(path)
    return read_log(path, **options)


def read_log(
    path: str | Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    time_unit: TimeUnit = "auto",
    format: LogFormat | None = None,
    drop_duplicates: bool = False,
) -> SequenceStore:
    """Read an interaction log: one event per row, rows in any order.

    ``path`` is a file, a pipe, ``-`` for standard input, or a folder of Parquet parts as Spark and Hive write them:
    names ``key=value`` of its subfolders become columns of text. It is a name, never a pattern. ``format``, or the
    suffix if that is None, tells what it holds: Parquet (.parquet, .pq), JSON lines (.jsonl, .ndjson), or text in UTF-8
    or UTF-16 with a header line: CSV (.csv; also separated by semicolons where the header shows it), tab-separated
    (.tsv) and RecBole (.inter: header of ``name:type``). Text compressed by gzip is unpacked. ``user``, ``item`` and
    ``timestamp`` name the columns. A user's events are ordered by time, and those at equal times by row; with
    ``timestamp=None`` by row alone. ``drop_duplicates`` keeps one of the events that share user, item and time.

    Ids are integers or strings. In text files they are integers if every id of the column is a whole number (``42``, or
    ``42.0`` as tables with gaps have it, but not ``007``), and strings otherwise; surrounding spaces are ignored. Times
    are dates (ISO 8601 in text) or numbers in ``time_unit``; ``"auto"`` infers the unit from the largest number (see
    :mod:`hyenarec.data.times`). They are kept as whole seconds since 1970 in UTC, but ordered with their fractions.

    Raises :class:`UserError`, which names the log and, where it applies, the column and the first offending row, for: a
    missing, damaged or empty file, an unknown suffix or column, missing ids, missing, NaN or negative times, times of
    several units, columns of other types, and logs where every user has a single event.
    """
    path = as_path(path, "log")
    options = {"user": user, "item": item, "timestamp": timestamp, "time_unit": time_unit, "format": format}
    check_types(options | {"drop_duplicates": drop_duplicates}, get_type_hints(read_log))
    columns = columns_of(user, item, timestamp, time_unit)
    frame, origin = read_columns(path, columns, format)
    if not frame.height:
        raise UserError(f"{origin.name}: empty log: no events")
    users, user_ids = _encode_ids(frame.drop_in_place("user"), Column(origin, user))
    items, item_ids = _encode_ids(frame.drop_in_place("item"), Column(origin, item))
    times = None
    if timestamp is not None:
        place = Column(origin, timestamp)
        try:
            times = read_times(frame.drop_in_place("timestamp"), time_unit)
        except BadTime as error:
            raise place.error(str(error), error.row) from error
    keys = () if times is None else times.keys[::-1]
    order = np.lexsort((*keys, users))  # stable: equal times stay in the order of rows
    if drop_duplicates:
        order = order[~repeats((*keys, items, users))[order]]
    lengths = np.bincount(users[order], minlength=len(user_ids))
    if lengths.max() < 2:
        raise UserError(f"{origin.name}: every user has a single event, so there is no sequence to learn from")
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    if times is None:
        return SequenceStore(offsets, items[order], None, user_ids, item_ids)
    return SequenceStore(offsets, items[order], times.seconds(order), user_ids, item_ids, times.unit)


def columns_of(user: str, item: str, timestamp: str | None, time_unit: TimeUnit) -> dict[str, str]:
    """The names of columns by their roles. Raises :class:`UserError` for options that contradict each other."""
    columns = {"user": user, "item": item} | ({} if timestamp is None else {"timestamp": timestamp})
    for role, name in columns.items():
        if not name:
            raise UserError(f"option {role}: '' is no name of a column")
        if list(columns.values()).count(name) > 1:
            raise UserError(f"option {role}: column {name!r} cannot hold users, items and times at once")
    if timestamp is None and time_unit != "auto":
        raise UserError("option time-unit: not used without a column of times")
    return columns


def repeats(keys: tuple[NDArray[Any], ...]) -> NDArray[np.bool_]:
    """Which rows equal an earlier one in all ``keys``, each (E,): (E,) bool."""
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    repeats = np.zeros(len(order), dtype=bool)
    repeats[order[1:][same]] = True
    return repeats


def ids_of_column(column: pl.Series, origin: Origin, name: str) -> tuple[NDArray[np.int32], Ids]:
    """Ids of the column ``name`` of any table, read as a log's are: the index of each row's id, (n,), and the ids."""
    return _encode_ids(column, Column(origin, name))


def _encode_ids(column: pl.Series, place: Column) -> tuple[NDArray[np.int32], Ids]:
    """Dense indices of the ids, (E,), and the ids themselves."""
    import polars as pl

    column = _clean_ids(column, place)
    known = column.unique().sort()  # strings in the order of their bytes, which Ids needs
    dense = pl.int_range(len(known), dtype=pl.Int32, eager=True)
    indices = column.replace_strict(known, dense, return_dtype=pl.Int32).to_numpy()
    if column.dtype == pl.Int64:
        return indices, ids_of(known)
    if place.origin.holds_text(place.name):
        stripped = known.str.strip_chars()
        if (stripped == "").any():
            raise place.error("the id is missing", _first(column.str.strip_chars() == ""))
        numbers = _whole_numbers(stripped, place)
        if numbers is not None:
            values, merged = np.unique(numbers, return_inverse=True)  # 42 and 42.0 are the same id
            return merged.astype(np.int32)[indices], Ids.from_arrays({"values": values})
        if (stripped != known).any():
            known = stripped.unique().sort()
            dense = pl.int_range(len(known), dtype=pl.Int32, eager=True)
            indices = stripped.replace_strict(known, dense, return_dtype=pl.Int32).to_numpy()[indices]
    return indices, ids_of(known)


def ids_of(known: pl.Series) -> Ids:
    """Ids from a series of distinct, sorted integers or strings."""
    if known.dtype.is_integer():
        return Ids.from_arrays({"values": known.to_numpy().astype(np.int64, copy=False)})
    utf8 = np.frombuffer(known.str.join("").item().encode(), dtype=np.uint8)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(known.str.len_bytes().to_numpy(), dtype=np.int64)))
    return Ids.from_arrays({"utf8": utf8, "offsets": offsets})


def _whole_numbers(known: pl.Series, place: Column) -> NDArray[np.int64] | None:
    """The ids as integers, if all of them are whole numbers of 64 bits, else None."""
    import polars as pl

    whole = known.str.contains(WHOLE_NUMBER)
    other = known.filter(~whole)
    if len(other) == len(known) or not other.str.contains(SCIENTIFIC).all():
        return None
    numbers = known.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    if len(other):
        example = other[0]
        floats = known.cast(pl.Float64, strict=False)
        exact = other.str.contains(FROM_R).all() and (floats.filter(~whole) % 1 == 0).all()
        if not exact:
            warnings.warn(
                f"{place.origin.name}: column {place.name!r}: ids such as {example!r} look like numbers in scientific "
                "notation, so all ids are read as text; write them as whole numbers",
                stacklevel=4,
            )
            return None
        warnings.warn(
            f"{place.origin.name}: column {place.name!r}: ids such as {example!r} are read as whole numbers, "
            "as R writes them",
            stacklevel=4,
        )
        numbers = numbers.zip_with(whole, floats.cast(pl.Int64, strict=False))
    return None if numbers.has_nulls() else numbers.to_numpy()  # beyond int64 they stay strings


def _clean_ids(column: pl.Series, place: Column) -> pl.Series:
    """The column as int64 or strings. Raises :class:`UserError` for missing ids and for other types."""
    import polars as pl

    kind = column.dtype
    if kind == pl.Binary:
        column = _bytes_as_text(column, place)
        kind = column.dtype
    if isinstance(kind, pl.Decimal):
        column = _decimals_as_text(column, place)
        kind = column.dtype
    if not (kind.is_integer() or kind.is_float() or kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum)):
        raise place.error(f"holds {kind}; ids are integers or strings")
    missing = column.is_null()
    if kind.is_float():
        missing |= column.is_nan().fill_null(True)
        bad = ((column != column.floor()) | (column.abs() >= 2**53)).fill_null(False) & ~missing
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
    return column.cast(pl.String) if integers.has_nulls() else integers  # uint64 beyond int64 becomes text


def _bytes_as_text(column: pl.Series, place: Column) -> pl.Series:
    """Bytes as the UTF-8 text or the UUIDs that they hold; missing values stay missing."""
    import polars as pl

    given = column.drop_nulls()
    try:
        text = column.cast(pl.String)
    except pl.exceptions.ComputeError:  # one is no UTF-8, and polars does not say which
        text = pl.Series([_decode(value) for value in column], dtype=pl.String)
    # Text has no zero bytes, and 16 bytes that are not text are taken for a UUID.
    odd = (text.is_null() & column.is_not_null()) | text.str.contains("\0", literal=True).fill_null(False)
    if not odd.any():
        return text
    if not (given.bin.size() == 16).all():
        raise place.error("the id is bytes that are no UTF-8 text; write it as text", _first(odd))
    digits = column.bin.encode("hex")
    return digits.str.replace(r"^(.{8})(.{4})(.{4})(.{4})(.{12})$", "$1-$2-$3-$4-$5")


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _decimals_as_text(column: pl.Series, place: Column) -> pl.Series:
    """Decimals as integers, or as their digits if one exceeds 64 bits. Raises :class:`UserError` for fractions."""
    import polars as pl

    text = column.cast(pl.String).str.replace(r"\.0+$", "")
    fraction = text.str.contains(".", literal=True).fill_null(False)
    if fraction.any():
        row = _first(fraction)
        raise place.error(f"{column[row]} is no id: ids are integers or strings", row)
    integers = text.cast(pl.Int64, strict=False)
    return text if integers.null_count() > text.null_count() else integers


def _first(mask: pl.Series) -> int:
    row = mask.arg_max()
    assert row is not None
    return row
