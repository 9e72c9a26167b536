"""A service in this process, and what it should answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from test_session import CONFIG, ITEMS

from hyenarec.config import ModelConfig
from hyenarec.data.ids import Ids
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.serving.app import make_app
from hyenarec.serving.engine import Engine
from hyenarec.serving.sqlite_events import SqliteEvents


def recommender(mixer: str = "hyena", seed: int = 0, length: int = 12) -> Recommender:
    torch.manual_seed(seed)
    config = ModelConfig(mixer=mixer, dim=8, max_length=length, repeats="on")
    model, ids = SequenceModel(config, len(ITEMS)), Ids.from_values(ITEMS)
    return Recommender(model, ids, ids, CONFIG, torch.device("cpu"))


@contextmanager
def services(folder: Path) -> Iterator[Callable[..., TestClient]]:
    """Starts services whose store is ``folder / "events.sqlite"``."""
    clients = []

    def start(reader: Recommender | None = None, *, users: int = 100, body_bytes: int = 4096, rate: float = 0.0) -> Any:
        engine = Engine(reader or recommender(), SqliteEvents(folder / "events.sqlite"), users)
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
