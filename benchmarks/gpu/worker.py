"""Measuring in a process of its own: what breaks a GPU's context, or never ends, costs one row and not the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu.clocks import Clock

SPAWN = get_context("spawn")
STARTING = 120.0  # seconds that importing torch may take
CLOCK = Clock()
Row = dict[str, Any]
Measure = Callable[..., Row]


def measured(measure: Measure, shape: Row, seconds: float) -> Row:
    """A row: its shape, and its figures or why it was left out."""
    try:
        torch.cuda.empty_cache()
        return shape | measure(**shape, clock=CLOCK, seconds=seconds)
    except Exception as error:
        print(f"{measure.__name__} {shape}: {error!r}", file=sys.stderr)
        return shape | {"left_out": (str(error).splitlines() or [repr(error)])[0][:200]}


class Worker:
    """A process with the GPU, replaced by a new one after a row that it did not survive."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def __call__(self, measure: Measure, shape: Row, seconds: float, limit: float) -> Row:
        """As `measured`, within `limit` seconds; `measure` is a function of a module."""
        began = time.perf_counter()
        try:
            if not self.ready and not self.connection.poll(STARTING):
                raise TimeoutError(f"the process did not start within {STARTING:.0f} s")
            self.ready = self.ready or self.connection.recv()
            self.connection.send((measure, shape, seconds))
            if not self.connection.poll(limit):
                raise TimeoutError(f"not done after {limit:.0f} s")
            row: Row
            row, sound = self.connection.recv()
        except (EOFError, OSError) as error:  # TimeoutError is one
            self.close()
            reason = str(error) if isinstance(error, TimeoutError) else f"the process died ({self.process.exitcode})"
            row, sound = shape | {"left_out": reason}, False
        if not sound:
            self.close()
            self._start()
        print(f"{time.perf_counter() - began:6.1f} s  {measure.__name__} {shape}", file=sys.stderr, flush=True)
        return row

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(connection: Connection) -> None:
    torch.manual_seed(0)
    connection.send(True)
    while True:
        row = measured(*connection.recv())
        try:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except Exception:  # an illegal address, say: nothing runs here any more
            connection.send((row, False))
            return
        connection.send((row, True))
