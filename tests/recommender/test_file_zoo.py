"""Every form that logs come in, in small: read right, or refused in one line that says what to do."""

from __future__ import annotations

import gzip
import os
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hyenarec.cli import main
from hyenarec.data import SequenceStore, leave_one_out, open_data, read_log
from hyenarec.data.times import caller_seconds
from hyenarec.errors import UserError
from hyenarec.evaluation import repeats
from hyenarec.source import Source

HEADER = "user_id,item_id,timestamp\n"
TEXT = HEADER + "1,30,3\n1,10,1\n1,20,2\n"
FRAME = {"user_id": [1, 1, 1], "item_id": [30, 10, 20], "timestamp": [3, 1, 2]}


def history(store: SequenceStore) -> list[Any]:
    return store.item_ids.decode(store.history(0))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_log(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Names and places ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decoy"), [("e[1]", "e1"), ("week*", "week1"), ("day?", "day1"), ("{a,b}", "a"), ("f[1]/log", "f1/log")]
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_path_is_a_name_not_a_pattern(tmp_path: Path, name: str, decoy: str, suffix: str) -> None:
    for place, first in ((name, 30), (decoy, 99)):
        path = tmp_path / f"{place}{suffix}"
        path.parent.mkdir(exist_ok=True)
        frame = pl.DataFrame(FRAME | {"item_id": [first, 10, 20]})
        {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".jsonl": frame.write_ndjson}[suffix](path)
    assert history(read_log(tmp_path / f"{name}{suffix}")) == [10, 20, 30]
    (tmp_path / f"{name}{suffix}").unlink()
    assert "no such file" in refusal(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("hive", [False, True])
def test_folders_of_parquet_parts(tmp_path: Path, hive: bool) -> None:
    folder = tmp_path / "events[1].parquet"
    for number in range(3):
        part = folder / f"day=2024-01-0{number + 1}" if hive else folder
        part.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(FRAME)[number : number + 1].write_parquet(part / f"part-{number}.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "_metadata.parquet").write_text("no log")
    assert history(open_data(folder)) == [10, 20, 30]
    if hive:
        store = open_data(folder, timestamp="day")
        assert history(store) == [30, 10, 20]
        assert store.time_unit == "date"


def test_names_of_folders_are_columns_below_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "item_id=7" / "timestamp=9"
    for item, time in (("007", 3), ("7", 1), ("a%2Fb", 2)):
        part = folder / f"item_id={item}"
        part.mkdir(parents=True)
        pl.DataFrame({"user_id": [1], "timestamp": [time]}).write_parquet(part / "part.PARQUET")
    assert history(read_log(folder)) == ["7", "a/b", "007"]
    for item in ("007", "a%2Fb"):
        (folder / f"item_id={item}" / "part.PARQUET").unlink()
    part = folder / "item_id=8"
    part.mkdir()
    pl.DataFrame({"user_id": [1], "timestamp": [0]}).write_parquet(part / "part.pq")
    assert history(read_log(folder)) == [8, 7]
    pl.DataFrame(FRAME).write_parquet(part / "part.pq")
    assert "part.pq: column 'item_id' is in the file, and in the name of its folder" in refusal(folder)
    pl.DataFrame(FRAME).write_parquet(tmp_path / "item_id=7" / "log.parquet")
    assert history(read_log(tmp_path / "item_id=7" / "log.parquet")) == [10, 20, 30]


def test_files_beside_parts_are_named(tmp_path: Path) -> None:
    pl.DataFrame(FRAME).write_parquet(tmp_path / "a.parquet")
    for name in ("b.csv", "c.parquet.gz", "_SUCCESS"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"only its Parquet files are read, not b\.csv, c\.parquet\.gz$"):
        assert history(read_log(tmp_path)) == [10, 20, 30]


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv", "log.CSV.GZ"])
def test_gzip_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = gzip.compress(TEXT.encode())
    path.write_bytes(whole)
    assert history(read_log(path)) == [10, 20, 30]
    path.write_bytes(whole[:-12])
    assert "damaged or cut gzip file" in refusal(path)


def test_zstandard_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "log.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    assert "unpack it first (zstd -d)" in refusal(tmp_path / "log.csv.zst")


def test_a_pipe_with_its_format(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "option format" in refusal(path)
    writer = threading.Thread(target=path.write_text, args=(TEXT,))
    writer.start()
    assert history(read_log(path, format="csv")) == [10, 20, 30]
    writer.join()


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text(TEXT)
    with (tmp_path / "log").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert "option format must say" in refusal(Path("-"))
        main(["prepare", "-", str(tmp_path / "store"), "--format", "csv"])
    assert history(SequenceStore.load(tmp_path / "store")) == [10, 20, 30]


def test_a_source_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    source = Source("log.csv")
    monkeypatch.chdir("/")
    assert source == Source(str(tmp_path / "log.csv"))
    assert history(source.open()) == [10, 20, 30]
    assert Source("-").data == "-"


# Text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        TEXT.replace(",", ", ").encode(),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        TEXT.encode("utf-16"),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.encode() + b"\n\n",
        TEXT.encode()[:-1],
        b"sep=,\n" + TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
    ],
)
def test_forms_of_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(data)
    assert history(read_log(tmp_path / "log.csv")) == [10, 20, 30]


def test_forms_of_text_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("1,30,3\n1,10,1\n")
    assert "seems to be no header" in refusal(path)
    path.write_text("user_id,item_id,item_id,timestamp\n1,2,3,4\n1,2,3,4\n")
    assert "2 columns are named 'item_id'" in refusal(path)


@pytest.mark.parametrize("rows", [60, 100_000])
@pytest.mark.parametrize(
    "title", ['12" single', 'a "b" c', '12"', '"a, ""b"" c"', '"two\nlines"', '"7"" and 12"""', '""']
)
def test_no_event_vanishes_whatever_the_quotes(tmp_path: Path, rows: int, title: str) -> None:
    lines = [f"{n % 50},{n % 977},{title if n % 100 == 7 else 'plain'},{n}\n" for n in range(rows)]
    (tmp_path / "log.csv").write_text("user_id,item_id,title,timestamp\n" + "".join(lines))
    store = read_log(tmp_path / "log.csv")
    assert store.n_events == rows
    assert store.timestamps is not None
    assert sorted(store.timestamps.tolist()) == list(range(rows))


def test_quotes_that_open_and_never_close_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('user_id,item_id,title,timestamp\n1,2,x,3\n1,2,"x,4\n1,2,y,5\n1,2,z" w,6\n')
    assert "row 2 (header not counted): ',' expected after '\"'" in refusal(path)


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize(("last", "odd"), [(6, ""), (25, ""), (25, 'x " y')])
@pytest.mark.parametrize("place", range(4))
def test_rows_between_two_lone_quotes_do_not_vanish(
    tmp_path: Path, separator: str, last: int, odd: str, place: int
) -> None:
    path = tmp_path / ("log.csv" if separator == "," else "log.tsv")
    rows = [["user_id", "title", "item_id", "timestamp"]] + [[f"u{n % 3}", "t", f"i{n}", f"{n}"] for n in range(1, 31)]
    rows[2][1] = odd or "t"  # a quote inside a field is for Python's reader
    rows[5][place] = '"H'
    rows[last][place] = 'H"'
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    assert "row 5 (header not counted): a quote opens a field that goes on over lines" in refusal(path)


def test_quoted_newlines_beside_separators_are_read(tmp_path: Path) -> None:
    text = '"Good, in parts\nbut, well, not, all, of it\nas ""I"" said, once"'
    (tmp_path / "log.csv").write_text(f"user_id,item_id,review,timestamp\n1,20,{text},2\n1,10,{text},1\n")
    assert history(read_log(tmp_path / "log.csv")) == [10, 20]
    long = text.replace("in parts", "in parts " * 20_000)  # beyond the limit of Python's reader
    (tmp_path / "log.csv").write_text(f"user_id,item_id,review,timestamp\n1,20,{long},2\n1,10,{text},1\n")
    assert history(read_log(tmp_path / "log.csv")) == [10, 20]


# Ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([b"b", "ä".encode()], ["ä", "b"]),
        ([bytes(15) + b"\2", bytes(15) + b"\1"], [f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2)]),
        (pl.Series([Decimal(30), Decimal(10)], dtype=pl.Decimal(38, 0)), [10, 30]),
        (pl.Series([Decimal("30.00"), Decimal("10.00")], dtype=pl.Decimal(20, 2)), [10, 30]),
        (pl.Series([Decimal(10**25 + 1), Decimal(10**25)], dtype=pl.Decimal(38, 0)), [str(10**25), str(10**25 + 1)]),
    ],
)
def test_ids_of_every_kind(tmp_path: Path, ids: Any, found: list[Any]) -> None:
    pl.DataFrame({"user_id": [1, 1], "item_id": ids, "timestamp": [2, 1]}).write_parquet(tmp_path / "log.parquet")
    assert history(read_log(tmp_path / "log.parquet")) == found


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([b"\xff\xfe", b"a"], "column 'item_id', row 1: the id is bytes that are no UTF-8 text"),
        (pl.Series([Decimal(1), Decimal("1.5")], dtype=pl.Decimal(20, 1)), "column 'item_id', row 2: 1.5 is no id"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, ids: Any, message: str) -> None:
    pl.DataFrame({"user_id": [1, 1], "item_id": ids, "timestamp": [2, 1]}).write_parquet(tmp_path / "log.parquet")
    assert message in refusal(tmp_path / "log.parquet")


def test_ids_in_scientific_notation(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "1,99999,1\n1,1e+05,2\n1,100001,3\n")
    with pytest.warns(UserWarning, match=r"'1e\+05' are read as whole numbers"):
        assert history(read_log(path)) == [99_999, 100_000, 100_001]
    path.write_text(HEADER + "1,99999,1\n1,1.23457E+11,2\n")
    with pytest.warns(UserWarning, match=r"'1.23457E\+11' look like numbers in scientific notation"):
        assert history(read_log(path)) == ["99999", "1.23457E+11"]


# Times --------------------------------------------------------------------------------------------

T = 1_700_000_000
SECONDS = np.array([T, T + 60, T + 86_400])
FORMS: dict[str, Any] = {
    "s": SECONDS,
    "ms": SECONDS * 1000 + 1,
    "us": SECONDS * 10**6 + 1,
    "ns": SECONDS * 10**9 + 1,
    "floats": SECONDS + 0.25,
    "datetimes": SECONDS.astype("datetime64[s]").astype("datetime64[ns]"),
    "ISO": [f"{value}Z" for value in SECONDS.astype("datetime64[s]").astype(str)],
    "decimals": pl.Series([Decimal(f"{value}.5") for value in SECONDS.tolist()], dtype=pl.Decimal(20, 6)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_one_log_in_every_unit_is_one_store(tmp_path: Path, form: str, suffix: str) -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [7, 8, 9], "timestamp": FORMS[form]})
    path = tmp_path / f"log{suffix}"
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    store = read_log(path)
    assert store.timestamps is not None
    assert store.timestamps.tolist() == SECONDS.tolist()
    if form != "decimals":  # callers give no decimals
        assert caller_seconds(FORMS[form], store.time_unit).tolist() == SECONDS.tolist()
    dates = SECONDS.astype("datetime64[s]").astype("datetime64[ns]")
    assert caller_seconds(dates, store.time_unit).tolist() == SECONDS.tolist()
    store.save(tmp_path / "store")
    assert SequenceStore.load(tmp_path / "store").time_unit == store.time_unit


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01 12:00:00.000000002", "2024-01-01 12:00:00.000000001"],
        [f"{10**18 + 2}", f"{10**18 + 1}.0"],
        ["1700000000.000000002", "1700000000.000000001"],
        ["1700000000.1234567892", "1700000000.1234567891"],
        [f"1700000000.{'0' * 40}2", f"1700000000.{'0' * 40}1"],
        ["1.7000000005e9", "1700000000.123456"],
        ["2024-01-01 14:00:01+02", "2024-01-01 12:00:00 UTC"],
        ["2024-01-02", "2024-01-01 12:00"],
    ],
)
def test_the_order_of_close_times_is_kept(tmp_path: Path, times: list[str]) -> None:
    (tmp_path / "log.csv").write_text(HEADER + f"1,late,{times[0]}\n1,early,{times[1]}\n")
    assert history(read_log(tmp_path / "log.csv")) == ["early", "late"]


def test_bytes_that_are_no_time(tmp_path: Path) -> None:
    times = [b"\xff\xfe", b"2024-01-01"]
    pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": times}).write_parquet(tmp_path / "log.parquet")
    assert "column 'timestamp': holds bytes that are no UTF-8 text" in refusal(tmp_path / "log.parquet")


def test_order_that_is_lost_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + f"1,2,{10**18 + 2}\n1,3,1e18\n")
    assert "row 1 (header not counted): 1000000000000000002 beside fractions" in refusal(tmp_path / "log.csv")
    (tmp_path / "log.csv").write_text(HEADER + "1,1,1.5e1\n1,2,1700000000.1234567892\n1,3,1700000000.1234567891\n")
    assert "row 2 (header not counted): 1700000000.1234567892 beside fractions" in refusal(tmp_path / "log.csv")


def test_a_negative_fraction_is_no_time(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "1,2,0.5\n1,3,-0.5\n")
    assert "row 2 (header not counted): -0.5 is no time" in refusal(tmp_path / "log.csv")


def test_large_integers_beside_floats_in_json_lines(tmp_path: Path) -> None:
    path, row = tmp_path / "log.jsonl", '{{"user_id": 1, "item_id": {}, "timestamp": {}}}\n'
    path.write_text(row.format("9007199254740993", f"{T}000000002.0") + row.format("5.0", f"{T}000000001"))
    assert history(read_log(path)) == [5, 2**53 + 1]
    path.write_text(row.format(1, 0.5) + row.format(2, f"{T}000000001"))
    assert "line 2: column 'timestamp' holds 1700000000000000001, which has too many digits" in refusal(path)
    pl.DataFrame(FRAME | {"item_id": [2.0**53, 1.0, 2.0]}).write_parquet(tmp_path / "log.parquet")
    assert "row 1: 9007199254740992.0 is no id" in refusal(tmp_path / "log.parquet")


def test_declared_and_mixed_units(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "1,2,5000\n1,3,9000\n")
    store = read_log(path, time_unit="ms")
    assert store.timestamps is not None
    assert store.timestamps.tolist() == [5, 9]
    path.write_text(HEADER + f"1,2,{T}\n1,3,{T}000\n")
    assert "row 1 (header not counted): 1700000000 beside 1700000000000: times of more than one unit" in refusal(path)


@pytest.mark.parametrize(
    ("times", "unit", "message"),
    [
        ([T, float("nan")], "s", "history 3: time 2 is nan"),
        ([T, None], "s", "history 3: a time is missing"),
        (np.array(["2024-01-01", "NaT"], "datetime64[ns]"), "s", "history 3: time 2 is missing"),
        ([T + 1, T], "s", "history 3: time 2 is before time 1; histories and their times go oldest first"),
        ([T, T * 1000], "s", "history 3: 1700000000 beside 1700000000000"),
        ([T * 1000], "s", "history 3: 1700000000000 looks like a time in ms, but the log's times are in s"),
        ([T], "ms", "history 3: 1700000000 looks like a time in s, but the log's times are in ms"),
        ([T, "2024-01-01"], "s", "history 3: dates beside numbers"),
        (["01/02/2024"], "s", "history 3: '01/02/2024' is no time"),
        ([-1], "s", "history 3: -1 is no time"),
    ],
)
def test_callers_times_that_are_refused(times: Any, unit: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        caller_seconds(times, unit, "history 3")
    assert str(caught.value).startswith(message)


# Repeats ------------------------------------------------------------------------------------------


def test_rows_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = "".join(f"{user},{(user + t) % 9},{t}\n" for user in range(4) for t in range(5))
    path.write_text(HEADER + rows)
    clean = read_log(path)
    assert repeats(clean, leave_one_out(clean).test) == 0
    path.write_text(HEADER + rows + rows)
    twice = read_log(path)
    assert repeats(twice, leave_one_out(twice).test) == 4
    assert read_log(path, drop_duplicates=True).fingerprint() == clean.fingerprint() != twice.fingerprint()
    main(["prepare", str(path), str(tmp_path / "store"), "--drop-duplicates"])
    assert SequenceStore.load(tmp_path / "store").n_events == 20


@pytest.mark.parametrize(("user", "item"), [("", "item_id"), ("user_id", ""), ("user_id", "user_id")])
def test_a_column_has_one_name_and_one_role(user: str, item: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\na,x,1\na,y,2\n")
    with pytest.raises(UserError, match=r"^option (user|item): "):
        read_log(path, user=user, item=item)


def test_json_lines_with_a_mark_or_half_a_character(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [f'{{"user_id": "a", "item_id": "{item}", "timestamp": {time}}}\n' for time, item in enumerate("xyz", 1)]
    path.write_bytes(b"\xef\xbb\xbf" + "".join(rows).encode())
    assert read_log(path).n_events == 3
    path.write_text("".join([*rows, rows[0].replace('"x"', '"\\ud800"')]))
    with pytest.raises(UserError, match=r"line 4: \\ud800 is half of a surrogate pair"):
        read_log(path)
    path.write_text("".join([*rows, rows[0].replace('"x"', '"\\\\\\ud800"')]))
    with pytest.raises(UserError, match=r"line 4: \\ud800 is half of a surrogate pair"):
        read_log(path)
    path.write_text("".join([*rows, rows[0].replace('"x"', '"\\\\ud800"')]))
    assert read_log(path).n_items == 4
    path.write_text("".join([*rows, rows[0].replace('"x"', '"\\udc00x"')]))
    with pytest.raises(UserError, match=r"line 4: \\udc00 is half of a surrogate pair"):
        read_log(path)
    path.write_text("".join([*rows, rows[0].replace('"x"', '"\\ud83d\\ude00"')]))
    assert read_log(path).n_items == 4
