"""Memory as lanes see it: words at byte addresses, with checks of every access.

`Tracker` finds conflicts: two owners that access one place in the same epoch, one of them writing. In shared memory an
owner is a warp and an epoch ends with the block's barrier; in global memory an owner is a block, and a launch is one
epoch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.ptx.faults import Fault

Array = npt.NDArray[Any]
Addresses = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

WORDS: dict[int, Any] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
GRANULE = 2  # bytes; an access to one byte counts for its granule


class Tracker:
    """Who wrote and who read each granule last, as stamps: epoch * OWNERS + owner + 1, or 0 for nobody ever."""

    OWNERS = 1 << 20
    SEVERAL = OWNERS - 1

    def __init__(self, size: int) -> None:
        self.written = np.zeros(-(-size // GRANULE), np.int64)
        self.read = np.zeros_like(self.written)

    def loads(self, at: Addresses, size: int, stamps: Addresses) -> None:
        place, stamp, base = self._places(at, size, stamps)
        self._others(self.written[place], stamp, base, "read of what {} wrote, with no barrier between")
        found = self.read[place]
        new = np.where((found >= base) & (found != stamp), base + self.SEVERAL, stamp)
        self.read[place] = new
        if stamps.min() != stamps.max():  # where several owners read in one instruction, only the last stamp is stored
            lost = self.read[place] != new
            self.read[place[lost]] = np.broadcast_to(base + self.SEVERAL, place.shape)[lost]

    def stores(self, at: Addresses, size: int, stamps: Addresses, changed: Mask) -> None:
        """`changed`: which values differ from those in memory; equal values may be written twice."""
        place, stamp, base = self._places(at, size, stamps)
        self._others(self.read[place], stamp, base, "write of what {} read, with no barrier between")
        found = np.where(changed[:, None], self.written[place], 0)
        self._others(found, stamp, base, "write of what {} wrote, with no barrier between")
        self.written[place] = stamp

    def anything_wrote(self, at: Addresses, size: int) -> bool:
        place = at[:, None] // GRANULE + np.arange(-(-size // GRANULE))
        return bool((self.written[place] > 0).all())

    def _places(self, at: Addresses, size: int, stamps: Addresses) -> tuple[Addresses, Addresses, Addresses]:
        place = at[:, None] // GRANULE + np.arange(-(-size // GRANULE))
        stamp = np.broadcast_to(stamps[:, None], place.shape)
        return place, stamp, stamp // self.OWNERS * self.OWNERS

    def _others(self, found: Addresses, stamp: Addresses, base: Addresses, message: str) -> None:
        bad = (found >= base) & (found != stamp)
        if bad.any():
            number = int(found[bad][0] % self.OWNERS)
            raise Fault(message.format("several others" if number == self.SEVERAL else f"owner {number - 1}"))


class Buffer:
    """Bytes at an address, as words of each size. `number` says which buffer of a memory it is."""

    def __init__(self, data: npt.NDArray[np.uint8], address: int, name: str, *, writable: bool = True) -> None:
        self.address, self.size, self.name, self.writable = address, len(data), name, writable
        self.data, self.number = data, 0
        self.tracker: Tracker | None = None
        self._views: dict[int, Array] = {}

    def words(self, size: int) -> Array:
        if size not in self._views:
            self._views[size] = self.data[: self.size // size * size].view(WORDS[size])
        return self._views[size]

    def load(self, at: Addresses, size: int, count: int) -> Array:
        """(n, count) words at byte offsets (n,)."""
        return self.words(size)[at[:, None] // size + np.arange(count)]

    def store(self, at: Addresses, values: Array, owners: Addresses) -> Mask:
        """Writes (n, count) words. Returns which of the n accesses changed what was there."""
        size, count = values.itemsize, values.shape[1]
        place = at[:, None] // size + np.arange(count)
        words = self.words(size)
        changed: Mask = (words[place] != values).any(1)
        words[place] = values
        if (words[place] != values).any():
            raise Fault("lanes of one instruction write different values to one place")
        return changed


class GlobalMemory:
    """The tensors that a launch may touch, at their own addresses in this process."""

    WINDOW = 1 << 40

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._starts = self._ends = self._numbers = np.zeros(0, np.int64)

    def add(self, address: int, size: int, name: str, *, writable: bool = True) -> None:
        """Adds bytes that exist; a place that is already known is left as it is."""
        if size == 0 or any(b.address == address and b.size >= size for b in self.buffers):
            return
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self._insert(Buffer(data, address, name, writable=writable))

    def hold(self, data: bytes, name: str) -> int:
        """Adds a read-only copy of `data`. Returns its address."""
        copy = np.zeros(len(data) + 64, np.uint8)
        begin = -copy.ctypes.data % 64
        part = copy[begin : begin + len(data)]
        part[:] = np.frombuffer(data, np.uint8)
        self._insert(Buffer(part, part.ctypes.data, name, writable=False))
        return int(part.ctypes.data)

    def begin_launch(self) -> None:
        for buffer in self.buffers:
            buffer.tracker = Tracker(buffer.size) if buffer.writable else None

    def load(self, at: Addresses, size: int, count: int, stamps: Addresses) -> Array:
        out = np.empty((len(at), count), WORDS[size])
        for buffer, part in self._split(at, size * count):
            offsets = at[part] - buffer.address
            if buffer.tracker:
                buffer.tracker.loads(offsets, size * count, stamps[part])
            out[part] = buffer.load(offsets, size, count)
        return out

    def store(self, at: Addresses, values: Array, stamps: Addresses) -> None:
        size = values.itemsize * values.shape[1]
        for buffer, part in self._split(at, size):
            if not buffer.writable:
                raise Fault(f"write to {buffer.name}, which can only be read")
            offsets = at[part] - buffer.address
            changed = buffer.store(offsets, values[part], stamps[part])
            if buffer.tracker:
                buffer.tracker.stores(offsets, size, stamps[part], changed)

    def on_device(self, at: Addresses) -> Addresses:
        """The addresses as a device might place the buffers: each begins with a line of memory, and they are WINDOW
        bytes apart. A buffer that is added later changes none of them."""
        place = np.maximum(np.searchsorted(self._starts, at, "right") - 1, 0)
        placed: Addresses = at - self._starts[place] + self._numbers[place] * self.WINDOW
        return placed

    def _insert(self, buffer: Buffer) -> None:
        buffer.number = len(self.buffers)
        self.buffers.append(buffer)
        self.buffers.sort(key=lambda b: b.address)
        self._numbers = np.array([b.number for b in self.buffers], np.int64)
        self._starts = np.array([b.address for b in self.buffers], np.int64)
        self._ends = np.array([b.address + b.size for b in self.buffers], np.int64)

    def _split(self, at: Addresses, size: int) -> list[tuple[Buffer, slice | Mask]]:
        """The buffers that (n,) accesses of `size` bytes go to, and which of them go to each."""
        if not len(at):
            return []
        if (at % size).any():
            raise Fault(f"misaligned access of {size} bytes to global memory at {int(at[at % size > 0][0]):#x}")
        number = np.searchsorted(self._starts, at, "right") - 1
        outside = (number < 0) | (at + size > self._ends[np.maximum(number, 0)])
        if outside.any():
            address = int(at[outside][0])
            near = self.buffers[max(int(number[outside][0]), 0)].name if self.buffers else "nothing"
            raise Fault(
                f"access of {size} bytes outside every tensor: {int(outside.sum())} lanes, the first at {address:#x},"
                f" after the beginning of {near}"
            )
        first = int(number[0])
        if (number == first).all():
            return [(self.buffers[first], slice(None))]
        return [(self.buffers[n], number == n) for n in np.unique(number)]


class SharedMemory:
    """The shared memory of several blocks, `size` bytes each, one after the other in `Buffer`."""

    def __init__(self, size: int, blocks: int) -> None:
        self.size = size
        self.stride = -(-size // 128) * 128
        self.buffer = Buffer(np.zeros(self.stride * blocks + 128, np.uint8), 0, "shared memory")
        self.tracker = Tracker(self.stride * blocks + 128)

    def load(self, at: Addresses, size: int, count: int, block: Addresses, stamps: Addresses) -> Array:
        offsets = self._offsets(at, size * count, block)
        if not self.tracker.anything_wrote(offsets, size * count):
            raise Fault("read of shared memory that nothing wrote")
        self.tracker.loads(offsets, size * count, stamps)
        return self.buffer.load(offsets, size, count)

    def store(self, at: Addresses, values: Array, block: Addresses, stamps: Addresses) -> None:
        size = values.itemsize * values.shape[1]
        offsets = self._offsets(at, size, block)
        changed = self.buffer.store(offsets, values, stamps)
        self.tracker.stores(offsets, size, stamps, changed)

    def _offsets(self, at: Addresses, size: int, block: Addresses) -> Addresses:
        if ((at < 0) | (at + size > self.size)).any():
            worst = int(at.max()) if at.max() + size > self.size else int(at.min())
            raise Fault(f"access of {size} bytes to shared memory at {worst}, of {self.size} bytes that a block has")
        if (at % size).any():
            raise Fault(f"misaligned access of {size} bytes to shared memory at {int(at[at % size > 0][0])}")
        return at + block * self.stride
