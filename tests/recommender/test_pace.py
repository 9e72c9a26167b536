"""What training says about its time, and about the loss that it chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from generated import TRAIN, make_store
from test_training import CONFIG, MODEL, train

from hyenarec import pace
from hyenarec.cli import main
from hyenarec.config import FULL_LOSS_ITEMS, TrainingConfig
from hyenarec.data.splits import leave_one_out
from hyenarec.pace import Pace, duration
from hyenarec.training import Trainer


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0254, "25 ms"), (0.0996, "0.1 s"), (1.14, "1.1 s"), (9.96, "10 s"), (45.2, "45 s"), (59.6, "1 min"),
        (720, "12 min"), (3599, "1 h"), (11_400, "3 h 10 min"), (2 * 86_400 + 4 * 3600, "2 days 4 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def paced(times: list[float], monkeypatch: pytest.MonkeyPatch, steps: int = 10_000) -> Pace:
    clock = iter(times)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    found = Pace(steps)
    for _ in times:
        found.step()
    return found


def test_the_first_step_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = paced([100.0, 101.0, 102.0, 103.0, 105.4], monkeypatch)
    assert found.seconds == pytest.approx(1.35)
    assert found.describe() == "about 3 h 45 min an epoch, 1.4 s a step"


def test_slow_steps_are_told_of_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paced([0.0, 1.0, 2.0, 3.0], monkeypatch).seconds is None
    assert paced([0.0, 1.0, 2.0, 3.0], monkeypatch).describe() == ""
    assert paced([0.0, 12.0], monkeypatch).seconds == 12.0


def test_a_long_epoch_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store()
    train(tmp_path / "short", store)
    assert "an epoch" not in capsys.readouterr().out
    monkeypatch.setattr("hyenarec.training.TOLD_FROM", 0.0)
    train(tmp_path / "long", store)
    said = [line for line in capsys.readouterr().out.splitlines() if " an epoch, " in line]
    assert len(said) == 1 and said[0].startswith("about ") and said[0].split(";")[0].endswith("s a step")


@pytest.mark.parametrize(("full", "says"), [(90.0, "; --loss sampled would take 11 s"), (1.0, "")])
def test_the_other_loss_is_named_where_it_helps(
    full: float, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the other loss only if that would save much: an epoch takes 100 s, the full loss takes ``full``
    of them, and the sampled loss would take 1 s."""
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, epochs=1))
    found = paced([0.0, 10.0, 20.0, 30.0, 40.0], monkeypatch, steps=10)
    monkeypatch.setattr(trainer, "_loss_seconds", lambda loss: full if loss == trainer._full_loss else 1.0)

    class Display:
        def line(self, text: str) -> None:
            print(text)

    trainer._tell_time(Display(), found)  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"about 2 min an epoch, 10 s a step{says}\n"


@pytest.mark.parametrize(
    ("items", "loss"), [(1, "full"), (FULL_LOSS_ITEMS, "full"), (FULL_LOSS_ITEMS + 1, "sampled"), (10**7, "sampled")]
)
def test_the_default_loss_is_chosen_by_the_catalogue(items: int, loss: str) -> None:
    assert TrainingConfig().for_items(items) == TrainingConfig(loss=loss)  # type: ignore[arg-type]
    for asked in (TrainingConfig(loss="full"), TrainingConfig(loss="sampled")):
        assert asked.for_items(items) is asked


@pytest.mark.parametrize(
    ("most", "options", "line"),
    [
        (30, [], "loss: full, over all 30 items, as there are no more than 30; --loss chooses otherwise"),
        (29, ["--negatives", "7"], "loss: sampled, --negatives 7 a step out of 30 items, as there are more than"),
        (29, ["--loss", "full"], None),
        (30, ["--loss", "sampled"], None),
    ],
)  # fmt: skip
def test_the_choice_is_said_in_one_line(
    most: int,
    options: list[str],
    line: str | None,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hyenarec.config.FULL_LOSS_ITEMS", most)
    monkeypatch.setattr("hyenarec.experiments.FULL_LOSS_ITEMS", most)
    main(["train", str(log), "--out", str(tmp_path / "run"), *TRAIN, *options])
    said = [text for text in capsys.readouterr().out.splitlines() if text.startswith("loss: ")]
    assert len(said) == (line is not None) and (line is None or said[0].startswith(line))
    kept = (tmp_path / "run" / "config.json").read_text()
    assert ('"loss": "sampled"' in kept) == ("sampled" in options or (most == 29 and "full" not in options))


def test_negatives_that_the_chosen_loss_has_no_use_for(log: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    line = fails("train", log, "--out", tmp_path / "run", "--negatives", "7")
    assert line == "option negatives: not used by loss full; only by loss sampled"
    assert not (tmp_path / "run").exists()
