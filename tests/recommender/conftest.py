"""A log and a run on it, for tests of the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from generated import TRAIN, make_store, write_csv

from hyenarec.cli import main


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("log") / "log.csv", make_store())


@pytest.fixture(scope="module")
def run(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    main(["train", str(log), "--out", str(folder), *TRAIN])
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with code 2 and one line; returns the line."""

    def check(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert stopped.value.code == 2
        assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
        assert output.out == ""
        return output.err[len("error: ") : -1]

    return check
