"""torch-rechub's HSTUModel with HyenaMixer is trained, saved and checked by the library's own functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_rechub")

from torch_rechub.basic.layers import HSTULayer
from torch_rechub.models.generative.hstu import HSTUModel
from torch_rechub.trainers.seq_trainer import SeqTrainer

from examples.hosts.common import Task, generated_log
from examples.hosts.rechub.train import run, sequences
from hyenarec_kernels.integrations import check_swap, replace_attention
from hyenarec_kernels.integrations.rechub import HyenaHSTULayer

ITEMS, LENGTH = 60, 16
TASK = Task(generated_log(users=40, items=ITEMS), LENGTH, epochs=1, seed=0)
HISTORIES = torch.randint(1, ITEMS, (6, LENGTH), generator=torch.Generator().manual_seed(0))
for row in range(5):
    HISTORIES[row, : 3 * row] = 0


def model() -> HSTUModel:
    made = HSTUModel(ITEMS + 1, d_model=16, n_heads=2, n_layers=2, dqk=8, dv=8, max_seq_len=LENGTH)
    replaced = replace_attention(made, LENGTH, {HSTULayer: HyenaHSTULayer})
    assert set(replaced.values()) == {"HSTULayer -> HyenaHSTULayer"}
    assert len(replaced) == 2
    return made


def test_the_example_trains_and_evaluates() -> None:
    value, _ = run("hyena", TASK)
    assert 0 < value <= 1


def test_a_model_is_sound_after_its_weights_are_drawn_anew() -> None:
    drawn = model()
    drawn._init_weights()
    assert check_swap(drawn, HISTORIES) == []


def test_the_trainer_saves_and_loads(tmp_path: Path) -> None:
    trained, loaded = model(), model()
    [batches] = sequences(TASK, 2).generate_dataloader(batch_size=32)
    trainer = SeqTrainer(trained, n_epoch=1, model_path=str(tmp_path))
    [loss] = trainer.fit(batches)["train_loss"]
    assert 0 < loss < 10
    loaded.load_state_dict(torch.load(tmp_path / "model.pth"))
    torch.testing.assert_close(loaded.eval()(HISTORIES), trained.eval()(HISTORIES), rtol=0, atol=0)
