"""Items that a model has not seen are served by their features: in every command, and in trainings that continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from generated import make_store
from test_item_features import dense
from test_training import CONFIG, MODEL, same

from hyenarec.cli import main
from hyenarec.cli.options import NewItems
from hyenarec.cli.serve import load
from hyenarec.continuing import Start, load_start, take_over, with_new_items
from hyenarec.data.ids import Ids
from hyenarec.data.item_features import encode, read_item_table
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from hyenarec.featured_items import FeaturedItems
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.trained import Trained, load_trained
from hyenarec.training import Trainer

Fails = Callable[..., str]


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
    old = [one for one in both if one.item < 130][:5]  # scores of more items are rounded otherwise
    assert [one.item for one in old] == [one.item for one in known]
    assert [one.score for one in old] == pytest.approx([one.score for one in known], rel=1e-6)
    assert {one.item for one in both} > {130, 131, 132, 133, 134}
    assert after.recommend([[130, 134]], k=3)  # histories may contain new items, too
    assert len(after.session([[133]]).recommend(k=2)[0]) == 2
    again = after.with_items(items)  # none of them are new any more
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
    served, _ = load(featured, torch.device("cpu"), None, NewItems(items))
    assert same(served.model.state_dict(), own.model.state_dict())


def test_new_items_of_a_grown_log_are_ranked(featured: Path, log: Path, items: Path, tmp_path: Path) -> None:
    """Two targets are new items. One has no row in the table, so it stays unknown and counts as missed."""
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


def test_a_training_goes_on_with_new_items_from_their_features(featured: Path, items: Path, tmp_path: Path) -> None:
    """Rows of known items begin as they were, and rows of new items as :meth:`Recommender.with_items` makes them."""
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
    # rows stay the same if the features, or what was learned of them, are missing
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
    """The second item table of a decoupled model grows with the first."""
    config = replace(MODEL, embedding="decoupled")
    old, new = SequenceModel(config, 5), SequenceModel(config, 6)
    ids = Ids.from_values(range(6))
    take_over(new, Trained(old, ids, Ids.from_values(range(5)), {}), ids)
    assert old.small is not None and new.small is not None
    torch.testing.assert_close(new.small.items.weight[5], old.small.items.weight.mean(0))
    assert torch.equal(new.small.items.weight[:5], old.small.items.weight)
