"""RePlay's SasRec with HyenaMixer is trained, saved and checked by RePlay's own functions."""

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


def test_the_encoder_mixes_events_alone() -> None:
    """The encoder keeps shapes, does not read padding, and applies dropout only in training."""
    encoder, x = HyenaEncoder(8, 2, 0.5, LENGTH), torch.randn(3, 9, 8)
    real = torch.arange(9) >= torch.tensor([0, 4, 8])[:, None]  # (B, L)
    assert not torch.equal(encoder(None, x, real), encoder(None, x, real))
    encoder.eval()
    want = encoder(None, x, real)
    assert want.shape == x.shape
    assert torch.equal(want, encoder(None, x, real))
    torch.testing.assert_close(encoder(None, torch.where(real[..., None], x, 99.0), real)[real], want[real])
    torch.testing.assert_close(encoder(None, x[1:2, 4:], real[1:2, 4:]), want[1:2, 4:])


@pytest.mark.parametrize("candidates", [None, torch.tensor([5, 1, 40])])
def test_scores_are_of_the_last_event(candidates: torch.Tensor | None) -> None:
    """The last event of each history is scored, for all items or for the candidates that RePlay passes at inference."""
    scored = model().eval()
    output = scored({"item_id": HISTORIES}, HISTORIES != ITEMS, candidates_to_score=candidates)
    hidden = forward(scored, HISTORIES)
    assert output["logits"].shape == (len(HISTORIES), ITEMS if candidates is None else len(candidates))
    torch.testing.assert_close(output["hidden_states"][0], hidden)
    everything = hidden[:, -1] @ scored.body.embedder.get_item_weights().T
    torch.testing.assert_close(output["logits"], everything if candidates is None else everything[:, candidates])


def test_training_moves_every_parameter() -> None:
    trained = model().train()
    real = HISTORIES != ITEMS
    labels, wanted = HISTORIES.masked_fill(~real, 0)[..., None], real[..., None]
    output = trained({"item_id": HISTORIES}, real, positive_labels=labels, target_padding_mask=wanted)
    output["loss"].backward()
    still = {name for name, p in trained.body.encoder.named_parameters() if p.grad is None or not p.grad.any()}
    assert not still


def test_it_is_exported() -> None:
    scored = model().eval()
    inputs = ({"item_id": HISTORIES}, HISTORIES != ITEMS)
    program = torch.export.export(scored, inputs).module()
    torch.testing.assert_close(program(*inputs)["logits"], scored(*inputs)["logits"])


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
