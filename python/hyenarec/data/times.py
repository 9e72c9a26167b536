"""Converts the times of a log or a caller to whole seconds since 1970 in UTC.

Numbers are seconds, milliseconds, microseconds or nanoseconds. Where nobody declares the unit, the largest number
implies it: a time since 1973 is at least 10^8 seconds, and one before the year 5138 is below 10^11, so that the four
ranges (10^8 to 10^11 seconds, written in each unit) do not overlap. Numbers below 10^11 are seconds, or counters that
are kept as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyenarec.errors import UserError

if TYPE_CHECKING:
    import polars as pl

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DATES = "date"  # the unit of a log whose times are dates
UNITS = (*PER_SECOND, DATES)
EARLIEST, LATEST = 10**8, 10**11  # seconds: 1973 and 5138

WRITTEN_DATES = {"yyyymmdd": 1, "yyyymmddhhmm": 10**4, "yyyymmddhhmmss": 10**6}  # and the value of one day in each
FIRST_WRITTEN, AFTER_WRITTEN = 19_900_101, 21_010_101

ISO_DATE = r"^\s*\d{4}-\d{2}-\d{2}"  # polars would also guess at 01/02/2021
ISO_PARTS = (
    r"^\s*(?<day>\d{4}-\d{2}-\d{2})(?:[T ](?<clock>\d{2}:\d{2})(?::(?<second>\d{2})(?:\.(?<fraction>\d{1,9}))?)?)?"
    r"\s*(?:Z|UTC|(?<sign>[+-])(?<hours>\d{2}):?(?<minutes>\d{2})?)?\s*$"
)
NUMBER = r"^\s*\+?[0-9]{1,18}(\.[0-9]{1,90})?\s*$"
EXACT_DIGITS = 15  # float64 tells decimal numbers of so many digits apart


@dataclass(frozen=True)
class Times:
    """A log's times: ``keys``, each (E,), most significant first, order events exactly.

    ``keys[0]`` has ``per_second`` steps a second. For numbers it counts in ``unit``, which is s, ms, us or ns; for
    dates ``unit`` is :data:`DATES`.
    """

    keys: tuple[NDArray[Any], ...]
    unit: str
    per_second: int

    def seconds(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whole seconds since 1970 in ``order``, rounded down, (E,) int64."""
        first = self.keys[0][order]
        seconds: NDArray[np.int64] = np.floor_divide(first, self.per_second).astype(np.int64, copy=False)
        return seconds


class BadTime(ValueError):
    """A value that is not a time: its row from 0 (None: the whole column), and what is wrong with it."""

    def __init__(self, what: str, row: int | None = None) -> None:
        super().__init__(what)
        self.row = row


TOO_LARGE = "is too large for a time: even nanoseconds since 1970 stay below 2^63, about 9.2e18"
ALLOWED = "times are numbers from 0 up, or ISO 8601 dates from 1970 on"


def read_times(column: pl.Series, declared: TimeUnit = "auto") -> Times:
    """Read a column of numbers, dates, or text of either; ``declared`` is the numbers' unit. Raises
    :class:`BadTime`."""
    import polars as pl

    if column.dtype == pl.Binary:
        try:
            column = column.cast(pl.String)
        except pl.exceptions.ComputeError:
            raise BadTime(f"holds bytes that are no UTF-8 text; {ALLOWED}") from None
    keys, per_second = _parse_text(column) if column.dtype == pl.String else _parse(column)
    first = keys[0]
    # Polars orders NaN above every number.
    bad = ((first < 0) | (first >= 2**63 if first.dtype.is_float() else False)).fill_null(True)
    if bad.any():
        row = bad.arg_max()
        assert row is not None
        if first[row] is not None and first[row] >= 2**63 and first[row] < float("inf"):
            raise BadTime(f"{column[row]!s} {TOO_LARGE}", row)
        raise BadTime(
            f"{'the time is missing' if column[row] is None else f'{column[row]!s} is no time'}; {ALLOWED}", row
        )
    arrays = tuple(key.to_numpy() for key in keys)
    if per_second is not None:
        return Times(arrays, DATES, per_second)
    form = _written_dates(arrays[0]) if declared == "auto" else None
    if form:
        raise BadTime(
            f"all times look like dates written as {form}, such as {column[0]}, not like counts of seconds; write "
            "2024-12-31 in their place, or option time-unit declares what they count"
        )
    unit = _detect(arrays[0]) if declared == "auto" else declared
    return Times(arrays, unit, PER_SECOND[unit])


def caller_seconds(times: Sequence[Any] | NDArray[Any], unit: str, what: str = "timestamps") -> NDArray[np.int64]:
    """The times of one history, oldest first, as a caller gives them to a model of a log in ``unit``: (n,) int64
    seconds.

    Numbers are in the log's own unit, or where the log has dates in the unit that their size implies. Dates (numpy's
    ``datetime64`` of any unit, ``datetime``, ``date``, ISO 8601 strings) may be given for any log; without a time zone
    they are in UTC. Raises :class:`UserError`, beginning with ``what``, for missing or NaN times, times before 1970,
    numbers whose size implies another unit, dates mixed with numbers, and times that are not in order.
    """
    given = _caller_array(times, what)
    if given.dtype.kind == "M":
        if np.isnat(given).any():
            raise UserError(f"{what}: time {int(np.isnat(given).argmax()) + 1} is missing")
        if not len(given):
            return np.zeros(0, np.int64)
        exact, per_second = given, None
    else:
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            place = int((~np.isfinite(given)).argmax())
            raise UserError(f"{what}: time {place + 1} is {given[place]}; {ALLOWED}")
        if given.dtype.kind == "u" and len(given) and given.max() >= 2**63:
            raise UserError(f"{what}: {given.max()} is no time; {ALLOWED}")
        exact = given
        try:
            seen = _detect(given)
        except BadTime as error:
            raise UserError(f"{what}: {error}") from None
        large = len(given) and given.max() >= EARLIEST
        if large and unit != DATES and seen != unit:
            raise UserError(f"{what}: {given.max()} looks like a time in {seen}, but the log's times are in {unit}")
        per_second = PER_SECOND[seen if unit == DATES else unit]
        form = _written_dates(given)
        if form:
            meant = seen if unit == DATES else unit
            warnings.warn(
                f"{what}: {given[0]} looks like a date written as {form}, but is taken for a time in {meant}; "
                "give dates as datetime or as text such as '2024-12-31'",
                stacklevel=2,
            )
    falls = np.flatnonzero(exact[1:] < exact[:-1])
    if len(falls):
        raise UserError(
            f"{what}: time {falls[0] + 2} is before time {falls[0] + 1}; histories and their times go oldest first"
        )
    seconds: NDArray[np.int64]
    if per_second is None:
        seconds = exact.astype("datetime64[s]").astype(np.int64)
    else:
        seconds = np.floor_divide(exact, per_second).astype(np.int64)
    if len(seconds) and seconds[0] < 0:
        raise UserError(f"{what}: {given[0]} is no time; {ALLOWED}")
    return seconds


def _detect(numbers: NDArray[Any]) -> str:
    """The unit that the largest number implies. Raises :class:`BadTime` where another number implies a different
    one."""
    largest = numbers.max() if len(numbers) else 0
    unit = next((name for name, count in PER_SECOND.items() if largest < LATEST * count), "ns")
    if unit != "s":
        # Counters and zeros may stand beside times; numbers that are times since 1973 in a different unit may not.
        other = (numbers >= EARLIEST) & (numbers < EARLIEST * PER_SECOND[unit])
        if other.any():
            row = int(other.argmax())
            raise BadTime(
                f"{numbers[row]} beside {largest}: times of more than one unit, or before 1973; "
                f"option time-unit declares the unit",
                row,
            )
    return unit


def _written_dates(numbers: NDArray[Any]) -> str | None:
    """The form, such as yyyymmdd, in which all of ``numbers`` are dates from 1990 to 2100; None where they are not."""
    for form, day in WRITTEN_DATES.items():
        if not len(numbers) or numbers.min() < FIRST_WRITTEN * day or numbers.max() >= AFTER_WRITTEN * day:
            continue
        whole = numbers.astype(np.int64)
        dates, clock = np.divmod(whole if day < 10**6 else whole // 100, min(day, 10**4))
        years_months, days = np.divmod(dates, 100)
        years, months = np.divmod(years_months, 100)
        first = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
        last = ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(np.int64)
        valid = (whole == numbers) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= last)
        valid &= (clock < 2400) & (clock % 100 < 60) & ((day < 10**6) | (whole % 100 < 60))
        if valid.all():
            return form
    return None


def _parse(column: pl.Series) -> tuple[list[pl.Series], int | None]:
    """Keys that order the column, and how many steps of the first make a second (None: these are numbers)."""
    import polars as pl

    kind = column.dtype
    if kind == pl.Date:
        return [column.cast(pl.Datetime("ms")).to_physical()], PER_SECOND["ms"]
    if isinstance(kind, pl.Datetime):
        return [column.to_physical()], PER_SECOND[kind.time_unit]
    if isinstance(kind, pl.Decimal):
        whole = column.to_frame("t").select(pl.col("t").floor()).to_series() if kind.scale else column
        keys = [whole.cast(pl.Int64, strict=False)]
        if kind.scale:
            digits = min(kind.scale, 18)
            keys.append(((column - whole).cast(pl.Decimal(38, digits)) * 10**digits).cast(pl.Int64, strict=False))
        return keys, None
    if kind.is_integer():
        return [column.cast(pl.Int64, strict=False)], None
    if kind.is_float():
        return [column.cast(pl.Float64)], None
    raise BadTime(f"holds {kind}; times are numbers or dates")


def _parse_text(text: pl.Series) -> tuple[list[pl.Series], int | None]:
    """Text as integers where all values are, else as dates where the first is one, else as decimals, else as floats.

    Values that cannot be read so are null.
    """
    import polars as pl

    integers = text.cast(pl.Int64, strict=False)
    if integers.null_count() == text.null_count():
        return [integers], None
    if text.head(1).str.contains(ISO_DATE).any():
        return _parse_dates(text)
    text = text.str.strip_chars()
    if text.str.contains(NUMBER).all(ignore_nulls=True) and not text.has_nulls():
        parts = text.str.splitn(".", 2).struct.unnest()
        fraction = parts["field_1"].fill_null("")
        rest = (fraction.str.slice(place, 18).str.pad_end(18, "0") for place in range(0, _longest(fraction), 18))
        return [part.cast(pl.Int64, strict=False) for part in (parts["field_0"], *rest)], None
    floats = text.cast(pl.Float64, strict=False)
    if not (floats.is_finite() & (floats >= 0) & (floats < 2**63)).fill_null(False).all():
        return [floats], None  # which the caller refuses
    exact = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    if not exact.has_nulls():
        return [exact], None
    lost = floats >= 2**53
    if text.n_unique() != floats.n_unique():  # a number in two forms, or two numbers that float64 makes one
        digits = text.str.replace(r"[eE].*", "").str.replace_all(r"[^0-9]", "").str.strip_chars("0").str.len_bytes()
        shared = pl.DataFrame({"text": text, "float": floats}).unique()["float"]
        lost |= (digits > EXACT_DIGITS) & floats.is_in(shared.filter(shared.is_duplicated()).implode())
    if lost.any():
        row = lost.arg_max()
        raise BadTime(
            f"{text[row or 0]} beside fractions or powers of ten has too many digits to keep the order; "
            "write whole numbers",
            row,
        )
    return [floats], None


def _longest(text: pl.Series) -> int:
    return max(text.str.len_bytes().unique().to_list(), default=0)


def _parse_dates(text: pl.Series) -> tuple[list[pl.Series], int]:
    import polars as pl

    if not text.str.contains(r"\.\d{7}").any():
        with suppress(pl.exceptions.PolarsError):  # if all have one form, polars reads them 5 times faster
            return [text.str.to_datetime(strict=True, time_unit="us").to_physical()], PER_SECOND["us"]
    parts = text.str.extract_groups(ISO_PARTS).struct.unnest()
    number = {name: pl.col(name).cast(pl.Int64, strict=False).fill_null(0) for name in ("second", "hours", "minutes")}
    minute = pl.col("clock").fill_null("00:00")
    offset = (number["hours"] * 3600 + number["minutes"] * 60) * pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    hour, minutes = minute.str.slice(0, 2).cast(pl.Int64), minute.str.slice(3, 2).cast(pl.Int64)
    valid = (hour < 24) & (minutes < 60) & (number["second"] < 61)
    day = pl.col("day").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64) * 86_400
    found = parts.select(
        pl.when(valid).then(day + hour * 3600 + minutes * 60 + number["second"] - offset).alias("seconds"),
        pl.col("fraction").fill_null("0").str.pad_end(9, "0").cast(pl.Int64).alias("nanoseconds"),
    )
    return [found["seconds"], found["nanoseconds"]], 1


def _caller_array(times: Sequence[Any] | NDArray[Any], what: str) -> NDArray[Any]:
    """The times as an array of integers, floats or datetime64."""
    if isinstance(times, np.ndarray) and times.dtype.kind in "iufM":
        array = times
    else:
        listed = [
            value.item() if isinstance(value, np.generic) and value.dtype.kind in "iuf" else value for value in times
        ]
        dates = [isinstance(value, date | str | np.datetime64) for value in listed]
        numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in listed]
        if all(dates) and listed:
            array = np.array([_date(value, what) for value in listed])
        elif all(numbers):
            array = np.array(listed) if listed else np.zeros(0, np.int64)
        elif all(date or number for date, number in zip(dates, numbers, strict=True)):
            raise UserError(f"{what}: dates beside numbers; give one kind")
        else:
            wrong = next(v for v, d, n in zip(listed, dates, numbers, strict=True) if not (d or n))
            raise UserError(f"{what}: {'a time is missing' if wrong is None else f'{wrong!r} is no time'}; {ALLOWED}")
    if array.ndim != 1 or array.dtype.kind not in "iufM":
        raise UserError(f"{what}: expected one row of times; {ALLOWED}")
    return array


def _date(value: Any, what: str) -> np.datetime64:
    if isinstance(value, np.datetime64):
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise UserError(f"{what}: {value!r} is no time; {ALLOWED}") from None
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(value, "us")
