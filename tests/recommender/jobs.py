"""Runs commands of this package in several processes, which find each other as torchrun's processes do."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from generated import make_store

from hyenarec import plots  # noqa: F401  so that forked processes have it
from hyenarec.cli import main
from hyenarec.data.batches import TrainingSlices
from hyenarec.data.splits import leave_one_out
from hyenarec.display import console

STORE = make_store(n_users=400)  # enough users for two evaluation batches
LOSS_TOLERANCE = 1e-5  # relative: processes add the same numbers in another order
OPTIONS = ("--dim", "8", "--blocks", "1", "--max-length", "8", "--device", "cpu", "--warmup-steps", "4")


def ragged() -> int:
    """A batch size for which the last batch has only one or two slices, so that one of three processes gets none."""
    slices = len(TrainingSlices(STORE, leave_one_out(STORE), 8, 1))
    return next(size for size in range(60, 200) if slices % size in (1, 2))


class Command:
    """A command in several processes, which find each other as torchrun's processes do.

    They are forked, because imports would take most of the time of a short training. They must not use polars, which
    locks up after a fork.
    """

    def __init__(self, processes: int, out: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [out.parent / f"{out.name}-{rank}.txt" for rank in range(processes)]
        fork = multiprocessing.get_context("fork")
        self.workers = [
            fork.Process(target=self._work, args=(rank, processes, port, [*arguments])) for rank in range(processes)
        ]
        for worker in self.workers:
            worker.start()

    def _work(self, rank: int, processes: int, port: int, arguments: list[str]) -> None:
        with self.logs[rank].open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            monkeypatch = pytest.MonkeyPatch()
            monkeypatch.setattr(console, "_file", sys.stdout)
            torch.set_num_threads(1)
            if processes > 1:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in (where | numbers).items()})
            main(arguments)

    def wait(self, seconds: float = 150) -> list[int | None]:
        """Waits for all processes, kills those that still run after ``seconds``, and returns the exit codes."""
        end = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, end - time.monotonic()))
        codes = [worker.exitcode for worker in self.workers]
        for worker in self.workers:
            worker.kill()
        return codes

    def said(self, rank: int = 0) -> str:
        return self.logs[rank].read_text()


class Job(Command):
    """``hyenarec train`` in several processes."""

    def __init__(self, processes: int, store: Path, out: Path, *options: str) -> None:
        arguments = ("train", str(store), "--out", str(out), "--batch-size", str(ragged()), *OPTIONS, *options)
        super().__init__(processes, out, *arguments)


def run(processes: int, store: Path, out: Path, *options: str) -> Job:
    job = Job(processes, store, out, *options)
    assert job.wait() == [0] * processes, job.said()
    return job
