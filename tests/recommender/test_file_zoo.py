"""Every form of log file, in small: it is read correctly, or refused in one line that says what to do."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import polars as pl
import pytest
from small_logs import FRAME, TEXT, history, refusal

from hyenarec.cli import main
from hyenarec.data import SequenceStore, open_data, read_log
from hyenarec.errors import UserError
from hyenarec.source import Source


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
    rows[2][1] = odd or "t"  # only Python's reader handles a quote inside a field
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
