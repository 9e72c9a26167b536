"""Delimited text (CSV, tab-separated, RecBole): from bytes to columns; every row is read, or a refusal names it."""

from __future__ import annotations

import csv
import io
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hyenarec.data.columns import complete, find_column, matches
from hyenarec.errors import UserError

SEPARATORS = {"csv": ",", "tsv": "\t", "inter": "\t"}
OTHERS = (",", ";", "\t", "|")  # separators that a header may show in place of the usual one
CHUNK = 1 << 24  # bytes looked at in one go
NEWLINE, RETURN, QUOTE = b'\n\r"'
LEADING_BLANKS, BLANK_LINES = re.compile(rb"(?: *\r?\n)*"), re.compile(rb"\n(?: *\r?\n)+")


def read_text(name: str, data: bytes, kind: str, columns: dict[str, str]) -> tuple[pl.DataFrame, str]:
    """The columns ``{role: name}`` under their roles, all as strings, null where a row ends early; and a phrase, for
    messages, for the lines that are not counted as rows. Blank lines are not rows."""
    quoted, separator = kind != "inter", SEPARATORS[kind]
    whole = _plain(name, data)
    data = _without_blank_lines(whole, quoted)
    if not data:
        raise UserError(f"{name}: empty log: not even a header")
    first_line = data[: data.find(b"\n") + 1 or len(data)].decode(errors="replace")
    header = _split(first_line, separator, quoted)
    if not any(matches(column, header) for column in columns.values()):
        for other in OTHERS:
            if all(matches(column, _split(first_line, other, quoted)) for column in columns.values()):
                separator, header = other, _split(first_line, other, quoted)
                break
    chosen = complete(name, columns, header)
    places = {role: find_column(name, role, column, header, is_text=True) for role, column in chosen.items()}
    uncounted = "header" if len(data) == len(whole) else "header and blank lines"
    rows = _count_rows(data, ord(separator), quoted)
    frame = None if rows is None else _read_fast(data, separator, quoted, sorted(set(places.values())))
    if frame is not None and quoted and QUOTE in data:
        swallowing = _first_swallowing(data, separator, len(header))
        if swallowing is not None:
            raise _swallowed(name, swallowing, uncounted)
    if frame is None or frame.height != rows:
        frame = _read_slowly(name, data, separator, quoted, sorted(set(places.values())), uncounted)
    return frame.select(pl.col(str(place)).alias(role) for role, place in places.items()), uncounted


def _split(line: str, separator: str, quoted: bool) -> list[str]:
    options: dict[str, Any] = {} if quoted else {"quoting": csv.QUOTE_NONE}
    rows = csv.reader([line], delimiter=separator, skipinitialspace=separator != "\t", **options)
    return [entry.strip() for entry in next(rows, [])]


def _plain(name: str, data: bytes) -> bytes:
    """The data as UTF-8 without a byte order mark or a ``sep=`` line, its lines ended by newlines."""
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: cannot read it: not UTF-16, as its first bytes say: {error.reason}") from error
    data = data.removeprefix(BOM_UTF8)
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")  # as old Macs end lines
    if data[:4].lower() == b"sep=":
        data = data.partition(b"\n")[2]
    return data


def _without_blank_lines(data: bytes, quoted: bool) -> bytes:
    """``data`` without lines that are empty or have only spaces, except for those inside quotes."""
    data = data[len(LEADING_BLANKS.match(data)[0]) :]  # type: ignore[index]  # it matches the empty string too
    text = data.rstrip(b" \r\n")
    last, newline, _ = data[len(text) :].partition(b"\n")
    data = text + last + newline
    if not any(sign in data for sign in (b"\n\n", b"\n\r\n", b"\n ")):
        return data
    spans = np.array([found.span() for found in BLANK_LINES.finditer(data)], dtype=np.int64).reshape(-1, 2)
    if quoted:
        spans = spans[np.searchsorted(_places(data, QUOTE), spans[:, 0]) % 2 == 0]
    pieces, at = [], 0
    for start, end in spans.tolist():
        pieces.append(data[at : start + 1])
        at = end
    return b"".join((*pieces, data[at:]))


def _places(data: bytes, letter: int) -> NDArray[np.int64]:
    """The positions of ``letter``, (n,)."""
    letters = np.frombuffer(data, np.uint8)
    chunks = range(0, len(letters), CHUNK)
    return np.concatenate([np.flatnonzero(letters[at : at + CHUNK] == letter) + at for at in chunks])


def _count_rows(data: bytes, separator: int, quoted: bool) -> int | None:
    """Rows below the header, by a count of newlines outside quotes; None where quotes do not follow RFC 4180."""
    letters = np.frombuffer(data, np.uint8)
    chunks = range(0, len(letters), CHUNK)
    newlines = sum(int(np.count_nonzero(letters[at : at + CHUNK] == NEWLINE)) for at in chunks)
    lines = newlines + (letters[-1] != NEWLINE)
    if not quoted or QUOTE not in data:
        return int(lines) - 1
    quotes = _places(data, QUOTE)
    if len(quotes) % 2:
        return None
    # Quotes open and close in turn; a doubled one closes and opens again. The data's ends count as newlines.
    opening, closing = quotes[::2], quotes[1::2]
    before = np.where(opening > 0, letters[opening - 1], NEWLINE)
    after = np.where(closing + 1 < len(letters), letters[np.minimum(closing + 1, len(letters) - 1)], NEWLINE)
    doubled = opening[1:] == closing[:-1] + 1
    opens = np.isin(before, (separator, NEWLINE))
    closes = np.isin(after, (separator, NEWLINE, RETURN))
    opens[1:] |= doubled
    closes[:-1] |= doubled
    if not (opens.all() and closes.all()):
        return None
    inside = 0
    for at in chunks:
        ends = np.flatnonzero(letters[at : at + CHUNK] == NEWLINE) + at
        inside += int(np.count_nonzero(np.searchsorted(quotes, ends) % 2))
    return int(lines) - inside - 1


def _first_swallowing(data: bytes, separator: str, width: int) -> int | None:
    """The number of the first row in which a quoted field holds what looks like other rows. Python's reader could tell,
    but for its limit on the length of a field."""
    ends = _places(data, NEWLINE)
    inside = np.searchsorted(_places(data, QUOTE), ends) % 2 == 1
    bounds = np.concatenate(([-1], ends[~inside], [len(data)]))
    for number in np.unique(np.searchsorted(ends[~inside], ends[inside])).tolist():
        row = data[bounds[number] + 1 : bounds[number + 1]].decode("latin-1")
        if row.count(separator) < width:
            continue  # the usual case: hardly any separators inside quotes
        parts = row.replace('""', "").split('"')  # outside and inside quotes in turn
        outside = [part.count(separator) for part in parts[::2]]
        for place, field in enumerate(parts[1::2], 1):
            if _swallows(field, sum(outside[:place]), sum(outside[place:]), separator, width):
                return int(number)
    return None


def _swallows(field: str, before: int, after: int, separator: str, width: int) -> bool:
    """Whether a quoted field, with ``before`` and ``after`` separators around it in its row, looks like whole rows
    between two quotes that do not belong together: a line in it has as many fields as a row, or its first and last
    lines do together with the fields beside them."""
    if "\n" not in field:
        return False
    first, *between, last = (line.count(separator) for line in field.split("\n"))
    return width - 1 in between or before + first == last + after == width - 1


def _swallowed(name: str, number: int, uncounted: str) -> UserError:
    return UserError(
        f"{name}: cannot read it: row {number} ({uncounted} not counted): a quote opens a field that goes on over "
        "lines that look like rows; put a field with quotes in quotes and double its own, or take its newlines out"
    )


def _read_fast(data: bytes, separator: str, quoted: bool, places: list[int]) -> pl.DataFrame | None:
    """The columns at ``places``, named by their places; None where polars refuses, since it does not name the row."""
    try:
        frame = pl.read_csv(
            data, columns=places, separator=separator, quote_char='"' if quoted else None, infer_schema_length=0
        )
    except pl.exceptions.PolarsError:
        return None
    frame.columns = [str(place) for place in places]
    return frame


def _read_slowly(
    name: str, data: bytes, separator: str, quoted: bool, places: list[int], uncounted: str
) -> pl.DataFrame:
    """The same with Python's reader (20 times slower), which takes a quote inside a field for a plain character."""
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="")
    options: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    rows, number = csv.reader(lines, delimiter=separator, **options), 0
    columns: list[list[str | None]] = [[] for _ in places]

    def refusal(number: int, what: str) -> UserError:
        return UserError(f"{name}: cannot read it: row {number} ({uncounted} not counted){what}")

    try:
        width = len(next(rows))
        for row in rows:
            if not any(map(str.strip, row)) and len(row) < 2:
                continue  # a blank line that earlier quotes hid
            number += 1
            fields = enumerate(row) if quoted else ()
            if any(_swallows(field, at, len(row) - 1 - at, separator, width) for at, field in fields):
                raise _swallowed(name, number, uncounted)
            if len(row) > width:
                raise refusal(number, f" has {len(row)} fields, the header {width}")
            if any("\udc80" <= letter <= "\udcff" for field in row if not field.isascii() for letter in field):
                raise refusal(number, " is not UTF-8")
            for column, place in zip(columns, places, strict=True):
                column.append(row[place] if place < len(row) else None)
    except csv.Error as error:
        raise refusal(number + 1, f": {error}") from error
    schema = {str(place): pl.String for place in places}
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)
