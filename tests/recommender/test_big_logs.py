"""A big log that is read in groups of users becomes the same store as when it is read as a whole."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hyenarec.cli import main
from hyenarec.data import big_logs, read_log
from hyenarec.data.big_logs import opened_log
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError


def frame(events: int = 3_000, **changes: Any) -> pl.DataFrame:
    """Random rows in any order, many with equal times, and some twice."""
    rng = np.random.default_rng(0)
    columns = {
        "user_id": rng.geometric(0.02, events) * 7 - 50,
        "item_id": rng.integers(0, 90, events) * 3,
        "timestamp": 1_600_000_000 + rng.integers(0, 40, events),
    }
    return pl.DataFrame({**columns, **changes})


FORMS = {
    "integers": {},
    "small integers": {"user_id": pl.col("user_id").cast(pl.Int32), "item_id": pl.col("item_id").cast(pl.UInt16)},
    "text": {name: pl.format(f"{name}-é-{{}}", pl.col(name)) for name in ("user_id", "item_id")},
    "milliseconds": {"timestamp": pl.col("timestamp") * 1000 + 7},
    "dates": {"timestamp": pl.from_epoch("timestamp")},
    "days": {"timestamp": pl.from_epoch("timestamp").dt.date()},
}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes every log count as big, and divides it into several groups of users. Returns a list for progress lines."""
    monkeypatch.setattr(big_logs, "BIG", 0)
    monkeypatch.setattr(big_logs, "EVENTS_AT_A_TIME", 700)
    monkeypatch.setattr(big_logs, "EVENTS_OF_A_GROUP", 500)
    return []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_the_store_is_that_of_the_log_read_whole(
    form: str, parts: int, drop_duplicates: bool, tmp_path: Path, small_groups: list[str]
) -> None:
    table = frame().with_columns(**FORMS[form])
    log = tmp_path / "log"
    if parts == 1:
        log = tmp_path / "log.parquet"
        table.write_parquet(log)
    else:
        for number, part in enumerate(table.iter_slices(len(table) // parts + 1)):
            path = log / f"part-{number}.parquet"
            path.parent.mkdir(exist_ok=True)
            part.write_parquet(path)
    whole = read_log(log, drop_duplicates=drop_duplicates)
    with opened_log(log, tmp_path, small_groups.append, drop_duplicates=drop_duplicates) as store:
        assert store.fingerprint() == whole.fingerprint()
        assert list(tmp_path.glob("hyenarec-*"))
    assert (whole.n_events < len(table)) == drop_duplicates
    assert sum(line.startswith("group ") for line in small_groups) > 4
    assert not list(tmp_path.glob("hyenarec-*"))


def test_rows_in_order_need_no_times(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "log.parquet")
    whole = read_log(tmp_path / "log.parquet", timestamp=None)
    with opened_log(tmp_path / "log.parquet", timestamp=None) as store:
        assert store.fingerprint() == whole.fingerprint() and store.timestamps is None


def test_prepare_reads_a_big_log_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.parquet"
    frame().write_parquet(log)
    read, whole = [], big_logs._big_log

    def watched(*arguments: Any) -> Any:
        read.append(arguments[0])
        return whole(*arguments)

    monkeypatch.setattr(big_logs, "_big_log", watched)
    main(["prepare", str(log), str(tmp_path / "new" / "store")])
    assert read == [log]
    assert SequenceStore.load(tmp_path / "new" / "store").fingerprint() == read_log(log).fingerprint()
    assert {path.name for path in tmp_path.iterdir()} == {"log.parquet", "new"}
    monkeypatch.setattr(big_logs, "BIG", 10_000)
    main(["prepare", str(log), str(tmp_path / "small")])
    assert read == [log]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": [None, *range(2_999)]}, "column 'user_id': the id is missing"),
        ({"item_id": ["", *map(str, range(2_999))]}, "column 'item_id': the id is missing"),
        ({"timestamp": [None, *range(2_999)]}, "column 'timestamp': the time is missing"),
        ({"timestamp": [-1, *range(2_999)]}, "column 'timestamp': -1 is no time"),
        ({"timestamp": [20_240_101] * 3_000}, "column 'timestamp': all times look like dates written as yyyymmdd"),
        ({"user_id": range(3_000)}, "every user has a single event"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    frame(**changes).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError) as refused, opened_log(tmp_path / "log.parquet", tmp_path):
        pass
    assert str(refused.value).startswith(f"{tmp_path / 'log.parquet'}: {message}")
    assert not list(tmp_path.glob("hyenarec-*"))


@pytest.mark.parametrize("kind", [pl.Float64, pl.Binary])
def test_other_kinds_of_ids_are_read_whole(kind: Any, tmp_path: Path, small_groups: list[str]) -> None:
    column = pl.col("user_id").cast(pl.Float64) if kind == pl.Float64 else pl.col("user_id").cast(pl.String).cast(kind)
    frame().with_columns(column).write_parquet(tmp_path / "log.parquet")
    with opened_log(tmp_path / "log.parquet", tmp_path, small_groups.append) as store:
        assert store.fingerprint() == read_log(tmp_path / "log.parquet").fingerprint()
    assert not small_groups


def test_a_date_without_a_zone_is_in_utc(tmp_path: Path) -> None:
    times = [datetime(2020, 1, 1, hour, tzinfo=UTC) for hour in range(3)]
    table = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5], "timestamp": times})
    table.write_parquet(tmp_path / "log.parquet")
    with opened_log(tmp_path / "log.parquet") as store:
        assert store.fingerprint() == read_log(tmp_path / "log.parquet").fingerprint()
        assert store.timestamps is not None and store.timestamps[0] == 1_577_836_800


def folder_of(folder: Path, *parts: pl.DataFrame, names: tuple[str, ...] = ("0", "1")) -> Path:
    for name, part in zip(names, parts, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    "second",
    [
        {"user_id": pl.col("user_id").cast(pl.Int32), "item_id": pl.col("item_id").cast(pl.UInt32)},
        {"new": pl.lit(1)},
        {"timestamp": pl.col("timestamp").cast(pl.Int32)},
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_parts_that_differ_only_in_width_or_other_columns(
    second: dict[str, Any], turned: bool, tmp_path: Path, small_groups: list[str]
) -> None:
    parts = [frame(), frame().with_columns(**second)]
    log = folder_of(tmp_path / "log", *(parts[::-1] if turned else parts))
    with opened_log(log, tmp_path, small_groups.append) as store:
        assert store.fingerprint() == read_log(log).fingerprint()
    assert small_groups  # so it was read in bounded memory


def test_folders_of_partitions_are_read_in_bounded_memory(tmp_path: Path, small_groups: list[str]) -> None:
    log = folder_of(tmp_path / "log", frame(), frame(), names=("day=1/0", "day=2/0"))
    with opened_log(log, tmp_path, small_groups.append) as store:
        assert store.fingerprint() == read_log(log).fingerprint()
    assert small_groups
    whole = read_log(log, user="day")  # folders whose names hold users are not read so
    with opened_log(log, tmp_path, user="day") as store:
        assert store.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    "second",
    [
        {"user_id": pl.col("user_id").cast(pl.String)},
        {"timestamp": pl.from_epoch("timestamp")},
        {"user_id": pl.lit(1.5)},
    ],
)
def test_a_part_unlike_the_others_is_refused_as_by_reading_it_whole(second: dict[str, Any], tmp_path: Path) -> None:
    other = frame().with_columns(**second)
    log = folder_of(tmp_path / "log", frame(), other)
    with pytest.raises(UserError) as whole:
        read_log(log)
    with pytest.raises(UserError) as refused, opened_log(log, tmp_path):
        pass
    assert str(refused.value) == str(whole.value) and "1.parquet" in str(whole.value)


def test_dates_with_and_without_a_zone_are_not_mixed(tmp_path: Path) -> None:
    dates = frame().with_columns(pl.from_epoch("timestamp"))
    log = folder_of(tmp_path / "log", dates.with_columns(pl.col("timestamp").dt.replace_time_zone("UTC")), dates)
    with pytest.raises(UserError, match=r"1\.parquet: column 'timestamp' holds"), opened_log(log, tmp_path):
        pass


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    log = folder_of(tmp_path / "log", frame(), frame())
    damaged = bytearray((log / "1.parquet").read_bytes())
    damaged[400:430] = b"\xff" * 30
    (log / "1.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match=r"1\.parquet: cannot read it: [^\n]*$"), opened_log(log, tmp_path):
        pass
    assert not list(tmp_path.glob("hyenarec-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: frame(user_id=[0, 1, 500] * 1_000).write_parquet(part), "log: has changed while it was read"),
        (lambda part: frame(item_id=[1, 2, 4] * 1_000).write_parquet(part), "log: has changed while it was read"),
        (Path.unlink, "1.parquet: has gone while the log was read"),
    ],
)
def test_a_log_that_changes_while_it_is_read(change: Any, message: str, tmp_path: Path) -> None:
    log = folder_of(tmp_path / "log", frame(), frame())

    def told(line: str) -> None:
        if line.startswith("dealing out events 1 "):  # users and items are known by then
            change(log / "1.parquet")

    with pytest.raises(UserError, match=message), opened_log(log, tmp_path, told):
        pass
    assert not list(tmp_path.glob("hyenarec-*"))


def test_files_that_are_no_parts_are_named(tmp_path: Path) -> None:
    log = folder_of(tmp_path / "log", frame())
    (log / "more.csv").write_text("user_id,item_id\n")
    with pytest.warns(UserWarning, match=r"only its Parquet files are read, not more\.csv"), opened_log(log):
        pass


def test_integers_of_128_bits_are_read_whole(tmp_path: Path) -> None:
    frame().with_columns(pl.col("user_id").cast(pl.Int128)).write_parquet(tmp_path / "log.parquet")
    with opened_log(tmp_path / "log.parquet") as store:
        assert store.fingerprint() == read_log(tmp_path / "log.parquet").fingerprint()


@pytest.mark.parametrize("room", [1_000, 20_000])  # bytes: full while events are dealt out, or put in order
def test_a_full_disk_is_one_line(room: int, tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "log.parquet")
    program = f"""
import resource
from pathlib import Path
from hyenarec.data import big_logs

big_logs.BIG, big_logs.EVENTS_OF_A_GROUP, place = 0, 500, Path({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))  # of every file
with big_logs.opened_log(place / "log.parquet", place):
    pass
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"UserError: cannot write in {tmp_path}: File too large; " in found.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"log.parquet"}


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "log.parquet")
    names = {"dead": ("group-0", "items"), "foreign": ("group-0", "mine")}
    for folder, files in names.items():
        (tmp_path / f"hyenarec-{folder}.tmp").mkdir()
        for name in files:
            (tmp_path / f"hyenarec-{folder}.tmp" / name).touch()
    with opened_log(tmp_path / "log.parquet", tmp_path):
        alive = list(tmp_path.glob("hyenarec-*"))
        assert len(alive) == 2 and tmp_path / "hyenarec-dead.tmp" not in alive
        with opened_log(tmp_path / "log.parquet", tmp_path):  # leaves alone what is in use
            assert all(folder.exists() for folder in alive)
    assert list(tmp_path.glob("hyenarec-*")) == [tmp_path / "hyenarec-foreign.tmp"]
