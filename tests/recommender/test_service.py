"""The service: what it answers is what the recommender answers, and no acknowledged event is lost or counted twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from test_session import CONFIG, ITEMS

from hyenarec.config import ModelConfig
from hyenarec.data.ids import Ids
from hyenarec.errors import UserError
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.serving.app import make_app
from hyenarec.serving.engine import Engine, Wanted
from hyenarec.serving.events import Event
from hyenarec.serving.limits import Rates
from hyenarec.serving.sqlite_events import SqliteEvents


def recommender(mixer: str = "hyena", seed: int = 0, length: int = 12) -> Recommender:
    torch.manual_seed(seed)
    model, ids = SequenceModel(ModelConfig(mixer=mixer, dim=8, max_length=length), len(ITEMS)), Ids.from_values(ITEMS)
    return Recommender(model, ids, ids, CONFIG, torch.device("cpu"))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Starts a service; its store is ``tmp_path / "events.sqlite"``."""
    clients = []

    def start(reader: Recommender | None = None, *, users: int = 100, body_bytes: int = 4096, rate: float = 0.0) -> Any:
        engine = Engine(reader or recommender(), SqliteEvents(tmp_path / "events.sqlite"), users)
        client = TestClient(make_app(engine, body_bytes=body_bytes, rate=rate))
        client.__enter__()
        clients.append(client)
        client.engine = engine  # type: ignore[attr-defined]
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def answer(client: TestClient, user: str, k: int = 4, **options: Any) -> list[tuple[Any, float]]:
    response = client.get("/recommend", params={"user": user, "k": k, **options})
    assert response.status_code == 200, response.text
    return [(one["item"], one["score"]) for one in response.json()["recommendations"]]


def wanted(reader: Recommender, history: list[Any], k: int = 4) -> list[tuple[Any, float]]:
    return [(one.item, pytest.approx(one.score, abs=1e-4)) for one in reader.recommend([history], k)[0]]


@pytest.mark.parametrize("mixer", ["hyena", "gru", "attention", "hytrec"])
def test_answers_are_the_recommenders(serve: Callable[..., Any], mixer: str) -> None:
    """One event after the other, two users in turn, some of them read back from the store."""
    reader = recommender(mixer)
    client, histories = serve(reader, users=1), {"ann": ITEMS[:6], "bob": ITEMS[5:9]}
    for t in range(6):
        for user, history in histories.items():
            if t < len(history):
                event = {"user": user, "item": history[t], "time": 100 + t, "id": f"{user}-{t}"}
                assert client.post("/events", json=event).json() == {"new": True, "number": t, "known": True}
                times = [[100 + i for i in range(t + 1)]]
                found = reader.recommend([history[: t + 1]], 4, timestamps=times)[0]
                assert answer(client, user) == [(one.item, pytest.approx(one.score, abs=1e-4)) for one in found]


def test_histories_longer_than_the_positions(serve: Callable[..., Any]) -> None:
    """The 13th event has no position left: it is read with the eight before it."""
    reader = recommender("attention")
    client = serve(reader)
    for i, item in enumerate(ITEMS[:13]):
        client.post("/events", json={"user": "ann", "item": item})
        if i >= 10:
            found = answer(client, "ann", exclude_seen=False)
    kept = reader.recommend([ITEMS[4:13]], 4, exclude_seen=False)[0]
    assert found == [(one.item, pytest.approx(one.score, abs=1e-4)) for one in kept]


def test_an_event_sent_again_counts_once(serve: Callable[..., Any]) -> None:
    client = serve()
    event = {"user": "ann", "item": "item-1", "id": "a"}
    assert client.post("/events", json=event).status_code == 201
    again = client.post("/events", json=event)
    assert (again.status_code, again.json()) == (200, {"new": False, "number": 0, "known": True})
    other = client.post("/events", json=event | {"item": "item-2"})
    assert other.status_code == 409 and "another event" in other.json()["detail"]
    unnamed = client.post("/events", json={"user": "ann", "item": "item-1"})  # without an id each counts
    assert unnamed.json()["number"] == 1
    assert client.get("/recommend", params={"user": "ann"}).json()["events"] == 2


def test_unknown_users_and_items_are_answered(serve: Callable[..., Any]) -> None:
    client = serve()
    assert client.get("/recommend", params={"user": "nobody"}).json() == {"recommendations": [], "events": 0}
    assert client.post("/events", json={"user": "ann", "item": "new"}).json()["known"] is False
    assert client.get("/recommend", params={"user": "ann"}).json() == {"recommendations": [], "events": 0}
    client.post("/events", json={"user": "ann", "item": "item-3"})
    assert answer(client, "ann") == wanted(recommender(), ["item-3"])


def test_filters(serve: Callable[..., Any]) -> None:
    client = serve()
    client.post("/events", json={"user": "ann", "item": "item-3"})
    every = [item for item, _ in answer(client, "ann", k=40)]
    assert len(every) == 39 and "item-3" not in every
    assert [item for item, _ in answer(client, "ann", k=3, exclude=every[:2])] == every[2:5]
    assert [item for item, _ in answer(client, "ann", k=3, allow=[every[7], every[4], "nothing"])] == [
        every[4],
        every[7],
    ]
    assert "item-3" in [item for item, _ in answer(client, "ann", k=40, exclude_seen=False)]


def test_histories_of_strangers(serve: Callable[..., Any]) -> None:
    client, reader = serve(), recommender()
    asked = {"histories": [ITEMS[:3], [], ["nothing", "item-5"]], "k": 4}
    first, second, third = client.post("/recommend", json=asked).json()["answers"]
    assert [(one["item"], one["score"]) for one in first["recommendations"]] == wanted(reader, ITEMS[:3])
    assert second["recommendations"] == [] and "empty" in second["error"]
    assert third["unknown"] == ["nothing"] and len(third["recommendations"]) == 4
    assert client.post("/recommend", json=asked | {"k": 100}).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"item": "item-1"}, 422),
        ({"user": "", "item": "item-1"}, 422),
        ({"user": "u" * 300, "item": "item-1"}, 422),
        ({"user": 7, "item": "item-1"}, 422),
        ({"user": "u", "item": 2**63}, 422),
        ({"user": "u", "item": 1.5}, 422),
        ({"user": "u", "item": ["item-1"]}, 422),
        ({"user": "u", "item": "item-1", "path": "/etc/passwd"}, 422),
        ({"user": "u", "item": "item-1", "time": "now"}, 422),
        ({"user": "u", "item": "x" * 5000}, 413),
    ],
)
def test_bad_requests_are_refused(serve: Callable[..., Any], body: Any, status: int) -> None:
    client = serve()
    assert client.post("/events", json=body).status_code == status
    assert client.post("/events", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    assert client.post("/events", content=iter([b"{}"])).status_code == 411  # of no known length
    for k in (0, 1001, "x"):
        assert client.get("/recommend", params={"user": "u", "k": k}).status_code == 422
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/../etc/passwd").status_code == 404


def test_odd_texts_are_texts(serve: Callable[..., Any]) -> None:
    client = serve()
    for user in ("a'; DROP TABLE events; --", "\0", "<script>", "😀", "../../x", "{{7*7}}"):
        assert client.post("/events", json={"user": user, "item": "item-1"}).status_code == 201
        assert client.get("/recommend", params={"user": user}).json()["events"] == 1
    broken = client.post("/events", content=b'{"user": "\\ud800", "item": "item-1"}')
    assert broken.status_code == 422


def test_rates(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("hyenarec.serving.limits.time.monotonic", lambda: now)
    rates = Rates(5)
    assert [rates.wait("one") for _ in range(6)] == [0.0] * 5 + [pytest.approx(0.2)]
    assert rates.wait("another") == 0
    now = 0.5
    assert [rates.wait("one") for _ in range(3)] == [0, 0, pytest.approx(0.1)]
    client = serve(rate=0.5)
    assert [client.get("/healthz").status_code for _ in range(2)] == [200, 429]
    assert client.get("/healthz").headers["Retry-After"] == "2"


def test_requests_that_wait_are_one_batch(serve: Callable[..., Any]) -> None:
    engine, sizes, started, gate = serve().engine, [], threading.Event(), threading.Event()
    engine.observe = lambda kind, size, seconds: sizes.append((kind, size))

    def hold(reader: Recommender) -> bool:
        started.set()
        return gate.wait(60)

    held = engine.call(hold)
    assert started.wait(60)
    futures = [engine.add(Event(f"user-{i}", ITEMS[i], 0)) for i in range(20)]
    futures += [engine.recommend(Wanted(f"user-{i}", 3)) for i in range(20)]
    gate.set()
    assert held.result(60)
    assert all(len(future.result(60).recommendations) == 3 for future in futures[20:])
    assert ("recommend", 20) in sizes


def test_an_error_is_its_own_requests(serve: Callable[..., Any]) -> None:
    client = serve()

    def fail(reader: Recommender) -> None:
        raise UserError("no")

    failed, fine = client.engine.call(fail), client.engine.add(Event("ann", "item-1", 0))
    with pytest.raises(UserError, match="no"):
        failed.result(60)
    assert fine.result(60).new


def test_a_new_model_takes_over(serve: Callable[..., Any]) -> None:
    """Requests go on meanwhile, and each is answered by one model or the other."""
    old, new = recommender(), recommender(seed=1, mixer="gru")
    client = serve(old)
    for item in ITEMS[:5]:
        client.post("/events", json={"user": "ann", "item": item})
    before, after = wanted(old, ITEMS[:5]), wanted(new, ITEMS[:5])
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.engine.recommend, Wanted("ann", 4)) for _ in range(40)]
        client.engine.use(new).result(60)
        answers += [pool.submit(client.engine.recommend, Wanted("ann", 4)) for _ in range(40)]
        found = [[(one.item, one.score) for one in a.result().result(60).recommendations] for a in answers]
    assert all(one in (before, after) for one in found)
    assert answer(client, "ann") == after


def test_metrics_and_documentation(serve: Callable[..., Any]) -> None:
    client = serve()
    client.post("/events", json={"user": "ann", "item": "item-1"})
    answer(client, "ann")
    client.get("/favicon.ico")
    text = client.get("/metrics").text
    assert 'hyenarec_requests_total{route="/recommend",status="200"} 1.0' in text
    assert 'hyenarec_requests_total{route="other",status="404"} 1.0' in text
    assert "hyenarec_events_total 1.0" in text and "hyenarec_users 1.0" in text
    assert set(client.get("/openapi.json").json()["paths"]) == {"/events", "/recommend", "/items", "/healthz"}
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"] and "innerHTML" not in page.text
    assert client.get("/items", params={"search": "ITEM-1", "k": 3}).json() == {
        "items": ["item-1", "item-10", "item-11"]
    }


def test_stores_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    path.write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(UserError, match="cannot be used as a store of events"):
        SqliteEvents(path)
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("PRAGMA user_version = 9").connection.close()
    with pytest.raises(UserError, match="version 9"):
        SqliteEvents(other)


KILLED = """
import sys
from hyenarec.serving.events import Event
from hyenarec.serving.limits import Rates
from hyenarec.serving.sqlite_events import SqliteEvents
store = SqliteEvents(__import__("pathlib").Path(sys.argv[1]))
for line in sys.stdin:
    user, item, name = line.split()
    added = store.add([Event(user, item, 0, name)])[0]
    print(name, int(added.new), flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_no_acknowledged_event_is_lost(tmp_path: Path, kills: int) -> None:
    """The writer is killed at random moments; what was not acknowledged is sent again."""
    path, sent, acknowledged = tmp_path / "events.sqlite", 0, set[str]()
    chance = random.Random(0)
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdin is not None and writer.stdout is not None
        waiting = [f"event-{i}" for i in range(max(sent - 3, 0), sent + 500)]  # the last ones again
        feeder = threading.Thread(target=feed, args=(writer, waiting))
        feeder.start()
        most = chance.randrange(1, 400)
        for count, line in enumerate(writer.stdout, 1):
            acknowledged.add(line.split()[0])
            if count == most:
                os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        feeder.join()
        sent = max(int(name.split("-")[1]) for name in acknowledged) + 1
    store = SqliteEvents(path)
    store.close()
    rows = sqlite3.connect(path).execute("SELECT id, count(*) FROM events GROUP BY id").fetchall()
    assert {name for name, _ in rows} >= acknowledged and all(count == 1 for _, count in rows)


def feed(writer: subprocess.Popen[str], names: list[str]) -> None:
    assert writer.stdin is not None
    try:
        for name in names:
            writer.stdin.write(f"ann item-1 {name}\n")
        writer.stdin.close()
    except BrokenPipeError:
        pass
