"""The service answers what the recommender answers, and no acknowledged event is lost or counted twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from service_client import answer, recommender, wanted
from test_session import ITEMS

from hyenarec.data.ids import Ids
from hyenarec.errors import UserError
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.serving import app
from hyenarec.serving.app import make_app
from hyenarec.serving.catalogue import Catalogue
from hyenarec.serving.engine import Engine, Wanted
from hyenarec.serving.events import Event
from hyenarec.serving.sqlite_events import SqliteEvents


@pytest.mark.parametrize("mixer", ["hyena", "gru", "attention", "hytrec"])
def test_answers_are_the_recommenders(serve: Callable[..., Any], mixer: str) -> None:
    """Two users send events in turn and are answered after each; some events are read back from the store."""
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
    """There is no position left for the 13th event: it is read together with the eight before it."""
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
    unnamed = client.post("/events", json={"user": "ann", "item": "item-1"})  # without an id every event counts
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


def test_many_histories_are_read_in_parts(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of others are answered between the parts; a request's answers are all of the model that it met first."""
    monkeypatch.setattr(app, "TOGETHER", 2)
    client, reader, sizes = serve(), recommender(), list[int]()
    engine, call = client.engine, client.engine.call

    def counted(function: Any) -> Any:
        def answers(model: Recommender) -> Any:
            found = function(model)
            sizes.append(len(found))
            return found

        future = call(answers)
        if len(sizes) == 0:
            engine.use(recommender("gru")).result(60)
        return future

    monkeypatch.setattr(engine, "call", counted)
    histories = [ITEMS[:3], ITEMS[:1], ITEMS[4:9], [ITEMS[7]], ITEMS[2:4]]
    answers = client.post("/recommend", json={"histories": histories, "k": 4}).json()["answers"]
    got = [[(one["item"], one["score"]) for one in each["recommendations"]] for each in answers]
    assert got == [wanted(reader, history) for history in histories] and sizes == [2, 2, 1]


def test_a_client_that_leaves_is_no_error_of_ours(serve: Callable[..., Any]) -> None:
    client, sent = serve(), list[Any]()

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": "/events", "raw_path": b"/events", "query_string": b""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("a", 1), "scheme": "http"}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 499
    assert 'route="/events",status="499"} 1.0' in client.get("/metrics").text


def test_integers_that_javascript_would_round_are_text(tmp_path: Path) -> None:
    large = 2**53 + 1
    shown = Catalogue(Ids.from_values([5, large]), {large: "big"})
    assert shown.cells(5) == {"item": 5, "name": None}
    assert shown.cells(large) == {"item": str(large), "name": "big"}
    assert Ids.from_values([5, large]).find([str(large)]).tolist() == [1]


def test_requests_that_wait_are_one_batch(serve: Callable[..., Any]) -> None:
    engine, sizes, started, gate = serve().engine, [], threading.Event(), threading.Event()
    engine.observe = lambda kind, size, seconds: sizes.append((kind, size))

    def hold(reader: Recommender) -> bool:
        started.set()
        return gate.wait(60)

    held = engine.call(hold)
    assert started.wait(60)
    added = [engine.add(Event(f"user-{i}", ITEMS[i], 0)) for i in range(20)]
    assert all(one.result(60).new for one in added)  # writing does not wait for the model
    found = [engine.recommend(Wanted(f"user-{i}", 3)) for i in range(20)]
    gate.set()
    assert held.result(60)
    assert all(len(one.result(60).recommendations) == 3 for one in found)
    assert [size for kind, size in sizes if kind == "recommend"] == [20]


def test_an_error_is_its_own_requests(serve: Callable[..., Any]) -> None:
    client = serve()

    def fail(reader: Recommender) -> None:
        raise UserError("no")

    failed, fine = client.engine.call(fail), client.engine.add(Event("ann", "item-1", 0))
    with pytest.raises(UserError, match="no"):
        failed.result(60)
    assert fine.result(60).new


def test_what_spoils_a_batch_costs_nobody_else(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, started, gate = serve().engine, threading.Event(), threading.Event()
    for user in ("ann", "bob", "eve"):
        assert engine.add(Event(user, "item-1", 0)).result(60).new
    right = SequenceModel.scores_of

    def wrong(model: SequenceModel, hidden: torch.Tensor, recent: Any) -> torch.Tensor:
        if (hidden == engine.states.reached([engine.states._users["eve"]])[0]).all(1).any():
            raise RuntimeError("no")
        return right(model, hidden, recent)

    add = engine.events.add

    def held(events: Any) -> Any:
        started.set()
        assert gate.wait(60)
        return add(events)

    monkeypatch.setattr(engine.events, "add", held)
    first = engine.add(Event("first", "item-1", 0))
    assert started.wait(60)
    added = [engine.add(Event(user, "item-2", 0)) for user in ("ann", "\ud800", "bob")]
    gate.set()
    assert first.result(60).new
    assert [added[place].result(60).number for place in (0, 2)] == [1, 1]
    with pytest.raises(UnicodeEncodeError):
        added[1].result(60)

    assert engine.add(Event("eve", "item-3", 0)).result(60).new
    engine.recommend(Wanted("eve", 3)).result(60)
    monkeypatch.setattr(SequenceModel, "scores_of", wrong)
    started.clear()
    gate.clear()
    engine.call(lambda reader: (started.set(), gate.wait(60)))
    assert started.wait(60)
    found = [engine.recommend(Wanted(user, 3)) for user in ("ann", "eve", "bob")]
    gate.set()
    assert [len(found[place].result(60).recommendations) for place in (0, 2)] == [3, 3]
    with pytest.raises(RuntimeError, match="no"):
        found[1].result(60)


def test_a_user_of_whom_half_was_read_is_read_anew(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = recommender()
    engine = serve(reader).engine
    right = SequenceModel.step
    assert engine.add(Event("ann", "item-1", 0)).result(60).new
    engine.recommend(Wanted("ann", 3)).result(60)

    def wrong(self: SequenceModel, items: Any, state: Any, times: Any = None) -> Any:
        right(self, items, state, times)
        raise MemoryError("no")

    for item in ("item-2", "item-3"):
        engine.add(Event("ann", item, 0)).result(60)
    with monkeypatch.context() as broken:
        broken.setattr(SequenceModel, "step", wrong)
        with pytest.raises(MemoryError):
            engine.recommend(Wanted("ann", 3)).result(60)
    found = engine.recommend(Wanted("ann", 4)).result(60).recommendations
    assert [(one.item, one.score) for one in found] == wanted(reader, ["item-1", "item-2", "item-3"])


def test_names_are_in_every_answer_and_searched(tmp_path: Path) -> None:
    reader = recommender()
    names = {"item-1": "One", "item-2": "TWO\nand more", "item-3": "two"}
    engine = Engine(reader, SqliteEvents(tmp_path / "events"), 10, names)
    with TestClient(make_app(engine, body_bytes=4096, rate=0.0)) as client:

        def search(text: str) -> list[Any]:
            items: list[Any] = client.get("/items", params={"search": text, "k": 3}).json()["items"]
            return items

        assert search("two") == [{"item": "item-2", "name": names["item-2"]}, {"item": "item-3", "name": "two"}]
        assert search("item-39") == [{"item": "item-39", "name": None}] and search("e\n") == search("none") == []
        client.post("/events", json={"user": "ann", "item": "item-1"})
        found = client.get("/recommend", params={"user": "ann", "k": 39}).json()["recommendations"]
        (answer,) = client.post("/recommend", json={"histories": [["item-1"]], "k": 39}).json()["answers"]
        for shown in (found, answer["recommendations"]):
            assert {one["item"]: one["name"] for one in shown} == {i: names.get(i) for i in ITEMS if i != "item-1"}
        engine.use(reader, {"item-1": "Uno"}).result(60)
        assert search("uno") == [{"item": "item-1", "name": "Uno"}] and search("two") == []


def test_what_waits_when_it_closes_is_answered_and_nothing_after(serve: Callable[..., Any]) -> None:
    client, gate = serve(), threading.Event()
    engine = client.engine
    engine.call(lambda reader: gate.wait(60))
    waiting = [engine.recommend(Wanted("ann", 3)) for _ in range(300)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.set()
    closing.join(60)
    assert all(one.result(0).events == 0 for one in waiting)
    for late in (
        client.post("/events", json={"user": "ann", "item": "item-1"}),
        client.get("/recommend", params={"user": "ann"}),
    ):
        assert (late.status_code, late.json()) == (503, {"detail": "the service is stopping"})
        assert late.headers["Retry-After"] == "1"
    assert client.get("/healthz").status_code == client.head("/healthz").status_code == 503


def test_clocks_that_go_backwards(serve: Callable[..., Any]) -> None:
    """An event that claims to be earlier than the one before it gets that one's time in the model."""
    reader = recommender("hytrec")
    client, times = serve(reader), [500, 900, 100, 901]
    for item, time in zip(ITEMS, times, strict=False):
        assert client.post("/events", json={"user": "ann", "item": item, "time": time}).status_code == 201
        answer(client, "ann")
    found = reader.recommend([ITEMS[:4]], 4, timestamps=[[500, 900, 900, 901]])[0]
    assert answer(client, "ann") == [(one.item, pytest.approx(one.score, abs=1e-4)) for one in found]


def test_many_users_have_rows_of_their_own(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more users than the table starts with and more than are kept, so that some are forgotten and read
    again. The table is copied when it grows, which happens at most three times."""
    reader, tables, init_state = recommender(), list[int](), SequenceModel.init_state
    engine = serve(reader, users=300).engine

    def counted(self: SequenceModel, users: int, **options: Any) -> Any:
        tables.append(users)
        return init_state(self, users, **options)

    monkeypatch.setattr(SequenceModel, "init_state", counted)
    rng = np.random.default_rng(0)
    histories: dict[str, list[str]] = {f"user-{i}": [] for i in range(700)}
    for _ in range(3):
        events = []
        for user, history in histories.items():
            history.append(ITEMS[rng.integers(40)])
            events.append(engine.add(Event(user, history[-1], 0)))
        assert all(event.result(60).new for event in events)
        asked = {user: engine.recommend(Wanted(user, 3)) for user in rng.permutation(list(histories))[:500]}
        expected = reader.recommend([histories[user] for user in asked], 3)
        for future, want in zip(asked.values(), expected, strict=True):
            found = future.result(60).recommendations
            assert [(one.item, one.score) for one in found] == [
                (o.item, pytest.approx(o.score, abs=1e-4)) for o in want
            ]
        assert len(engine.states) <= 300
    for user in histories:  # one at a time, each replacing another
        engine.recommend(Wanted(user, 3)).result(60)
    assert len(tables) <= 3 and tables[-1] <= 556


def test_a_new_model_takes_over(serve: Callable[..., Any]) -> None:
    """Requests continue meanwhile, and each is answered by either the old model or the new one."""
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
        "items": [{"item": "item-1"}, {"item": "item-10"}, {"item": "item-11"}]
    }
