"""Ids and times in every form that logs have: read correctly, or refused in one line."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_logs import FRAME, HEADER, history, refusal

from hyenarec.cli import main
from hyenarec.data import SequenceStore, leave_one_out, read_log
from hyenarec.data.times import caller_seconds
from hyenarec.errors import UserError
from hyenarec.evaluation import repeats


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
    if form != "decimals":  # callers pass no decimals
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
