"""RecTools' models with HyenaMixer: trained, saved and checked by RecTools' own means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rectools")

from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel, load_model

from examples.hosts.common import Task, generated_log
from examples.hosts.rectools.train import interactions, run
from hyenarec_kernels.integrations import check_swap
from hyenarec_kernels.integrations.rectools import HyenaPreLNLayers, HyenaSASRecLayers

LENGTH = 16
TASK = Task(generated_log(users=40, items=60), LENGTH, epochs=1, seed=0)
SASREC = {"transformer_layers_type": HyenaSASRecLayers, "transformer_layers_kwargs": {"horizon": LENGTH}}
BERT4REC = {
    "transformer_layers_type": HyenaPreLNLayers,
    "transformer_layers_kwargs": {"horizon": LENGTH, "bidirectional": True},
}


def trained(kind: type, **options: Any) -> tuple[Any, Dataset]:
    dataset = Dataset.construct(interactions(TASK.log))
    model = kind(n_factors=16, n_heads=2, n_blocks=2, session_max_len=LENGTH, epochs=1, **options)
    return model.fit(dataset), dataset


def faults(model: Any) -> list[str]:
    histories = torch.randint(1, 60, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    for row in range(5):
        histories[row, : 3 * row] = 0

    def forward(network: Any, events: torch.Tensor) -> torch.Tensor:
        return network.encode_sessions({"x": events}, network.item_model.get_all_embeddings())

    return check_swap(model.torch_model, histories, forward)


def test_the_example_trains_and_recommends() -> None:
    value, _ = run("hyena", TASK)
    assert 0 < value <= 1


@pytest.mark.parametrize("masked", [False, True])
def test_a_trained_model_is_sound(masked: bool) -> None:
    """Training begins by a new draw of all matrices; RecTools tells of padding only if it is asked to."""
    model, _ = trained(SASRecModel, use_key_padding_mask=masked, **SASREC)
    assert faults(model) == []


def test_bert4rec_reads_both_directions_and_no_padding() -> None:
    model, _ = trained(BERT4RecModel, **BERT4REC)
    assert faults(model) == ["future: outputs depend on later events"]


def test_a_causal_mixer_is_refused_where_attention_is_not() -> None:
    with pytest.raises(ValueError, match="bidirectional=True"):
        trained(SASRecModel, use_causal_attn=False, **SASREC)


def test_a_saved_model_recommends_the_same(tmp_path: Path) -> None:
    model, dataset = trained(SASRecModel, **SASREC)
    model.save(tmp_path / "model")
    users = TASK.log.user_id.unique()
    want, got = (m.recommend(users, dataset, k=5, filter_viewed=False) for m in (model, load_model(tmp_path / "model")))
    assert len(want) == 5 * len(users)
    assert want.equals(got)
