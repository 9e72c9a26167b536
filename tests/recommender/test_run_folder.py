"""A run's folder: what it accepts, refuses, restores and leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE, interrupt_after_one_epoch, same, train, weights

from hyenarec import checkpoint, environment, run_folder
from hyenarec import trained as trained_module
from hyenarec.config import TrainingConfig
from hyenarec.data.ids import Ids
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, LOCK, Run, read_history
from hyenarec.trained import BEST, load_trained
from hyenarec.training import Interrupted, Trainer

TESTS = str(Path(__file__).parent)


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
    """The last event of user 1, who has the most, becomes the first of user 2: the events in a row stay the same."""
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
    """More epochs, patience and checkpoints: it ends as if it had had them from the start."""
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
    """All but the seconds."""
    results = [train(tmp_path / name, make_store(), epochs=2) for name in ("a", "b")]
    for name in (LAST, BEST, "config.json", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    for result in results:
        assert result.pop("seconds_per_epoch") > 0
    assert json.dumps(results[0]) == json.dumps(results[1])


@pytest.mark.parametrize("best_is_last", [False, True])
def test_a_lost_best_is_made_again(best_is_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path, make_store(), epochs=2 if best_is_last else 12, learning_rate=0.05)
    assert (first["best_epoch"] == first["epochs"]) == best_is_last
    best = (tmp_path / BEST).read_bytes()
    (tmp_path / BEST).unlink()
    if best_is_last:
        monkeypatch.setattr(Trainer, "train_only", None)  # nothing needs to be trained
    again = train(tmp_path, make_store(), epochs=first["epochs"], learning_rate=0.05)
    assert again["test"] == first["test"]
    assert (tmp_path / BEST).read_bytes() == best


def test_the_best_of_another_run_is_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / str(seed), make_store(), seed=seed)
    foreign = (tmp_path / "1" / BEST).read_bytes()
    (tmp_path / "0" / BEST).write_bytes(foreign)
    with pytest.raises(UserError, match=r"best\.safetensors belongs to another run \(training.seed: 1 there, 0 here\)"):
        train(tmp_path / "0", make_store())
    (tmp_path / "0" / LAST).unlink()
    with pytest.raises(UserError, match="belongs to another run"):
        train(tmp_path / "0", make_store())
    assert (tmp_path / "0" / BEST).read_bytes() == foreign


def test_the_best_of_another_epoch_is_refused(tmp_path: Path) -> None:
    """Of the same options, but not what the run's own progress calls its best."""
    result = train(tmp_path, make_store(), epochs=2)
    tensors, header = checkpoint.load(tmp_path / BEST)
    checkpoint.save(tmp_path / BEST, tensors, header | {"epoch": result["best_epoch"] + 1})
    with pytest.raises(UserError, match=rf"is of epoch {result['best_epoch'] + 1}, but the best of this run is epoch"):
        train(tmp_path, make_store(), epochs=2)


def test_a_damaged_best_says_what_to_do(tmp_path: Path) -> None:
    first = train(tmp_path, make_store(), epochs=2)
    (tmp_path / BEST).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"best\.safetensors: truncated or damaged .*; remove it, and the same command"):
        train(tmp_path, make_store(), epochs=2)
    (tmp_path / BEST).unlink()
    assert train(tmp_path, make_store(), epochs=2)["test"] == first["test"]


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_flipped_bit_of_the_weights_is_found(name: str, tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1)
    content = bytearray((tmp_path / name).read_bytes())
    content[-5] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: damaged checkpoint: its contents do not match its checksum"):
        train(tmp_path, make_store(), epochs=1)


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    for name in (".last.safetensors.4711.tmp", ".result.json.99999999.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_text("the user's own")
    train(tmp_path, make_store(), epochs=1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".notes.tmp"]


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        train(tmp_path, make_store(), epochs=1)
    finally:
        os.umask(previous)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


HOLD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from hyenarec.data.splits import leave_one_out
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE
from hyenarec.run_folder import Run
store = make_store()
run = Run(Path({folder!r}), store, leave_one_out(store), MODEL, CONFIG, SOURCE)
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    """Another is named and refused; one that was killed holds nothing."""
    program = [sys.executable, "-c", HOLD.format(tests=TESTS, folder=str(tmp_path))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} is training in it"):
            train(tmp_path, make_store(), epochs=1)
        holder.kill()
    assert (tmp_path / LOCK).exists()
    train(tmp_path, make_store(), epochs=1)
    assert not (tmp_path / LOCK).exists()


STOPPED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from hyenarec.training import Interrupted
from generated import make_store
from test_training import train
try:
    train(Path({folder!r}), make_store(n_users=150), epochs=500, patience=500)
except Interrupted as stop:
    print(stop, flush=True)
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_has_saved_its_last_step(number: int, code: int, tmp_path: Path) -> None:
    """Far from any checkpoint: one is due after every epoch and every five minutes."""
    program = [sys.executable, "-c", STOPPED.format(tests=TESTS, folder=str(tmp_path))]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / LAST).exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    progress = checkpoint.load(tmp_path / LAST)[1]["progress"]
    place = f"epoch {progress['epoch'] + 1}, step {progress['step']}"
    assert output.splitlines()[-1] == f"interrupted in {place}; saved: the same command goes on from there"


@pytest.mark.parametrize("where", ["step", "validate"])
def test_a_signal_at_any_moment_loses_no_step(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step and in an evaluation; what was saved goes on to the same bits."""
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


def test_saturated_metrics_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of eight items all are among the first ten: Recall@10 is 1 from the first epoch on, and MRR decides."""
    result = train(tmp_path, make_store(n_items=8), epochs=6)
    history = read_history(tmp_path)
    assert {row["validation"]["Recall@10"] for row in history} == {1.0}
    found = [row["validation"]["MRR"] for row in history]
    assert max(found) == found[result["best_epoch"] - 1] > found[0]
    line = (
        f"validation Recall@10 is 1.0000 in 6 epochs alike; of these epoch {result['best_epoch']} was kept for its MRR"
    )
    assert line in " ".join(capsys.readouterr().out.split())


def test_the_loss_decides_last_and_does_not_prolong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every metric is the same the epoch of the least loss is kept, and patience ends the run all the same."""
    monkeypatch.setattr("hyenarec.evaluation.Ranking.metrics", lambda self: {"Recall@10": 1.0, "MRR": 1.0})
    monkeypatch.setattr("hyenarec.evaluation.Ranking.by_history_length", lambda self: [])
    result = train(tmp_path, make_store(), epochs=50, patience=3)
    losses = [row["loss"] for row in read_history(tmp_path)]
    assert len(losses) == 4 and losses[result["best_epoch"] - 1] == min(losses) < losses[0]


def test_weights_that_are_no_numbers_are_no_result(tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1)
    tensors, header = checkpoint.load(tmp_path / BEST)
    tensors["model.bias"][3] = torch.nan
    checkpoint.save(tmp_path / BEST, tensors, header)
    with pytest.raises(UserError, match=r"best\.safetensors: bias holds NaN or infinity"):
        load_trained(tmp_path)


def hostile(header: dict[str, Any], options: dict[str, Any], part: str = "model") -> dict[str, Any]:
    config = dict(header["config"])
    config[part] = config[part] | options
    return header | {"config": config}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dim": 60_000},
            r"items.weight should be \(30, 60000\) by the checkpoint's own options and ids, but is \(30, 8",
        ),
        ({"blocks": 1000}, "1000 blocks by the checkpoint's own options, but it has 1"),
        ({"max_length": 10**9}, "option max_length: 1000000000 is above 1048576"),
        ({"mixer": "attention"}, "tensor '.*' (is missing|does not belong to such a model)"),
        ({"mixer": "lstm"}, "option mixer: 'lstm' is none of hyena"),
        ({"dim": "eight"}, "model: option dim cannot be 'eight'"),
        ({"dim": True}, "model: option dim cannot be True"),
        ({"dropout": None}, "model: option dropout cannot be None"),
        ({"width": 3}, "model: unknown option 'width'"),
        ({"hyena": 4}, "model.hyena: expected options by name, got 4"),
        ({"hyena": {"filter": "magic"}}, "model.hyena: option filter cannot be 'magic'"),
        ({"hyena": {"terms": 7}}, r"filters.0.weight is 8x16 float32, but the checkpoint's own options make it 8x7"),
    ],
    ids=str,
)
def test_foreign_options_are_one_line(options: dict[str, Any], message: str, trained: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(trained / BEST)
    checkpoint.save(tmp_path / BEST, tensors, hostile(header, options))
    with pytest.raises(UserError, match=message) as refused:
        load_trained(tmp_path)
    assert str(refused.value).count("\n") == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder, make_store(), epochs=1)
    return folder


@pytest.mark.parametrize("options", [{"dim": 60_000}, {"blocks": 1000}], ids=str)
def test_no_model_is_built_that_the_tensors_do_not_bear_out(
    options: dict[str, int], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, header = checkpoint.load(trained / BEST)
    checkpoint.save(tmp_path / BEST, tensors, hostile(header, options))
    built = []
    monkeypatch.setattr(trained_module, "SequenceModel", lambda *arguments: built.append(arguments))
    with pytest.raises(UserError, match="by the checkpoint's own options"):
        load_trained(tmp_path)
    assert not built


def test_foreign_headers_and_tensors_are_one_line(trained: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(trained / BEST)
    config = header["config"]
    without_model = {name: value for name, value in config.items() if name != "model"}
    changed = {name: tensor for name, tensor in tensors.items() if name != "item_ids.values"}
    half = tensors | {"model.bias": tensors["model.bias"].half()}
    for content, head, message in (
        (tensors, {}, "no configuration in this checkpoint"),
        (tensors, {"config": without_model}, "model: expected options by name, got None"),
        (tensors, hostile(header, {"epochs": "many"}, "training"), "training: option epochs cannot be 'many'"),
        (tensors, hostile(header, {"pages": 1}, "source"), "source: unknown option 'pages'"),
        (changed, header, "ids: expected values"),
        (half, header, "bias is 30 float16, but the checkpoint's own options make it 30 float32"),
    ):
        checkpoint.save(tmp_path / BEST, content, head)
        with pytest.raises(UserError, match=message):
            load_trained(tmp_path)


def test_a_foreign_last_is_one_line(trained: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(trained / LAST)
    name = next(name for name in tensors if name.startswith("optimizer.") and name.endswith("/exp_avg"))
    for content, head, message in (
        (tensors, header | {"progress": None}, "progress: expected options by name"),
        (tensors, header | {"progress": header["progress"] | {"step": "x"}}, "progress: option step cannot be 'x'"),
        (tensors, header | {"progress": header["progress"] | {"epoch": 9}}, "its progress does not fit its history"),
        (tensors, header | {"progress": header["progress"] | {"best": ["a", "b", "c"]}}, "does not fit its history"),
        (tensors, header | {"progress": header["progress"] | {"history": [{"epoch": 1}]}}, "does not fit its history"),
        (tensors | {"optimizer.x/step": torch.zeros(())}, header, "optimizer state 'x/step' does not belong"),
        (tensors | {name: torch.zeros(2)}, header, "has another shape than its parameter"),
    ):
        checkpoint.save(tmp_path / LAST, content, head)
        with pytest.raises(UserError, match=message):
            train(tmp_path, make_store(), epochs=1)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nope"])
def test_places_where_no_run_can_be(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"^option out: "):
        train(tmp_path / out, make_store(), epochs=1)
    assert (tmp_path / "file").read_text() == "mine"


def test_timing_a_step_needs_no_folder_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment.subprocess, "run", None)
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, epochs=1))
    trainer.train()
    assert trainer.finished and not list(tmp_path.iterdir())
    with pytest.raises(TypeError):  # the folder does ask git
        Run(tmp_path / "run", store, leave_one_out(store), MODEL, CONFIG, SOURCE)


def test_a_slow_full_loss_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store()
    monkeypatch.setattr("hyenarec.training.TIMED_FROM_SCORES", 0)
    trainer = Trainer(store, leave_one_out(store), MODEL, CONFIG)
    assert 0 < trainer.full_loss_seconds() < 60
    monkeypatch.setattr(run_folder, "SLOW_HOURS", 0)
    train(tmp_path / "full", store, epochs=1)
    assert "cross entropy over all 30 items will take about" in capsys.readouterr().out
    train(tmp_path / "sampled", store, epochs=1, loss="sampled", negatives=4)
    assert "cross entropy" not in capsys.readouterr().out


def test_the_estimate_of_the_full_loss_is_that_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says a chunk, of as many tokens as channels, takes a second."""
    store, ticks = make_store(), iter(range(100))
    trainer = Trainer(store, leave_one_out(store), MODEL, CONFIG)
    assert trainer.full_loss_seconds() == 0  # a small catalogue is not timed
    monkeypatch.setattr("hyenarec.training.TIMED_FROM_SCORES", 0)
    monkeypatch.setattr("hyenarec.training.time.perf_counter", lambda: next(ticks))
    assert trainer.full_loss_seconds() == trainer.windows.tokens / MODEL.dim


def test_too_large_a_model_is_one_line() -> None:
    store = make_store()
    with pytest.raises(
        UserError, match=r"options dim and blocks: [0-9,]+ parameters or more need [0-9,]+ GiB to train"
    ):
        Trainer(store, leave_one_out(store), replace(MODEL, dim=2**16, blocks=1024), TrainingConfig(device="cpu"))


def test_a_forced_backend_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    store = make_store()
    for name in ("bogus", "cuda"):
        monkeypatch.setenv("HYENAREC_BACKEND", name)
        with pytest.raises(UserError, match=f"^HYENAREC_BACKEND: '{name}' is no backend that works on cpu here"):
            Trainer(store, leave_one_out(store), MODEL, CONFIG)
        with pytest.raises(UserError, match=f"^HYENAREC_BACKEND: '{name}'"):
            Recommender.load(trained)


def test_diverged_weights_are_found_before_they_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of an epoch may break them after its loss was still a number."""
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, epochs=1))
    step = Trainer.step

    def breaking(self: Trainer, *arguments: Any) -> torch.Tensor:
        loss = step(self, *arguments)
        self.model.bias.data.fill_(torch.nan) if self.progress.batch == len(self.windows) - 1 else None
        return loss

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(UserError, match="training diverged: epoch 1 has loss"):
        trainer.train()


def test_a_run_in_another_thread_gets_no_signals(tmp_path: Path) -> None:
    from threading import Thread

    done: list[dict[str, Any]] = []
    thread = Thread(target=lambda: done.append(train(tmp_path, make_store(), epochs=1)))
    thread.start()
    thread.join()
    assert done[0]["epochs"] == 1


def test_interrupted_rebuild_leaves_last_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path, make_store(), epochs=12, learning_rate=0.05)
    (tmp_path / BEST).unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_next_epoch", interrupt_after_one_epoch(Trainer._next_epoch))
        train(tmp_path, make_store(), epochs=12, learning_rate=0.05)
    assert checkpoint.load(tmp_path / LAST)[1]["progress"]["epoch"] == first["epochs"]
    assert train(tmp_path, make_store(), epochs=12, learning_rate=0.05)["test"] == first["test"]
    assert np.isfinite(first["test"]["MRR"])


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json", "timing.json"])
def test_somebodys_own_files_stay(name: str, tmp_path: Path) -> None:
    own = tmp_path / "run" / name
    own.parent.mkdir()
    own.write_text('{"my": "settings"}')
    with pytest.raises(UserError, match=rf"{re.escape(name)} is not of a training run: choose another folder"):
        train(tmp_path / "run", make_store())
    assert own.read_text() == '{"my": "settings"}'
