"""``python -m benchmarks``: it lists the suites, and hands each suite its own options."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.front_door import SUITES
from tests.interpreter import python


def test_lists_every_suite_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SUITES)
    assert all(len(line) <= 100 for line in lines)


def test_runs_one_with_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(tmp_path)])
    assert (tmp_path / "report.md").exists()
    assert "written to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sclaing"], "no benchmark suite is called 'sclaing': choose one of operator, quick, step, scaling, "),
        (["report", "nowhere"], "nowhere: no such folder of results"),
        (["scaling", "--mixers", "lstm"], "option mixers: name at least one out of hyena, attention, "),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert output.err.startswith(f"error: {line}") and output.err.count("\n") == 1


@pytest.mark.parametrize("suite", ["step", "scaling", "serving", "report", "ablation", "operator", "gpu", "rehearsal"])
def test_explains_itself(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([suite, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m benchmarks {suite}" in capsys.readouterr().out


def test_runs_as_a_module(tmp_path: Path) -> None:
    done = python("-m", "benchmarks", "report", tmp_path, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").exists()


def test_quick_times_every_operator(tmp_path: Path) -> None:
    arguments = ("-m", "benchmarks", "quick", "--benchmark-disable", "-p", "no:xdist")
    done = python(*arguments, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "12 passed" in done.stdout, done.stdout + done.stderr
