"""The whole service over HTTP, while it is killed, stopped or given new models."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import RedisServer, Service

from hyenarec.serving.event_stores import open_events

CLIENTS = 4
ITEMS = range(100, 130)  # of the run's log


@pytest.fixture
def started(run: Path, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services on a copy of the run, ``tmp_path / "run"``."""
    services = []
    shutil.copytree(run, tmp_path / "run")

    def start(events: str | None = None, **options: Any) -> Service:
        services.append(Service(tmp_path / "run", events or str(tmp_path / "events.sqlite"), **options))
        return services[-1]

    yield start
    for service in services:
        service.kill()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


class Sender(threading.Thread):
    """A user who sends one event after the other, each until it is acknowledged, and sends some of them again."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.user, self.sent, self._url, self._stop_now = f"user-{number}", list[int](), url, stop
        self._chance = random.Random(number)

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop_now.is_set():
                self.sent.append(self._chance.choice(ITEMS))
                self._send(client, len(self.sent) - 1)
                if self._chance.random() < 0.1:
                    again = self._chance.randrange(len(self.sent))
                    assert self._send(client, again) == {"new": False, "number": again, "known": True}

    def _send(self, client: httpx.Client, number: int) -> Any:
        event = {"user": self.user, "item": self.sent[number], "id": f"{self.user}-{number}"}
        while True:
            try:
                answer = client.post("/events", json=event)
            except httpx.TransportError:  # the service was killed
                time.sleep(0.01)
                continue
            if answer.status_code != 503:  # 503: Redis was killed
                assert answer.status_code in (200, 201), answer.text
                return answer.json()


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_no_acknowledged_event_is_lost_or_counted_twice(
    started: Callable[..., Service], tmp_path: Path, request: pytest.FixtureRequest, store: str, kills: int
) -> None:
    """The service, and in turn with it Redis, is killed with SIGKILL at random moments under load. Events that were not
    acknowledged are sent again, and so are some that were."""
    server = request.getfixturevalue("redis") if store == "redis" else None
    where = server.url if server else str(tmp_path / "events.sqlite")
    service, stop, chance = started(where), threading.Event(), random.Random(kills)
    senders = [Sender(service.url, number, stop) for number in range(CLIENTS)]
    for sender in senders:
        sender.start()
    try:
        for number in range(kills):
            time.sleep(0.3 * chance.random())
            victim = server if server and number % 2 else service
            victim.kill()
            victim.start()
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    for sender in senders:
        answer = httpx.get(f"{service.url}/recommend", params={"user": sender.user, "k": 3})
        assert answer.json()["events"] == len(sender.sent)
    service.kill()
    events = open_events(where)
    assert [items for items, _ in events.since([(sender.user, 0) for sender in senders])] == [s.sent for s in senders]
    events.close()
    assert sum(len(sender.sent) for sender in senders) > 2 * kills


def test_new_models_under_load(started: Callable[..., Service], tmp_path: Path) -> None:
    """Every request is answered while three new models take over."""
    service, stop = started(LOOK_AGAIN=0.05), threading.Event()
    best = tmp_path / "run/best.safetensors"

    def use(number: int) -> int:
        with httpx.Client(base_url=service.url, timeout=30) as client:
            for place in range(1_000_000):
                user = f"user-{number}-{place % 7}"
                client.post("/events", json={"user": user, "item": 100 + place % 30}).raise_for_status()
                found = client.get("/recommend", params={"user": user, "k": 3}).raise_for_status().json()
                assert found["events"] == place // 7 + 1
                if stop.is_set():
                    return place
        return 0

    with ThreadPoolExecutor(CLIENTS) as pool:
        users = [pool.submit(use, number) for number in range(CLIENTS)]
        for number in range(1, 4):
            shutil.copy(best, best.with_name("new"))
            best.with_name("new").replace(best)
            wait_for(f'hyenarec_batch_count{{work="takeover"}} {number}.0', service)
        stop.set()
        assert all(user.result(60) > 0 for user in users)


def wait_for(line: str, service: Service) -> None:
    """Waits until the service's metrics contain ``line``."""
    deadline = time.monotonic() + 60
    while line not in httpx.get(f"{service.url}/metrics").text.splitlines():
        assert time.monotonic() < deadline, f"never seen: {line}"
        time.sleep(0.02)


def test_what_is_under_way_is_answered_when_it_stops(started: Callable[..., Service]) -> None:
    service = started(slow=1.0)
    request = b"GET /recommend?user=ann HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port))) for _ in range(8)]
        for client in clients:
            client.sendall(request)
        for _ in range(2):  # answered after the service has read the requests above
            assert httpx.get(f"{service.url}/healthz").status_code == 200
        service.process.terminate()
        for client in clients:
            answer = b"".join(iter(lambda client=client: client.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"recommendations":[],"events":0}'), answer
    service.process.join(60)
    assert service.process.exitcode in (0, -signal.SIGTERM)


def test_a_client_that_never_ends_its_request_holds_nobody_up(started: Callable[..., Service]) -> None:
    service = started(DRAIN=1)
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        service.process.terminate()
        service.process.join(30)
    assert service.process.exitcode in (0, -signal.SIGTERM)


def test_several_processes_share_users(started: Callable[..., Service], tmp_path: Path) -> None:
    """An event sent to one process is in the other's next answer, and an id counts once, whichever process gets it."""
    services = [started(), started()]
    for number in range(10):
        event = {"user": "ann", "item": 100 + number, "id": str(number)}
        answers = [httpx.post(f"{service.url}/events", json=event).json() for service in services]
        assert [(answer["new"], answer["number"]) for answer in answers] == [(True, number), (False, number)]
        services.reverse()
        found = [httpx.get(f"{s.url}/recommend", params={"user": "ann", "k": 5}).json() for s in services]
        assert found[0] == found[1] and found[0]["events"] == number + 1
