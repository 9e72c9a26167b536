from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated import make_batch, make_store
from test_training import interrupt_after_one_epoch, same, train, weights

from hyenarec import cloze
from hyenarec.cloze import hide_events, hide_next
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.data.batches import Batch, TrainingSlices, evaluation_batches
from hyenarec.data.splits import leave_one_out
from hyenarec.evaluation import rank_targets
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import Run
from hyenarec.source import Source
from hyenarec.training import Trainer

LENGTHS = [1, 9, 4, 13, 2]
BIDIRECTIONAL = [name for name, mixer in MIXERS.items() if not mixer.causal]


def make_model(mixer: str = "bert4rec") -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(ModelConfig(mixer=mixer, dim=8, max_length=13), n_items=30).double().eval()


def sequences(batch: Batch) -> list[list[int]]:
    return [part.tolist() for part in batch.items.split(batch.packing.lengths.tolist())]


def test_hidden_events_are_the_targets_and_the_rest_is_left_as_it_was() -> None:
    batch = make_batch(LENGTHS)
    torch.manual_seed(0)
    hidden = hide_events(batch)
    assert batch.targets is not None and hidden.targets is not None and hidden.masked is not None
    last = batch.targets[batch.packing.last].tolist()
    want = [[*items, after] for items, after in zip(sequences(batch), last, strict=True)]
    items = hidden.items.clone()
    assert not items[hidden.masked].any()  # the answers are nowhere in the batch's items
    items[hidden.masked] = hidden.targets
    assert sequences(replace(hidden, items=items)) == want
    assert hidden.packing.max_length == max(LENGTHS) + 1
    assert set(hidden.packing.last.tolist()) <= set(hidden.masked.tolist())
    assert torch.equal(hidden.masked, hidden.masked.unique())


def test_the_share_of_hidden_events() -> None:
    batch = make_batch([200] * 50)
    torch.manual_seed(0)
    masked = hide_events(batch).masked
    assert masked is not None
    assert len(masked) / (50 * 201) == pytest.approx(cloze.SHARE + (1 - cloze.SHARE) / 201, abs=0.02)


@pytest.mark.parametrize("mixer", BIDIRECTIONAL)
def test_what_is_hidden_does_not_leak(mixer: str) -> None:
    """Changing the items of hidden events changes no hidden state; changing any other event's item does."""
    model, batch = make_model(mixer), hide_events(make_batch(LENGTHS))
    assert batch.masked is not None
    items = batch.items.clone()
    items[batch.masked] = 17
    assert torch.equal(model(batch), model(replace(batch, items=items)))
    shown = (torch.bincount(batch.masked, minlength=len(items)) == 0).nonzero()[0]
    items[shown] = (items[shown] + 1) % 30
    assert not torch.allclose(model(batch)[batch.masked], model(replace(batch, items=items))[batch.masked])


def test_the_leak_check_catches_a_mask_that_is_forgotten() -> None:
    model, batch = make_model(), hide_events(make_batch(LENGTHS))
    assert batch.masked is not None
    items = batch.items.clone()
    items[batch.masked] = 17
    forgotten = [replace(b, masked=batch.masked[:0]) for b in (batch, replace(batch, items=items))]
    assert not torch.allclose(*map(model, forgotten))


@pytest.mark.parametrize("mixer", BIDIRECTIONAL)
def test_scores_ask_for_the_item_after_the_history(mixer: str) -> None:
    model, batch = make_model(mixer), make_batch(LENGTHS)
    asked = hide_next(batch)
    assert asked.targets is None and asked.masked is not None
    assert asked.masked.tolist() == [end + row for row, end in enumerate(batch.packing.cu_seqlens[1:].tolist())]
    assert [items[:-1] for items in sequences(asked)] == sequences(batch)
    hidden = model(asked)[asked.masked]
    torch.testing.assert_close(model.scores(batch), hidden @ model.items.weight.T + model.bias)
    torch.testing.assert_close(model.scores(batch), model.scores(replace(batch, targets=None)), rtol=0, atol=0)


@pytest.mark.parametrize("mixer", BIDIRECTIONAL)
def test_evaluation_shows_the_model_what_it_shows_every_other(mixer: str) -> None:
    """The model gets the same histories with the same exclusion; it adds the masked item only to its own input."""
    store = make_store()
    targets, seen = leave_one_out(store).test, []

    class Spy(SequenceModel):
        def scores(self, batch: Batch) -> torch.Tensor:
            seen.append(batch)
            return super().scores(batch)

    model = Spy(ModelConfig(mixer=mixer, dim=8, max_length=6), store.n_items).eval()
    ranking = rank_targets(model, store, targets, max_length=6)
    assert len(ranking.ranks) == len(targets)
    want = [batch for _, batch in evaluation_batches(store, targets, 6, 256)]
    for got, batch in zip(seen, want, strict=True):
        assert got.masked is None and torch.equal(got.items, batch.items)
    with torch.inference_mode():
        for batch in want:  # the masked item fits in beside a history of max_length events
            assert batch.packing.max_length == 6 and model.scores(batch).isfinite().all()


@pytest.mark.parametrize("mixer", BIDIRECTIONAL)
def test_checkpoint_round_trip(mixer: str, tmp_path: Path) -> None:
    store = make_store()
    config = TrainingConfig(epochs=2, batch_size=4, device="cpu")
    run = Run(
        tmp_path,
        store,
        leave_one_out(store),
        ModelConfig(mixer=mixer, dim=8, max_length=8),
        config,
        Source("generated"),
    )
    run.train()
    model = run.trainer.model
    recommender = Recommender.load(tmp_path)
    batch = make_batch([3, 8])
    assert recommender.model.mask is not None and model.mask is not None
    assert torch.equal(recommender.model.mask, model.mask)
    model.eval()
    with torch.inference_mode():
        assert torch.equal(recommender.scores(batch), model.scores(batch))
    assert len(recommender.recommend([[100, 101]], k=5)[0]) == 5


def test_an_interrupted_run_hides_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    train(tmp_path / "whole", store, mixer="bert4rec")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_end_epoch", interrupt_after_one_epoch(Trainer._end_epoch))
        train(tmp_path / "resumed", store, mixer="bert4rec")
    train(tmp_path / "resumed", store, mixer="bert4rec")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))


def test_windows_hold_every_training_event() -> None:
    """Masked items are drawn from each slice and the item after it, which together are all training events."""
    store = make_store()
    split = leave_one_out(store)
    slices = TrainingSlices(store, split, max_length=100, batch_size=7)
    held: list[int] = []
    for batch in slices.epoch(0, 0):
        whole = hide_events(batch)
        assert whole.targets is not None and whole.masked is not None
        held += whole.items.index_copy(0, whole.masked, whole.targets).tolist()
    want = [
        store.items[begin:end]
        for begin, end in zip(store.offsets[:-1], split.train_ends, strict=True)
        if end > begin + 1
    ]
    assert sorted(held) == sorted(np.concatenate(want).tolist())
