"""Rows are counted correctly: which lines are no rows, and where a faulty row is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hyenarec.data import read_log
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError

HEADER = "user_id,item_id,timestamp"


def histories(store: SequenceStore) -> list[list[int | str]]:
    return [store.item_ids.decode(store.history(user)) for user in range(store.n_users)]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read_log(path, **options)
    text = str(refused.value).replace(f"{path.parent}/", "")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "lines",
    [
        [HEADER, "1,2,3", "", "1,4,5"],
        ["", "  ", HEADER, "1,2,3", "1,4,5"],
        [HEADER, "1,2,3", "   ", "", "", "1,4,5", "", "", "  "],
        [HEADER, "1,2,3", "", '1,"4",5', "", ""],
        [f"{HEADER},note", '1,2,3,"first', "", '  second ""quoted"""', "", "1,4,5,"],
        [f"{HEADER},note", '1,2,3,12" disc', "", "1,4,5,", "", ""],
    ],
    ids=str,
)
def test_blank_lines_are_no_rows(lines: list[str], end: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(end.join(lines) + end, newline="")
    assert histories(read_log(path)) == [[2, 4]]


def test_blank_lines_inside_quotes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f'{HEADER}\n1,"a\n\nb",3\n\n1,c,5\n')
    assert histories(read_log(path)) == [["a\n\nb", "c"]]


def test_rows_are_counted_without_blank_lines_and_the_message_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for rows, message in (
        ("1,2,3\n\n\n1,,5\n", "column 'item_id', row 2 (header and blank lines not counted): the id is missing"),
        ("1,2,3\n1,,5\n", "column 'item_id', row 2 (header not counted): the id is missing"),
        ("1,2,3\n\n1,4,5,6\n", "cannot read it: row 2 (header and blank lines not counted) has 4 fields, the header 3"),
        ("1,2,3\n,,\n1,4,5\n", "column 'user_id', row 2 (header not counted): the id is missing"),
    ):
        path.write_text(f"{HEADER}\n{rows}")
        assert refusal(path) == f"log.csv: {message}"


EVENT = '{"user_id": 1, "item_id": 2, "timestamp": 3}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 3 is not JSON: Expecting value"),
        (EVENT.strip() * 2, "line 3 is not JSON: Extra data"),
        ('{"user_id": 1, "item_id": 2', "line 3 is not JSON: Expecting ',' delimiter"),
        ("[1, 2, 3]", "line 3: expected an object with an event's columns, such as {...}"),
        (
            '{"user_id": 1, "item_id": [2], "timestamp": 3}',
            "line 3: column 'item_id' holds [2]; ids and times are numbers or strings",
        ),
        (
            '{"user_id": 1, "item_id": 2, "timestamp": true}',
            "line 3: column 'timestamp' holds true; ids and times are numbers or strings",
        ),
        ('{"user_id": 1, "timestamp": 3}', "column 'item_id', row 2 (blank lines not counted): the id is missing"),
        ("[" * 100_000, "line 3: brackets too deep"),
        ('{"user_id": "\udcff"}', "line 3 is not UTF-8"),
    ],
    ids=lambda text: text[:30],
)
def test_a_faulty_json_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{EVENT}\n{line}\n{EVENT}", errors="surrogateescape")
    assert refusal(path) == f"log.jsonl: {message}"


def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    odd = [7, [7], {"a": 1}, float("nan"), None, "x", True]
    rows = [{"user_id": 1, "item_id": item, "timestamp": item, "note": note} for item, note in enumerate(odd)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert histories(read_log(path)) == [list(range(len(odd)))]
    path.write_text(path.read_text() + json.dumps({"user_id": 1, "item_id": 10**30, "timestamp": 9.5}) + "\n")
    assert histories(read_log(path)) == [[*map(str, range(len(odd))), str(10**30)]]


def write_parts(folder: Path, *parts: dict[str, Any]) -> Path:
    folder.mkdir()
    for number, columns in enumerate(parts):
        pl.DataFrame(columns).write_parquet(folder / f"part-{number}.parquet")
    return folder


GOOD = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"user_id": [1], "sku": [1], "timestamp": [1]},
            "log/part-1.parquet: no column 'item_id'; option item must name one of user_id, sku, timestamp",
        ),
        (
            GOOD | {"item_id": ["a", "b"]},
            "log/part-1.parquet: column 'item_id' holds String, but Int64 in part-0.parquet; "
            "the parts of log must have columns of the same types",
        ),
        (GOOD | {"user_id": [1, None]}, "log: column 'user_id', row 2 of log/part-1.parquet: the id is missing"),
        (GOOD | {"timestamp": [1, -2]}, "log: column 'timestamp', row 2 of log/part-1.parquet: -2 is no time; "),
    ],
)
def test_a_faulty_part_is_named(part: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refusal(write_parts(tmp_path / "log", GOOD, part)).replace(f"{tmp_path}/", "").startswith(message)


def test_a_pattern_is_refused_with_its_folder_named(tmp_path: Path) -> None:
    log = write_parts(tmp_path / "log", GOOD, GOOD)
    assert refusal(log / "*.parquet") == (
        f"*.parquet: no such file; a path is a name, not a pattern: {log} reads all Parquet parts in that folder"
    )
    assert refusal(tmp_path / "*.csv") == "*.csv: no such file; a path is a name, not a pattern"


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    log = write_parts(tmp_path / "log", GOOD, GOOD)
    content = (log / "part-1.parquet").read_bytes()
    for damaged in (content[:-5], content[:4] + bytes(40) + content[44:]):
        (log / "part-1.parquet").write_bytes(damaged)
        assert refusal(log).startswith("log/part-1.parquet: cannot read it: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part | {"note": ["a", "b"]},
        lambda part: dict(reversed(part.items())),
        lambda part: part | {"item_id": pl.Series(part["item_id"], dtype=pl.Int16)},
    ],
    ids=["another column", "another order", "narrower integers"],
)
def test_parts_that_hold_the_same_events_otherwise(change: Callable[..., Any], tmp_path: Path) -> None:
    second = GOOD | {"timestamp": [3, 4]}
    assert histories(read_log(write_parts(tmp_path / "a", GOOD, change(second)))) == [[1, 2, 1, 2]]
    assert histories(read_log(write_parts(tmp_path / "b", change(GOOD), second))) == [[1, 2, 1, 2]]
