"""Where logs lie: files, folders of Parquet parts, pipes and standard input; from there to the columns that count."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hyenarec.errors import UserError

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
# An escaped high surrogate that no low one follows.
HALF_A_PAIR = re.compile(rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def read_columns(path: Path, columns: dict[str, str], format: LogFormat | None) -> tuple[pl.DataFrame, bool]:
    """The columns ``{role: name}`` under their roles, and whether the log is text, whose columns are all strings."""
    name = "standard input" if str(path) == STANDARD_INPUT else str(path)
    parts = _parts(path) if path.is_dir() else None
    kind = "parquet" if parts else _kind(path, format)
    try:
        import polars as pl
    except ImportError as error:
        raise UserError(
            f"{name}: reading a log needs polars: install hyenarec[rec], or prepare a store where it is installed"
        ) from error
    try:
        if kind == "parquet":
            return _read_parquet(name, parts or _plain_file(path), columns), False
        data = _unpack(name, _read_bytes(path))
        if kind == "jsonl":
            return _read_lines_of_json(name, data, columns), False
        from hyenarec.data.text import read_text

        return read_text(name, data, kind, columns), True
    except OSError as error:
        raise UserError(f"{name}: cannot read it: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{name}: cannot read it: {str(error).splitlines()[0]}") from error


def parquet_parts(folder: Path) -> list[Path]:
    """The Parquet files of a folder and the folders in it, in order of their names; not ``_`` and ``.`` names."""
    found = sorted(file for suffix in (".parquet", ".pq") for file in folder.rglob(f"*{suffix}") if file.is_file())
    return [file for file in found if not any(part[0] in "_." for part in file.relative_to(folder).parts)]


def _parts(folder: Path) -> list[Path]:
    parts = parquet_parts(folder)
    if not parts:
        raise UserError(f"{folder}: is a folder, not a log, and has no Parquet files in it")
    return parts


def _kind(path: Path, format: LogFormat | None) -> LogFormat:
    if str(path) != STANDARD_INPUT and not path.exists():
        pattern = any(letter in path.name for letter in "*?[{")
        raise UserError(f"{path}: no such file{'; a path is a name, not a pattern' if pattern else ''}")
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


def _plain_file(path: Path) -> list[Path] | bytes:
    """A regular file by its path, so that only some columns are read; anything else whole."""
    return [path] if path.is_file() and path.suffix.lower() != ".gz" else _unpack(str(path), _read_bytes(path))


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


def _read_parquet(name: str, source: list[Path] | bytes, columns: dict[str, str]) -> pl.DataFrame:
    import polars as pl

    if isinstance(source, bytes):
        frame = pl.read_parquet(io.BytesIO(source))
        return _choose(name, frame, columns)
    scan = pl.scan_parquet(source, glob=False, hive_partitioning=len(source) > 1 or None)
    chosen = _names(name, scan.collect_schema().names(), columns)
    frame = scan.select(list(dict.fromkeys(chosen.values()))).collect()
    return frame.select(pl.col(column).alias(role) for role, column in chosen.items())


def _read_lines_of_json(name: str, data: bytes, columns: dict[str, str]) -> pl.DataFrame:
    import polars as pl

    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise UserError(f"{name}: empty log: no events")
    half = HALF_A_PAIR.search(data)  # polars would read any of them as the same character
    if half is not None:
        row = data.count(b"\n", 0, half.start()) + 1
        raise UserError(f"{name}: line {row}: {half[0].decode()} is half of a surrogate pair, so no character")
    return _choose(name, pl.read_ndjson(io.BytesIO(data), infer_schema_length=None), columns)


def _choose(name: str, frame: pl.DataFrame, columns: dict[str, str]) -> pl.DataFrame:
    import polars as pl

    chosen = _names(name, frame.columns, columns)
    return frame.select(pl.col(column).alias(role) for role, column in chosen.items())


def _names(name: str, header: list[str], columns: dict[str, str]) -> dict[str, str]:
    from hyenarec.data.text import find_column

    return {role: header[find_column(name, role, column, header)] for role, column in columns.items()}
