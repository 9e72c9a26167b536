"""The sequence store: every user's history, end to end in flat arrays, in memory or memory-mapped from a folder."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenarec import tensor_file
from hyenarec.data.ids import Ids
from hyenarec.data.times import UNITS
from hyenarec.errors import DamagedError, UserError, expect, shortened
from hyenarec.files import UNFINISHED, as_path, remove_unfinished
from hyenarec.tensor_file import Arrays

KIND = tensor_file.Kind("store", version=3)
STORE = "store.safetensors"  # the one file in a store's folder
VERIFIED_AT_ONCE = 1 << 30  # opening a store of up to so many bytes verifies its checksum, in 0.4 s


@dataclass(frozen=True, eq=False)
class SequenceStore:
    """Histories of all users: user ``u``'s events are ``offsets[u]:offsets[u+1]``, oldest first.

    ``offsets`` (U+1,) int64 from 0 to E, non-decreasing; ``items`` (E,) int32, each in ``[0, n_items)``; ``timestamps``
    (E,) int64, non-decreasing inside a user, in seconds, or None where the log has none; ``user_ids`` and ``item_ids``
    give the log's own ids. ``time_unit`` is the unit of the log's own times (s, ms, us, ns, or date), in which callers
    give theirs too: see :func:`hyenarec.data.times.caller_seconds`. Raises ValueError where shapes or dtypes differ, or
    an item is not in the catalogue.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64] | None
    user_ids: Ids
    item_ids: Ids
    time_unit: str = "s"
    file: tensor_file.Opened | None = field(default=None, repr=False)
    """The file that the arrays are mapped from; until it is verified, only :meth:`verify` reads all of them."""

    def __post_init__(self) -> None:
        for name, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if not isinstance(ids, Ids):
                raise ValueError(f"{name}: expected Ids, got {shortened(ids)}")
        _check_array("offsets", self.offsets, np.int64, len(self.user_ids) + 1)
        _check_array("items", self.items, np.int32, int(self.offsets[-1]))
        if self.timestamps is not None:
            _check_array("timestamps", self.timestamps, np.int64, len(self.items))
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets: must start at 0 and never fall")
        if self.time_unit not in UNITS:
            raise ValueError(f"time unit: must be one of {', '.join(UNITS)}, got {self.time_unit!r}")
        if self.file is None or self.file.verified:
            self._check_items(self.items)

    def _check_items(self, items: NDArray[np.int32]) -> None:
        if len(items) and not (items.min() >= 0 and items.max() < len(self.item_ids)):
            raise ValueError(f"items: each must be from 0 to {len(self.item_ids) - 1}, the catalogue's last")

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
        expect(user, (int, np.integer), "user", "the index of a user")
        if not 0 <= user < self.n_users:
            raise UserError(f"user: {shortened(user)} is outside 0 to {self.n_users - 1}")
        items = self.items[self.offsets[user] : self.offsets[user + 1]]
        if self.file is not None and not self.file.verified:
            with _damage(self.file.path.parent):
                self._check_items(items)
        return items

    def users_of(self, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """The dense user of each event index, (n,): the history before event ``e`` is ``offsets[users_of(e)]:e``."""
        events = np.asarray(events)
        if events.dtype.kind not in "iu" or (events.size and not 0 <= events.min() <= events.max() < self.n_events):
            raise UserError(f"events: expected indices from 0 to {self.n_events - 1}, got {shortened(events)}")
        return np.searchsorted(self.offsets, events, side="right") - 1

    def describe(self) -> dict[str, int]:
        """What tells this log from others, as JSON: its sizes, and the CRC-32 of its items."""
        return {
            "users": self.n_users,
            "items": self.n_items,
            "events": self.n_events,
            "checksum": zlib.crc32(np.ascontiguousarray(self.items).data),
        }

    def fingerprint(self) -> str:
        """A digest of users, items, order and times: equal for equal data, wherever the store lies."""
        digest = hashlib.blake2b(self.time_unit.encode(), digest_size=16)
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the store into the folder ``path``, completely or not at all; an older store there is replaced.

        A symbolic link to a folder stays a link. Raises :class:`UserError` where the folder holds anything but an older
        store, where the disk is full, and where the place cannot be written.
        """
        path = as_path(path, "store")
        self.verify()  # else the new checksum would hide damage
        self.refuse_changed()
        _check_free(path)
        new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            remove_unfinished(path)
            tensor_file.save(path / STORE, KIND, self._arrays(), {"time_unit": self.time_unit})
        except OSError as error:
            raise UserError(f"cannot save {path}: {error.strerror or error}") from error
        finally:
            if new:
                with suppress(OSError):
                    path.rmdir()  # where nothing was written

    @classmethod
    def load(cls, path: str | Path) -> SequenceStore:
        """Open the store in the folder ``path``; its arrays are read-only and memory-mapped.

        A store of up to a gigabyte is verified: every array is read once, which takes 0.4 s per gigabyte if the file is
        in memory already. A larger one opens at once, and :meth:`verify` reads it later. Raises :class:`UserError`
        where there is no store, and where it may not be read, is damaged or is of another version.
        """
        path = as_path(path, "store")
        if not path.exists():
            raise UserError(f"{path}: no such store")
        if not (path / STORE).exists():
            raise UserError(f"{path}: not a store: {STORE} is missing (remove an older store, and prepare it again)")
        with _damage(path):
            file = tensor_file.opened(path / STORE, KIND)
            if (path / STORE).stat().st_size <= VERIFIED_AT_ONCE:
                file.verify()
                file.verified = True
            return cls._of(file)

    def verify(self) -> None:
        """Read every array and compare the checksum, once, if the store was too large for that when it was opened;
        training and evaluation call this. Raises :class:`UserError` where the store is damaged."""
        if self.file is None or self.file.verified:
            return
        with _damage(self.file.path.parent):
            self.file.verify()
            self._check_items(self.items)
        self.file.verified = True

    def refuse_changed(self) -> None:
        """Raises :class:`UserError` if the store's file was written to since it was opened, as copying another store
        over it does: what was read may then be of neither. Preparing or saving the store anew puts another file in its
        place, and disturbs nobody. The check takes some microseconds; training and evaluation make it for every batch.
        """
        if self.file is not None:
            with _damage(self.file.path.parent):
                self.file.refuse_changed()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Inside the context, everything read is of the store as opened: calls :meth:`refuse_changed` before and
        after."""
        self.refuse_changed()
        try:
            yield
        finally:
            self.refuse_changed()

    def _arrays(self) -> Arrays:
        arrays: Arrays = {"offsets": self.offsets, "items": self.items}
        if self.timestamps is not None:
            arrays["timestamps"] = self.timestamps
        for role, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            arrays |= {f"{role}.{name}": array for name, array in ids.to_arrays().items()}
        return arrays

    @classmethod
    def _of(cls, file: tensor_file.Opened) -> SequenceStore:
        arrays = file.arrays
        user_ids, item_ids = (_ids_of(role, arrays) for role in ("user", "item"))
        times, unit = arrays.get("timestamps"), file.header["time_unit"]
        return cls(arrays["offsets"], arrays["items"], times, user_ids, item_ids, unit, file)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Inside the context, an error about the store in the folder ``path`` becomes one line that says what to do."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{error}; {_way_out(path)}") from error
    except (ValueError, KeyError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise DamagedError(f"{path / STORE}: damaged store ({what}); {_way_out(path)}") from error


def _ids_of(role: str, arrays: Arrays) -> Ids:
    prefix = f"{role}_ids."
    try:
        return Ids.from_arrays(
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        )
    except ValueError as error:
        raise ValueError(f"{role} {error}") from error


def is_store(path: Path) -> bool:
    """Whether the folder ``path`` holds a sequence store, of any version."""
    return tensor_file.is_kind(path / STORE, KIND)


def _way_out(path: Path) -> str:
    return "prepare it again" if is_store(path) else f"remove {path / STORE} and prepare it again"


def _check_array(name: str, array: NDArray[Any], dtype: type[np.generic], length: int) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected an array of {np.dtype(dtype)}, got {shortened(array)}")
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError(
            f"{name}: expected shape ({length},) {np.dtype(dtype)}, got {'x'.join(map(str, array.shape))} {array.dtype}"
        )


def _check_free(path: Path) -> None:
    """Raise :class:`UserError` unless a store may be put at ``path``: nothing but an older store may be lost."""
    if not path.exists():
        return
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    others = [name for name in found if not UNFINISHED.fullmatch(name)]
    if others and not is_store(path):
        raise UserError(f"{path}: there already, and not a store; choose another place or remove it")
    others = [name for name in others if name != STORE]
    if others:
        raise UserError(f"{path}: beside an older store there is {others[0]!r}; choose another place or move it away")
