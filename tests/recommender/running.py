"""A service in a process of its own, and Redis servers, for tests that kill them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 60  # seconds


def serve(arguments: list[str], constants: dict[str, float], slow: float) -> None:
    """Runs ``hyenarec serve`` with constants of its module replaced, and ``slow`` more seconds for each batch."""
    from hyenarec.cli import main
    from hyenarec.cli import serve as command
    from hyenarec.serving.engine import Engine

    for name, value in constants.items():
        setattr(command, name, value)
    compute = Engine._compute

    def slowly(self: Engine, jobs: Any) -> None:
        time.sleep(slow)
        compute(self, jobs)

    if slow:
        Engine._compute = slowly  # type: ignore[method-assign]
    main(["serve", *arguments])


class Service:
    """``hyenarec serve`` on a port of its own, which stays the same over each :meth:`start`. Its process is forked from
    one that has imported everything, so that it starts in a fraction of a second."""

    def __init__(self, run: Path, events: str, *, slow: float = 0.0, **constants: float) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = [str(run), "--port", str(self.port), "--events", events, "--device", "cpu"]
        self._arguments = (arguments, constants, slow)
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["uvicorn", "hyenarec.cli", "hyenarec.serving.app", "redis"])
        self.start()

    def start(self) -> None:
        self.process = self._context.Process(target=serve, args=self._arguments, daemon=True)
        self.process.start()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            assert self.process.is_alive(), "the service ended as it started"
            time.sleep(0.02)
        raise AssertionError("the service does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class RedisServer:
    """A Redis server that logs every write before it answers, on a socket file in ``folder``."""

    def __init__(self, folder: Path, *options: str) -> None:
        pytest.importorskip("redis", reason="needs Redis's client: pip install redis")
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("needs redis-server: apt-get install redis-server")
        path = folder / "redis.sock"
        self.url = f"unix://{path}"
        self._command = [program, "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
        self._command += [*(options or ("--appendonly", "yes", "--appendfsync", "always"))]
        self._path = path
        self.start()

    def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self._path))
                client.sendall(b"PING\r\n")
                if client.recv(5) == b"+PONG":
                    return
            time.sleep(0.01)
        raise AssertionError("Redis does not answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
