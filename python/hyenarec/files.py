"""Writing files whole or not at all, and none over somebody's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hyenarec.errors import UserError

# How files that people name begin: JSON and PNG. Nothing else of theirs is ever replaced.
WRITTEN_BY = "hyenarec"
OURS = re.compile(
    rb'\{\s*"written_by": "%(us)b|\x89PNG.{0,4000}Software\0%(us)b' % {b"us": WRITTEN_BY.encode()}, re.DOTALL
)
UNFINISHED = re.compile(r"\..+\.[0-9]+\.tmp")  # the name that a file has until it is whole


def as_path(given: object, what: str) -> Path:
    """``given`` as a path. Raises :class:`UserError`, beginning with ``what``, for what is none or is empty."""
    if not isinstance(given, str | os.PathLike) or isinstance(os.fspath(given), bytes):
        raise UserError(f"{what}: a path is a string or a pathlib.Path, not {given!r:.60}")
    if not os.fspath(given):
        raise UserError(f"{what}: the path is empty")
    return Path(given)


def refuse_foreign(path: Path) -> None:
    """Raises :class:`UserError` where ``path`` holds anything but a report or a picture that this package wrote."""
    try:
        if not path.exists():
            return
        if path.is_file():
            with path.open("rb") as file:
                if OURS.match(file.read(5000)):
                    return
    except OSError as error:
        raise UserError(f"cannot save {path}: {error.strerror or error}") from error
    raise UserError(f"{path}: there already, and not written by hyenarec; choose another name or remove it")


def write_report(path: Path, command: str, report: Mapping[str, Any]) -> None:
    """Write a command's ``report`` as JSON where :func:`refuse_foreign` allows it."""
    refuse_foreign(path)
    marked = {"written_by": f"{WRITTEN_BY} {command}", **report}
    write_text(path, json.dumps(marked, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then put the result at ``path`` in one step; nothing is left behind on failure.

    The file has the mode that the umask gives, whatever ``write`` makes of it. Raises :class:`UserError` with the
    system's reason when the disk is full or the folder cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one
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
    """Remove what processes that were killed while saving left in ``folder``; nobody may be saving there now."""
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
