"""Item features: the columns of a table about items, turned into numbers that give rare and new items their rows.

A column is read as one of the kinds of :data:`hyenarec.data.item_columns.Kind`. How it becomes numbers is learned from
the items of the training log (:func:`learn`) and kept with the model, so that a table of other items becomes the same
numbers later (:func:`encode`). An item has few of all categories, words and numbers, so these are stored sparsely, as
column indices and values; vectors are stored whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.config import from_json
from hyenarec.data.columns import OTHER
from hyenarec.data.ids import Id, Ids, as_integer
from hyenarec.data.item_columns import DECLARED, Kind, Values, infer, parse
from hyenarec.data.names import columns_of_ids, ids_of_table, read_table
from hyenarec.data.places import Origin
from hyenarec.errors import UserError
from hyenarec.files import as_path
from hyenarec.tensor_file import digest

if TYPE_CHECKING:
    import polars as pl

MOST_WORDS = 5_000  # kept of a column of text: the words that most items share
FARTHEST = 3.0  # numbers are clipped at so many standard deviations, lest a price of a million dominate its row


@dataclass(frozen=True)
class Encoding:
    """How a column becomes numbers: each of the ``known`` categories or words gets a feature column of its own; a
    number or vector has ``mean``, one entry for each of its numbers, subtracted and is then divided by ``scale``."""

    name: str
    kind: Kind
    known: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    scale: float = 1.0

    @property
    def width(self) -> int:
        return len(self.known) or len(self.mean)


@dataclass(frozen=True)
class Features:
    """The features of V items, a matrix (V, K): its first ``sparse`` columns belong to categories, words and numbers,
    the others, ``dense``, to vectors. In the first part item ``i`` has the ``values`` from ``offsets[i]`` to
    ``offsets[i + 1]``, in the columns that ``places`` gives for them."""

    encodings: list[Encoding]
    offsets: NDArray[np.int64]  # (V+1,)
    places: NDArray[np.int64]  # (n,) below ``sparse``
    values: NDArray[np.float32]  # (n,)
    sparse: int
    dense: NDArray[np.float32]  # (V, K - sparse)

    @property
    def width(self) -> int:
        return sum(encoding.width for encoding in self.encodings)

    def describe(self) -> dict[str, Any]:
        """What a run records of the features, as JSON: their columns, and a fingerprint that identifies them."""
        columns = {encoding.name: f"{encoding.kind}, {encoding.width}" for encoding in self.encodings}
        return {"columns": columns, "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        columns = np.frombuffer(json.dumps(to_json(self.encodings)).encode(), np.uint8)
        return digest(
            {
                "columns": columns,
                "offsets": self.offsets,
                "places": self.places,
                "values": self.values,
                "dense": self.dense,
            }
        )


@dataclass(frozen=True)
class ItemTable:
    """A table with one row per item: all its columns but the ids, by their names without the ``:type``."""

    path: Path
    origin: Origin
    ids: Ids
    rows: NDArray[np.int32]  # (n,) the index of each row's id in ``ids``
    columns: dict[str, pl.Series]
    declared: dict[str, Kind]
    _parsed: dict[tuple[str, Kind], Values] = field(default_factory=dict)

    def values(self, name: str, kind: Kind) -> Values:
        """The values of a column. Raises :class:`UserError` where one does not fit this ``kind``."""
        if (name, kind) not in self._parsed:
            self._parsed[name, kind] = parse(name, self.columns[name], kind, self.origin)
        return self._parsed[name, kind]

    def places(self, item_ids: Ids) -> NDArray[np.int64]:
        """The index in ``item_ids`` of each row's item, (n,), -1 where it is not there."""
        return item_ids.find(self.ids.decode(self.rows)).astype(np.int64)


def read_item_table(path: str | Path, item_ids: Ids, item: str | None = None, chosen: Sequence[str] = ()) -> ItemTable:
    """The table of items at ``path``, in any format that logs may have. Its ids are in the column ``item``, or else in
    ``item_id``, ``id`` or ``item``; of its other columns it keeps those that are ``chosen``, or all.

    Raises :class:`UserError` for a file that cannot be read, lacks these columns, has two rows for an item, or has ids
    that cannot belong to a log whose items are ``item_ids``.
    """
    path = as_path(path, "option item-features")
    table = read_table(path, "item", columns_of_ids(item), others=True)
    given: list[Id] = []
    first: dict[Id, str] = {}
    for found, row in ids_of_table(table):
        one = as_integer(found) if item_ids.integers else str(found)
        if one is None:
            raise UserError(f"{path}: column {table.name!r}, {row}: {found!r} is no id of this log, which has integers")
        if one in first:
            raise UserError(
                f"{path}: column {table.name!r}, {row}: item {found!r} is in {first[one]} already; each has one row"
            )
        first[one] = row
        given.append(one)
    columns, declared = {}, {}
    for role in table.frame.columns:
        if role.startswith(OTHER):
            header = role.removeprefix(OTHER)
            name, _, suffix = header.rpartition(":")
            name = name if suffix in DECLARED and name else header
            if name in columns:
                raise UserError(f"{path}: 2 columns are named {name!r}; rename one")
            columns[name] = table.frame[role]
            if name != header:
                declared[name] = DECLARED[suffix]
    for name in chosen:
        if name not in columns:
            raise UserError(f"{path}: no column {name!r}; there are {', '.join(columns) or 'none but ids'}")
    if not columns:
        raise UserError(f"{path}: has a column of ids alone, so no features")
    ids = Ids.from_values(given)
    kept = {name: columns[name] for name in chosen} if chosen else columns
    return ItemTable(path, table.origin, ids, ids.find(given), kept, declared)


def learn(table: ItemTable, item_ids: Ids) -> list[Encoding]:
    """How the table's columns become numbers, learned from its rows whose items are in ``item_ids``.

    Raises :class:`UserError` where there is no such row, and for the first column that cannot be used.
    """
    known = table.places(item_ids) >= 0
    if not known.any():
        raise UserError(
            f"{table.path}: has none of the log's {len(item_ids):,} items; do its ids come from another log?"
        )
    found = []
    for name, column in table.columns.items():
        kind = table.declared.get(name) or infer(name, column, table.origin)
        encoding = _learn(name, table.values(name, kind), known)
        if not encoding.width:
            what = "no word of it is in two of the log's items" if kind == "words" else "it is empty in the log's items"
            raise UserError(
                f"{table.origin.name}: column {name!r}: {what}, so it says nothing of them; leave it out: "
                "--feature-columns names those to use"
            )
        found.append(encoding)
    return found


def _learn(name: str, values: Values, known: NDArray[np.bool_]) -> Encoding:
    if values.numbers is None:
        counts = values.counts(known)
        if values.kind == "words":
            shared = sorted(
                (word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word)
            )
            counts = {word: counts[word] for word in shared[:MOST_WORDS]}
        return Encoding(name, values.kind, known=sorted(counts))
    given = values.numbers[known & values.given]  # (m, w)
    if not len(given):
        return Encoding(name, values.kind)
    mean = given.mean(0, dtype=np.float64)
    scale = float(np.sqrt(given.var(0, dtype=np.float64).sum()))  # gives items' vectors a mean squared length of 1
    return Encoding(name, values.kind, mean=mean.tolist(), scale=scale or 1.0)


def encode(table: ItemTable, encodings: Sequence[Encoding], item_ids: Ids) -> Features:
    """The features of ``item_ids``: zeros for items that the table lacks, and where it has no value.

    A column adds about 1 to the length of an item's row: each of an item's ``n`` known categories or words counts
    ``1 / sqrt(n)``. Raises :class:`UserError` for the first column that is missing, or is not of its kind.
    """
    rows = table.places(item_ids)
    here = rows >= 0
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []  # items, places, values
    dense: list[NDArray[np.float32]] = []
    first = 0
    for encoding in encodings:
        if encoding.name not in table.columns:
            raise UserError(
                f"{table.path}: no column {encoding.name!r}, which the model has features of; "
                f"there are {', '.join(table.columns)}"
            )
        values = table.values(encoding.name, encoding.kind)
        if values.numbers is None:
            of_row, places = values.find(encoding.known)
            each = (1 / np.sqrt(np.bincount(of_row, minlength=len(rows)).clip(1)))[of_row]
            kept = here[of_row]
            found.append((rows[of_row[kept]], places[kept] + first, each[kept].astype(np.float32)))
            first += encoding.width
            continue
        if values.numbers.shape[1] != encoding.width:
            raise UserError(
                f"{table.origin.name}: column {encoding.name!r}: has vectors of {values.numbers.shape[1]} numbers, "
                f"those of the model have {encoding.width}"
            )
        kept = here & values.given
        mean = np.array(encoding.mean, dtype=values.numbers.dtype)
        scaled = ((values.numbers[kept] - mean) / encoding.scale).astype(np.float32)
        if encoding.kind == "number":
            places = np.full(len(scaled), first)
            found.append((rows[kept], places, scaled[:, 0].clip(-FARTHEST, FARTHEST)))
            first += 1
        else:
            whole = np.zeros((len(item_ids), encoding.width), dtype=np.float32)
            whole[rows[kept]] = scaled
            dense.append(whole)
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    items, places, numbers = (np.concatenate(parts) for parts in zip(none, *found, strict=True))
    order = np.lexsort((places, items))
    offsets = np.zeros(len(item_ids) + 1, dtype=np.int64)
    np.cumsum(np.bincount(items, minlength=len(item_ids)), out=offsets[1:])
    whole = np.concatenate(dense, 1) if dense else np.zeros((len(item_ids), 0), dtype=np.float32)
    return Features(list(encodings), offsets, places[order], numbers[order], first, whole)


def describe(table: ItemTable, encodings: Sequence[Encoding], item_ids: Ids) -> list[str]:
    """Lines that tell a person what was read from the table."""
    rows = table.places(item_ids)
    here = rows >= 0
    columns = []
    for encoding in encodings:
        values = table.values(encoding.name, encoding.kind)
        missing = int((here & ~values.given).sum())
        what = {
            "category": f"one of {encoding.width:,} categories",
            "categories": f"lists of {encoding.width:,} categories",
            "words": f"text, of which {encoding.width:,} words",
            "number": "number",
            "vector": f"vectors of {encoding.width:,} numbers",
        }[encoding.kind]
        columns.append(f"{encoding.name}: {what}" + (f", {missing:,} missing" if missing else ""))
    others = int((~here).sum())
    more = f", and of {others:,} others, which can be recommended as new items" if others else ""
    return [
        f"features of {int(here.sum()):,} of {len(item_ids):,} items{more}",
        "; ".join(columns),
    ]


def to_json(encodings: Sequence[Encoding]) -> list[dict[str, Any]]:
    return [asdict(encoding) for encoding in encodings]


def from_header(data: object, name: str) -> list[Encoding]:
    """The inverse of :func:`to_json`. Raises :class:`UserError`, which calls the data ``name``, for anything else."""
    if not isinstance(data, list):
        raise UserError(f"{name}: expected a list of columns")
    found = [from_json(Encoding, entry, name) for entry in data]
    for encoding in found:
        numbers = [encoding.scale, *encoding.mean]
        if not all(isinstance(word, str) for word in encoding.known) or not all(
            isinstance(number, int | float) and np.isfinite(number) for number in numbers
        ):
            raise UserError(f"{name}: column {encoding.name!r:.60} is damaged")
    return found
