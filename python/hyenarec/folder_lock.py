"""Only one process at a time trains in a folder: it holds a lock on ``.lock`` there until it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from hyenarec.errors import UserError

LOCK = ".lock"
LOCK_MARK = "hyenarec "  # before the process id, so that a foreign lock file is not taken for one of ours


def lock(folder: Path) -> IO[str]:
    """Create and lock the lock file of ``folder``; returns it open. The system unlocks it when this process ends.

    Raises :class:`UserError` where another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("a+", encoding="utf-8", errors="replace")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(40).removeprefix(LOCK_MARK).strip() or "unknown"
                file.close()
                raise UserError(
                    f"{folder}: process {holder} is training in it; wait for its end, or choose another folder"
                ) from None
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # its holder ended, and removed it, between opening and locking
        if path.stat().st_size:  # empty if its process was killed before it wrote
            file.seek(0)
            if file.read(len(LOCK_MARK)) != LOCK_MARK:
                file.close()
                raise UserError(f"{path} is not of a training run: choose another folder, or move it away")
        file.truncate(0)
        file.write(f"{LOCK_MARK}{os.getpid()}\n")
        file.flush()
    except OSError as error:
        raise UserError(f"option out: cannot keep a run in {folder}: {error.strerror or error}") from error
    return file


def unlock(file: IO[str], folder: Path) -> None:
    """Unlock and remove ``file``, which :func:`lock` opened for ``folder``."""
    (folder / LOCK).unlink(missing_ok=True)  # while it is still locked, so that nobody else's is removed
    file.close()
