"""RecTools' models with HyenaMixer are trained, saved and checked by RecTools' own functions."""

from __future__ import annotations

import copy
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
    """A trained model has no faults, although RecTools draws all matrices anew when training begins, and passes a
    padding mask only if ``use_key_padding_mask`` is set."""
    model, _ = trained(SASRecModel, use_key_padding_mask=masked, **SASREC)
    assert faults(model) == []


def test_bert4rec_reads_both_directions_and_no_padding() -> None:
    model, _ = trained(BERT4RecModel, **BERT4REC)
    assert faults(model) == []
    network, events = model.torch_model.eval(), torch.randint(1, 60, (2, LENGTH))
    changed = events.clone()
    changed[:, -1] = 1 + changed[:, -1] % 59
    before, after = (
        network.encode_sessions({"x": x}, network.item_model.get_all_embeddings()) for x in (events, changed)
    )
    assert not torch.allclose(before[:, : LENGTH // 2], after[:, : LENGTH // 2])


def test_a_causal_mixer_is_refused_where_attention_is_not() -> None:
    with pytest.raises(ValueError, match="bidirectional=True"):
        trained(SASRecModel, use_causal_attn=False, **SASREC)


@pytest.mark.parametrize(("layers", "options"), [(HyenaSASRecLayers, {}), (HyenaPreLNLayers, {"bidirectional": True})])
def test_layers_mix_events_alone(layers: type, options: dict[str, Any]) -> None:
    """Layers keep shapes, do not read padding, and apply dropout only in training."""
    made, causal = (
        layers(2, 16, 2, 0.5, horizon=LENGTH, **options),
        None if options else ~torch.ones(9, 9).tril().bool(),
    )
    real = torch.arange(9) >= torch.tensor([0, 4, 8])[:, None]  # (B, L)
    x = torch.randn(3, 9, 16)

    def mix(seqs: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = made(seqs.clone(), real[..., None], causal, None)  # the layers write into their input
        assert y.shape == x.shape
        return y

    assert not torch.equal(mix(x), mix(x))
    made.eval()
    want, got = mix(x), mix(torch.where(real[..., None], x, 99.0))
    assert torch.equal(want, mix(x))
    torch.testing.assert_close(got[real], want[real])
    alone = made(x[1:2, 4:].clone(), real[1:2, 4:, None], None if options else causal[4:, 4:], None)
    torch.testing.assert_close(want[1:2, 4:], alone)


def test_a_config_makes_the_same_model() -> None:
    model = SASRecModel(session_max_len=LENGTH, **SASREC)
    made = SASRecModel.from_config(model.get_config(simple_types=True))
    assert made.get_config() == model.get_config()
    assert made.transformer_layers_type is HyenaSASRecLayers


def test_training_goes_on_where_it_stood() -> None:
    """A second ``fit_partial`` does not draw the mixers' weights anew, so they keep what they learned."""
    model, dataset = trained(SASRecModel, **SASREC)
    before = copy.deepcopy(model.torch_model.state_dict())
    model.fit_partial(dataset, min_epochs=1, max_epochs=1)
    moved = {
        name: float((after - before[name]).norm() / before[name].norm())
        for name, after in model.torch_model.state_dict().items()
        if name.endswith("in_proj.weight")
    }
    assert len(moved) == 2
    assert all(0 < share < 0.5 for share in moved.values())  # a new draw would give 1.4


def test_similar_items_are_found() -> None:
    model, dataset = trained(SASRecModel, **SASREC)
    found = model.recommend_to_items([0, 1], dataset, k=3)
    assert list(found.groupby("target_item_id").size()) == [3, 3]
    assert not (found.target_item_id == found.item_id).any()


def test_weights_are_loaded_from_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    model, dataset = trained(SASRecModel, **SASREC)
    model.fit_trainer.save_checkpoint(tmp_path / "model.ckpt")
    other, _ = trained(SASRecModel, **SASREC)
    other.load_weights_from_checkpoint(tmp_path / "model.ckpt")
    loaded = SASRecModel.load_from_checkpoint(tmp_path / "model.ckpt")
    users = TASK.log.user_id.unique()
    want, *got = (m.recommend(users, dataset, k=5, filter_viewed=False) for m in (model, other, loaded))
    assert all(want.equals(each) for each in got)


def test_a_saved_model_recommends_the_same(tmp_path: Path) -> None:
    model, dataset = trained(SASRecModel, **SASREC)
    model.save(tmp_path / "model")
    users = TASK.log.user_id.unique()
    want, got = (m.recommend(users, dataset, k=5, filter_viewed=False) for m in (model, load_model(tmp_path / "model")))
    assert len(want) == 5 * len(users)
    assert want.equals(got)
