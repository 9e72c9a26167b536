"""The files of stores and checkpoints: arrays with a JSON header and a checksum, in the safetensors format.

A single entry of the file's metadata holds format, version, checksum and JSON, in this order: safetensors would write
several entries in a random order, and files with equal contents would have different bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from hyenarec.errors import DamagedError, UserError
from hyenarec.files import write_atomically

if TYPE_CHECKING:
    from typing_extensions import Buffer

Arrays = dict[str, NDArray[Any]]

BLOCK = 1 << 20  # bytes read or written at a time, so that they stay in the processor's cache

DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Kind:
    """What a file is: its ``name``, in messages and in its format, and the version that is read and written."""

    name: str
    version: int

    @property
    def format(self) -> str:
        return f"hyenarec-{self.name}"


@dataclass(frozen=True)
class Streamed:
    """An array that is written as its ``blocks`` of bytes come, and is never whole in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[Buffer]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Head:
    """The single metadata entry without its checksum, which is known when everything is written."""

    kind: Kind
    text: str

    def metadata(self, checksum: int) -> dict[str, str]:
        return {"format": f"{self.kind.format} {self.kind.version} {checksum:08x} {self.text}"}


def save(path: Path, kind: Kind, arrays: Mapping[str, NDArray[Any] | Streamed], header: dict[str, Any]) -> None:
    """Write ``arrays`` and the JSON-serialisable ``header`` to ``path`` atomically.

    Raises :class:`UserError` with the system's reason when the disk is full or the folder cannot be written.
    """
    given = {
        name: array if isinstance(array, Streamed) else np.asarray(array, order="C") for name, array in arrays.items()
    }
    head = Head(kind, json.dumps(header, sort_keys=True, allow_nan=False))

    write_atomically(path, lambda temporary: save_file(given, temporary, head))


def save_file(arrays: Mapping[str, NDArray[Any] | Streamed], path: Path, head: Head) -> None:
    """Write a safetensors file array by array, in order of names: the library's own function would copy all arrays
    first, and a store may be larger than memory. Wide dtypes come first in the file, so that all arrays are aligned.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        begin, end = end, end + arrays[name].nbytes
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == arrays[name].dtype)
        entries[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": (begin, end)}

    def header(checksum: int) -> bytes:
        found = json.dumps({"__metadata__": head.metadata(checksum), **entries}, separators=(",", ":")).encode()
        found += b" " * (-len(found) % 8)
        return len(found).to_bytes(8, "little") + found

    with path.open("wb") as file:
        start = len(header(0))

        def written(name: str) -> Iterator[Buffer]:
            array = arrays[name]
            file.seek(start + entries[name]["data_offsets"][0])
            for block in array.blocks() if isinstance(array, Streamed) else blocks_of(array):
                file.write(block)
                yield block

        checksum = _checksum(arrays, head.text, written)
        file.seek(0)
        file.write(header(checksum))


State = tuple[int, int, int, int]  # of a file: device, inode, size, and time of the last write


@dataclass
class Opened:
    """A file whose header was read: its ``arrays``, read-only and memory-mapped, and its JSON ``header``."""

    path: Path
    kind: Kind
    arrays: Arrays
    header: dict[str, Any]
    places: dict[str, int]
    """Where each array begins in the file."""
    checksum: str
    text: str
    state: State
    """That of the mapped file, when it was mapped."""
    verified: bool = False
    """Whether its checksum was compared."""

    def refuse_changed(self) -> None:
        """Raises :class:`DamagedError` if the mapped file was written to since: the arrays may have changed, or been
        cut, and reading beyond the end of a file ends the process.

        If another file was put in its place, nothing changes: the mapped one lives on. If the file was written to but
        has the same contents, it is read once to find that out.
        """
        try:
            state = _state(self.path.stat())
        except OSError:
            return  # it is gone
        if state == self.state or state[:2] != self.state[:2]:
            return
        try:
            self.verify()
        except DamagedError as error:
            raise DamagedError(f"{self.path}: was written while this {self.kind.name} was in use") from error
        self.state = state

    def verify(self) -> None:
        """Read every array once, block by block. Raises :class:`DamagedError` where the checksum differs."""
        with self.path.open("rb") as file:
            if _state(os.fstat(file.fileno()))[:2] != self.state[:2]:
                raise UserError(f"{self.path}: was replaced while it was opened; run the same command again")
            buffer = memoryview(bytearray(BLOCK))

            def blocks(name: str) -> Iterator[Buffer]:
                file.seek(self.places[name])
                for first in range(0, self.arrays[name].nbytes, BLOCK):
                    yield buffer[: file.readinto(buffer[: self.arrays[name].nbytes - first])]

            found = _checksum(self.arrays, self.text, blocks)
        if f"{found:08x}" != self.checksum:
            raise DamagedError(f"{self.path}: damaged {self.kind.name}: its contents do not match its checksum")


def opened(path: Path, kind: Kind) -> Opened:
    """Open what :func:`save` wrote without reading the arrays.

    Raises :class:`UserError` for a file that is missing or may not be read, and :class:`DamagedError` for one that is
    truncated, foreign, of another version, or has a damaged header.
    """
    arrays, metadata, places, state = _map(path, kind)
    name, _, rest = metadata.get("format", "").partition(" ")
    if name != kind.format:
        raise DamagedError(f"{path}: not a hyenarec {kind.name}")
    version, _, rest = rest.partition(" ")
    if version != str(kind.version):
        found = version or metadata.get("version", "1")  # version 1 of checkpoints had an entry of its own
        raise DamagedError(f"{path}: {kind.name} format {found:.20}, but this hyenarec reads format {kind.version}")
    checksum, _, text = rest.partition(" ")
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: truncated or damaged {kind.name} ({error})") from error
    return Opened(path, kind, arrays, header, places, checksum, text, state)


def load(path: Path, kind: Kind) -> tuple[Arrays, dict[str, Any]]:
    """As :func:`opened`, and verified: a single changed bit raises :class:`DamagedError`."""
    file = opened(path, kind)
    file.verify()
    return file.arrays, file.header


def digest(arrays: Arrays) -> str:
    """Identifies arrays with their names: equal for equal ones, in whatever order."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()


def is_kind(path: Path, kind: Kind) -> bool:
    """Whether ``path`` is a file of this kind, of any version."""
    try:
        return _map(path, kind)[1].get("format", "").startswith(f"{kind.format} ")
    except UserError:
        return False


def _map(path: Path, kind: Kind) -> tuple[Arrays, dict[str, str], dict[str, int], State]:
    """Map a safetensors file: its arrays, at the places that its header gives, its metadata, these places, and the
    file's state."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such {kind.name}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this {kind.name}: {error.strerror or error}") from error
    try:
        with file:
            state = _state(os.fstat(file.fileno()))
            with safe_open(path, framework="numpy"):  # it checks that places, shapes and dtypes fit the file
                pass
            # Mapped by numpy, since safetensors' own get_tensor() and get_slice() copy.
            data = np.asarray(np.memmap(file, np.uint8, mode="r"))
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        entries = json.loads(data[8:start].tobytes())
        metadata = entries.pop("__metadata__", None) or {}
        arrays, places = {}, {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            places[name] = start + begin
            arrays[name] = data[start + begin : start + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except KeyError as error:
        raise DamagedError(f"{path}: holds {error} values, which no {kind.name} has") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: truncated or damaged {kind.name} ({error})") from error
    return arrays, metadata, places, state


def _state(found: os.stat_result) -> State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _checksum(
    arrays: Mapping[str, NDArray[Any] | Streamed], text: str, blocks: Callable[[str], Iterable[Buffer]]
) -> int:
    """CRC-32 of the JSON and of every array's name, dtype (by torch's name), shape and bytes, which come in blocks."""
    found = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        found = zlib.crc32(f"{name} torch.{array.dtype} {list(array.shape)}".encode(), found)
        for block in blocks(name):
            found = zlib.crc32(block, found)
    return found


def blocks_of(array: NDArray[Any]) -> Iterator[Buffer]:
    """The bytes of a contiguous array, block by block, without a copy."""
    if array.size:
        flat = array.reshape(-1).view(np.uint8)
        for first in range(0, len(flat), BLOCK):
            yield flat[first : first + BLOCK].data
