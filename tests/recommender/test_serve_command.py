"""``hyenarec serve`` as a person starts it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest


def test_the_command_serves_and_takes_a_new_model(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    command = [
        sys.executable,
        "-m",
        "hyenarec",
        "serve",
        str(folder),
        "--port",
        "0",
        "--names",
        str(tmp_path / "names.csv"),
    ]
    (tmp_path / "names.csv").write_text("item_id,name\n" + "".join(f"{i},item {i}\n" for i in range(100, 130)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[2]
            assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
            (found,) = httpx.get(f"{url}/items", params={"k": 1}).json()["items"]
            item = found["item"]
            assert found["name"] == f"item {item}"
            event = {"user": "ann", "item": item, "id": "first"}
            assert httpx.post(f"{url}/events", json=event).json() == {"new": True, "number": 0, "known": True}
            shutil.copy(folder / "best.safetensors", folder / "new")
            (folder / "new").replace(folder / "best.safetensors")
            assert "in use" in process.stdout.readline()
            found = httpx.get(f"{url}/recommend", params={"user": "ann", "k": 3}).json()
            assert found["events"] == 1 and len(found["recommendations"]) == 3
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (0, -signal.SIGTERM)
    assert (folder / "events.sqlite").exists()


def test_what_cannot_be_served_is_one_line(run: Path, fails: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in fails("serve", run, "--port", port)
    assert "option states: 0 is too small" in fails("serve", run, "--states", 0)
    assert "no such checkpoint" in fails("serve", run / "nothing")
    assert "nothing.csv" in fails("serve", run, "--names", run / "nothing.csv")


def test_a_model_that_cannot_be_read_is_not_taken_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from hyenarec.cli import serve
    from hyenarec.cli.options import NewItems
    from hyenarec.recommendation import Recommender
    from hyenarec.serving.engine import Engine
    from hyenarec.serving.sqlite_events import SqliteEvents

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    monkeypatch.setattr(serve, "LOOK_AGAIN", 0.01)
    engine, stopping = Engine(Recommender.load(folder), SqliteEvents(tmp_path / "events"), 10), threading.Event()
    before, watched = engine.recommender, (folder, engine, stopping, None, NewItems())
    watcher = threading.Thread(target=serve.watch, args=watched)
    watcher.start()
    time.sleep(0.1)
    (folder / "new").write_bytes(b"damaged")
    (folder / "new").replace(folder / "best.safetensors")
    said = ""
    for _ in range(500):
        said += capsys.readouterr().err
        if said:
            break
        time.sleep(0.01)
    stopping.set()
    watcher.join()
    assert said.startswith("the new model is not taken over: ") and engine.recommender is before
    engine.close()
