"""torchrun starts the command, and starts it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import OPTIONS
from test_several_processes import LOST
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hyenarec.cli import main
from hyenarec.run_folder import read_history
from hyenarec.trained import BEST
from hyenarec.training import Trainer


def launch(command: Callable[[list[str]], None], arguments: list[str], restarts: int = 0) -> None:
    """What torchrun does for two processes; it forks here, where the command below starts three interpreters."""
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    agent = LaunchConfig(1, 1, 2, **place, start_method="fork", max_restarts=restarts)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        elastic_launch(agent, command)(arguments)
    finally:  # the agent, whose process ends with it, leaves its own
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@pytest.mark.slow  # test_torchruns_agent_starts_it_again does, and goes on
def test_torchruns_agent_starts_it(job_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(job_store), "--out", str(tmp_path / "run"), "--epochs", "1", *OPTIONS]
    launch(main, arguments)
    assert capfd.readouterr().out.count("written to") == 1 and (tmp_path / "run" / BEST).exists()


def test_torchruns_agent_starts_it_again(job_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As ``--max-restarts 1`` has it: a process is killed, and the next attempt goes on by itself."""

    def attempt(arguments: list[str]) -> None:
        if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]) == ("0", "1"):
            Trainer._end_epoch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        main(arguments)

    arguments = ["train", str(job_store), "--out", str(tmp_path / "run"), "--epochs", "2", *OPTIONS]
    launch(attempt, arguments, restarts=1)
    said = capfd.readouterr()
    assert said.out.count("written to") == 1 and LOST in said.err
    assert len(read_history(tmp_path / "run")) == 2


@pytest.mark.slow
def test_torchrun_starts_it(job_store: Path, tmp_path: Path) -> None:
    train = ["-m", "hyenarec", "train", str(job_store), "--out", str(tmp_path / "run"), "--epochs", "1", *OPTIONS]
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *train]
    done = subprocess.run(
        program, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1 and (tmp_path / "run" / BEST).exists()
