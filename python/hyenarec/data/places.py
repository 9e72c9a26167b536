"""Where logs lie: files, folders of Parquet parts, pipes and standard input; reads the columns that are needed."""

from __future__ import annotations

import gzip
import io
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from hyenarec.data.columns import OTHER, choose
from hyenarec.errors import UserError
from hyenarec.files import unwritten

if TYPE_CHECKING:
    import polars as pl

LogFormat = Literal["parquet", "csv", "tsv", "inter", "jsonl"]

STANDARD_INPUT = "-"
SUFFIXES: dict[str, LogFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "inter",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
TEXT = ("csv", "tsv", "inter")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for the folder of rows without a value
GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Origin:
    """Where the rows of a log came from, for messages."""

    name: str
    is_text: bool = False
    """Whether all columns are text."""
    uncounted: str = ""
    """Which lines of the file are not rows."""
    parts: tuple[tuple[Path, int], ...] = ()
    """The files of a folder and how many rows each has, in order."""
    partitions: frozenset[str] = frozenset()
    """Columns whose values are in the names of folders, as text."""

    def holds_text(self, column: str) -> bool:
        """Whether ``column`` was read as strings although its writer may have meant numbers."""
        return self.is_text or column in self.partitions

    def row(self, row: int) -> str:
        """``row``, counted from 0 over all parts, as people find it: counted from 1, in its own part."""
        for part, rows in self.parts:
            if row < rows:
                return f"row {row + 1} of {part}"
            row -= rows
        return f"row {row + 1}" + (f" ({self.uncounted} not counted)" if self.uncounted else "")


@dataclass(frozen=True)
class Column:
    """A column by its name in the file, for messages."""

    origin: Origin
    name: str

    def error(self, what: str, row: int | None = None) -> UserError:
        """``row`` counts from 0; people count from 1."""
        where = f"{self.origin.name}: column {self.name!r}" + ("" if row is None else f", {self.origin.row(row)}")
        return UserError(f"{where}: {what}")


def read_columns(path: Path, columns: dict[str, str], format: LogFormat | None) -> tuple[pl.DataFrame, Origin]:
    """Read the columns ``{role: name}``; returns them under their roles, and the origin of their rows."""
    name = "standard input" if str(path) == STANDARD_INPUT else str(path)
    parts = parts_of(path) if path.is_dir() else None
    kind = "parquet" if parts else _kind(path, format)
    try:
        import polars as pl
    except ImportError as error:
        raise UserError(
            f"{name}: reading a log needs polars: install hyenarec[rec], or prepare a store where it is installed"
        ) from error
    try:
        with unwritten(files_at(path), name):
            if parts:
                return _read_parts(path, parts, columns)
            if kind == "parquet":
                return _read_parquet(name, _plain_file(path), columns), Origin(name)
            data = _unpack(name, _read_bytes(path))
        if kind == "jsonl":
            from hyenarec.data.json_lines import read_json_lines

            frame, uncounted = read_json_lines(name, data, columns)
            return frame, Origin(name, uncounted=uncounted)
        from hyenarec.data.text import read_text

        frame, uncounted = read_text(name, data, kind, columns)
        return frame, Origin(name, is_text=True, uncounted=uncounted)
    except OSError as error:
        raise UserError(f"{name}: cannot read it: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{name}: cannot read it: {str(error).splitlines()[0]}") from error


def parquet_parts(folder: Path) -> list[Path]:
    """The Parquet files in a folder and its subfolders, ordered by name; names with a leading ``_`` or ``.`` are
    skipped."""
    return [file for file in _files(folder) if SUFFIXES.get(file.suffix.lower()) == "parquet"]


def _files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in found if not any(part[0] in "_." for part in file.relative_to(folder).parts)]


def files_at(path: Path) -> list[Path]:
    """The files that are read for the log or table at ``path``: none for a pipe."""
    if path.is_dir():
        return parquet_parts(path)
    return [path] if path.is_file() else []


def parts_of(folder: Path) -> list[Path]:
    """The Parquet files of a folder. Raises :class:`UserError` where there are none, and warns of other files."""
    parts = parquet_parts(folder)
    if not parts:
        raise UserError(f"{folder}: is a folder, not a log, and has no Parquet files in it")
    others = sorted(str(file.relative_to(folder)) for file in {*_files(folder)} - {*parts})
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warnings.warn(f"{folder}: only its Parquet files are read, not {', '.join(others[:3])}{more}", stacklevel=4)
    return parts


def _kind(path: Path, format: LogFormat | None) -> LogFormat:
    if str(path) != STANDARD_INPUT and not path.exists():
        way_out = "; a path is a name, not a pattern" if any(letter in path.name for letter in "*?[{") else ""
        if way_out and SUFFIXES.get(path.suffix) == "parquet" and path.parent.is_dir():
            way_out += f": {path.parent} reads all Parquet parts in that folder"
        raise UserError(f"{path}: no such file{way_out}")
    if format is not None:
        return format
    if str(path) == STANDARD_INPUT:
        raise UserError("standard input: option format must say what it is: csv, tsv, inter, jsonl or parquet")
    plain = path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path
    kind = SUFFIXES.get(plain.suffix.lower())
    if kind is None:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"{path}: unknown kind of log {plain.suffix!r}: the suffix must be one of {known}, or option format say it"
        )
    return kind


def _plain_file(path: Path) -> Path | bytes:
    """A regular file as its path, so that only the needed columns are read; anything else as all its bytes."""
    return path if path.is_file() and path.suffix.lower() != ".gz" else _unpack(str(path), _read_bytes(path))


def _read_bytes(path: Path) -> bytes:
    if str(path) != STANDARD_INPUT:
        return path.read_bytes()
    if sys.stdin is None:
        raise UserError("standard input is closed")
    return sys.stdin.buffer.read()


def _unpack(name: str, data: bytes) -> bytes:
    if data.startswith(ZSTANDARD):
        raise UserError(f"{name}: is compressed by Zstandard; unpack it first (zstd -d), or compress it by gzip")
    if not data.startswith(GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{name}: cannot read it: damaged or cut gzip file ({error})") from error


def _read_parquet(
    name: str, source: Path | bytes, columns: dict[str, str], partition: dict[str, str | None] | None = None
) -> pl.DataFrame:
    """``partition`` has the columns whose values are in the names of folders, the same in all rows of the file."""
    import polars as pl

    if isinstance(source, bytes):
        scan = pl.read_parquet(io.BytesIO(source)).lazy()
    else:
        scan = pl.scan_parquet(source, glob=False, hive_partitioning=False)
    for key, value in (partition or {}).items():
        if key in columns.values():
            if key in scan.collect_schema():
                raise UserError(f"{name}: column {key!r} is in the file, and in the name of its folder; rename one")
            scan = scan.with_columns(pl.lit(value, pl.String).alias(key))
    return choose(name, scan, columns)


def partition_of(file: Path) -> dict[str, str | None]:
    """The columns that the folder names of ``file``, a relative path, hold as ``key=value``."""
    pairs = [folder.partition("=") for folder in file.parent.parts]
    return {unquote(key): None if value == NO_VALUE else unquote(value) for key, sign, value in pairs if sign}


def refuse_other_kinds(
    folder: Path, columns: dict[str, str], part: tuple[Path, pl.Schema], first: tuple[Path, pl.Schema]
) -> None:
    """Raises :class:`UserError` where a ``part`` of ``folder`` has other columns than the ``first``, or other types for
    them. Columns are named by their roles, and all integer types count as equal."""
    if others := part[1].keys() ^ first[1].keys():
        names = ", ".join(sorted(repr(role.removeprefix(OTHER)) for role in others))
        raise UserError(f"{part[0]}: {names}: in this part or in {first[0].name}, but not in both")
    for role, kind in part[1].items():
        other = first[1][role]
        if kind != other and not (kind.is_integer() and other.is_integer()):
            raise UserError(
                f"{part[0]}: column {columns.get(role, role.removeprefix(OTHER))!r} holds {kind}, but {other} in "
                f"{first[0].name}; the parts of {folder} must have columns of the same types"
            )


def _read_parts(folder: Path, parts: list[Path], columns: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
    """The columns of all ``parts``, in which they must have the same names and types."""
    import polars as pl

    name, frames, keys = str(folder), list[pl.DataFrame](), set[str]()
    for part in parts:
        try:
            partition = partition_of(part.relative_to(folder))
            frame = _read_parquet(str(part), part, columns, partition)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{part}: cannot read it: {str(error).splitlines()[0]}") from error
        frames.append(frame)
        refuse_other_kinds(folder, columns, (part, frame.schema), (parts[0], frames[0].schema))
        keys |= partition.keys()
    counted = tuple((part, frame.height) for part, frame in zip(parts, frames, strict=True))
    return pl.concat(frames, how="vertical_relaxed"), Origin(name, parts=counted, partitions=frozenset(keys))
