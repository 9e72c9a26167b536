"""Stores of events: every event that was added is stored exactly once, whoever adds it and whatever fails."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RedisServer

from hyenarec.errors import UserError
from hyenarec.serving.event_stores import open_events
from hyenarec.serving.events import Added, Event, Events, Unavailable
from hyenarec.serving.sqlite_events import SqliteEvents


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Events]]:
    """Opens the same store as often as asked."""
    server = RedisServer(tmp_path) if request.param == "redis" else None
    stores = []

    def start() -> Events:
        stores.append(open_events(server.url if server else str(tmp_path / "events.sqlite")))
        return stores[-1]

    yield start
    for store in stores:
        store.close()
    if server:
        server.kill()


def test_each_user_has_its_events_in_their_order(opened: Callable[[], Events]) -> None:
    store = opened()
    odd = "a'; DROP TABLE events; --\0😀\n "
    assert store.add([Event("ann", "x", 5), Event(odd, 2**63 - 1, -(2**63)), Event("ann", 7, 3, "id")]) == [
        Added(0, new=True),
        Added(0, new=True),
        Added(1, new=True),
    ]
    assert store.add([]) == []
    assert store.since([("ann", 0), (odd, 0), ("nobody", 0), ("ann", 1), ("ann", 2)]) == [
        (["x", 7], [5, 3]),
        ([2**63 - 1], [-(2**63)]),
        ([], []),
        ([7], [3]),
        ([], []),
    ]
    assert opened().since([("ann", 0)]) == [(["x", 7], [5, 3])]


def test_an_id_counts_once(opened: Callable[[], Events]) -> None:
    """An event with a known id is not added again, whether in one batch, in a later one, or after the store is
    reopened. The same id with another user or item is a conflict, also if the item is text instead of a number."""
    store, event = opened(), Event("ann", 1, 0, "a b")
    again, conflict = Added(0, new=False), Added(0, new=False, conflict=True)
    assert store.add([event, event, Event("ann", 2, 0, "a b")]) == [Added(0, new=True), again, conflict]
    others = [Event("ann", 1, 99, "a b"), Event("bob", 1, 0, "a b"), Event("ann", "1", 0, "a b")]
    assert opened().add(others) == [again, conflict, conflict]
    assert store.since([("ann", 0), ("bob", 0)]) == [([1], [0]), ([], [])]


def test_several_writers_of_the_same_events(opened: Callable[[], Events]) -> None:
    """Each event is new to exactly one writer, and all writers get the same number for it."""
    stores, answers = [opened() for _ in range(3)], dict[int, list[Added]]()

    def write(which: int) -> None:
        answers[which] = [
            found
            for first in range(0, 200, 10)
            for found in stores[which].add([Event(f"user-{i % 3}", i, i, f"id-{i}") for i in range(first, first + 10)])
        ]

    threads = [threading.Thread(target=write, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, told in enumerate(zip(*answers.values(), strict=True)):
        assert sum(one.new for one in told) == 1 and {one.number for one in told} == {i // 3}
    assert [items for items, _ in stores[0].since([("user-0", 0), ("user-1", 0), ("user-2", 0)])] == [
        list(range(first, 200, 3)) for first in range(3)
    ]


def test_a_batch_is_added_as_a_whole_or_not_at_all(opened: Callable[[], Events]) -> None:
    store = opened()
    with pytest.raises(UnicodeEncodeError):
        store.add([Event("ann", 1, 0, "first"), Event("\ud800", 2, 0)])
    assert store.since([("ann", 0)]) == [([], [])]
    assert store.add([Event("ann", 1, 0, "first")]) == [Added(0, new=True)]


def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    """A batch that does not fit is refused as a whole; once there is room again, everything works as before."""
    store = SqliteEvents(tmp_path / "events.sqlite")
    store.add([Event("ann", "x", 0, "first")])
    store._writing.execute("PRAGMA max_page_count = 8")  # SQLite reports this like a full disk
    batch = [Event("ann", "x" * 200, 0, f"id-{i}") for i in range(500)]
    for _ in range(2):
        with pytest.raises(Unavailable, match="events cannot be written: database or disk is full"):
            store.add(batch)
    assert store.since([("ann", 0)]) == [(["x"], [0])]
    store._writing.execute("PRAGMA max_page_count = 100000")
    assert [one.number for one in store.add(batch)] == list(range(1, 501))
    store.close()


def test_another_process_that_never_ends_its_transaction(tmp_path: Path) -> None:
    """The store waits for it, but not for ever."""
    store = SqliteEvents(tmp_path / "events.sqlite")
    other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    store._writing.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="database is locked"):
        store.add([Event("ann", "x", 0)])
    other.execute("ROLLBACK")
    assert store.add([Event("ann", "x", 0)]) == [Added(0, new=True)]
    store.close()


def test_a_copy_is_made_while_it_is_in_use(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.sqlite")
    store.add([Event("ann", "x", 0)])
    with sqlite3.connect(tmp_path / "copy.sqlite") as copy, sqlite3.connect(tmp_path / "events.sqlite") as live:
        live.backup(copy)
    store.add([Event("ann", "y", 0)])
    store.close()
    copied = SqliteEvents(tmp_path / "copy.sqlite")
    assert copied.since([("ann", 0)]) == [(["x"], [0])]
    copied.close()


def test_stores_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    path.write_text("not a database, but long enough to be read as one" * 100)
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("PRAGMA user_version = 9").connection.close()
    for where, reason in (
        (str(path), "cannot be used as a store of events"),
        (str(other), "version 9"),
        (str(tmp_path), "cannot be used as a store of events: unable to open"),
        (str(tmp_path / "no/such/folder"), "cannot be used as a store of events: unable to open"),
        ("http://host/events", "neither a file nor a URL of Redis"),
    ):
        with pytest.raises(UserError, match=reason):
            open_events(where)


def test_redis_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    for url in (
        "redis://ann:secret@127.0.0.1:1/0",
        "redis://ann:secret@127.0.0.1/x y",
        "unix:///nothing?password=secret",
    ):
        with pytest.raises(UserError, match="Redis cannot be used") as refused:
            open_events(url)
        assert "secret" not in str(refused.value)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bills (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(UserError, match="a database of something else, not a store of events"):
        SqliteEvents(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_goes_takes_no_events(replaced: bool, tmp_path: Path) -> None:
    """SQLite itself would go on to write to the removed file, which no one can open again."""
    path = tmp_path / "events.sqlite"
    store = SqliteEvents(path)
    assert store.add([Event("ann", 1, 0)]) == [Added(0, new=True)]
    path.rename(tmp_path / "moved")
    if replaced:
        path.write_bytes(b"")
    with pytest.raises(Unavailable, match="events cannot be written"):
        store.add([Event("ann", 2, 0)])
    (tmp_path / "moved").rename(path)
    assert store.add([Event("ann", 3, 0)]) == [Added(1, new=True)]
    store.close()


def test_redis_that_may_forget_is_complained_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = RedisServer(tmp_path, "--maxmemory-policy", "allkeys-lru")
    open_events(server.url).close()
    server.kill()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "appendonly yes" in said[0] and "noeviction" in said[1]


def test_redis_that_goes_and_comes_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    store = open_events(server.url)
    assert store.add([Event("ann", 1, 0, "a")]) == [Added(0, new=True)]
    server.kill()
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be written"):
            store.add([Event("ann", 2, 0, "b")])
        with pytest.raises(Unavailable, match="cannot be read"):
            store.since([("ann", 0)])
    server.start()
    added: Any = store.add([Event("ann", 1, 0, "a"), Event("ann", 2, 0, "b")])
    assert added == [Added(0, new=False), Added(1, new=True)]
    assert store.since([("ann", 0)]) == [([1, 2], [0, 0])]
    store.close()
    server.kill()
