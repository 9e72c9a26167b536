"""Measures in a process of its own: what breaks a GPU's context, or never ends, costs one row and not the others."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu.clocks import Clock, first_line

SPAWN = get_context("spawn")
STARTING = 120.0  # seconds that importing torch may take
CLOCK = Clock()
Row = dict[str, Any]
# Takes what identifies a row, a clock and seconds; yields the row's figures, a few at a time.
Measure = Callable[..., Iterator[Row]]


def nothing() -> None:
    """What a process does before its first row: nothing where there is a GPU."""


def measured(measure: Measure, name: Row, seconds: float) -> Iterator[Row]:
    """A row as it grows: its name, its figures so far, and at the end, if it fails, why it has no more."""
    row = dict(name)
    try:
        torch.cuda.empty_cache()
        for figures in measure(**name, clock=CLOCK, seconds=seconds):
            row |= figures
            yield row
    except Exception as error:
        yield row | {"left_out": first_line(error), "traceback": traceback.format_exc(limit=-3)[:2000]}


class Worker:
    """A process that uses the GPU. It is replaced by a new one after a row that it did not survive."""

    def __init__(self, prepare: Callable[[], None] = nothing) -> None:
        self.prepare = prepare
        self._start()

    def _start(self) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs, self.prepare), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def __call__(self, measure: Measure, name: Row, seconds: float, limit: float) -> Row:
        """The row that `measured` ends with, or the figures that it has after ``limit`` seconds. ``measure`` has to be
        a function of a module. ``took`` has the seconds that passed, and the processor seconds."""
        began = time.perf_counter()
        row, sound, processors = dict(name), False, None
        try:
            if not self.ready and not self.connection.poll(STARTING):
                raise TimeoutError(f"the process did not start within {STARTING:.0f} s")
            self.ready = self.ready or self.connection.recv()
            self.connection.send((measure, name, seconds))
            deadline = time.perf_counter() + limit
            while True:
                if not self.connection.poll(max(deadline - time.perf_counter(), 0)):
                    raise TimeoutError(f"not done after {limit:.0f} s")
                message = self.connection.recv()
                if isinstance(message, tuple):
                    sound, processors = message
                    break
                row = message
        except (EOFError, OSError) as error:  # TimeoutError is one
            self.close()
            reason = str(error) if isinstance(error, TimeoutError) else f"the process died ({self.process.exitcode})"
            row["left_out"] = reason
        if not sound:
            self.close()
            self._start()
        row["took"] = {"seconds": time.perf_counter() - began, "processors": processors}
        return row

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def processor_seconds() -> float:
    """Processor seconds of this process and of those that it started and waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _serve(connection: Connection, prepare: Callable[[], None]) -> None:
    """Answers each order with the row, again as it grows, and then with a tuple: whether the process can go on, and
    processor seconds."""
    prepare()
    torch.manual_seed(0)
    before = 0.0  # the first row pays for the imports
    connection.send(True)
    while True:
        order = connection.recv()
        for row in measured(*order):
            connection.send(row)
        spent = processor_seconds()
        try:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except Exception:  # an illegal address, say: nothing runs here any more
            connection.send((False, spent - before))
            return
        connection.send((True, spent - before))
        before = spent
