"""RePlay's SasRec with HyenaMixer: trained, saved and checked by RePlay's own means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("replay.nn.sequential")

import lightning
from replay.nn.lightning import LightningModule
from replay.nn.sequential import SasRec

from examples.hosts.common import Task, generated_log
from examples.hosts.replay.train import run, schema
from hyenarec_kernels.integrations import check_swap
from hyenarec_kernels.integrations.replay import HyenaEncoder, hyena_sasrec

ITEMS, LENGTH = 60, 16
HISTORIES = torch.randint(ITEMS, (6, LENGTH), generator=torch.Generator().manual_seed(0))
for row in range(5):
    HISTORIES[row, : 3 * row] = ITEMS  # padding


def model() -> SasRec:
    return hyena_sasrec(schema(ITEMS), embedding_dim=64, num_blocks=2, max_sequence_length=LENGTH, dropout=0.2)


def forward(model: SasRec, events: torch.Tensor) -> torch.Tensor:
    return model.body({"item_id": events}, events != ITEMS)


def test_the_example_trains_and_evaluates() -> None:
    value, _ = run("hyena", Task(generated_log(users=40, items=ITEMS), LENGTH, epochs=1, seed=0))
    assert 0 < value <= 1


def test_a_model_is_sound_after_its_parameters_are_drawn_anew() -> None:
    drawn = model()
    drawn.reset_parameters()
    assert check_swap(drawn, HISTORIES, forward, padding=ITEMS, other=1) == []


def test_a_mixer_of_both_directions_is_refused() -> None:
    encoder = HyenaEncoder(8, 1, 0.0, LENGTH, bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional"):
        encoder(None, torch.randn(2, LENGTH, 8), torch.ones(2, LENGTH, dtype=torch.bool))


def test_a_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    saved = LightningModule(model().eval())
    trainer = lightning.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(saved)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LightningModule.load_from_checkpoint(tmp_path / "model.ckpt", model=model().eval(), weights_only=False)
    torch.testing.assert_close(forward(loaded.model, HISTORIES), forward(saved.model, HISTORIES), rtol=0, atol=0)
