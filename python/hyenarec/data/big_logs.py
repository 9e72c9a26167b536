"""Large Parquet logs into a store in bounded memory: some users at a time, by polars' streaming engine.

A first pass over the log finds its users with their numbers of events, its items and the range of its times. Users are
then cut into groups of about as many events, and for each group a pass reads its events, orders them as
:func:`hyenarec.data.read_log` does and writes them to their place. Memory is that of one group, and of the ids; the
log is read once more for each group, whose filter on users polars pushes into the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.columns import find_column
from hyenarec.data.places import SUFFIXES, parquet_parts
from hyenarec.data.reading import LogOptions, columns_of, ids_of, read_log, repeats
from hyenarec.data.store import SequenceStore
from hyenarec.data.times import DATES, BadTime, TimeUnit, read_times
from hyenarec.errors import UserError

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Unpack

DEFAULTS: dict[str, Any] = read_log.__kwdefaults__ or {}  # of a log's options
BIG = 40_000_000  # events from which a log is read this way; smaller ones take 60 to 75 bytes an event at once
EVENTS_AT_A_TIME = 24_000_000  # of a group of users


@contextmanager
def opened_log(
    path: Path,
    place: Path | None = None,
    told: Callable[[str], None] = lambda line: None,
    **options: Unpack[LogOptions],
) -> Iterator[SequenceStore]:
    """The store of a log, as :func:`hyenarec.data.read_log` has it with the same ``options``, but in bounded memory
    where the log is big: Parquet of ``BIG`` events or more whose ids are integers or text, and times integers or dates.

    The arrays of a big one lie in files in the folder ``place`` (default: the system's for such files), 12 bytes an
    event, that are removed in the end. ``told`` is called with lines on how far it is.
    Raises :class:`UserError` as ``read_log`` does, but for a big log without the row.
    """
    given = cast(LogOptions, {**DEFAULTS, **options})
    columns = columns_of(given["user"], given["item"], given["timestamp"], given["time_unit"])
    if given["format"] in (None, "parquet") and _is_big(path, columns):
        with _big_log(path, columns, place, told, given["time_unit"], given["drop_duplicates"]) as store:
            yield store
    else:
        yield read_log(path, **given)


def _is_big(path: Path, columns: dict[str, str]) -> bool:
    try:
        import polars as pl
    except ImportError:
        return False  # reading it says what to install
    try:
        scan = _scan(path)
        if scan is None or scan.select(pl.len()).collect().item() < BIG:
            return False
        schema = scan.collect_schema()
        header = schema.names()
        kinds = {role: schema[header[find_column("", role, name, header)]] for role, name in columns.items()}
    except (pl.exceptions.PolarsError, UserError, OSError):
        return False  # reading it whole says what is wrong
    return all(
        (kind.is_integer() and kind != pl.UInt64) or (kind.is_temporal() if role == "timestamp" else kind == pl.String)
        for role, kind in kinds.items()
    )


@contextmanager
def _big_log(
    path: Path,
    columns: dict[str, str],
    place: Path | None,
    told: Callable[[str], None],
    time_unit: TimeUnit,
    drop_duplicates: bool,
) -> Iterator[SequenceStore]:
    import polars as pl

    scan = _scan(path)
    assert scan is not None
    header = scan.collect_schema().names()
    chosen = {role: header[find_column(str(path), role, name, header)] for role, name in columns.items()}
    scan = scan.select(pl.col(name).alias(role) for role, name in chosen.items())
    told("finding users and items")
    users = scan.group_by("user").len("events").collect(engine="streaming").sort("user")
    items = scan.select(pl.col("item").unique()).collect(engine="streaming")["item"].sort()
    for role, known in (("user", users["user"]), ("item", items)):
        if known.has_nulls() or (known.dtype == pl.String and (known == "").any()):
            raise UserError(f"{path}: column {columns[role]!r}: the id is missing")
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(users["events"].to_numpy(), dtype=np.int64)))
    if offsets[-1] == len(users):
        raise UserError(f"{path}: every user has a single event, so there is no sequence to learn from")
    declared = _unit(path, columns["timestamp"], scan, time_unit) if "timestamp" in columns else None
    with tempfile.TemporaryDirectory(prefix="hyenarec-", dir=place) as folder:
        shape = (int(offsets[-1]),)
        kept_items = np.memmap(Path(folder, "items"), np.int32, "w+", shape=shape)
        kept_times = None if declared is None else np.memmap(Path(folder, "times"), np.int64, "w+", shape=shape)
        lengths, unit, kept = np.zeros(len(users), dtype=np.int64), "s", 0
        groups = list(_groups(offsets))
        for number, (first, last) in enumerate(groups, 1):
            told(f"group {number} of {len(groups)}: users {first + 1:,} to {last:,} of {len(users):,}")
            group = users["user"][first:last]
            frame = scan.filter(pl.col("user").is_between(pl.lit(group[0]), pl.lit(group[-1]))).collect(
                engine="streaming"
            )
            dense = _places(frame.drop_in_place("user"), group)
            places = _places(frame.drop_in_place("item"), items)
            keys: tuple[NDArray[Any], ...] = ()
            if declared is not None:
                try:
                    times = read_times(frame.drop_in_place("timestamp"), declared)
                except BadTime as error:
                    raise UserError(f"{path}: column {columns['timestamp']!r}: {error}") from error
                keys, unit = times.keys, times.unit
            order = np.lexsort((*keys[::-1], dense))  # stable: equal times stay in the order of rows
            if drop_duplicates:
                order = order[~repeats((*keys, places, dense))[order]]
            lengths[first:last] = np.bincount(dense[order], minlength=last - first)
            end = kept + len(order)
            kept_items[kept:end] = places[order]
            if kept_times is not None:
                kept_times[kept:end] = times.seconds(order)
            kept = end
        np.cumsum(lengths, out=offsets[1:])
        yield SequenceStore(
            offsets,
            np.asarray(kept_items)[:kept],
            None if kept_times is None else np.asarray(kept_times)[:kept],
            ids_of(users["user"]),
            ids_of(items),
            unit,
        )


def _scan(path: Path) -> pl.LazyFrame | None:
    """The log's rows, in the order that reading it whole has them; None where it is no Parquet file or folder."""
    import polars as pl

    if path.is_dir():
        parts = parquet_parts(path)
        if parts and not any("=" in folder for part in parts for folder in part.relative_to(path).parts[:-1]):
            return pl.scan_parquet(parts, glob=False, hive_partitioning=False)
        return None
    if path.is_file() and SUFFIXES.get(path.suffix.lower()) == "parquet":
        return pl.scan_parquet(path, glob=False, hive_partitioning=False)
    return None


def _unit(path: Path, column: str, scan: pl.LazyFrame, declared: TimeUnit) -> TimeUnit:
    """The unit that the log's least and largest time tell, as a declared one; auto for dates."""
    import polars as pl

    time = pl.col("timestamp")
    ends = scan.select(time.min().alias("least"), time.max().alias("most")).collect(engine="streaming")
    try:
        found = read_times(pl.concat((ends["least"], ends["most"].alias("least"))), declared).unit
    except BadTime as error:
        raise UserError(f"{path}: column {column!r}: {error}") from error
    return "auto" if found == DATES else cast(TimeUnit, found)


def _groups(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Users ``first:last`` of at most ``EVENTS_AT_A_TIME`` events, or of one user."""
    first, users = 0, len(offsets) - 1
    while first < users:
        last = int(np.searchsorted(offsets, offsets[first] + EVENTS_AT_A_TIME, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def _places(column: pl.Series, known: pl.Series) -> NDArray[np.int32]:
    """The place of every value in ``known``, which is sorted."""
    import polars as pl

    if column.dtype.is_integer():
        return np.searchsorted(known.to_numpy(), column.to_numpy()).astype(np.int32)
    dense = pl.int_range(len(known), dtype=pl.Int32, eager=True)
    return column.replace_strict(known, dense, return_dtype=pl.Int32).to_numpy()
