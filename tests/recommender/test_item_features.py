"""Tables of items as features: what each column becomes, and a one-line error for everything that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from hyenarec.data.ids import Ids
from hyenarec.data.item_features import (
    Encoding,
    Features,
    describe,
    encode,
    from_header,
    learn,
    read_item_table,
    to_json,
)
from hyenarec.errors import UserError

LOG = Ids.from_values([1, 2, 3, 4])
TABLE: dict[str, Any] = {
    "item_id": [4, 9, 1, 2],
    "genres": ["war|drama", "drama", "war", None],
    "brand": ["acme", "other", "acme", "acme"],
    "title": ["Red tea", "Red ink", "A red cup!", "the tea-cup"],
    "year": [2000.0, 1.0, 1990.0, None],
    "text": [[1.0, 0.0], [0.5, 0.5], [3.0, 0.0], [2.0, 3.0]],
}


def dense(features: Features) -> NDArray[np.float32]:
    """The features as a matrix (V, K)."""
    whole = np.zeros((len(features.offsets) - 1, features.sparse), dtype=np.float32)
    rows = np.repeat(np.arange(len(whole)), np.diff(features.offsets))
    np.add.at(whole, (rows, features.places), features.values)
    return np.concatenate((whole, features.dense), 1)


def written(path: Path, table: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame(table).write_parquet(path)
    elif path.suffix == ".jsonl":
        pl.DataFrame(table).write_ndjson(path)
    else:
        text = {name: [str(one)[1:-1] if isinstance(one, list) else one for one in of] for name, of in table.items()}
        pl.DataFrame({"text:float_seq" if name == "text" else name: of for name, of in text.items()}).write_csv(
            path, separator=";"
        )
    return path


def features_of(path: Path, *columns: str, ids: Ids = LOG) -> tuple[list[Encoding], NDArray[np.float32]]:
    table = read_item_table(path, ids, chosen=columns)
    encodings = learn(table, ids)
    return encodings, dense(encode(table, encodings, ids))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_columns_become_numbers_learned_from_the_items_of_the_log(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"items{suffix}", TABLE)
    encodings, found = features_of(path)
    assert [(one.name, one.kind, one.known) for one in encodings] == [
        ("genres", "categories", ["drama", "war"]),
        ("brand", "category", ["acme"]),
        ("title", "words", ["cup", "red", "tea"]),
        ("year", "number", []),
        ("text", "vector", []),
    ]
    half = 0.5**0.5
    # year: 2000 and 1990, mean 1995, deviation 5; text: mean (2, 1), mean squared distance from it 8/3
    a, b = 1 / (8 / 3) ** 0.5, -1 / (8 / 3) ** 0.5
    expected = [
        # drama war  acme  cup   red   tea   year  text
        [0, 1, 1, half, half, 0, -1, a, b],  # item 1: only one of the log's items has "a"
        [0, 0, 1, half, 0, half, 0, 0, 2 * a],  # item 2: and only one has "the"
        [0] * 9,  # item 3 has no row
        [half, half, 1, 0, half, half, 1, b, b],  # item 4
    ]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)
    table = read_item_table(path, LOG)
    about, columns = describe(table, encodings, LOG)
    assert about == "features of 3 of 4 items, and of 1 others, which can be recommended as new items"
    assert columns == (
        "genres: lists of 2 categories, 1 missing; brand: one of 1 categories; title: text, of which 3 words; "
        "year: number, 1 missing; text: vectors of 2 numbers"
    )


def test_an_encoding_is_kept_and_serves_other_tables(tmp_path: Path) -> None:
    """An encoding that was saved as JSON encodes as before. Categories and words that it does not know are ignored,
    whatever the new table contains."""
    encodings, _ = features_of(written(tmp_path / "items.parquet", TABLE))
    kept = from_header(json.loads(json.dumps(to_json(encodings))), "file")
    assert kept == encodings
    new = {
        "item_id": [7],
        "genres": ["noir|war"],
        "brand": ["none of them"],
        "title": ["tea"],
        "year": [99999.0],
        "text": [[2.0, 1.0]],
    }
    table = read_item_table(written(tmp_path / "new.parquet", new), LOG)
    found = dense(encode(table, kept, Ids.from_values([7])))
    np.testing.assert_allclose(found, [[0, 1, 0, 0, 0, 1, 3, 0, 0]], atol=1e-6)  # numbers are limited to 3


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("a", ["x", "x", "y", "y"], "category"),
        ("a", ["x y", "x z", "w z", "w"], "words"),
        ("a", [["x"], ["y", "x"], [], None], "categories"),
        ("a", [[1, 2], [2], [3], [1]], "categories"),
        ("a", [[1.0], [2.0], [3.0], None], "vector"),
        ("a", pl.Series([[1, 2], [2, 1]] * 2, dtype=pl.Array(pl.Int8, 2)), "vector"),
        ("a", [True, False, True, None], "category"),
        ("a", pl.Series(["x", "x", "y", "y"], dtype=pl.Categorical), "category"),
        ("a", [1, 2, 3, None], "number"),
        ("a:token", [1, 2, 3, None], "category"),
        ("a:token_seq", ["x|y", "x", "y", "z"], "categories"),
        ("a:float", ["1", "2.5", "", "nan"], "number"),
        ("a:float_seq", ["1 2", "[3, 4]", "5,6", None], "vector"),
    ],
)
def test_kinds_are_seen_or_declared(column: str, values: Any, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "items.parquet", {"id": [1, 2, 3, 4], column: values})
    (encoding,), found = features_of(path)
    assert (encoding.name, encoding.kind) == ("a", kind) and np.isfinite(found).all() and found.any()
    assert features_of(path, "a")[0] == [encoding]


def test_numbers_in_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,year,code\n1,1990, a \n2,,b\n3,2000,a\n4,1995,b\n")
    (year, code), found = features_of(path)
    assert (year.kind, code.kind, code.known) == ("number", "category", ["a", "b"])
    assert found[1, 0] == 0 < found[2, 0] == -found[0, 0]


def test_only_the_most_shared_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyenarec.data.item_features.MOST_WORDS", 2)
    titles = ["alpha beta gamma", "Beta gamma", "gamma, delta beta", "alpha"]
    (encoding,), _ = features_of(written(tmp_path / "items.parquet", {"id": [1, 2, 3, 4], "title": titles}))
    assert encoding.known == ["beta", "gamma"]


def test_ids_are_those_of_the_log_whatever_they_are_written_as(tmp_path: Path) -> None:
    words = Ids.from_values(["1", "2", "x"])
    path = written(tmp_path / "items.parquet", {"sku": [2, 1, 5], "year": [1, 2, 3]})
    table = read_item_table(path, words, "sku")
    assert table.places(words).tolist() == [1, 0, -1] and table.ids.decode([2]) == ["5"]
    path = written(tmp_path / "items.parquet", {"sku": ["2", " 1", "50"], "year": [1, 2, 3]})
    assert read_item_table(path, LOG, "sku").ids.decode(range(3)) == [1, 2, 50]


# What cannot be used --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item_id": [1, 2, 1], "a": [1, 2, 3]}, "'item_id', row 3: item 1 is in row 1 already; each has one row"),
        ({"item_id": [1, None], "a": [1, 2]}, "column 'item_id', row 2: the id is missing"),
        ({"item_id": ["1", "tea"], "a": [1, 2]}, "row 2: 'tea' is no id of this log, which has integers"),
        ({"item_id": [7, 8], "a": [1, 2]}, "has none of the log's 4 items; do its ids come from another log?"),
        ({"sku": [1, 2], "a": [1, 2]}, "items must be in a column item_id or id or item; it has sku, a"),
        ({"item_id": [1, 2]}, "has a column of ids alone, so no features"),
        ({"item_id": [1, 2], "a": [1, 2], "a:token": ["x", "y"]}, "2 columns are named 'a'; rename one"),
        ({"item_id": [1, 2], "a": [1.0, float("inf")]}, "column 'a', row 2: the number is infinite"),
        ({"item_id": [1, 2], "a:float": ["1", "two"]}, "column 'a', row 2: 'two' is no number"),
        ({"item_id": [1, 2, 3], "a": [[1.0, 2], [1.0], [2.0, 3]]}, "row 2: a vector of 1 numbers, where most have 2"),
        ({"item_id": [1, 2], "a": [[1.0], [float("nan")]]}, "row 2: a vector with something that is no finite number"),
        ({"item_id": [1, 2], "a": [[1.0], [None]]}, "row 2: a vector with something that is no finite number"),
        ({"item_id": [1, 2], "a:float_seq": ["1 2", "1 x"]}, "row 2: a vector with something that is no finite number"),
        ({"item_id": [1, 2], "a": ["x-1", "x-1"], "b": ["u1", "u2"]}, "column 'b': no word of it is in two"),
        ({"item_id": [1, 2], "a": [None, None]}, "column 'a': it is empty in the log's items"),
        ({"item_id": [1, 9], "a": [None, 5]}, "column 'a': it is empty in the log's items"),
        ({"item_id": [1, 2], "a": [{"b": 1}, {"b": 2}]}, "column 'a': holds Struct"),
        ({"item_id": [1, 2], "a": pl.Series([0, 1]).cast(pl.Date)}, "column 'a': holds Date; features are strings"),
        ({"item_id": [1, 2], "a:token": [[1], [2]]}, "column 'a': holds List(Int64), but one category an item"),
        ({"item_id": [1, 2], "a:token_seq": [[1.5], [2.5]]}, "holds List(Float64); categories are strings or integers"),
        ({"item_id": [1, 2], "a:token": [1.5, 2.5]}, "column 'a': holds Float64; features are strings"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(UserError) as caught:
        features_of(path)
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "items.parquet", TABLE)
    with pytest.raises(UserError, match=r"no column 'colour'; there are genres, brand, title, year, text"):
        features_of(path, "colour")
    encodings, _ = features_of(path, "year", "text")
    for other, message in (
        ({"item_id": [1], "text": [[1.0, 2.0]]}, "no column 'year', which the model has features of; there are text"),
        ({"item_id": [1], "year": [1], "text": [[1.0]]}, "'text': has vectors of 1 numbers, those of the model have 2"),
    ):
        with pytest.raises(UserError, match=message):
            encode(read_item_table(written(tmp_path / "other.parquet", other), LOG), encodings, LOG)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": 1, "a": 2}\n{"item_id": 2, "a": {"b": 3}}\n')
    for name, message in (
        ("items.jsonl", "write a Parquet file"),
        ("none.csv", "no such file"),
        ("-", "standard input"),
    ):
        with pytest.raises(UserError, match=message):
            read_item_table(name if name == "-" else tmp_path / name, LOG)


@pytest.mark.parametrize(
    "data", [None, [{}], [{"name": "a", "kind": "none"}], [{"name": "a", "kind": "number", "mean": ["x"]}],
             [{"name": "a", "kind": "words", "known": [1]}], [{"name": "a", "kind": "number", "scale": float("inf")}]]
)  # fmt: skip
def test_a_damaged_encoding_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match="file"):
        from_header(data, "file")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"item_id": [3]}, r"1\.parquet: 'genre': in this part or in 0\.parquet, but not in both"),
        ({"item_id": [3], "genre": ["a"], "year": [1]}, r"1\.parquet: 'year': in this part"),
        ({"item_id": [3], "genre": [1.5]}, r"1\.parquet: column 'genre' holds Float64, but String in 0\.parquet"),
    ],
)
def test_parts_have_the_same_columns(second: dict[str, Any], message: str, tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [1, 2], "genre": ["a", "b"]}).write_parquet(tmp_path / "0.parquet")
    pl.DataFrame(second).write_parquet(tmp_path / "1.parquet")
    with pytest.raises(UserError, match=message):
        read_item_table(tmp_path, LOG, "item_id")
