"""Rows of items that are made of features: in the model, in training with either loss, and when saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import TRAIN, TUNE, make_batch, make_store
from jobs import LOSS_TOLERANCE, STORE, run
from test_item_features import dense
from test_training import CONFIG, MODEL, SOURCE, same, weights
from torch import Tensor

from hyenarec import checkpoint
from hyenarec.cli import main
from hyenarec.cli.options import ItemFeatures
from hyenarec.data.ids import Ids
from hyenarec.data.item_features import Features, encode, learn, read_item_table
from hyenarec.data.splits import leave_one_out, training_counts
from hyenarec.errors import DamagedError, UserError
from hyenarec.evaluation import rank_targets
from hyenarec.featured_items import FeaturedItems
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, Run, read_history
from hyenarec.stopping import Interrupted
from hyenarec.trained import BEST, load_trained
from hyenarec.training import Trainer

Fails = Callable[..., str]
SAMPLED: dict[str, Any] = {"loss": "sampled", "negatives": 8}


def features_of(path: Path, item_ids: Ids) -> Features:
    table = read_item_table(path, item_ids)
    return encode(table, learn(table, item_ids), item_ids)


@pytest.fixture(scope="module")
def features(items: Path) -> Features:
    return features_of(items, make_store().item_ids)


def model_of(features: Features, **options: Any) -> SequenceModel:
    """A model with item features whose projection is not zero."""
    torch.manual_seed(0)
    model = SequenceModel(replace(MODEL, **options), len(features.offsets) - 1, features=features)
    assert isinstance(model.items, FeaturedItems)
    torch.nn.init.normal_(model.items.projection)
    return model


def train(folder: Path, features: Features | None, **options: Any) -> dict[str, Any]:
    store, config = make_store(), replace(CONFIG, **options)
    return Run(folder, store, leave_one_out(store), MODEL, config, SOURCE, features=features).train()


# The table -----------------------------------------------------------------------------------------


def test_rows_and_gradients_are_those_of_a_hand_written_sum(features: Features) -> None:
    """In float64, the whole table and any of its rows are right, and so are the gradients of both."""
    items = model_of(features).double().items
    assert isinstance(items, FeaturedItems)
    matrix = torch.from_numpy(dense(features)).double()  # (V, K)
    places = torch.tensor([3, 0, 5, 29, 3])  # 5 has no features, 3 is read twice
    for rows, chosen in ((items.add_features(items.weight), slice(None)), (items(places), places)):
        expected = (items.weight + matrix @ items.projection)[chosen]
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)
        by = torch.randn(expected.shape, dtype=torch.float64)
        leaves = items.weight, items.projection
        found = torch.autograd.grad((rows * by).sum(), leaves, retain_graph=True)
        for got, want in zip(found, torch.autograd.grad((expected * by).sum(), leaves), strict=True):
            assert want.abs().sum() > 0
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(items(places)[2], items.weight[5])


@pytest.mark.parametrize("mixer", ["hyena", "bert4rec"])
def test_a_folded_model_is_the_same_without_features(mixer: str, features: Features) -> None:
    model = model_of(features, mixer=mixer).eval()
    plain = model.folded()
    batch = make_batch([5, 1, 8])
    torch.testing.assert_close(plain.scores(batch), model.scores(batch), rtol=1e-5, atol=1e-5)
    assert type(plain.items) is torch.nn.Embedding and plain.folded() is plain
    assert isinstance(model.items, FeaturedItems)  # the model itself has not changed
    assert plain.state_dict().keys() == SequenceModel(model.config, 30).state_dict().keys()


def test_a_training_starts_as_one_without_features(features: Features) -> None:
    store = make_store()
    one, other = (Trainer(store, leave_one_out(store), MODEL, CONFIG, features=given) for given in (features, None))
    assert same(one.model.folded().state_dict(), other.model.state_dict())


# Training ------------------------------------------------------------------------------------------


def gradients(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The gradients of the projection and of the items' own rows in the first step, without the update."""
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    found: list[Tensor] = []
    if trainer.rows:
        monkeypatch.setattr(
            trainer.rows.optimizer, "step", lambda rows, rate: found.extend((rows.places, rows.weight.grad))
        )
    trainer.model.train()
    trainer.step(next(trainer.slices.epoch(0, 0)), 1e-3)
    items = trainer.model.items
    assert isinstance(items, FeaturedItems) and items.projection.grad is not None
    if not trainer.rows:
        assert items.weight.grad is not None
        return items.projection.grad, items.weight.grad
    places, rows = found
    return items.projection.grad, torch.zeros_like(items.weight).index_copy_(0, places, rows)


@pytest.mark.parametrize("options", [{"loss": "full"}, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("mixer", ["hyena", "bert4rec"])
def test_a_steps_gradient_is_that_of_the_sum(
    mixer: str, options: dict[str, Any], features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the table ``E + F W``, the gradient of ``W`` is ``F^T`` times that of ``E``, also for some rows alone."""
    store = make_store()
    config = replace(CONFIG, clip_norm=0.0, **options)
    trainer = Trainer(store, leave_one_out(store), replace(MODEL, mixer=mixer), config, features=features)
    by_projection, by_rows = gradients(trainer, monkeypatch)
    assert by_projection.abs().max() > 0
    torch.testing.assert_close(by_projection, torch.from_numpy(dense(features)).T @ by_rows, rtol=1e-4, atol=1e-6)


def test_sampled_rows_are_those_of_the_whole_table(features: Features) -> None:
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, **SAMPLED), features=features)
    assert trainer.rows is not None and isinstance(trainer.model.items, FeaturedItems)
    torch.nn.init.normal_(trainer.model.items.projection)
    read = trainer.rows.read(next(trainer.slices.epoch(0, 0)))
    torch.testing.assert_close(read.table, trainer.model.table()[read.rows.places])
    assert not torch.allclose(read.table, read.rows.weight)


@pytest.mark.parametrize("options", [{"loss": "full"}, {**SAMPLED, "bf16": True}], ids=["full", "sampled"])
def test_a_training_lowers_its_loss_and_goes_on_bit_for_bit(
    options: dict[str, Any], features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(tmp_path / "whole", features, epochs=3, **options)
    history = read_history(tmp_path / "whole")
    assert history[-1]["loss"] < history[0]["loss"]
    assert result["item_features"]["columns"] == {
        "kind": "category, 4", "tags": "categories, 2", "year": "number, 1", "text": "vector, 3",
    }  # fmt: skip
    assert weights(tmp_path / "whole")["items.projection"].abs().min() > 0
    stop, step = Interrupted(2), Trainer.step

    def stopping(self: Trainer, *arguments: Any) -> Tensor:
        if self.progress.step == 5:
            raise stop
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "step", stopping)
        train(tmp_path / "run", features, epochs=3, **options)
    assert not (tmp_path / "run" / "result.json").exists()
    again = train(tmp_path / "run", features, epochs=3, **options)
    assert again["test"] == result["test"]
    for name in (LAST, BEST):
        one, other = (checkpoint.load(tmp_path / folder / name)[0] for folder in ("run", "whole"))
        assert same(one, other)


def test_other_features_are_another_run(features: Features, items: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", features, epochs=1)
    table = read_item_table(items, make_store().item_ids, chosen=["kind"])
    other = encode(table, learn(table, make_store().item_ids), make_store().item_ids)
    for given in (other, None):
        with pytest.raises(UserError, match=r"holds a run with other options \(.*item_features\.fingerprint"):
            train(tmp_path / "run", given, epochs=1)


def test_a_lost_best_is_made_again(features: Features, tmp_path: Path) -> None:
    train(tmp_path / "run", features, epochs=2)
    before = checkpoint.load(tmp_path / "run" / BEST)[0]
    (tmp_path / "run" / BEST).unlink()
    train(tmp_path / "run", features, epochs=2)
    assert same(before, checkpoint.load(tmp_path / "run" / BEST)[0])


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_two_processes_train_as_one(
    loss: str, items: Path, job_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = features_of(items, STORE.item_ids)  # read here, because polars locks up in a forked process
    monkeypatch.setattr(ItemFeatures, "of", lambda *_: known)
    options = ("--epochs", "2", "--dropout", "0", "--loss", loss, "--item-features", str(items))
    for processes, name in ((2, "two"), (1, "one")):
        run(processes, job_store, tmp_path / name, *options)
    two, one = (read_history(tmp_path / name) for name in ("two", "one"))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE)
    found = [weights(tmp_path / name)["items.projection"] for name in ("two", "one")]
    assert found[1].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_shards_are_refused(features: Features, log: Path, items: Path, tmp_path: Path, fails: Fails) -> None:
    store = make_store()
    with pytest.raises(UserError, match="option item_features: not used with --shard-items"):
        Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, shard_items=True, **SAMPLED), features=features)
    options = ("--out", tmp_path / "run", "--item-features", items, "--loss", "sampled", "--shard-items")
    assert "option item_features: not used with --shard-items" in fails("train", log, *options)
    assert not (tmp_path / "run").exists()


# What is saved -------------------------------------------------------------------------------------


def test_the_command_says_what_it_read(log: Path, items: Path, tmp_path: Path, capsys: Any) -> None:
    options = [*TRAIN, "--item-features", str(items)]
    main(["train", str(log), "--out", str(tmp_path / "run"), *options, "--feature-columns", "kind", "year"])
    said = capsys.readouterr().out
    assert f"{items}: features of 29 of 30 items, and of 5 others, which can be recommended as new items" in said
    assert f"{items}: kind: one of 4 categories; year: number, 3 missing" in said


def test_comparisons_and_searches_take_them(
    features: Features, log: Path, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of their runs use the features. A folder that holds a search without features is refused."""
    features_too = ["--item-features", str(items)]
    compare = ["compare", str(log), "--out", str(tmp_path / "compared"), "--mixers", "gru", "--seeds", "0", *TRAIN]
    main([*compare, *features_too])
    folders = [tmp_path / "compared" / "gru-0"]
    if find_spec("optuna"):
        tune = ["tune", str(log), "--out", str(tmp_path / "tuned"), "--trials", "1", *TUNE]
        main([*tune, *features_too])
        folders += [tmp_path / "tuned" / name for name in ("trial-000", "best")]
        with pytest.raises(SystemExit):
            main(tune)
        assert "holds a search of other options or data (item features)" in capsys.readouterr().err
    for folder in folders:
        found = json.loads((folder / "result.json").read_text())["item_features"]
        assert found["columns"].keys() == features.describe()["columns"].keys()
    with pytest.raises(SystemExit):
        main(compare)
    assert "holds a run with other options (item_features" in capsys.readouterr().err


def test_what_is_kept_serves_without_features(featured: Path, log: Path, capsys: Any) -> None:
    """Saved models give the metrics of the end of training; their table holds the sum of rows and features."""
    result = json.loads((featured / "result.json").read_text())
    store = make_store()
    recommender = Recommender.load(featured)
    ranking = rank_targets(recommender, store, leave_one_out(store).test, max_length=8)
    assert ranking.metrics().items() <= result["test"].items()
    assert weights(featured, BEST).keys() == recommender.model.state_dict().keys()
    main(["evaluate", str(featured)])
    main(["recommend", str(featured), "--history", "100", "101", "--k", "3"])
    assert "NDCG@10" in capsys.readouterr().out


def test_what_was_learned_of_features_is_kept(features: Features, items: Path, tmp_path: Path) -> None:
    store = make_store()
    split = leave_one_out(store)
    run = Run(tmp_path / "run", store, split, MODEL, replace(CONFIG, epochs=1), SOURCE, features=features)
    run.trainer.train_only(1)
    model = run.trainer.model
    assert isinstance(model.items, FeaturedItems)
    run.save_best()
    trained = load_trained(tmp_path / "run" / BEST)
    learned = trained.features
    assert learned is not None and learned.encodings == features.encodings
    assert torch.equal(learned.projection, model.items.projection)
    counts = torch.from_numpy(training_counts(store, split)).float()
    torch.testing.assert_close(learned.base, (counts[:, None] * model.items.weight).sum(0) / counts.sum())
    matrix = torch.from_numpy(dense(features))
    torch.testing.assert_close(trained.model.items.weight, model.items.weight + matrix @ model.items.projection)


@pytest.mark.parametrize("change", ["projection", "base", "columns", "missing"])
def test_a_damaged_part_is_refused(change: str, featured: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(featured / BEST)
    if change == "columns":
        header["features"] = header["features"][:1]
    elif change == "missing":
        del tensors["features.base"]
    else:
        tensors[f"features.{change}"] = tensors[f"features.{change}"] * float("nan")
    checkpoint.save(tmp_path / BEST, tensors, header)
    with pytest.raises(DamagedError, match=r"features\.|'base' is missing"):
        load_trained(tmp_path / BEST)
