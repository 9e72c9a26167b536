"""The search for options: what it tries, what an interruption costs, and what is said about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generated import TUNE, make_store
from test_training import CONFIG, MODEL

from hyenarec.cli import main
from hyenarec.config import HyenaConfig, ModelConfig
from hyenarec.errors import DivergedError, UserError
from hyenarec.trained import load_trained

pytest.importorskip("optuna", reason="the search needs optuna")

from sqlalchemy import Engine, event

from hyenarec.tuning import Options, Search, Space

Fails = Callable[..., str]
GRU = ModelConfig(mixer="gru")
SPACE = Space((25, 50), ("full", "sampled"))
DATA = {"data": "d"}


@pytest.fixture(autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Turns off synchronous writes: a trial writes ten times to its database, and a disk takes 0.1 s to confirm
    each."""

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


def value_of(options: Options) -> float:
    """The value of a made-up task in which almost only the learning rate matters; 1e-3 is best."""
    model, training = options
    return 1 / (1 + abs(training.learning_rate - 1e-3) * 1e3) - 1e-3 * model.dropout


def tried(folder: Path, trials: int, stop_at: int | None = None) -> list[Options]:
    """The options of a search's trials, with an interruption in trial ``stop_at`` if given."""
    seen: list[Options] = []

    def train(number: int, options: Options, place: Path) -> float:
        assert place == folder / f"trial-{number:03}"
        if number == stop_at:
            raise KeyboardInterrupt
        seen.append(options)
        return value_of(options)

    Search(folder, SPACE, (MODEL, CONFIG), DATA).run(trials, train)
    return seen


def test_a_search_that_was_stopped_tries_what_it_would_have_tried(tmp_path: Path) -> None:
    whole = tried(tmp_path / "whole", 9)
    for stop_at in (0, 3, 7):
        with pytest.raises(KeyboardInterrupt):
            tried(tmp_path / "run", 9, stop_at)
    assert tried(tmp_path / "run", 9) == whole[7:]
    assert tried(tmp_path / "run", 9) == []
    assert len(tried(tmp_path / "run", 10)) == 1  # one more
    assert len(set(map(repr, whole))) == 9


def test_options_stay_within_the_space_and_the_rest_stays(tmp_path: Path) -> None:
    for model, training in tried(tmp_path, 8):
        assert model.max_length in SPACE.lengths and 0 <= model.dropout <= 0.6
        assert 1e-4 <= training.learning_rate <= 1e-2 and 1e-3 <= training.weight_decay <= 1
        assert replace(model, max_length=8, dropout=MODEL.dropout) == MODEL
        own = ("learning_rate", "weight_decay", "loss")
        assert replace(training, **{name: getattr(CONFIG, name) for name in own}) == CONFIG


def test_the_best_is_found_and_what_mattered_is_named(tmp_path: Path) -> None:
    options = tried(tmp_path, 16)
    search = Search(tmp_path, SPACE, (MODEL, CONFIG), DATA)
    assert search.best() == max(options, key=value_of)
    shares = search.importances()
    assert next(iter(shares)) == "learning_rate" and shares["learning_rate"] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    few = Search(tmp_path / "few", SPACE, (MODEL, CONFIG), DATA)
    few.run(2, lambda number, options, place: float(number))
    assert few.importances() == {}


def test_a_training_that_diverges_is_worth_nothing_and_others_go_on(tmp_path: Path) -> None:
    search = Search(tmp_path, SPACE, (MODEL, CONFIG), DATA)

    def train(number: int, options: Options, place: Path) -> float:
        if number % 2 == 0:
            raise DivergedError("training diverged")
        return 0.1 * number

    search.run(4, train)
    assert [trial.value for trial in search.done] == [0, 0.1, 0, pytest.approx(0.3)]

    def broken(number: int, options: Options, place: Path) -> float:
        raise UserError("no space left")

    with pytest.raises(UserError, match="no space left"):
        search.run(5, broken)
    assert len(search.done) == 4


def test_the_space_follows_the_log() -> None:
    assert Space.of(make_store(longest=25), GRU) == Space((25,), ("full", "sampled"))
    assert Space.of(make_store(n_users=100, longest=300), GRU).lengths == (50, 100, 200, 400)
    assert Space.of(make_store(n_users=5, longest=5000), GRU).lengths == (200, 400, 800, 1600)
    assert Space.of(make_store(n_items=20_001), GRU).losses == ("sampled",)


def test_gates_are_searched_where_nobody_chose_them(tmp_path: Path) -> None:
    store = make_store(longest=25)
    space = Space.of(store, ModelConfig())
    assert space.gates == ("identity", "none")
    for chosen in (GRU, ModelConfig(hyena=HyenaConfig(gate="silu")), ModelConfig(embedding="decoupled")):
        assert Space.of(store, chosen).gates == ()
    search = Search(tmp_path, space, (ModelConfig(), CONFIG), DATA)
    found: list[str] = []

    def train(number: int, options: Options, place: Path) -> float:
        found.append(options[0].hyena.gate)
        return float(found[-1] == "none")

    search.run(8, train)
    assert set(found) == {"identity", "none"} and search.best()[0].hyena.gate == "none"


def test_another_search_and_other_files_are_refused(tmp_path: Path) -> None:
    tried(tmp_path, 1)
    for base, data, what in (
        ((MODEL, replace(CONFIG, epochs=9)), DATA, "training"),
        ((replace(MODEL, dim=16), CONFIG), DATA, "model"),
        ((MODEL, CONFIG), {"data": "e"}, "data"),
    ):
        with pytest.raises(UserError, match=rf"holds a search of other options or data \({what}\)"):
            Search(tmp_path, SPACE, base, data)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.sqlite").write_text("user_id,item_id\n" * 100)
    with pytest.raises(UserError, match=r"^option out: cannot keep a search in .*study\.sqlite: ") as caught:
        Search(tmp_path / "other", SPACE, (MODEL, CONFIG), DATA)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "other" / "study.sqlite").read_text().startswith("user_id,item_id")


# The command --------------------------------------------------------------------------------------


def test_the_command_searches_trains_with_the_best_and_goes_on(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is killed in its third trial. It keeps the first two, and continues in the folder of the third."""
    odd = tmp_path / "50% #1?"  # none of it may be read as part of the database's address
    command = ["tune", str(log), "--out", str(odd), *TUNE, "--trials", "5", "--metric", "MRR"]
    command += ["--no-exclude-seen", "--warmup-steps", "1"]  # otherwise all trials would be equal
    program = (
        "import os, signal; from hyenarec import experiments; from hyenarec.cli import main\n"
        "train = experiments.train\n"
        "def killed(*arguments, **features):\n"
        "    if 'trial-002' in str(arguments[5]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return train(*arguments, **features)\n"
        f"experiments.train = killed; main({command!r})"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == -signal.SIGKILL
    assert sorted(os.listdir(odd)) == ["study.sqlite", "trial-000", "trial-001"]
    before = (odd / "trial-001" / "result.json").stat().st_mtime_ns
    main(command)
    out = capsys.readouterr().out
    assert "2 trials were done before" in out and "trial 3 of 5" in out and "trial 2 of 5" not in out
    assert (odd / "trial-001" / "result.json").stat().st_mtime_ns == before
    for text in ("the best of 5 trials, by validation", "what mattered", "learning_rate", "training with the best"):
        assert text in out
    assert (odd / "importances.png").read_bytes().startswith(b"\x89PNG")
    results = [json.loads((odd / f"trial-{n:03}" / "result.json").read_text()) for n in range(5)]
    best = max(results, key=lambda result: result["validation"]["MRR"])
    final = load_trained(odd / "best").config
    assert final["model"] == best["model"] and final["training"] == best["training"] | {"epochs": 2}


def test_what_the_command_refuses(log: Path, tmp_path: Path, fails: Fails) -> None:
    assert fails("tune", log, "--out", tmp_path / "x", "--trials", "0") == "option trials: 0 is below 1"
    assert fails("tune", log, "--out", tmp_path / "x", "--trial-epochs", "0") == "option trial_epochs: 0 is below 1"
    assert not (tmp_path / "x").exists()
