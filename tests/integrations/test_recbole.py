"""RecBole's SASRec with HyenaMixer is trained, saved and checked by RecBole's own functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("recbole")

from recbole.data import create_dataset, data_preparation
from recbole.model.layers import MultiHeadAttention
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import Trainer

from examples.hosts.common import Task, generated_log
from examples.hosts.recbole.train import configured, run
from hyenarec_kernels.integrations import check_swap, replace_attention
from hyenarec_kernels.integrations.recbole import HyenaSASRec, HyenaSublayer

LENGTH = 12
TASK = Task(generated_log(users=30, items=60), LENGTH, epochs=1, seed=0)
HISTORIES = torch.randint(1, 60, (6, LENGTH), generator=torch.Generator().manual_seed(0))
for row in range(3):
    HISTORIES[row, LENGTH - 3 * row :] = 0  # padded on the right, as RecBole does
    HISTORIES[row + 3, : 3 * row] = 0  # padded on the left, where attention without a mask would read the padding


@pytest.fixture(autouse=True)
def where_trainers_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def forward(model: SASRec, events: torch.Tensor) -> torch.Tensor:
    """The outputs at all positions; RecBole's own forward returns only the last one."""
    x = model.LayerNorm(model.item_embedding(events) + model.position_embedding.weight[: events.shape[1]])
    return model.trm_encoder(x, model.get_attention_mask(events))[-1]


def test_the_example_trains_and_evaluates() -> None:
    value, _ = run("hyena", TASK)
    assert 0 <= value <= 1


def test_a_model_is_sound_after_its_weights_are_drawn_anew(tmp_path: Path) -> None:
    config = configured(HyenaSASRec, TASK, tmp_path)
    model = HyenaSASRec(config, create_dataset(config))
    model.apply(model._init_weights)
    assert check_swap(model, HISTORIES, forward) == []


def test_a_mixer_of_the_wrong_direction_is_refused(tmp_path: Path) -> None:
    config = configured(SASRec, TASK, tmp_path)
    model = SASRec(config, create_dataset(config))
    replace_attention(model, LENGTH, {MultiHeadAttention: HyenaSublayer}, bidirectional=True)
    with pytest.raises(ValueError, match="causal"):
        forward(model, HISTORIES)
    causal = HyenaSASRec(config, create_dataset(config))
    layer = causal.trm_encoder.layer[0].multi_head_attention
    both = model.get_attention_mask(HISTORIES, bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional=True"):
        layer(torch.randn(6, LENGTH, 64), both)


def test_attention_of_other_models_can_be_replaced(tmp_path: Path) -> None:
    """HyenaSublayer replaces the attention of models that pass additive masks (B, 1, L, L)."""
    config = configured(SASRec, TASK, tmp_path)
    model = SASRec(config, create_dataset(config))
    replace_attention(model, LENGTH, {MultiHeadAttention: HyenaSublayer})
    assert check_swap(model, HISTORIES, forward) == []


def test_a_checkpoint_evaluates_the_same(tmp_path: Path) -> None:
    config = configured(HyenaSASRec, TASK, tmp_path)
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, HyenaSASRec(config, train_data.dataset))
    trainer.fit(train_data, valid_data, verbose=False)
    want = trainer.evaluate(test_data)
    other = Trainer(config, HyenaSASRec(config, train_data.dataset))
    got = other.evaluate(test_data, model_file=trainer.saved_model_file)
    assert got == want
