"""Rows of items made of features: in the model, in training by either loss, kept, gone on from, and of new items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from generated import TRAIN, make_batch, make_store
from jobs import LOSS_TOLERANCE, STORE, run
from test_item_features import dense
from test_training import CONFIG, MODEL, SOURCE, same, weights
from torch import Tensor

from hyenarec import checkpoint
from hyenarec.cli import main
from hyenarec.cli.serve import load
from hyenarec.cli.train import Train
from hyenarec.continuing import Start, load_start, take_over, with_new_items
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
from hyenarec.trained import BEST, Trained, load_trained
from hyenarec.training import Trainer

Fails = Callable[..., str]
SAMPLED: dict[str, Any] = {"loss": "sampled", "negatives": 8}


def write_items(path: Path, first: int = 100, last: int = 135) -> Path:
    """Items from ``first`` to ``last``, of which the log of ``make_store`` has 100 to 129; item 105 has no row."""
    items = np.array([item for item in range(first, last) if item != 105])
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, 3))[items - 100]
    table = {
        "item_id": items,
        "kind": [f"kind {item % 4}" for item in items],
        "tags": [[f"tag {n}" for n in range(item % 3)] for item in items],
        "year": [None if item % 7 == 0 else 1990 + item % 11 for item in items],
        "text": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float64)),
    }
    pl.DataFrame(table).write_parquet(path)
    return path


def features_of(path: Path, item_ids: Ids) -> Features:
    table = read_item_table(path, item_ids)
    return encode(table, learn(table, item_ids), item_ids)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_items(tmp_path_factory.mktemp("items") / "items.parquet")


@pytest.fixture(scope="module")
def features(items: Path) -> Features:
    return features_of(items, make_store().item_ids)


def model_of(features: Features, **options: Any) -> SequenceModel:
    """With a projection that is not zero."""
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
    """In float64: the table, any rows of it, and the gradients of both through a loss."""
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
    assert isinstance(model.items, FeaturedItems)  # as it was
    assert plain.state_dict().keys() == SequenceModel(model.config, 30).state_dict().keys()


def test_a_training_starts_as_one_without_features(features: Features) -> None:
    store = make_store()
    one, other = (Trainer(store, leave_one_out(store), MODEL, CONFIG, features=given) for given in (features, None))
    assert same(one.model.folded().state_dict(), other.model.state_dict())


# Training ------------------------------------------------------------------------------------------


def gradients(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Of the projection and of the items' own rows in the first step, without its update."""
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    found: list[Tensor] = []
    if trainer.rows:
        monkeypatch.setattr(
            trainer.rows.optimizer, "step", lambda rows, rate: found.extend((rows.places, rows.weight.grad))
        )
    trainer.model.train()
    trainer.step(next(trainer.windows.epoch(0, 0)), 1e-3)
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
    """With the table ``E + F W``, the gradient by ``W`` is ``F^T`` times that by ``E``; of gathered rows too."""
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
    read = trainer.rows.read(next(trainer.windows.epoch(0, 0)))
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
    known = features_of(items, STORE.item_ids)  # here, for polars locks up in a forked process
    monkeypatch.setattr(Train, "_features", lambda *_: known)
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


# What is kept --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def featured(log: Path, items: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    main(["train", str(log), "--out", str(folder), *TRAIN, "--item-features", str(items)])
    return folder


def test_the_command_says_what_it_read(log: Path, items: Path, tmp_path: Path, capsys: Any) -> None:
    options = [*TRAIN, "--item-features", str(items)]
    main(["train", str(log), "--out", str(tmp_path / "run"), *options, "--feature-columns", "kind", "year"])
    said = capsys.readouterr().out
    assert f"{items}: features of 29 of 30 items, and of 5 others, which can be recommended as new items" in said
    assert f"{items}: kind: one of 4 categories; year: number, 3 missing" in said


def test_what_is_kept_serves_without_features(featured: Path, log: Path, capsys: Any) -> None:
    """Metrics are those of the end of training; the table holds the sum."""
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


# New items -----------------------------------------------------------------------------------------


def test_new_items_have_rows_of_their_features(featured: Path, items: Path) -> None:
    before = Recommender.load(featured)
    after = before.with_items(items)
    assert after.item_ids.decode(range(len(after.item_ids))) == list(range(100, 135))  # 105 is known from the log
    learned = before.features
    assert learned is not None
    features = encode(read_item_table(items, before.item_ids), learned.encodings, after.item_ids)
    rows = learned.base + torch.from_numpy(dense(features)) @ learned.projection
    torch.testing.assert_close(after.model.items.weight[30:], rows[30:])
    assert torch.equal(after.model.items.weight[:30], before.model.items.weight)
    torch.testing.assert_close(after.model.bias[30:], before.model.bias.mean().expand(5))
    history = [[100, 101, 102]]
    (known,) = before.recommend(history, k=5)
    (both,) = after.recommend(history, k=32)
    assert [one for one in both if one.item < 130][:5] == known
    assert {one.item for one in both} > {130, 131, 132, 133, 134}
    assert after.recommend([[130, 134]], k=3)  # which histories may have, too
    assert len(after.session([[133]]).recommend(k=2)[0]) == 2
    again = after.with_items(items)  # of which nothing is new any more
    assert same(again.model.state_dict(), after.model.state_dict()) and again.recommend(history, k=32) == [both]


def test_the_command_recommends_new_items_by_their_ids(
    featured: Path, items: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "new.txt").write_text("131\n133\n")
    capsys.readouterr()
    options = ["--item-features", str(items), "--allow", str(tmp_path / "new.txt"), "--json", "--k", "2"]
    main(["recommend", str(featured), "--history", "100", "101", *options])
    output = capsys.readouterr()
    assert {one["item"] for one in json.loads(output.out)["recommendations"]} == {131, 133}
    assert "5 items are new, beside 30 that the model knows" in output.err
    out = tmp_path / "all.jsonl"
    main(["recommend", str(featured), "--all-users", "--out", str(out), *options[:4], "--k", "2"])
    first = json.loads(out.read_text().splitlines()[0])
    assert {one["item"] for one in first["recommendations"]} == {131, 133}


def test_other_commands_know_new_items(featured: Path, items: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--item-features", str(items)]
    main(["similar", str(featured), "133", "--json", *options])
    near = json.loads(capsys.readouterr().out)["similar"]
    own = Recommender.load(featured).with_items(items)
    assert [one["item"] for one in near] == [one.item for one in own.similar(133)]
    main(["export", str(featured), "--out", str(tmp_path / "out"), "--formats", "program", *options])
    assert json.loads((tmp_path / "out" / "export.json").read_text())["items"][-5:] == [130, 131, 132, 133, 134]
    served, _ = load(featured, torch.device("cpu"), None, items)
    assert same(served.model.state_dict(), own.model.state_dict())


def test_new_items_of_a_grown_log_are_ranked(featured: Path, log: Path, items: Path, tmp_path: Path) -> None:
    """Of two targets that are new items, one is of an item without a row: that stays unknown, and counts as missed."""
    extra = "user-001,131,99999999\nuser-002,999,99999999\n"
    (tmp_path / "grown.csv").write_text(log.read_text() + extra)
    found = {}
    for name, options in (("without", []), ("with", ["--item-features", str(items)])):
        json_out = ["--json-out", str(tmp_path / f"{name}.json")]
        main(["evaluate", str(featured), "--data", str(tmp_path / "grown.csv"), *json_out, *options])
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert [found[name]["new_items"] for name in ("without", "with")] == [2, 1]
    assert [found[name]["targets_lost_to_new_items"] for name in ("without", "with")] == [2, 1]


def test_new_items_that_cannot_be(featured: Path, run: Path, items: Path, tmp_path: Path, fails: Fails) -> None:
    ask = ("--history", "100", "--item-features")
    assert "the model was trained without" in fails("recommend", run, *ask, items)
    pl.DataFrame({"item_id": [500], "kind": ["kind 1"]}).write_parquet(tmp_path / "other.parquet")
    assert "no column 'tags', which the model has" in fails("recommend", featured, *ask, tmp_path / "other.parquet")
    assert "feature_columns: not used without" in fails(
        "train", "log.csv", "--out", tmp_path / "run", "--feature-columns", "kind"
    )


# Going on ------------------------------------------------------------------------------------------


def test_a_training_goes_on_with_new_items_from_their_features(featured: Path, items: Path, tmp_path: Path) -> None:
    """Rows of known items begin as they were, and those of new ones as :meth:`Recommender.with_items` has them."""
    trained = load_start(featured, load_trained(featured).model.config)
    expected = with_new_items(trained, items)
    assert trained.features is not None
    store = replace(make_store(), item_ids=Ids.from_values(range(105, 135)), timestamps=None)
    start, joined = Start.of(trained, store)
    assert (start.new_items, start.absent_items) == (5, 5)
    features = encode(read_item_table(items, joined.item_ids), trained.features.encodings, joined.item_ids)
    trainer = Trainer(joined, leave_one_out(joined), trained.model.config, CONFIG, trained, features)
    assert isinstance(trainer.model.items, FeaturedItems)
    begun = trainer.model.folded().state_dict()
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(begun[name], tensor, rtol=1e-5, atol=1e-5)
    assert torch.equal(trainer.model.items.projection, trained.features.projection)
    torch.testing.assert_close(trainer.model.items.weight[-1], trained.features.base)
    other = replace(features, encodings=features.encodings[::-1])
    with pytest.raises(UserError, match="encoded otherwise"):
        Trainer(joined, leave_one_out(joined), trained.model.config, CONFIG, trained, other)
    # without what was learned, or without features, rows stay
    for given, features_now in ((replace(trained, features=None), features), (trained, None)):
        plain = Trainer(joined, leave_one_out(joined), trained.model.config, CONFIG, given, features_now)
        assert torch.equal(plain.model.folded().items.weight[:30], trained.model.items.weight)


def test_the_command_goes_on_with_features_and_without(
    featured: Path, log: Path, items: Path, tmp_path: Path, capsys: Any
) -> None:
    extra = log.read_text() + "user-001,131,99999999\nuser-001,132,99999999\nuser-001,131,99999999\n"
    (tmp_path / "grown.csv").write_text(extra)
    options = ["train", str(tmp_path / "grown.csv"), "--from", str(featured), "--epochs", "1"]
    main([*options, "--out", str(tmp_path / "with"), "--item-features", str(items)])
    assert "new items: 2" in capsys.readouterr().out
    assert load_trained(tmp_path / "with").features is not None
    main([*options, "--out", str(tmp_path / "without")])
    assert "was trained with --item-features" in capsys.readouterr().out
    assert load_trained(tmp_path / "without").features is None


def test_second_embeddings_of_new_items_begin_at_the_mean() -> None:
    """A decoupled model has another table of items, which grows with the first."""
    config = replace(MODEL, embedding="decoupled")
    old, new = SequenceModel(config, 5), SequenceModel(config, 6)
    ids = Ids.from_values(range(6))
    take_over(new, Trained(old, ids, Ids.from_values(range(5)), {}), ids)
    assert old.small is not None and new.small is not None
    torch.testing.assert_close(new.small.items.weight[5], old.small.items.weight.mean(0))
    assert torch.equal(new.small.items.weight[:5], old.small.items.weight)
