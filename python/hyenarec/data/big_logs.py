"""Turns large Parquet logs into a store in bounded memory: two passes over the log, then one group of users at a time.

The first pass, by polars' streaming engine, finds the log's users and how many events each has, its items and the range
of its times. Users are then divided into groups with about equally many events. The second pass copies the events into
one file per group, some millions at a time. Finally each group's file is read, and its events are put into the order of
:func:`hyenarec.data.read_log` and appended to the store's arrays. Memory holds some millions of events, and all ids.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.columns import find_column
from hyenarec.data.places import SUFFIXES, parquet_parts, partition_of, parts_of, refuse_other_kinds
from hyenarec.data.reading import LogOptions, columns_of, ids_of, read_log, repeats
from hyenarec.data.store import SequenceStore
from hyenarec.data.times import DATES, BadTime, TimeUnit, read_times
from hyenarec.errors import UserError
from hyenarec.files import alone_in, unwritten

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Unpack

DEFAULTS: dict[str, Any] = read_log.__kwdefaults__ or {}  # of a log's options
BIG = 40_000_000  # logs of so many events are read this way; smaller ones are read whole, at 60 to 75 bytes per event
EVENTS_AT_A_TIME = 4_000_000  # read from the log in one go
# Size of a group of users. On one core of an AMD EPYC, ordering events takes 92 ns each in a group of 400,000, which
# fits in the processor's cache, and 147 ns each in a group of 8,000,000.
EVENTS_OF_A_GROUP = 1_000_000
MOST_GROUPS = 200  # and so files that are open at the same time
SCRATCH = re.compile("group-[0-9]+|items|times")  # names of the files in a scratch folder
NARROW = 8  # ids are looked up in an array where that needs fewer entries than so many per id


@contextmanager
def opened_log(
    path: Path,
    place: Path | None = None,
    told: Callable[[str], None] = lambda line: None,
    **options: Unpack[LogOptions],
) -> Iterator[SequenceStore]:
    """The store of a log, as :func:`hyenarec.data.read_log` returns it for the same ``options``, but in bounded memory
    where the log is big: Parquet of at least ``BIG`` events, with integers or text as ids and integers or dates as
    times.

    The arrays of a big log lie in temporary files in the folder ``place`` (default: the system's temporary folder), 12
    bytes per event, which are removed at the end. ``told`` is called with lines that report progress.
    Raises :class:`UserError` as ``read_log`` does, but for a big log the message does not name the row.
    """
    given = cast(LogOptions, {**DEFAULTS, **options})
    columns = columns_of(given["user"], given["item"], given["timestamp"], given["time_unit"])
    if given["format"] in (None, "parquet") and _is_big(path, columns):
        with _big_log(path, columns, place, told, given["time_unit"], given["drop_duplicates"]) as store:
            yield store
    else:
        yield read_log(path, **given)


def _is_big(path: Path, columns: dict[str, str]) -> bool:
    """Whether a log is read in bounded memory. Raises :class:`UserError`, as reading it whole does, where a part of a
    big log has other columns or types than the others."""
    try:
        import polars as pl
    except ImportError:
        return False  # reading it whole says what to install
    parts = _parts(path, columns)
    try:
        scans = [pl.scan_parquet(part, glob=False, hive_partitioning=False) for part in parts]
        if not scans or sum(scan.select(pl.len()).collect().item() for scan in scans) < BIG:
            return False
        kinds = _scan(path, parts, columns).collect_schema()
    except (pl.exceptions.PolarsError, OSError):
        return False  # reading it whole says what is wrong
    integers = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
    return all(
        kind in integers or (kind.is_temporal() if role == "timestamp" else kind == pl.String)
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

    parts = _parts(path, columns)
    if path.is_dir():
        parts_of(path)  # called because it warns of files that are not Parquet
    with _scratch(Path(tempfile.gettempdir()) if place is None else place) as folder:
        with _readable(path, parts):
            scan = _scan(path, parts, columns)
            told("finding users and items")
            users = scan.group_by("user").len("events").collect(engine="streaming").sort("user")
            items = scan.select(pl.col("item").unique()).collect(engine="streaming")["item"].sort()
            for role, known in (("user", users["user"]), ("item", items)):
                if known.has_nulls() or (known.dtype == pl.String and (known == "").any()):
                    raise UserError(f"{path}: column {columns[role]!r}: the id is missing")
            offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(users["events"].to_numpy(), dtype=np.int64)))
            events = int(offsets[-1])
            if events == len(users):
                raise UserError(f"{path}: every user has a single event, so there is no sequence to learn from")
            declared = _unit(path, columns["timestamp"], scan, time_unit) if "timestamp" in columns else None
            groups = _groups(offsets)
            unit, per_second = "s", 1
            with _Dealer(folder, groups, len(users), timed=declared is not None) as dealer:
                user_places, item_places = _Places(users["user"]), _Places(items)
                for first in range(0, events, EVENTS_AT_A_TIME):
                    told(f"dealing out events {first + 1:,} to {min(first + EVENTS_AT_A_TIME, events):,} of {events:,}")
                    frame = scan.slice(first, EVENTS_AT_A_TIME).collect(engine="streaming")
                    key = None
                    if declared is not None:
                        try:
                            times = read_times(frame["timestamp"], declared)
                        except BadTime as error:
                            raise UserError(f"{path}: column {columns['timestamp']!r}: {error}") from error
                        (key,), unit, per_second = times.keys, times.unit, times.per_second
                    dealer.deal(user_places.of(frame["user"]), item_places.of(frame["item"]), key)
        lengths = np.zeros(len(users), dtype=np.int64)
        with _written(folder / "items") as kept_items, _written(folder / "times") as kept_times:
            for number, (begin, end) in enumerate(pairwise(groups)):
                told(f"group {number + 1:,} of {len(groups) - 1:,}: users {begin + 1:,} to {end:,} of {len(users):,}")
                rows = dealer.take(number)
                order = _order(rows, drop_duplicates)
                lengths[begin:end] = np.bincount(rows["user"][order] - begin, minlength=end - begin)
                _write(kept_items, rows["item"][order])
                if declared is not None:
                    _write(kept_times, np.floor_divide(rows["time"][order], per_second))
        np.cumsum(lengths, out=offsets[1:])
        yield SequenceStore(
            offsets,
            np.asarray(np.memmap(folder / "items", np.int32, "r")),
            None if declared is None else np.asarray(np.memmap(folder / "times", np.int64, "r")),
            ids_of(users["user"]),
            ids_of(items),
            unit,
        )


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder in ``place`` that is removed at the end. Folders that killed processes left there are removed first."""
    begin, end = "hyenarec-", ".tmp"
    for left in place.glob(f"{begin}*{end}"):
        with suppress(OSError, UserError), alone_in(left):  # raises if a process is using it
            if all(SCRATCH.fullmatch(path.name) for path in left.iterdir()):
                shutil.rmtree(left)
    try:
        folder = tempfile.TemporaryDirectory(prefix=begin, suffix=end, dir=place)
    except OSError as error:
        raise UserError(f"cannot write in {place}: {error.strerror or error}") from error
    with folder as name, alone_in(Path(name)):
        yield Path(name)


def _written(path: Path) -> FileIO:
    return path.open("wb", buffering=0)  # unbuffered: closing it has nothing left to write, and so cannot fail


def _write(file: FileIO, values: NDArray[Any]) -> None:
    left = values.view(np.uint8).data
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        place = Path(str(file.name)).parent.parent
        raise UserError(
            f"cannot write in {place}: {error.strerror or error}; a store needs its room there twice while it is made"
        ) from error


class _Dealer:
    """Distributes events, in the order of the log, among files, one for each group of users."""

    def __init__(self, folder: Path, groups: list[int], users: int, *, timed: bool) -> None:
        self._group = np.zeros(users, dtype=np.uint16)  # the group of each user
        for number, (begin, end) in enumerate(pairwise(groups)):
            self._group[begin:end] = number
        self._paths = [folder / f"group-{number}" for number in range(len(groups) - 1)]
        self._row = np.dtype([("time", np.int64)] * timed + [("user", np.int32), ("item", np.int32)])

    def __enter__(self) -> _Dealer:
        self._files = [_written(path) for path in self._paths]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def deal(self, users: NDArray[np.int32], items: NDArray[np.int32], times: NDArray[np.int64] | None) -> None:
        rows = np.empty(len(users), self._row)
        rows["user"], rows["item"] = users, items
        if times is not None:
            rows["time"] = times
        group = self._group[users]
        rows = rows[np.argsort(group, kind="stable")]
        ends = np.bincount(group, minlength=len(self._files)).cumsum()
        for file, begin, end in zip(self._files, (0, *ends), ends, strict=False):
            _write(file, rows[begin:end])

    def take(self, number: int) -> NDArray[Any]:
        """The events of a group, with fields ``user``, ``item`` and, where there are times, ``time``. Removes its
        file."""
        rows = np.fromfile(self._paths[number], self._row)
        self._paths[number].unlink()
        return rows


def _order(rows: NDArray[Any], drop_duplicates: bool) -> NDArray[np.int64]:
    """Indices that sort events by user and time; where both are equal, events stay in the order of the log."""
    user = rows["user"] - rows["user"].min()
    keys: tuple[NDArray[Any], ...] = (user,)
    if "time" in (rows.dtype.names or ()):
        time = rows["time"] - rows["time"].min()
        keys = (time, user)
        bits = int(time.max()).bit_length()
        if bits + int(user.max()).bit_length() < 64:  # a single key sorts in half the time of two
            keys = ((user.astype(np.int64) << bits) | time,)
    order = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys)
    return order[~repeats((*keys, rows["item"]))[order]] if drop_duplicates else order


class _Places:
    """Maps values to their indices among the sorted values ``known``; integers that lie close by an array lookup."""

    def __init__(self, known: pl.Series) -> None:
        import polars as pl

        self._known = known
        self._places = pl.int_range(len(known), dtype=pl.Int32, eager=True)
        self._by_value: NDArray[np.int32] | None = None
        if known.dtype.is_integer():
            values = known.to_numpy()
            self._least, most = int(values[0]), int(values[-1])
            if most - self._least < NARROW * len(values):
                self._by_value = np.zeros(most - self._least + 1, dtype=np.int32)
                self._by_value[values.astype(np.int64) - self._least] = np.arange(len(values))

    def of(self, column: pl.Series) -> NDArray[np.int32]:
        import polars as pl

        if self._by_value is not None:
            found: NDArray[np.int32] = self._by_value[column.to_numpy().astype(np.int64) - self._least]
            return found
        return column.replace_strict(self._known, self._places, return_dtype=pl.Int32).to_numpy()


def _parts(path: Path, columns: dict[str, str]) -> list[Path]:
    """The files of a log, in the order in which reading it whole reads them; none where it is not Parquet, or where a
    column that is needed is in the names of its folders."""
    if path.is_file():
        return [path] if SUFFIXES.get(path.suffix.lower()) == "parquet" else []
    parts = parquet_parts(path) if path.is_dir() else []
    keys = {key for part in parts for key in partition_of(part.relative_to(path))}
    return [] if keys & {*columns.values()} else parts


def _scan(path: Path, parts: list[Path], columns: dict[str, str]) -> pl.LazyFrame:
    """A scan of the log's columns under their roles. Raises :class:`UserError` for a part unlike the others."""
    import polars as pl

    found = list[tuple[list[Path], pl.Schema]]()  # consecutive parts with the same schema are read as one
    for part in parts:
        schema = pl.scan_parquet(part, glob=False, hive_partitioning=False).collect_schema()
        if found and found[-1][1] == schema:
            found[-1][0].append(part)
        else:
            found.append(([part], schema))
    scans = list[pl.LazyFrame]()
    for alike, schema in found:
        header = schema.names()
        chosen = {role: header[find_column(str(alike[0]), role, name, header)] for role, name in columns.items()}
        scan = pl.scan_parquet(alike, glob=False, hive_partitioning=False)
        scans.append(scan.select(pl.col(name).alias(role) for role, name in chosen.items()))
        kinds, first = scans[-1].collect_schema(), scans[0].collect_schema()
        refuse_other_kinds(path, columns, (alike[0], kinds), (parts[0], first))
    return scans[0] if len(scans) == 1 else pl.concat(scans, how="vertical_relaxed")


@contextmanager
def _readable(path: Path, parts: list[Path]) -> Iterator[None]:
    """Inside the context, the log's files must not change, and an error of polars becomes one line that names the
    file."""
    import polars as pl

    try:
        with unwritten(parts, str(path)):  # else the second pass could meet other users and items
            yield
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{_damaged(parts) or path}: cannot read it: {str(error).splitlines()[0]}") from error


def _damaged(parts: list[Path]) -> Path | None:
    """The first part that polars cannot read."""
    import polars as pl

    for part in parts:
        try:
            pl.scan_parquet(part, glob=False, hive_partitioning=False).select(pl.all().count()).collect()
        except pl.exceptions.PolarsError:
            return part
    return None


def _unit(path: Path, column: str, scan: pl.LazyFrame, declared: TimeUnit) -> TimeUnit:
    """The unit that the log's least and largest time imply, as a declared one; auto for dates."""
    import polars as pl

    time = pl.col("timestamp")
    ends = scan.select(time.min().alias("least"), time.max().alias("most")).collect(engine="streaming")
    try:
        found = read_times(pl.concat((ends["least"], ends["most"].alias("least"))), declared).unit
    except BadTime as error:
        raise UserError(f"{path}: column {column!r}: {error}") from error
    return "auto" if found == DATES else cast(TimeUnit, found)


def _groups(offsets: NDArray[np.int64]) -> list[int]:
    """Where groups of users begin, and where the last ends: each has about ``EVENTS_OF_A_GROUP`` events, or one
    user."""
    size = max(EVENTS_OF_A_GROUP, -(-int(offsets[-1]) // MOST_GROUPS))
    wanted = np.arange(0, offsets[-1] + size, size)
    return np.unique(np.searchsorted(offsets, wanted).clip(max=len(offsets) - 1)).tolist()  # type: ignore[no-any-return]
