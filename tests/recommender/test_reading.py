"""Reading logs: formats, types of ids and times, order, and every error."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hyenarec.data import SequenceStore, global_temporal, leave_one_out, open_data, read_log
from hyenarec.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

ROWS = {"user_id": [2, 1, 2, 1, 2], "item_id": [30, 10, 20, 30, 10], "timestamp": [5, 9, 3, 9, 5]}
# User 1: equal times keep the order of rows. User 2: 20 comes first, then two equal times.
HISTORIES = {1: [10, 30], 2: [20, 30, 10]}


def write(path: Path, columns: dict[str, Any]) -> Path:
    """Writes ``columns`` in the format of the suffix."""
    frame = pl.DataFrame(columns)
    if path.suffix in (".parquet", ".pq"):
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="," if path.suffix == ".csv" else "\t")
    return path


def histories(store: SequenceStore) -> dict[Any, list[Any]]:
    users = store.user_ids.decode(range(store.n_users))
    return {user: store.item_ids.decode(store.history(index)) for index, user in enumerate(users)}


def refusal(read: Callable[..., SequenceStore], path: Path, **options: Any) -> str:
    """The error message, which must be one line that starts with the file's name; returned without the name."""
    with pytest.raises(UserError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# Formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".csv", ".tsv", ".CSV"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"log{suffix.lower()}", ROWS)
    path = path.rename(tmp_path / f"log{suffix}")
    store = read_log(path)
    assert histories(store) == HISTORIES
    assert store.timestamps is not None
    assert store.timestamps.tolist() == [9, 9, 3, 5, 5]
    assert store.offsets.tolist() == [0, 2, 5]


def test_recbole_headers_and_plain_quotes(tmp_path: Path) -> None:
    path = tmp_path / "log.inter"
    path.write_text(
        'rating:float\titem_id:token\tuser_id:token\ttimestamp:float\n5\t"a\t1\t2.5\n4\tb\t1\t2.0\n', encoding="utf-8"
    )
    assert histories(read_log(path)) == {1: ["b", '"a']}


def test_named_columns_others_ignored_windows_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes('\ufeffwho,what,when,note\r\n1,"x, y",2,\r\n1,ü,1,n\r\n'.encode())
    assert histories(read_log(path, user="who", item="what", timestamp="when")) == {1: ["ü", "x, y"]}


def test_without_timestamps_rows_are_in_order(tmp_path: Path) -> None:
    store = read_log(write(tmp_path / "log.csv", ROWS), timestamp=None)
    assert store.timestamps is None
    assert histories(store) == {1: [10, 30], 2: [30, 20, 10]}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("names", [False, True])
def test_against_a_loop(tmp_path: Path, suffix: str, names: bool) -> None:
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(50, size=2000), rng.integers(200, size=2000), rng.integers(30, size=2000)
    name: Callable[[Any], Any] = (lambda number: f"n{number}ß") if names else int
    columns = {"user_id": [name(u) for u in users], "item_id": [name(i) for i in items], "timestamp": times}
    expected: dict[Any, list[Any]] = {user: [] for user in sorted(set(columns["user_id"]))}
    for row in sorted(range(2000), key=lambda row: times[row]):
        expected[columns["user_id"][row]].append(columns["item_id"][row])
    store = read_log(write(tmp_path / f"log{suffix}", columns))
    assert histories(store) == expected
    assert store.item_ids.decode(range(store.n_items)) == sorted(set(columns["item_id"]))


def test_open_data_takes_a_log_or_a_store(tmp_path: Path) -> None:
    log = write(tmp_path / "log.parquet", {"u": ROWS["user_id"], **ROWS})
    open_data(log, user="u").save(tmp_path / "store")
    assert histories(open_data(tmp_path / "store", user="no matter")) == HISTORIES
    (tmp_path / "empty").mkdir()
    assert refusal(open_data, tmp_path / "empty").startswith("not a store: store.safetensors is missing")
    assert refusal(open_data, tmp_path / "log.h5") == "no such file"


# Ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (["42", "7"], [7, 42]),
        (["42.0", "42", "-7.00"], [-7, 42]),
        (["9223372036854775807", "1"], [1, 2**63 - 1]),
        (["9223372036854775808", "1"], ["1", "9223372036854775808"]),
        (["007", "7"], ["007", "7"]),
        (["1e3", "2"], ["1e3", "2"]),
        (["1.5", "2"], ["1.5", "2"]),
        (["B1", "10", "9"], ["10", "9", "B1"]),
        (["null", "NaN"], ["NaN", "null"]),
    ],
)
def test_ids_in_text(tmp_path: Path, text: list[str], ids: list[int | str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"1,{item},{t}\n" for t, item in enumerate(text)))
    store = read_log(path)
    assert store.item_ids.decode(range(store.n_items)) == ids
    whole = [int(float(item)) if isinstance(ids[0], int) and "." in item else item for item in text]
    assert store.history(0).tolist() == store.item_ids.encode(whole).tolist()


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pl.Series([3, 1], dtype=pl.UInt8), [1, 3]),
        (pl.Series([3.0, -1.0], dtype=pl.Float32), [-1, 3]),
        (pl.Series([9, 2**64 - 1], dtype=pl.UInt64), ["18446744073709551615", "9"]),
        (pl.Series(["7", "42"]), ["42", "7"]),
        (pl.Series(["b", "a"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series(["b", "a"], dtype=pl.Enum(["b", "a"])), ["a", "b"]),
    ],
)
def test_ids_in_parquet_keep_their_kind(tmp_path: Path, column: pl.Series, ids: list[int | str]) -> None:
    path = write(tmp_path / "log.parquet", {"user_id": [1, 1], "item_id": column, "timestamp": [1, 2]})
    store = read_log(path)
    assert store.item_ids.decode(range(store.n_items)) == ids
    assert store.item_ids.decode(store.history(0)) == ids[::-1]


# Times --------------------------------------------------------------------------------------------

NOON = 1_704_110_400  # 2024-01-01 12:00 UTC


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ([2**62 + 1, 2**62, 0], [0, 2**62 // 10**9, 2**62 // 10**9]),
        ([2.75, 2.5, 2.25], [2, 2, 2]),
        ([1.5e9, 3.0, 2.0], [2, 3, 1_500_000_000]),
        ([datetime(2024, 1, 1, 12, 0, 0, us) for us in (750_000, 500_000, 2)], [NOON] * 3),
        ([datetime(2024, 1, 1, 12, minute) for minute in (2, 1, 0)], [NOON, NOON + 60, NOON + 120]),
        (
            [datetime(2024, 1, 1, 12, minute, tzinfo=UTC) for minute in (2, 1, 0)],
            [NOON, NOON + 60, NOON + 120],
        ),
        ([date(2024, 1, 3), date(2024, 1, 2), date(1970, 1, 1)], [0, NOON + 43_200, NOON + 129_600]),
    ],
)
def test_times_order_exactly_and_are_kept_whole(tmp_path: Path, suffix: str, times: list[Any], kept: list[int]) -> None:
    store = read_log(
        write(tmp_path / f"log{suffix}", {"user_id": [1, 1, 1], "item_id": [30, 20, 10], "timestamp": times})
    )
    assert histories(store) == {1: [10, 20, 30]}
    assert store.timestamps is not None
    assert store.timestamps.tolist() == kept


def test_dates_with_offsets(tmp_path: Path) -> None:
    times = ["2024-01-01T14:01:00+02:00", "2024-01-01T12:00:00Z"]
    store = read_log(write(tmp_path / "log.tsv", {"user_id": [1, 1], "item_id": [2, 1], "timestamp": times}))
    assert store.timestamps is not None
    assert store.timestamps.tolist() == [NOON, NOON + 60]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_every_date_resolution(tmp_path: Path, unit: Any) -> None:
    times = pl.Series([datetime(2024, 1, 1, 12), datetime(2024, 1, 1)], dtype=pl.Datetime(unit))
    store = read_log(write(tmp_path / "log.parquet", {"user_id": [1, 1], "item_id": [1, 2], "timestamp": times}))
    assert store.timestamps is not None
    assert store.timestamps.tolist() == [NOON - 43_200, NOON]


# Errors -------------------------------------------------------------------------------------------

TIMES = "times are numbers from 0 up, or ISO 8601 dates from 1970 on"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1, None, None], "column 'user_id', row 2: the id is missing"),
        ("item_id", [1.0, float("nan"), 2.5], "column 'item_id', row 3: 2.5 is no id: ids are integers or strings"),
        ("item_id", [1.0, None, float("nan")], "column 'item_id', row 2: the id is missing"),
        ("item_id", [1.0, 2.0, float("nan")], "column 'item_id', row 3: the id is missing"),
        ("item_id", [1.0, 1e300, 2.0], "column 'item_id', row 2: 1e+300 is no id: ids are integers or strings"),
        ("item_id", [1.0, float("inf"), 2.0], "column 'item_id', row 2: inf is no id: ids are integers or strings"),
        ("item_id", ["a", "b", ""], "column 'item_id', row 3: the id is missing"),
        ("item_id", [[1], [2], [3]], "column 'item_id': holds List(Int64); ids are integers or strings"),
        ("item_id", [True, False, True], "column 'item_id': holds Boolean; ids are integers or strings"),
        ("user_id", [date(2024, 1, 1)] * 3, "column 'user_id': holds Date; ids are integers or strings"),
        ("user_id", [None] * 3, "column 'user_id': holds Null; ids are integers or strings"),
        ("timestamp", [1, None, -1], f"column 'timestamp', row 2: the time is missing; {TIMES}"),
        ("timestamp", [1, -1, None], f"column 'timestamp', row 2: -1 is no time; {TIMES}"),
        ("timestamp", [1.0, 2.0, float("nan")], f"column 'timestamp', row 3: nan is no time; {TIMES}"),
        ("timestamp", [1.0, float("inf"), 1.0], f"column 'timestamp', row 2: inf is no time; {TIMES}"),
        ("timestamp", [1.0, -0.5, 1.0], f"column 'timestamp', row 2: -0.5 is no time; {TIMES}"),
        ("timestamp", [date(1969, 12, 31)] * 3, f"column 'timestamp', row 1: 1969-12-31 is no time; {TIMES}"),
        ("timestamp", ["1", "b", "3"], f"column 'timestamp', row 2: b is no time; {TIMES}"),
        ("timestamp", [[1], [2], [3]], "column 'timestamp': holds List(Int64); times are numbers or dates"),
        ("timestamp", [True, False, True], "column 'timestamp': holds Boolean; times are numbers or dates"),
        ("timestamp", pl.Series([1, 2**64 - 1, 3], dtype=pl.UInt64), f"row 2: {2**64 - 1} is no time; {TIMES}"),
    ],
)
def test_complaints_about_parquet_columns(tmp_path: Path, column: str, values: Any, message: str) -> None:
    path = write(
        tmp_path / "log.parquet", {"user_id": [1] * 3, "item_id": [1] * 3, "timestamp": [1] * 3, column: values}
    )
    assert refusal(read_log, path).endswith(message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,2,3\n,2,3\n", "column 'user_id', row 2 (header not counted): the id is missing"),
        ('1,2,3\n"",2,3\n', "column 'user_id', row 2 (header not counted): the id is missing"),
        ("1,2,3\n1\n", "column 'item_id', row 2 (header not counted): the id is missing"),
        ("1,2,3\n1,2\n", f"column 'timestamp', row 2 (header not counted): the time is missing; {TIMES}"),
        ("1,2,3\n1,2,NaN\n", f"column 'timestamp', row 2 (header not counted): NaN is no time; {TIMES}"),
        ("1,2,3\n1,2,-4\n", f"column 'timestamp', row 2 (header not counted): -4 is no time; {TIMES}"),
        ("1,2,x\n1,2,-4\n", f"column 'timestamp', row 1 (header not counted): x is no time; {TIMES}"),
        ("1,2,01/02/2024\n", f"column 'timestamp', row 1 (header not counted): 01/02/2024 is no time; {TIMES}"),
        ("1,2,2024-13-01\n", f"column 'timestamp', row 1 (header not counted): 2024-13-01 is no time; {TIMES}"),
        ("1,2,2024-01-01\n1,2,5\n", f"column 'timestamp', row 2 (header not counted): 5 is no time; {TIMES}"),
        ("1,2,3\n1,2,3,4\n", "cannot read it: row 2 (header not counted) has 4 fields, the header 3"),
        ("1,2,3\n1,\udcff,3\n", "cannot read it: row 2 (header not counted) is not UTF-8"),
        ('1,2,3\n1,"a,3\n', "cannot read it: row 2 (header not counted): unexpected end of data"),
        ("", "empty log: no events"),
        ("1,2,3\n2,3,4\n", "every user has a single event, so there is no sequence to learn from"),
    ],
)
def test_complaints_about_text(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + rows, encoding="utf-8", errors="surrogateescape")
    assert refusal(read_log, path) == message


def test_complaints_about_files(tmp_path: Path) -> None:
    assert refusal(read_log, tmp_path / "log.csv") == "no such file"
    assert refusal(read_log, tmp_path) == "is a folder, not a log, and has no Parquet files in it"
    (tmp_path / "log.csv").touch()
    assert refusal(read_log, tmp_path / "log.csv") == "empty log: not even a header"
    (tmp_path / "log.xlsx").touch()
    assert (
        refusal(read_log, tmp_path / "log.xlsx")
        == "unknown kind of log '.xlsx': the suffix must be one of .parquet, .pq, .csv, .tsv, .inter, .jsonl, .ndjson, "
        "or option format say it"
    )


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_truncated_parquet(tmp_path: Path, left: int) -> None:
    path = write(tmp_path / "log.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:left])
    assert refusal(read_log, path).startswith("cannot read it: ")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_missing_columns_list_those_there(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"log{suffix}", ROWS)
    there = "user_id, item_id, timestamp"
    assert refusal(read_log, path, user="uid") == f"no column 'uid'; option user must name one of {there}"
    assert refusal(read_log, path, item="Item_id") == f"no column 'Item_id'; option item must name one of {there}"
    assert (
        refusal(read_log, path, timestamp="time")
        == f"no column 'time'; option timestamp must name one of {there}, or None where the rows are in order"
    )


# Real logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "timestamp", "users", "items", "events", "targets"),
    [
        ("ml-1m", None, 6040, 3416, 999_611, 6040),
        ("beauty", None, 52_204, 57_289, 394_908, 50_498),
        ("ml-100k", "timestamp", 943, 1682, 100_000, 943),
        ("online-retail", "timestamp", 4335, 3659, 386_354, 4211),
        ("email-eu-core", "timestamp", 824, 965, 332_334, 758),
    ],
)
def test_real_logs(name: str, timestamp: str | None, users: int, items: int, events: int, targets: int) -> None:
    path = SHARED / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}.parquet")
    store = read_log(path, timestamp=timestamp)
    assert (store.n_users, store.n_items, store.n_events) == (users, items, events)
    # The files are already sorted by user and time, so reading them must change nothing.
    frame = pl.read_parquet(path)
    np.testing.assert_array_equal(store.items + 1, frame["item_id"].to_numpy())
    np.testing.assert_array_equal(store.offsets[1:], frame.group_by("user_id").len().sort("user_id")["len"].cum_sum())
    assert len(leave_one_out(store).test) == targets
    if timestamp is not None:
        split, times = global_temporal(store), store.timestamps
        assert times is not None
        assert 0 < len(split.validation) <= users
        assert times[split.validation].max() < times[split.test].min()
