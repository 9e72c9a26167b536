"""The sequence store: every user's history, end to end in flat arrays, in memory or memory-mapped from a folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tokenize
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.ids import Ids
from hyenarec.data.times import UNITS
from hyenarec.errors import UserError
from hyenarec.files import sync_folder

FORMAT = "hyenarec-store"
VERSION = 2
META = "meta.json"

Arrays = dict[str, NDArray[np.generic]]

HEADER_ERRORS = (SyntaxError, tokenize.TokenError)


@dataclass(frozen=True, eq=False)
class SequenceStore:
    """Histories of all users: user ``u``'s events are ``offsets[u]:offsets[u+1]``, oldest first.

    ``offsets`` (U+1,) int64 from 0 to E, non-decreasing; ``items`` (E,) int32, each in ``[0, n_items)``; ``timestamps``
    (E,) int64, non-decreasing inside a user, in seconds, or None where the log has none; ``user_ids`` and ``item_ids``
    give the log's own ids. ``time_unit`` is the unit of the log's own times (s, ms, us, ns, or date), in which callers
    give theirs: see :func:`hyenarec.data.times.caller_seconds`. Raises ValueError where shapes or dtypes differ, or an
    item is none of the catalogue.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64] | None
    user_ids: Ids
    item_ids: Ids
    time_unit: str = "s"

    def __post_init__(self) -> None:
        _check_array("offsets", self.offsets, np.int64, len(self.user_ids) + 1)
        _check_array("items", self.items, np.int32, int(self.offsets[-1]))
        if self.timestamps is not None:
            _check_array("timestamps", self.timestamps, np.int64, len(self.items))
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets: must start at 0 and never fall")
        if len(self.items) and not (self.items.min() >= 0 and self.items.max() < len(self.item_ids)):
            raise ValueError(f"items: each must be from 0 to {len(self.item_ids) - 1}, the catalogue's last")
        if self.time_unit not in UNITS:
            raise ValueError(f"time unit: must be one of {', '.join(UNITS)}, got {self.time_unit!r}")

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_events(self) -> int:
        return len(self.items)

    def history(self, user: int) -> NDArray[np.int32]:
        """The items of dense ``user``, oldest first: a view, not a copy."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def users_of(self, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """The dense user of each absolute event index: the history before event ``e`` is ``offsets[users_of(e)]:e``."""
        return np.searchsorted(self.offsets, events, side="right") - 1

    def describe(self) -> dict[str, int]:
        """What tells one log from another, as JSON: sizes, and the items' CRC-32."""
        return {
            "users": self.n_users,
            "items": self.n_items,
            "events": self.n_events,
            "checksum": zlib.crc32(self.items.tobytes()),
        }

    def fingerprint(self) -> str:
        """A digest of users, items, order and times: equal for equal data, wherever the store lies."""
        digest = hashlib.blake2b(self.time_unit.encode(), digest_size=16)
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the store into the folder ``path``, whole or not at all; an older store there is replaced.

        A link to a folder stays one. Raises :class:`UserError` where anything else is there, beside an older store or
        alone, where the disk is full or the place cannot be written.
        """
        _check_free(Path(path))
        given, path = path, Path(path).resolve()
        arrays = self._arrays()
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "users": self.n_users,
            "items": self.n_items,
            "events": self.n_events,
            "time_unit": self.time_unit,
            "arrays": {name: _checksum(array) for name, array in arrays.items()},
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed and had this one's number
            temporary.mkdir()
            for name, array in arrays.items():
                _write_array(temporary / f"{name}.npy", array)
            _write(temporary / META, json.dumps(meta, indent=2).encode() + b"\n")
            sync_folder(temporary)
            _put_in_place(temporary, path)
        except OSError as error:
            raise UserError(f"cannot save {given}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path) -> SequenceStore:
        """Open the store in the folder ``path``; its arrays are read-only and memory-mapped.

        Every array is read once to verify its checksum (a quarter of a second per gigabyte in memory). Raises
        :class:`UserError` where there is no store, it may not be read, or it is damaged or of another version.
        """
        path = Path(path)
        meta = _read_meta(path)
        if meta["version"] != VERSION:
            raise UserError(
                f"{path}: store format {meta['version']}, but this hyenarec reads format {VERSION}; prepare it again"
            )
        arrays: Arrays = {}
        try:
            for name in meta["arrays"]:
                # asarray: the plain view of the mapping, which indexes faster than np.memmap and computes plain arrays.
                arrays[name] = np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            store = cls._from_arrays(arrays, meta["time_unit"])
            sizes = (meta["users"], meta["items"], meta["events"])
            checksums = dict(meta["arrays"])
        except FileNotFoundError as error:
            raise UserError(f"{path}: damaged store: {name}.npy is missing") from error
        except PermissionError as error:
            raise UserError(f"{path}: cannot read {name}.npy: {error.strerror}") from error
        # numpy parses a header as Python does: damage in it may raise what its tokenizer raises.
        except (
            OSError,
            ValueError,
            EOFError,
            KeyError,
            TypeError,
            OverflowError,
            MemoryError,
            *HEADER_ERRORS,
        ) as error:
            raise UserError(f"{path}: truncated or damaged store ({error})") from error
        if (store.n_users, store.n_items, store.n_events) != sizes:
            raise UserError(f"{path}: damaged store: {META} and the arrays disagree about their sizes")
        for name, array in arrays.items():
            if _checksum(array) != checksums[name]:
                raise UserError(f"{path}: damaged store: {name}.npy is not what was written (its checksum differs)")
        return store

    def _arrays(self) -> Arrays:
        arrays: Arrays = {"offsets": self.offsets, "items": self.items}
        if self.timestamps is not None:
            arrays["timestamps"] = self.timestamps
        for role, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            arrays |= {f"{role}.{name}": array for name, array in ids.to_arrays().items()}
        return arrays

    @classmethod
    def _from_arrays(cls, arrays: Any, time_unit: str) -> SequenceStore:
        user_ids, item_ids = (
            Ids.from_arrays({name.removeprefix(role): arrays[name] for name in arrays if name.startswith(role)})
            for role in ("user_ids.", "item_ids.")
        )
        return cls(arrays["offsets"], arrays["items"], arrays.get("timestamps"), user_ids, item_ids, time_unit)


def is_store(path: Path) -> bool:
    """Whether the folder ``path`` holds a sequence store, of any version."""
    try:
        _read_meta(path)
    except UserError:
        return False
    return True


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such store")
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not a store: {META} is missing") from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot read {META}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a store: cannot read {META} ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or "version" not in meta:
        raise UserError(f"{path}: not a store: {META} is not of format {FORMAT}")
    return meta


def _check_array(name: str, array: NDArray[Any], dtype: type[np.generic], length: int) -> None:
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError(
            f"{name}: expected shape ({length},) {np.dtype(dtype)}, got {'x'.join(map(str, array.shape))} {array.dtype}"
        )


def _check_free(path: Path) -> None:
    """Raise :class:`UserError` unless a store may be put at ``path``: nothing is lost but what a store wrote."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_store(path):
        raise UserError(f"{path}: there already, and not a store; choose another place or remove it")
    arrays = _read_meta(path).get("arrays")
    ours = {META, *(f"{name}.npy" for name in (arrays if isinstance(arrays, dict | list) else ()))}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in ours or not entry.is_file())
    if others:
        raise UserError(f"{path}: beside an older store there is {others[0]!r}; choose another place or move it away")


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B")) if array.size else 0


def _write(path: Path, *parts: bytes | memoryview) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _write_array(path: Path, array: NDArray[Any]) -> None:
    # Not numpy.save: its tofile() forgets why a write failed, and a full disk should be called so.
    npy: Any = np.lib.format
    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    _write(path, header.getvalue(), np.ascontiguousarray(array).data)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; an older store there goes away only once the new one is in its place."""
    if not is_store(path):
        temporary.replace(path)  # an empty folder gives way
    else:
        old = temporary.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)
