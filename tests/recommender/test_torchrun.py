"""torchrun starts the command, and restarts it after a failure."""

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
    """Does what torchrun does for two processes, but forks them; the real command would start three interpreters."""
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    agent = LaunchConfig(1, 1, 2, **place, start_method="fork", max_restarts=restarts)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        elastic_launch(agent, command)(arguments)
    finally:  # the agent leaves its handlers, since its process usually ends
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@pytest.mark.slow  # test_torchruns_agent_starts_it_again covers this and more
def test_torchruns_agent_starts_it(job_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(job_store), "--out", str(tmp_path / "run"), "--epochs", "1", *OPTIONS]
    launch(main, arguments)
    assert capfd.readouterr().out.count("written to") == 1 and (tmp_path / "run" / BEST).exists()


def test_torchruns_agent_starts_it_again(job_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With ``--max-restarts 1``, after one process is killed the next attempt continues by itself."""

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
