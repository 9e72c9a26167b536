"""JSON lines: from bytes to columns; every row is read, or a refusal names its line."""

from __future__ import annotations

import io
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import polars as pl

from hyenarec.data.columns import WithOthers, choose, find_column
from hyenarec.errors import UserError

# An escaped high surrogate that no low surrogate follows; escaped backslashes may stand before it.
HALF_A_PAIR = re.compile(rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2})(?!\\u[dD][c-fC-F])")
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
BLANK = b" \t\r\n"
INEXACT = 2**53  # from here on several integers share one float


def read_json_lines(name: str, data: bytes, columns: dict[str, str]) -> tuple[pl.DataFrame, str]:
    """The columns ``{role: name}`` under their roles, and a phrase, for messages, for the lines that are no rows."""
    data = data.removeprefix(BOM_UTF8)
    if not data.strip():
        raise UserError(f"{name}: empty log: no events")
    # Polars would read every such half as the same character.
    half = HALF_A_PAIR.search(data) if rb"\ud" in data or rb"\uD" in data else None
    if half is not None:
        row = data.count(b"\n", 0, half.start(1)) + 1
        raise UserError(f"{name}: line {row}: {half[1].decode()} is half of a surrogate pair, so no character")
    frame, lines = _read_fast(name, data, columns), data.count(b"\n") + (not data.endswith(b"\n"))
    if frame is None or frame.height not in (lines, _count_rows(data)):
        if isinstance(columns, WithOthers):
            raise UserError(f"{name}: cannot read it: its lines are not of one kind; write a Parquet file")
        frame = _read_slowly(name, data, columns)
    return frame, "blank lines" if frame.height < lines else ""


def _count_rows(data: bytes) -> int:
    return sum(1 for line in io.BytesIO(data) if line.strip(BLANK))


def _read_fast(name: str, data: bytes, columns: dict[str, str]) -> pl.DataFrame | None:
    """None where polars refuses, since it does not name the line, or where it turned large integers into floats."""
    try:
        frame = choose(name, pl.read_ndjson(io.BytesIO(data), infer_schema_length=None).lazy(), columns)
    except pl.exceptions.PolarsError:
        return None
    return None if any(column.dtype.is_float() and (column.abs() >= INEXACT).any() for column in frame) else frame


class _Number(float):
    """A float that keeps the text it was read from."""

    written: str

    def __new__(cls, written: str) -> _Number:
        number = super().__new__(cls, written)
        number.written = written
        return number


def _read_slowly(name: str, data: bytes, columns: dict[str, str]) -> pl.DataFrame:
    """The same with Python's JSON reader, for which columns that nobody asked for may hold anything."""
    found: dict[str, list[Any]] = {role: [] for role in columns}
    numbers: list[int] = []
    header: dict[str, None] = {}
    for number, row in _objects(name, data):
        header |= dict.fromkeys(row)
        numbers.append(number)
        for role, column in columns.items():
            value = row.get(column)
            if isinstance(value, bool | list | dict):
                raise UserError(
                    f"{name}: line {number}: column {column!r} holds {json.dumps(value):.60}; "
                    "ids and times are numbers or strings"
                )
            half = HALF_A_CHARACTER.search(value) if isinstance(value, str) else None
            if half is not None:
                raise UserError(
                    f"{name}: line {number}: {json.dumps(half[0])[1:-1]} is half of a surrogate pair, so no character"
                )
            found[role].append(value)
    for role, column in columns.items():
        find_column(name, role, column, list(header))
        found[role], lost = _exact(found[role])
        if lost is not None:
            raise UserError(
                f"{name}: line {numbers[lost]}: column {column!r} holds {found[role][lost]}, which has too many digits "
                "to keep beside fractions; write whole numbers, or strings"
            )
    return pl.DataFrame({role: _series(values) for role, values in found.items()})


def _objects(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip(BLANK):
            continue
        try:
            row = json.loads(line, parse_float=_Number)
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number} is not UTF-8") from None
        except RecursionError:
            raise UserError(f"{name}: line {number}: brackets too deep") from None
        except ValueError as error:
            raise UserError(f"{name}: line {number} is not JSON: {str(error).partition(':')[0]}") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}: line {number}: expected an object with an event's columns, such as {{...}}")
        yield number, row


def _exact(values: list[Any]) -> tuple[list[Any], int | None]:
    """The values as integers where some are too large for floats; and the index of one that would lose digits."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values) - values.count(None) and any(isinstance(value, float) for value in numbers):
        large = [place for place, value in enumerate(values) if value is not None and INEXACT <= abs(value) < 2**64]
        whole = [_whole(value) for value in values]
        if large and whole.count(None) == values.count(None):
            return whole, None
        if large:
            return values, large[0]
    return values, None


def _whole(value: int | float | None) -> int | None:
    if isinstance(value, _Number):
        digits = Decimal(value.written) if abs(value) < 2**64 else None
        return int(digits) if digits is not None and digits == digits.to_integral_value() else None
    return value if isinstance(value, int) else None


def _series(values: list[Any]) -> pl.Series:
    """Numbers, or strings where there is any string or an integer beyond 64 bits."""
    given = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in given):
        kind: Any = pl.String
    elif any(isinstance(value, float) for value in given):
        kind = pl.Float64
    else:
        kind = pl.Int64 if all(-(2**63) <= value < 2**63 for value in given) else pl.String
    convert = {pl.String: str, pl.Float64: float, pl.Int64: int}[kind]
    return pl.Series([None if value is None else convert(value) for value in values], dtype=kind)
