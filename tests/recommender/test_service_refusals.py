"""What the service refuses: in one line that does not repeat the client's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyenarec.serving.limits import Rates


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
    assert client.post("/events", content=iter([b"{}"])).status_code == 411  # of unknown length
    for k in (0, 1001, "x"):
        assert client.get("/recommend", params={"user": "u", "k": k}).status_code == 422
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/../etc/passwd").status_code == 404


def test_odd_texts_are_texts(serve: Callable[..., Any]) -> None:
    client = serve()
    for user in ("a'; DROP TABLE events; --", "\0", "<script>", "😀", "../../x", "{{7*7}}"):
        assert client.post("/events", json={"user": user, "item": "item-1"}).status_code == 201
        assert client.get("/recommend", params={"user": user}).json()["events"] == 1
    assert client.get("/recommend?user=%ED%A0%80%FF").json()["events"] == 0


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"user": "\\ud800", "item": "item-1"}', "Invalid JSON: "),
        (b"{", "Invalid JSON: "),
        (b"", "Invalid JSON: "),
        (b"\xff\xfe", "Invalid JSON: "),
        (b"[" * 4000, "Invalid JSON: "),
        (b"[]", "Input should be an object"),
        (b'{"user": "ann", "item": NaN}', "item: Input should be a valid integer"),
        (b'{"user": "ann", "item": ' + b"9" * 3000 + b"}", "item: "),
        (b'{"user": "ann", "item": true}', "item: Input should be a valid integer; Input should be a valid string"),
        (b'{"user": "ann", "item": ""}', "item: "),
        (b'{"user": "ann", "item": 1, "time": 1e400}', "time: "),
        (b'{"user": "ann", "item": 1, "time": 99999999999999}', "time: 99999999999999 looks like a time in "),
        (b'{"user": "ann", "item": 1, "itme": 1}', "itme: Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_one_line(serve: Callable[..., Any], body: bytes, detail: str) -> None:
    client = serve()
    answer = client.post("/events", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"].startswith(detail), answer.text
    assert "\n" not in answer.json()["detail"] and len(answer.content) < 500
    assert client.get("/recommend", params={"user": "ann"}).json()["events"] == 0


def test_wrong_queries_are_one_line(serve: Callable[..., Any]) -> None:
    client = serve()
    for query, detail in {
        "": "user: Field required",
        "user=": "user: String should have at least 1 character",
        "user=a&user=b": "user: Input should be a valid string",
        "user=a&exlude=item-1": "exlude: Extra inputs are not permitted",
        "user=a&k=1001": "k: Input should be less than or equal to 1000",
        "user=a&exclude_seen=maybe": "exclude_seen: Input should be a valid boolean",
        "user=a" + 1001 * "&exclude=b": "exclude: List should have at most 1000 items",
    }.items():
        answer = client.get(f"/recommend?{query}")
        assert answer.status_code == 422 and answer.json()["detail"].startswith(detail), answer.text


def test_a_page_of_the_web_cannot_add_events(serve: Callable[..., Any]) -> None:
    """Browsers send forms and text to any address without first asking it for permission."""
    client, body = serve(), b'{"user": "ann", "item": "item-1"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/events", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 422 and "application/json" in answer.json()["detail"]
    answer = client.post("/events", content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert answer.json()["number"] == 0


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
