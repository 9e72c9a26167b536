"""``hyenarec serve``: events in, recommendations out, over HTTP."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hyenarec.cli.options import RunPath
from hyenarec.display import complain, console
from hyenarec.errors import UserError

if TYPE_CHECKING:  # --help needs no torch
    from hyenarec.serving.engine import Engine

LOOK_AGAIN = 2.0  # seconds between looks for a new model


@dataclass(frozen=True)
class Serve:
    """Keep users' events and recommend over HTTP: POST /events, GET and POST /recommend, /docs for the rest.

    A new best model in the run's folder is taken over while requests go on.
    """

    run_path: RunPath
    """Run folder or checkpoint file."""
    events: Path | None = None
    """File that keeps the users' events (SQLite); default: events.sqlite in the run's folder."""
    host: str = "127.0.0.1"
    """Address to listen on. Who may reach it is for a proxy or a firewall to say: the service asks for no password."""
    port: int = 8000
    """Port to listen on; 0 for any."""
    states: int = 100_000
    """How many users' states are kept in memory; those of others are made anew from their events."""
    body_kib: int = 1024
    """Most KiB of a request's body."""
    rate: float = 0.0
    """Most requests a second of one client address; 0 for no limit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def run(self) -> None:
        for name in ("port", "states", "body_kib", "rate"):
            if getattr(self, name) < (0 if name in ("port", "rate") else 1):
                raise UserError(f"option {name}: {getattr(self, name)} is too small")
        try:
            import uvicorn

            from hyenarec.serving.app import make_app
        except ModuleNotFoundError as error:
            raise UserError(f"serve needs {error.name}: pip install 'hyenarec[serve]'") from error
        from hyenarec.config import TrainingConfig
        from hyenarec.recommendation import Recommender
        from hyenarec.serving.engine import Engine
        from hyenarec.serving.events import EventStore

        device = TrainingConfig(device=self.device).torch_device()
        recommender = Recommender.load(self.run_path, device)
        recommender.model.init_state(0)  # a model that keeps no states is refused here
        folder = self.run_path if self.run_path.is_dir() else self.run_path.parent
        listening = listen(self.host, self.port)
        engine = Engine(recommender, EventStore(self.events or folder / "events.sqlite"), self.states)
        stopping = threading.Event()
        watcher = threading.Thread(target=watch, args=(self.run_path, engine, stopping), daemon=True)
        watcher.start()
        address, port = listening.getsockname()[:2]
        console.print(f"listening on http://{address}:{port} (documentation: /docs, page: /, metrics: /metrics)")
        app = make_app(engine, body_bytes=1024 * self.body_kib, rate=self.rate)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
        stopping.set()


def listen(host: str, port: int) -> socket.socket:
    """A socket there. Raises :class:`UserError` where the address cannot be had."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"option host, port: cannot listen on {host} port {port}: {error}") from error


def watch(run_path: Path, engine: Engine, stopping: threading.Event) -> None:
    """Hands a new model of the run to the engine. One that cannot be read leaves the old one in place."""
    from hyenarec.recommendation import Recommender
    from hyenarec.trained import BEST

    path = run_path / BEST if run_path.is_dir() else run_path

    def stamp() -> tuple[int, int] | None:
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    known = stamp()
    while not stopping.wait(LOOK_AGAIN):
        now = stamp()
        if now is None or now == known:
            continue
        known = now
        try:
            recommender = Recommender.load(run_path, engine.recommender.device)
            recommender.model.init_state(0)
        except UserError as error:
            complain(f"the new model is not taken over: {error}")
            continue
        engine.use(recommender).result()
        console.print(f"a new model of {path} is in use")
