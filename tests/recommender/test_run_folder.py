"""A run's folder: who may train in it, what it holds and leaves behind, and what is said about it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE, train

from hyenarec import checkpoint, environment, run_folder
from hyenarec.config import TrainingConfig
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from hyenarec.folder_lock import LOCK
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, Run, read_history
from hyenarec.trained import BEST
from hyenarec.training import Trainer

TESTS = str(Path(__file__).parent)


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
    """A second process is refused, with the number of the first. A killed process no longer holds the folder."""
    program = [sys.executable, "-c", HOLD.format(tests=TESTS, folder=str(tmp_path))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and "held\n" in holder.stdout
        with pytest.raises(UserError, match=rf"process {holder.pid} is training in it"):
            train(tmp_path, make_store(), epochs=1)
        holder.kill()
    assert (tmp_path / LOCK).exists()
    train(tmp_path, make_store(), epochs=1)
    assert not (tmp_path / LOCK).exists()


def test_somebody_elses_lock_is_left_alone(tmp_path: Path) -> None:
    for content in (b"4711\n", b"\xff my own"):
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(UserError, match=r"\.lock is not of a training run"):
            train(tmp_path, make_store(), epochs=1)
        assert (tmp_path / LOCK).read_bytes() == content


def test_saturated_metrics_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With eight items all are among the first ten, so Recall@10 is 1 from the first epoch on and MRR decides."""
    result = train(tmp_path, make_store(n_items=8), epochs=6, metric="Recall@10")
    history = read_history(tmp_path)
    assert {row["validation"]["Recall@10"] for row in history} == {1.0}
    found = [row["validation"]["MRR"] for row in history]
    assert max(found) == found[result["best_epoch"] - 1] > found[0]
    line = (
        f"validation Recall@10 is 1.0000 in 6 epochs alike; of these epoch {result['best_epoch']} was kept for its MRR"
    )
    assert line in " ".join(capsys.readouterr().out.split())


def test_the_loss_decides_last_and_does_not_prolong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every metric stays the same, the epoch with the smallest loss is kept, and patience still ends the run."""
    monkeypatch.setattr("hyenarec.evaluation.Ranking.metrics", lambda self, ks=(): {"NDCG@10": 1.0, "MRR": 1.0})
    result = train(tmp_path, make_store(), epochs=50, patience=3)
    losses = [row["loss"] for row in read_history(tmp_path)]
    assert len(losses) == 4 and losses[result["best_epoch"] - 1] == min(losses) < losses[0]


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
    with pytest.raises(TypeError):  # a run's folder does ask git
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
    """The estimate is a second per chunk, of as many tokens as channels, if the clock says that one takes a second."""
    store, ticks = make_store(), iter(range(100))
    trainer = Trainer(store, leave_one_out(store), MODEL, CONFIG)
    assert trainer.full_loss_seconds() == 0  # a small catalogue is not timed
    monkeypatch.setattr("hyenarec.training.TIMED_FROM_SCORES", 0)
    monkeypatch.setattr("hyenarec.training.time.perf_counter", lambda: next(ticks))
    assert trainer.full_loss_seconds() == trainer.slices.tokens / MODEL.dim


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


@pytest.mark.parametrize("rate", [1e3, 1e20])
def test_divergence_names_its_step_and_a_way_out(rate: float, tmp_path: Path) -> None:
    """The best and last checkpoints never hold weights that are NaN or infinite."""
    with pytest.raises(UserError) as refused:
        train(tmp_path, make_store(), epochs=50, learning_rate=rate, warmup_steps=0, checkpoint_minutes=1e-9)
    found = re.fullmatch(
        r"training diverged in epoch \d+: (?:the loss is no number from step \d+ on|weights are no numbers after step "
        r"\d+|the model's scores are no numbers after step \d+); (?:the best epoch so far, \d+, is kept; )?"
        r"try a lower --learning-rate \((\S+); the default is 0\.001\), more --warmup-steps \(0\) or --clip-norm 1 "
        r"\(5; 0 is off\)(?:, and another --out)?",
        str(refused.value),
    )
    assert found is not None, refused.value
    assert float(found[1]) == rate
    for name in (LAST, BEST):
        if (tmp_path / name).exists():
            tensors, _ = checkpoint.load(tmp_path / name)
            assert all(bool(tensor.isfinite().all()) for key, tensor in tensors.items() if key.startswith("model."))
    lower = tmp_path / "lower" if "another --out" in str(refused.value) or (tmp_path / LAST).exists() else tmp_path
    assert np.isfinite(train(lower, make_store(), epochs=1)["test"]["MRR"])


@pytest.mark.parametrize("broken", [1, 7, 13])
def test_the_step_of_divergence_is_the_first_without_a_number(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, epochs=20))
    step = Trainer.step

    def breaking(self: Trainer, *arguments: Any) -> torch.Tensor:
        loss = step(self, *arguments)
        return loss * torch.nan if self.progress.step + 1 == broken else loss

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(UserError, match=f"the loss is no number from step {broken} on"):
        trainer.train()
    assert trainer.progress.step - broken < len(trainer.slices)


def test_diverged_weights_are_found_before_they_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of an epoch may break the weights after its loss was still finite."""
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, epochs=1))
    step = Trainer.step

    def breaking(self: Trainer, *arguments: Any) -> torch.Tensor:
        loss = step(self, *arguments)
        self.model.bias.data.fill_(torch.nan) if self.progress.batch == len(self.slices) - 1 else None
        return loss

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(UserError, match="training diverged in epoch 1: weights are no numbers after step"):
        trainer.train()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json", "timing.json"])
def test_somebodys_own_files_stay(name: str, tmp_path: Path) -> None:
    own = tmp_path / "run" / name
    own.parent.mkdir()
    own.write_text('{"my": "settings"}')
    with pytest.raises(UserError, match=rf"{re.escape(name)} is not of a training run: choose another folder"):
        train(tmp_path / "run", make_store())
    assert own.read_text() == '{"my": "settings"}'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder, make_store(), epochs=1)
    return folder
