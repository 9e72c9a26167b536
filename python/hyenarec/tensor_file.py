"""The files of stores and checkpoints: arrays with a JSON header and a checksum, in the safetensors format.

One entry of the file's metadata holds format, version, checksum and JSON, in this order: of several entries safetensors
would shuffle the order, and equal contents would have unequal bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from hyenarec.errors import DamagedError, UserError
from hyenarec.files import write_atomically

Arrays = dict[str, NDArray[Any]]

DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Kind:
    """What a file is: ``name`` in messages and in its format, and the version that is read and written."""

    name: str
    version: int

    @property
    def format(self) -> str:
        return f"hyenarec-{self.name}"


def save(path: Path, kind: Kind, arrays: Arrays, header: dict[str, Any]) -> None:
    """Write ``arrays`` and the JSON-serialisable ``header`` to ``path`` atomically.

    Raises :class:`UserError` with the system's reason when the disk is full or the folder cannot be written.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    metadata = {"format": f"{kind.format} {kind.version} {_checksum(contiguous, text):08x} {text}"}

    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def save_file(arrays: Arrays, path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file, written array by array: the library's own function would copy all of them first, and a store
    may be larger than memory. Wide values come first, so that each array lies where its values may."""
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == arrays[name].dtype)
        entries[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": (begin, end)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            if arrays[name].size:
                file.write(arrays[name].reshape(-1).view(np.uint8).data)


def load(path: Path, kind: Kind) -> tuple[Arrays, dict[str, Any]]:
    """Open what :func:`save` wrote: the arrays are read-only and memory-mapped.

    Every array is read once to verify the checksum. Raises :class:`UserError` for a file that is missing or may not be
    read, and :class:`DamagedError` for one that is truncated, damaged (a changed bit is enough), foreign, or of another
    version.
    """
    arrays, metadata = _map(path, kind)
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
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: truncated or damaged {kind.name} ({error})") from error
    if f"{_checksum(arrays, text):08x}" != checksum or not isinstance(header, dict):
        raise DamagedError(f"{path}: damaged {kind.name}: its contents do not match its checksum")
    return arrays, header


def digest(arrays: Arrays) -> str:
    """Tells arrays, with their names, from others: equal for equal ones, in whatever order."""
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


def _map(path: Path, kind: Kind) -> tuple[Arrays, dict[str, str]]:
    """The arrays of a safetensors file, mapped at the places that its header gives, and its metadata."""
    try:
        with path.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such {kind.name}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this {kind.name}: {error.strerror or error}") from error
    try:
        with safe_open(path, framework="numpy") as file:  # it checks that places, shapes and dtypes fit the file
            metadata = file.metadata() or {}
        # Mapped by numpy, since safetensors' own get_tensor() and get_slice() copy.
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        entries = json.loads(data[8:start].tobytes())
        arrays = {}
        for name, entry in entries.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                arrays[name] = data[start + begin : start + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except KeyError as error:
        raise DamagedError(f"{path}: holds {error} values, which no {kind.name} has") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: truncated or damaged {kind.name} ({error})") from error
    return arrays, metadata


def _checksum(arrays: Arrays, text: str) -> int:
    """CRC-32 of the JSON and of every array's name, dtype (by torch's name), shape and bytes."""
    found = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        found = zlib.crc32(f"{name} torch.{array.dtype} {list(array.shape)}".encode(), found)
        if array.size:
            found = zlib.crc32(array.reshape(-1).view(np.uint8).data, found)
    return found
