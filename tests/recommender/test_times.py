"""Numbers that are not seconds: dates written as numbers, and numbers beyond all times."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hyenarec.data import read_log
from hyenarec.data.times import caller_seconds
from hyenarec.errors import UserError


def write(path: Path, times: list[Any]) -> Path:
    frame = pl.DataFrame({"user_id": 1, "item_id": range(len(times)), "timestamp": times})
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("times", "form"),
    [
        ([19900101, 20240229, 21001231], "yyyymmdd"),
        ([20240102.0, 20240103.0], "yyyymmdd"),
        ([199001010000, 210012312359], "yyyymmddhhmm"),
        ([19900101000000, 21001231235959], "yyyymmddhhmmss"),
    ],
)
def test_dates_written_as_numbers_are_refused(times: list[Any], form: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"log{suffix}", times)
    with pytest.raises(UserError) as refused:
        read_log(path)
    for words in (f"all times look like dates written as {form}, such as {times[0]}", "2024-12-31", "time-unit"):
        assert words in str(refused.value)
    declared = read_log(path, time_unit="s")
    assert declared.timestamps is not None and declared.timestamps.tolist() == times


@pytest.mark.parametrize(
    "times",
    [
        [20240102, 20230229],
        [20240102, 20240200],
        [20241301, 20240101],
        [19891231, 20240101],
        [20240101, 21010101],
        [20240101.5, 20240102.0],
        [0, 20240101],
        [20240101236000, 20240101000000],
        [20240101240000, 20240101000000],
        list(range(20240101, 20240140)),
    ],
    ids=str,
)
def test_numbers_of_which_one_is_no_date_are_counts(times: list[Any], tmp_path: Path) -> None:
    assert read_log(write(tmp_path / "log.parquet", times)).n_events == len(times)


@pytest.mark.parametrize("text", ["1e300", "1e19", "99999999999999999999"])
def test_numbers_beyond_all_times(text: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,timestamp\n1,2,3\n1,3,{text}\n")
    with pytest.raises(UserError, match=r"row 2 \(header not counted\): \S+ is too large for a time: even nanoseconds"):
        read_log(path)
    with pytest.raises(UserError, match=r"row 2: \S+ is too large for a time: even nanoseconds"):
        read_log(write(tmp_path / "log.parquet", [3.0, float(text)]))


def test_callers_are_warned_of_written_dates() -> None:
    with pytest.warns(
        UserWarning, match="20240102 looks like a date written as yyyymmdd, but is taken for a time in s"
    ):
        assert caller_seconds([20240102, 20240103], "s").tolist() == [20240102, 20240103]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caller_seconds([20240102, 20240133], "s")
        caller_seconds(np.array([1_700_000_000]), "s")
        caller_seconds([], "s")
