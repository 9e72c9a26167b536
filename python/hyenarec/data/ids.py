"""Maps between dense indices and the log's own ids, kept as plain arrays that stores and checkpoints can hold."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyenarec.errors import UserError, is_iterable, shortened

Id = int | str

_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")  # int() refuses thousands of digits


class Ids:
    """A sorted set of ids, all integers or all strings; an id's index is its position in this order.

    Strings are ordered by their UTF-8 bytes (which is the order of Python's ``str``) and kept as one byte array with
    offsets, so that ten million of them are two arrays and can be memory-mapped. Look-up is a binary search.
    """

    def __init__(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        self._arrays = arrays

    @classmethod
    def from_values(cls, values: Sequence[Id] | NDArray[np.generic]) -> Ids:
        """The distinct ids among ``values``, in order. Raises TypeError unless all are integers, or all strings."""
        given = _plain(values)
        if not (all(type(value) is int for value in given) or all(isinstance(value, str) for value in given)):
            raise TypeError("ids: expected all integers or all strings")
        distinct = set(given)
        if all(isinstance(value, int) for value in distinct):
            if any(as_integer(value) is None for value in distinct):
                raise TypeError("ids: integers must fit 64 bits")
            return cls({"values": np.array(sorted(distinct), dtype=np.int64)})
        encoded = sorted(str(value).encode() for value in distinct)
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls({"utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8), "offsets": offsets})

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> Ids:
        """The inverse of :meth:`to_arrays`; the arrays are not copied, and are trusted to be sorted.

        Raises ValueError for other names, dtypes or shapes.
        """
        if not isinstance(arrays, dict) or not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError(f"ids: expected arrays by name, got {shortened(arrays)}")
        found = {name: f"{array.ndim}-D {array.dtype}" for name, array in arrays.items()}
        if found not in ({"values": "1-D int64"}, {"utf8": "1-D uint8", "offsets": "1-D int64"}):
            raise ValueError(
                f"ids: expected values (1-D int64), or utf8 (1-D uint8) and offsets (1-D int64), got {found}"
            )
        offsets = arrays.get("offsets")
        if offsets is not None and not (len(offsets) and offsets[0] == 0 and offsets[-1] == len(arrays["utf8"])):
            raise ValueError("ids: the offsets do not cover the utf8 bytes")
        # Always in this order, whatever the file's order: a store's fingerprint hashes the arrays one after another.
        return cls({name: arrays[name] for name in ("values", "utf8", "offsets") if name in arrays})

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """``{"values": (n,) int64}``, or for strings ``{"utf8": (bytes,) uint8, "offsets": (n+1,) int64}``."""
        return dict(self._arrays)

    @property
    def integers(self) -> bool:
        """Whether the ids are integers; strings otherwise."""
        return "values" in self._arrays

    def __len__(self) -> int:
        return len(self._arrays["values"]) if self.integers else len(self._arrays["offsets"]) - 1

    def decode(self, indices: Sequence[int] | NDArray[np.integer]) -> list[Id]:
        """The ids at ``indices``, as Python ints or strings. Raises IndexError outside ``[0, len)``."""
        places = np.asarray(indices)
        if places.dtype.kind not in "iu" and places.size:
            raise UserError(f"indices: expected integers, got {shortened(indices)}")
        places = places.astype(np.int64, copy=False)
        if places.size and (places.min() < 0 or places.max() >= len(self)):
            raise IndexError(f"index outside [0, {len(self)})")
        if self.integers:
            values: list[Id] = self._arrays["values"][places].tolist()
            return values
        return [self._utf8(place).decode() for place in places.tolist()]

    def find(self, values: Sequence[Id] | NDArray[np.generic]) -> NDArray[np.int32]:
        """The index of every id, (n,) int32, and -1 where it is unknown.

        Where ids are integers, a string is read as one (``"42"`` finds 42); where they are strings, an integer finds
        its decimal form. So ids typed on a command line or read from JSON need no conversion.
        """
        given = _plain(values)
        if not self.integers:
            return np.array([self._find_text(str(value)) for value in given], dtype=np.int32)
        known = self._arrays["values"]
        wanted = [as_integer(value) for value in given]
        numbers = np.array([0 if number is None else number for number in wanted], dtype=np.int64)
        places = np.searchsorted(known, numbers)
        hit = np.array([number is not None for number in wanted], dtype=bool) & (places < len(known))
        hit[hit] = known[places[hit]] == numbers[hit]
        return np.where(hit, places, -1).astype(np.int32)

    def encode(self, values: Sequence[Id] | NDArray[np.generic], what: str = "id") -> NDArray[np.int32]:
        """The index of every id, (n,) int32. Raises :class:`UserError` for the first unknown one, called ``what``."""
        places = self.find(values)
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            raise UserError(f"unknown {what} {_plain(values)[unknown[0]]!r}: {self._summary()}")
        return places

    def _find_text(self, text: str) -> int:
        # surrogatepass: arguments that were not UTF-8 contain surrogates; they are unknown ids, not a crash.
        key = text.encode(errors="surrogatepass")
        place = bisect_left(range(len(self)), key, key=self._utf8)
        return place if place < len(self) and self._utf8(place) == key else -1

    def _utf8(self, place: int) -> bytes:
        offsets = self._arrays["offsets"]
        return self._arrays["utf8"][offsets[place] : offsets[place + 1]].tobytes()

    def _summary(self) -> str:
        if not len(self):
            return "there are no ids"
        first, last = self.decode([0, len(self) - 1])
        kind = "integers" if self.integers else "strings"
        return f"the {len(self)} known ones are {kind} from {first!r} to {last!r}"


def as_integer(value: object) -> int | None:
    """``value`` as an int64, or None where it cannot be one."""
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            return None
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        return None
    return value


def _plain(values: Sequence[Id] | NDArray[np.generic]) -> list[Id]:
    """The values as Python's own integers and strings."""
    if isinstance(values, str | bytes) or not is_iterable(values):
        raise UserError(f"ids: expected a list of ids, got {shortened(values)}")
    return [value.item() if isinstance(value, np.generic) else value for value in values]
