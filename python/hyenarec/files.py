"""Writing files completely or not at all, and never over somebody else's."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hyenarec.errors import UserError

WRITTEN_BY = "hyenarec"
JSON, PNG = ".json", ".png"
# How those files of ours begin whose names people choose. No other file under such a name is ever replaced.
OURS = {
    JSON: re.compile(rb'\{\s*"written_by": "%b' % WRITTEN_BY.encode()),
    PNG: re.compile(rb"\x89PNG.{0,4000}Software\0%b" % WRITTEN_BY.encode(), re.DOTALL),
}
UNFINISHED = re.compile(r"\..+\.[0-9]+\.tmp")  # the name of a file until it is complete


def as_path(given: object, what: str) -> Path:
    """``given`` as a path. Raises :class:`UserError`, beginning with ``what``, where it is no path or is empty."""
    if not isinstance(given, str | os.PathLike) or isinstance(os.fspath(given), bytes):
        raise UserError(f"{what}: a path is a string or a pathlib.Path, not {given!r:.60}")
    if not os.fspath(given):
        raise UserError(f"{what}: the path is empty")
    if "\0" in os.fspath(given):
        raise UserError(f"{what}: {os.fspath(given)!r:.60} is no path: it has a NUL character")
    return Path(given)


def refuse_foreign(path: Path, kind: str) -> None:
    """Raises :class:`UserError` where ``path`` has the suffix of another kind, or holds anything but what this package
    writes as ``kind`` (:data:`JSON` or :data:`PNG`)."""
    if path.suffix.lower() in OURS.keys() - {kind}:
        raise UserError(f"{path}: what is written here is {kind[1:].upper()}; choose a name that ends in {kind}")
    try:
        if not path.exists():
            return
        if path.is_file():
            with path.open("rb") as file:
                if OURS[kind].match(file.read(5000)):
                    return
    except OSError as error:
        raise UserError(f"cannot save {path}: {error.strerror or error}") from error
    raise UserError(f"{path}: there already, and not written by hyenarec; choose another name or remove it")


def write_report(path: Path, command: str, report: Mapping[str, Any]) -> None:
    """Write a command's ``report`` as JSON where :func:`refuse_foreign` allows it."""
    refuse_foreign(path, JSON)
    marked = {"written_by": f"{WRITTEN_BY} {command}", **report}
    write_text(path, json.dumps(marked, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then put the result at ``path`` in one step; nothing is left behind on failure.

    The file gets the permissions that the umask gives, whatever ``write`` sets. Raises :class:`UserError` with the
    system's reason when the disk is full or the folder cannot be written.
    """
    path = Path(os.path.realpath(path))  # so that a symbolic link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors writes files that only their owner may read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot save {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``; nobody may be saving there meanwhile."""
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside the context, no other process can enter ``folder`` by this function; the system frees it when the process
    ends. Raises :class:`UserError` where another process is in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is at work in it; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def unwritten(paths: Sequence[Path], name: str, what: str = "the log") -> Iterator[None]:
    """Inside the context, the files at ``paths`` are read. Raises :class:`UserError`, beginning with ``name``, if one
    of them was replaced or written meanwhile: what was read may be of neither version."""

    def states() -> list[tuple[int, ...]]:
        found = [path.stat() for path in paths]
        return [(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in found]

    before = states()
    try:
        yield
    finally:
        try:
            changed = states() != before
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: has gone while {what} was read") from error
        if changed:
            raise UserError(f"{name}: has changed while it was read; read it again when nobody writes there")


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
