"""``hyenarec serve``: events in, recommendations out, over HTTP."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hyenarec.cli.options import NewItems, RunPath, names_of
from hyenarec.display import complain, console
from hyenarec.errors import UserError

if TYPE_CHECKING:  # --help needs no torch
    from collections.abc import Mapping

    import torch

    from hyenarec.answers import Item
    from hyenarec.recommendation import Recommender
    from hyenarec.serving.engine import Engine

LOOK_AGAIN = 2.0  # seconds between looks for a new model
DRAIN = 20  # seconds left to answer requests once the service is told to stop


@dataclass(frozen=True)
class Serve:
    """Keep users' events and recommend over HTTP: POST /events, GET and POST /recommend, /docs for the rest.

    When the run's folder gets a new best model, the service switches to it while it goes on answering.
    """

    run_path: RunPath
    """Run folder or checkpoint file."""
    events: str | None = None
    """Where to keep the users' events: a file (SQLite), or the URL of a Redis server that several processes share, such
    as redis://host:6379/0; default: events.sqlite in the run's folder."""
    names: Path | None = None
    """Table of the items' names (columns item_id, id or item, and name or title), which are shown beside ids and can be
    searched."""
    new_items: Annotated[NewItems, tyro.conf.arg(name="")] = field(default_factory=NewItems)
    host: str = "127.0.0.1"
    """Address to listen on. The service asks for no password: let a proxy or a firewall control who may reach it."""
    port: int = 8000
    """Port to listen on; 0 for any."""
    states: int = 100_000
    """Number of users whose states are kept in memory; those of others are computed again from their events."""
    body_kib: int = 1024
    """Largest body of a request, in KiB."""
    rate: float = 0.0
    """Most requests per second from one client address; 0 for no limit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def run(self) -> None:
        for name in ("port", "states", "body_kib", "rate"):
            if not getattr(self, name) >= (0 if name in ("port", "rate") else 1):
                raise UserError(f"option {name}: {getattr(self, name)} is too small")
        try:
            import uvicorn

            from hyenarec.serving.app import make_app
        except ModuleNotFoundError as error:
            raise UserError(f"serve needs {error.name}: pip install 'hyenarec[serve]'") from error
        from hyenarec.config import TrainingConfig
        from hyenarec.serving.engine import Engine
        from hyenarec.serving.event_stores import open_events

        device = TrainingConfig(device=self.device).torch_device()
        recommender, names = load(self.run_path, device, self.names, self.new_items)
        folder = self.run_path if self.run_path.is_dir() else self.run_path.parent
        listening = listen(self.host, self.port)
        events = open_events(self.events or str(folder / "events.sqlite"))
        engine = Engine(recommender, events, self.states, names)
        stopping = threading.Event()
        watched = self.run_path, engine, stopping, self.names, self.new_items
        watcher = threading.Thread(target=watch, args=watched, daemon=True)
        watcher.start()
        console.print(f"listening on {url(listening)} (documentation: /docs, page: /, metrics: /metrics)")
        app = make_app(engine, body_bytes=1024 * self.body_kib, rate=self.rate)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN)
        uvicorn.Server(config).run(sockets=[listening])
        stopping.set()


def load(
    run_path: Path, device: torch.device, names: Path | None, new_items: NewItems
) -> tuple[Recommender, Mapping[Item, str] | None]:
    """A model that can be served, with new items if there are some, and its items' names. Raises :class:`UserError` if
    they cannot be read, or if the model has no streaming state."""
    from hyenarec.recommendation import Recommender

    recommender = new_items.join(Recommender.load(run_path, device))
    recommender.model.init_state(0)
    _ = recommender.time_unit
    return recommender, names_of(recommender, names)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address. Raises :class:`UserError` if it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"option host, port: cannot listen on {host} port {port}: {error}") from error
    # Connections inherit this option. Without it the body of an answer, which is sent after the headers, would wait 40
    # ms for the headers to be acknowledged. asyncio sets it too, but not on sockets that do not name their protocol,
    # such as this one.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url(listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def watch(run_path: Path, engine: Engine, stopping: threading.Event, names: Path | None, new_items: NewItems) -> None:
    """Hands each new model of the run to the engine. If one cannot be read, the old one stays in use."""
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
            engine.use(*load(run_path, engine.recommender.device, names, new_items)).result()
        except Exception as error:  # whatever is wrong with it, the next one may be right
            complain(f"the new model is not taken over: {error}")
        else:
            console.print(f"a new model of {path} is in use")
