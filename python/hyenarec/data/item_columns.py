"""The columns of a table of items: which kind each one is, and its values; a value that does not fit is refused with
its row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.places import Column, Origin
from hyenarec.errors import shortened

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["category", "categories", "words", "number", "vector"]
"""One category; several categories; text, taken as its words; a number; a vector, equally long for all items."""

# What a header ``name:type`` declares, as RecBole writes it.
DECLARED: dict[str, Kind] = {"token": "category", "token_seq": "categories", "float": "number", "float_seq": "vector"}
SEPARATOR = "|"  # between the categories in a text
WORD = r"[\p{L}\p{N}]+"


@dataclass(frozen=True)
class Values:
    """A column's values in n rows: ``given`` (n,) tells which rows have one. Categories and words are ``pairs`` of
    ``row`` and ``value``, without duplicates. Numbers and vectors are ``numbers`` (n, w), float32 for vectors; their
    rows without a value hold anything."""

    kind: Kind
    given: NDArray[np.bool_]
    pairs: pl.DataFrame | None = None
    numbers: NDArray[np.floating[Any]] | None = None

    def counts(self, rows: NDArray[np.bool_]) -> dict[str, int]:
        """How many of the rows that ``rows`` (n,) selects have each category or word."""
        assert self.pairs is not None
        chosen = self.pairs.filter(rows[self.pairs["row"].to_numpy()])
        counted = chosen["value"].value_counts()
        return dict(zip(counted["value"].to_list(), counted["count"].to_list(), strict=True))

    def find(self, known: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs whose category or word is ``known``: their rows, and its indices in ``known``, both (m,)."""
        import polars as pl

        assert self.pairs is not None
        schema = {"value": pl.String, "place": pl.Int64}
        table = pl.DataFrame({"value": known, "place": range(len(known))}, schema=schema)
        found = self.pairs.join(table, on="value")
        return found["row"].to_numpy().astype(np.int64), found["place"].to_numpy()


def infer(name: str, column: pl.Series, origin: Origin) -> Kind:
    """The kind of a column whose header does not declare it.

    Columns of numbers are numbers, and in text files also columns in which every value is one. Strings with a ``|`` are
    lists of categories. Other strings are categories if at least half of the items share theirs with another item, else
    text. Lists of strings or integers are lists of categories; lists of fractions, and arrays, are vectors.
    """
    import polars as pl

    kind = column.dtype
    if isinstance(kind, pl.Array):
        return "vector"
    if isinstance(kind, pl.List):
        return "vector" if kind.inner.is_float() else "categories"
    if kind.is_numeric():
        return "number"
    if kind == pl.Boolean:
        return "category"
    text = _text(column, Column(origin, name)).drop_nulls()
    if origin.is_text and len(text) and text.cast(pl.Float64, strict=False).null_count() == 0:
        return "number"
    if text.str.contains(SEPARATOR, literal=True).any():
        return "categories"
    shared = text.is_duplicated().sum()
    return "category" if 2 * shared >= len(text) else "words"


def parse(name: str, column: pl.Series, kind: Kind, origin: Origin) -> Values:
    """The values of a column of this ``kind``. Raises :class:`UserError` for the first that does not fit."""
    place = Column(origin, name)
    if kind == "number":
        return _numbers(column, place)
    return _vectors(column, place) if kind == "vector" else _categories(column, kind, place)


def _text(column: pl.Series, place: Column) -> pl.Series:
    """A column of single values as text, without surrounding blanks; null where nothing is left."""
    import polars as pl

    kind = column.dtype
    if not (kind == pl.String or kind.is_integer() or kind in (pl.Boolean, pl.Null) or _is_names(kind)):
        raise place.error(
            f"holds {kind}; features are strings, numbers, lists of strings or integers, and vectors of numbers; write "
            "it as one of them, or leave it out: --feature-columns names those to use"
        )
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _is_names(kind: object) -> bool:
    import polars as pl

    return isinstance(kind, pl.Categorical | pl.Enum)


def _categories(column: pl.Series, kind: Kind, place: Column) -> Values:
    import polars as pl

    if isinstance(column.dtype, pl.List):
        if kind == "category":
            raise place.error(f"holds {column.dtype}, but one category an item is expected")
        inner = column.dtype.inner
        if not (inner in (pl.String, pl.Boolean, pl.Null) or inner.is_integer() or _is_names(inner)):
            raise place.error(f"holds {column.dtype}; categories are strings or integers")
        lists = column.cast(pl.List(pl.String))
    elif kind == "words":
        lists = _text(column, place).str.to_lowercase().str.extract_all(WORD)
    elif kind == "categories":
        lists = _text(column, place).str.split(SEPARATOR)
    else:
        lists = _text(column, place)
    pairs = pl.DataFrame({"row": pl.int_range(len(lists), eager=True), "value": lists})
    if kind != "category":
        pairs = pairs.explode("value")
    pairs = pairs.with_columns(pl.col("value").str.strip_chars()).filter(pl.col("value") != "")  # drops nulls too
    pairs = pairs.unique(maintain_order=True)
    given = np.zeros(len(column), dtype=np.bool_)
    given[pairs["row"].to_numpy()] = True
    return Values(kind, given, pairs=pairs)


def _numbers(column: pl.Series, place: Column) -> Values:
    """The values of a column of numbers; NaN counts as missing, as in tables that pandas writes."""
    import polars as pl

    if not (column.dtype.is_numeric() or column.dtype == pl.Null):
        column = _text(column, place)
    numbers = column.cast(pl.Float64, strict=False)
    bad = numbers.is_null() & column.is_not_null()
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise place.error(f"{shortened(column[row])} is no number", row)
    infinite = numbers.is_infinite().fill_null(False)
    if infinite.any():
        raise place.error("the number is infinite; numbers are finite, or missing", infinite.arg_max())
    found = numbers.fill_null(float("nan")).to_numpy().astype(np.float64)
    return Values("number", ~np.isnan(found), numbers=found[:, None])


def _vectors(column: pl.Series, place: Column) -> Values:
    """The values of a column of lists or arrays, or of text with numbers between blanks, commas or semicolons."""
    import polars as pl

    kind = column.dtype
    if isinstance(kind, pl.Array):
        column = column.arr.to_list()
    elif not isinstance(kind, pl.List):
        text = _text(column, place).str.strip_chars("[]() ").str.replace_all(r"[,;\s]+", " ")
        column = text.str.strip_chars().str.split(" ")
    lists = column.cast(pl.List(pl.Float32), strict=False)
    given = column.is_not_null().to_numpy()
    lengths = column.list.len().fill_null(0).to_numpy()  # (n,)
    width = int(np.bincount(lengths[given]).argmax()) if given.any() else 0
    ragged = np.flatnonzero(given & (lengths != width))
    if len(ragged):
        row = int(ragged[0])
        raise place.error(f"a vector of {lengths[row]:,} numbers, where most have {width:,}; all have as many", row)
    if not width:
        return Values(
            "vector", np.zeros(len(column), dtype=np.bool_), numbers=np.zeros((len(column), 0), dtype=np.float32)
        )
    whole = np.zeros((len(column), width), dtype=np.float32)
    whole[given] = lists.drop_nulls().explode().fill_null(float("nan")).to_numpy().reshape(-1, width)
    bad = np.flatnonzero(~np.isfinite(whole).all(1))
    if len(bad):
        raise place.error("a vector with something that is no finite number", int(bad[0]))
    return Values("vector", given, numbers=whole)
