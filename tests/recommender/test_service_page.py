"""The service's web page, as a person uses it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvicorn
from browser import Browser, program
from test_session import CONFIG

from hyenarec.cli.serve import listen, url
from hyenarec.config import ModelConfig
from hyenarec.data.ids import Ids
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.serving.app import make_app
from hyenarec.serving.engine import Engine
from hyenarec.serving.sqlite_events import SqliteEvents

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
NAMES = {"item-7": f"Seven {HOSTILE}"}
ITEMS = [*(f"item-{number}" for number in range(40)), HOSTILE]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    torch.manual_seed(0)
    ids = Ids.from_values(ITEMS)
    model = SequenceModel(ModelConfig(mixer="hyena", dim=8, max_length=12), len(ITEMS))
    engine = Engine(
        Recommender(model, ids, ids, CONFIG, torch.device("cpu")), SqliteEvents(tmp_path / "events"), 10, NAMES
    )
    server = uvicorn.Server(uvicorn.Config(make_app(engine, body_bytes=4096, rate=0.0), log_level="warning"))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield url(listening)
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if program() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    opened = Browser(tmp_path / "browser")
    yield opened
    opened.close()


def test_search_click_and_watch_the_list_change(address: str, browser: Browser) -> None:
    browser.open(address)
    browser.wait("document.querySelectorAll('#items li').length === 20")
    browser.click("#search")
    browser.type("ITEM-3")
    browser.wait("document.querySelectorAll('#items li').length === 11")
    assert browser.texts("#items button") == sorted(item for item in ITEMS if "item-3" in item)

    shown = ""
    for number in range(3):
        browser.click(f"#items li:nth-child({number + 1}) button")
        browser.wait(f"document.querySelectorAll('#clicked li').length === {number + 1}")
        browser.wait(f"document.getElementById('recommended').innerText !== {json.dumps(shown)}")
        shown = browser.evaluate("document.getElementById('recommended').innerText")
        assert len(browser.texts("#recommended li")) == 10
        assert not set(browser.texts("#clicked li")) & set(browser.texts("#recommended button"))
    before = browser.texts("#recommended button")
    browser.click("#recommended li button")
    browser.wait("document.querySelectorAll('#clicked li').length === 4")
    assert browser.texts("#clicked li")[-1] == before[0]
    browser.wait(f"document.querySelector('#recommended button').innerText !== {before[0]!r}")
    assert browser.texts("#status") == [""] and browser.complaints == []


def test_ids_are_text_and_errors_are_shown(address: str, browser: Browser) -> None:
    browser.open(address)
    browser.click("#search")
    browser.type("<IMG")
    browser.wait("document.querySelectorAll('#items li').length === 2")
    browser.click("#items button")
    browser.wait("document.querySelectorAll('#recommended li').length === 10")
    assert browser.texts("#items li") == [HOSTILE, NAMES["item-7"]]
    browser.click("#items li:nth-child(2) button")
    browser.wait("document.querySelectorAll('#clicked li').length === 2")
    assert browser.texts("#clicked li") == [HOSTILE, NAMES["item-7"]]
    assert browser.evaluate("document.title") == "HyenaRec" and browser.evaluate("document.images.length") == 0
    browser.evaluate("document.getElementById('user').value = 'x'.repeat(257)")
    browser.click("#items button")
    browser.wait("document.getElementById('status').innerText.startsWith('user: String should have at most 256')")
    assert len(browser.texts("#clicked li")) == 2
