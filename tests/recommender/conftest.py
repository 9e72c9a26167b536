"""A log and a run on it, for tests of the commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generated import TRAIN, make_store, write_csv, write_items

from hyenarec.cli import main


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Skips fsync. Written data survives the killing of a process, which tests do, even without it; only a power
    failure would lose data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("log") / "log.csv", make_store())


@pytest.fixture(scope="module")
def run(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    main(["train", str(log), "--out", str(folder), *TRAIN])
    return folder


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of features for the log's items and for five others."""
    return write_items(tmp_path_factory.mktemp("items") / "items.parquet")


@pytest.fixture(scope="module")
def featured(log: Path, items: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the log with the features of ``items``."""
    folder = tmp_path_factory.mktemp("run") / "run"
    main(["train", str(log), "--out", str(folder), *TRAIN, "--item-features", str(items)])
    return folder


@pytest.fixture(scope="session")
def job_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that tests of commands in several processes train on."""
    from jobs import STORE  # imports what only these tests need

    path = tmp_path_factory.mktemp("log") / "store"
    STORE.save(path)
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with exit code 2 and a one-line error, and returns the line."""

    def check(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert stopped.value.code == 2
        assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
        assert output.out == ""
        return output.err[len("error: ") : -1]

    return check


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts a service whose store is ``tmp_path / "events.sqlite"``."""
    from service_client import services  # imports what only services need

    with services(tmp_path) as start:
        yield start
