"""A stopped run continues where it stopped, to the same bits, and only on the same log."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE, interrupt_after_one_epoch, same, train, weights

from hyenarec import checkpoint
from hyenarec.data.ids import Ids
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.folder_lock import LOCK
from hyenarec.run_folder import LAST, Run, read_history
from hyenarec.stopping import Interrupted
from hyenarec.trained import BEST
from hyenarec.training import Trainer
from tests.interpreter import python, start

TESTS = str(Path(__file__).parent)


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from generated import make_store
from test_training import train
torch.set_num_threads(1)
train(Path({folder!r}), make_store(n_users=40), epochs=3, checkpoint_minutes={minutes})
"""


def test_killed_runs_resume_to_the_same_bits(tmp_path: Path) -> None:
    """The run is killed several times at random moments, in the middle of epochs and of saving."""
    killed, whole = (  # the whole run saves only at the ends of epochs
        KILLED.format(tests=TESTS, folder=str(tmp_path / name), minutes=minutes)
        for name, minutes in (("killed", 1e-9), ("whole", 5.0))
    )
    kills = 0
    for delay in (0.05, 0.2, 0.5):
        process = start("-c", killed, out=tmp_path)
        path = tmp_path / "killed" / LAST
        seen = path.stat().st_mtime_ns if path.exists() else 0
        while process.is_alive() and (not path.exists() or path.stat().st_mtime_ns == seen):
            time.sleep(0.01)
        time.sleep(delay)
        if process.is_alive():
            kills += 1
        process.kill()
        process.join()
    assert kills >= 2
    progress = checkpoint.load(tmp_path / "killed" / LAST)[1]["progress"]
    assert progress["step"] > 0
    for program in (killed, whole):
        done = python("-c", program)
        assert done.returncode == 0, done.stderr
    for name in (LAST, BEST):
        assert same(weights(tmp_path / "killed", name), weights(tmp_path / "whole", name))
    optimizers = [checkpoint.load(tmp_path / name / LAST)[0] for name in ("killed", "whole")]
    assert same(*optimizers)

    def losses(name: str) -> list[float]:
        return [row["loss"] for row in read_history(tmp_path / name)]

    assert losses("killed") == losses("whole")


def test_the_resume_check_catches_lost_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the optimiser's state is not restored, a resumed run ends elsewhere; so the check above can fail."""
    store = make_store()
    train(tmp_path / "whole", store)
    run = Run(tmp_path / "broken", store, leave_one_out(store), MODEL, CONFIG, SOURCE)
    monkeypatch.setattr(Trainer, "_end_epoch", interrupt_after_one_epoch(Trainer._end_epoch))
    with pytest.raises(KeyboardInterrupt):
        run.train()
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "restore_optimizer", lambda *_: None)
    train(tmp_path / "broken", store)
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def renamed_items(store: SequenceStore) -> SequenceStore:
    return replace(store, item_ids=Ids.from_values(range(500, 500 + store.n_items)))


def renamed_users(store: SequenceStore) -> SequenceStore:
    return replace(store, user_ids=Ids.from_values([f"person-{user:03}" for user in range(store.n_users)]))


def shifted_times(store: SequenceStore) -> SequenceStore:
    assert store.timestamps is not None
    return replace(store, timestamps=store.timestamps + 1)


def without_times(store: SequenceStore) -> SequenceStore:
    return replace(store, timestamps=None)


def moved_event(store: SequenceStore) -> SequenceStore:
    """Makes the last event of user 1, who has the most, the first of user 2. The log's events stay the same."""
    offsets = store.offsets.copy()
    offsets[2] -= 1
    return replace(store, offsets=offsets)


@pytest.mark.parametrize("change", [renamed_items, renamed_users, shifted_times, without_times, moved_event])
def test_another_log_is_refused(change: Any, tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1)
    with pytest.raises(UserError, match=r"holds a run with other options \(.*data\.fingerprint"):
        train(tmp_path, change(make_store()), epochs=1)


def test_the_same_log_in_another_form_is_not_another_log(tmp_path: Path) -> None:
    store = make_store()
    store.save(tmp_path / "store")
    assert SequenceStore.load(tmp_path / "store").fingerprint() == store.fingerprint()
    first = train(tmp_path / "run", store, epochs=1)
    elsewhere = replace(SOURCE, data="/elsewhere/log.store", user="customer")
    config = replace(CONFIG, epochs=1)
    run = Run(tmp_path / "run", SequenceStore.load(tmp_path / "store"), leave_one_out(store), MODEL, config, elsewhere)
    assert run.train()["test"] == first["test"]
    with pytest.raises(UserError, match=r"source\.split: leave-one-out there, temporal here"):
        Run(tmp_path / "run", store, leave_one_out(store), MODEL, config, replace(SOURCE, split="temporal"))


@pytest.mark.parametrize("first", [{"epochs": 1}, {"epochs": 3, "patience": 1, "learning_rate": 1e-12}])
def test_a_finished_run_can_be_given_more(first: dict[str, Any], tmp_path: Path) -> None:
    """With more epochs, patience and checkpoints, it ends as if it had had them from the start."""
    train(tmp_path / "run", make_store(), **first)
    more = first | {"epochs": 4, "patience": 50, "checkpoint_minutes": 1e-9}
    result = train(tmp_path / "run", make_store(), **more)
    whole = train(tmp_path / "whole", make_store(), **first | {"epochs": 4, "patience": 50})
    assert len(read_history(tmp_path / "run")) == 4
    assert result["test"] == whole["test"] and result["best_epoch"] == whole["best_epoch"]
    for name in (LAST, BEST):
        assert same(weights(tmp_path / "run", name), weights(tmp_path / "whole", name))
    again = train(tmp_path / "run", make_store(), **first)  # fewer than it has: nothing is lost
    assert again["test"] == whole["test"] and len(read_history(tmp_path / "run")) == 4


def test_a_run_cut_short_before_any_evaluation_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_end_epoch", interrupt_after_one_epoch(Trainer._end_epoch))
        train(tmp_path, make_store(), epochs=10, evaluate_every=5)
    result = train(tmp_path, make_store(), epochs=1, evaluate_every=5)
    assert result["epochs"] == result["best_epoch"] == 2


def test_a_cosine_schedule_keeps_its_epochs(tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1, schedule="cosine")
    with pytest.raises(UserError, match=r"training\.epochs: 1 there, 2 here \(a cosine schedule is laid out over its"):
        train(tmp_path, make_store(), epochs=2, schedule="cosine")


def test_equal_runs_have_equal_bytes(tmp_path: Path) -> None:
    """Everything is equal except the seconds."""
    results = [train(tmp_path / name, make_store(), epochs=2) for name in ("a", "b")]
    for name in (LAST, BEST, "config.json", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    for result in results:
        assert result.pop("seconds_per_epoch") > 0
    assert json.dumps(results[0]) == json.dumps(results[1])


STOPPED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from hyenarec.stopping import Interrupted
from generated import make_store

from tests.interpreter import start
from test_training import train
try:
    train(Path({folder!r}), make_store(n_users=150), epochs=500, patience=500)
except Interrupted as stop:
    print(stop, flush=True)
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_has_saved_its_last_step(number: int, code: int, tmp_path: Path) -> None:
    """A signal makes the run save, long before a checkpoint is due: after every epoch and every five minutes."""
    process = start("-c", STOPPED.format(tests=TESTS, folder=str(tmp_path)), out=tmp_path)
    while process.is_alive() and not (tmp_path / LAST).exists():
        time.sleep(0.01)
    time.sleep(0.3)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    output = (tmp_path / "1").read_text()
    assert process.exitcode == code
    progress = checkpoint.load(tmp_path / LAST)[1]["progress"]
    place = f"epoch {progress['epoch'] + 1}, step {progress['step']}"
    assert output.splitlines()[-1] == f"interrupted in {place}; saved: the same command goes on from there"


@pytest.mark.parametrize("where", ["step", "validate"])
def test_a_signal_at_any_moment_loses_no_step(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in a step or in an evaluation loses nothing: the run continues to the same bits."""
    train(tmp_path / "whole", make_store())
    calls = []

    def interrupting(method: Any) -> Any:
        def call(self: Trainer, *arguments: Any) -> Any:
            calls.append(self.progress.step)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return method(self, *arguments)

        return call

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="saved") as stopped:
        patch.setattr(Trainer, where, interrupting(getattr(Trainer, where)))
        train(tmp_path / "run", make_store())
    assert stopped.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    progress = checkpoint.load(tmp_path / "run" / LAST)[1]["progress"]
    assert (
        progress["step"] == (calls[-1] + 1 if where == "step" else calls[-1]) and not (tmp_path / "run" / LOCK).exists()
    )
    train(tmp_path / "run", make_store())
    for name in (LAST, BEST):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_in_another_thread_gets_no_signals(tmp_path: Path) -> None:
    from threading import Thread

    done: list[dict[str, Any]] = []
    thread = Thread(target=lambda: done.append(train(tmp_path, make_store(), epochs=1)))
    thread.start()
    thread.join()
    assert done[0]["epochs"] == 1


def test_interrupted_rebuild_leaves_last_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path, make_store(), epochs=9, learning_rate=0.05)
    (tmp_path / BEST).unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_next_epoch", interrupt_after_one_epoch(Trainer._next_epoch))
        train(tmp_path, make_store(), epochs=9, learning_rate=0.05)
    assert checkpoint.load(tmp_path / LAST)[1]["progress"]["epoch"] == first["epochs"]
    assert train(tmp_path, make_store(), epochs=9, learning_rate=0.05)["test"] == first["test"]
    assert np.isfinite(first["test"]["MRR"])


@pytest.mark.parametrize("best_is_last", [False, True])
def test_a_lost_best_is_made_again(best_is_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path, make_store(), epochs=2 if best_is_last else 9, learning_rate=0.05)
    assert (first["best_epoch"] == first["epochs"]) == best_is_last
    best = (tmp_path / BEST).read_bytes()
    (tmp_path / BEST).unlink()
    if best_is_last:
        monkeypatch.setattr(Trainer, "train_only", None)  # nothing may be trained again
    again = train(tmp_path, make_store(), epochs=first["epochs"], learning_rate=0.05)
    assert again["test"] == first["test"]
    assert (tmp_path / BEST).read_bytes() == best
