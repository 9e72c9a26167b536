"""Passes over whole catalogues in blocks, which are exact, and the approximate index."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import MODEL

from hyenarec import catalogue
from hyenarec.catalogue import count_reaching, finite_rows
from hyenarec.cli import main
from hyenarec.errors import UserError
from hyenarec.model import SequenceModel
from hyenarec.nearest import NearestItems
from hyenarec.recommendation import Recommender

HISTORIES = [[100, 101, 102], [110, 105], [129]]


@pytest.mark.parametrize("items", [1, 7, 8, 30])
def test_counts_are_those_of_the_whole(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ITEMS_AT_A_TIME", 8)
    scores = torch.randint(5, (4, items), generator=torch.Generator().manual_seed(0)).float()  # with ties
    own = scores[:, :1]
    assert torch.equal(count_reaching(scores, own), (scores >= own).sum(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite(bad: float) -> None:
    scores = torch.randn(3, 50)
    scores[1, 17] = bad
    assert finite_rows(scores).tolist() == [True, False, True]


def test_without_faiss_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"^an approximate index needs faiss: install hyenarec\[ann\]$"):
        NearestItems(SequenceModel(MODEL, 10))


def large_model(items: int) -> SequenceModel:
    """Items form groups, as trained embeddings do, and have biases that also decide which items are best."""
    generator = torch.Generator().manual_seed(0)
    model = SequenceModel(MODEL, items)
    groups = torch.randn(50, MODEL.dim, generator=generator)
    members = torch.randint(50, (items,), generator=generator)
    with torch.no_grad():
        model.items.weight.copy_(groups[members] + 0.5 * torch.randn(items, MODEL.dim, generator=generator))
        model.bias.copy_(torch.randn(items, generator=generator))
    return model


def test_the_index_finds_nearly_all_of_the_best() -> None:
    pytest.importorskip("faiss")
    model = large_model(5_000)
    hidden = torch.randn(64, MODEL.dim, generator=torch.Generator().manual_seed(1))
    exact = model.scores_of(hidden).detach()
    best = exact.topk(10)
    index = NearestItems(model)
    scores, places = index.search(hidden, 10)
    torch.testing.assert_close(scores, exact.gather(1, places))  # the scores of what it finds are exact
    assert (scores.diff(dim=1) <= 0).all()

    def recall(found: torch.Tensor) -> float:
        pairs = zip(found.tolist(), best.indices.tolist(), strict=True)
        return float(np.mean([len({*ours} & {*theirs}) / 10 for ours, theirs in pairs]))

    assert recall(places) > 0.95
    assert recall((hidden @ model.items.weight.T).topk(10).indices) < 0.95  # ignoring biases finds other items
    seen = [row.numpy().astype(np.int32) for row in best.indices[:, :3]]
    _, without = index.search(hidden, 7, seen)
    for ours, gone in zip(without.tolist(), seen, strict=True):
        assert not {*ours} & {*gone.tolist()}
    assert (
        np.mean([len({*a} & {*b}) / 7 for a, b in zip(without.tolist(), best.indices[:, 3:].tolist(), strict=True)])
        > 0.95
    )


def test_an_approximate_recommender_answers_as_the_exact_one(run: Path) -> None:
    """This is tested on a catalogue that is small enough for the index to find everything."""
    pytest.importorskip("faiss")
    recommender = Recommender.load(run)
    for exclude_seen in (True, False):
        exact = Recommender.load(run).recommend(HISTORIES, 5, exclude_seen=exclude_seen)
        recommender.approximate()
        found = recommender.recommend(HISTORIES, 5, exclude_seen=exclude_seen)
        for ours, theirs in zip(found, exact, strict=True):
            assert [one.item for one in ours] == [one.item for one in theirs]
            assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], rel=1e-5)
    everything = list(range(100, 130))
    (answer,) = recommender.answers([everything], 5, exclude_seen=True)
    assert answer.error == "the index finds no item for it: damaged weights, or every item seen"


def test_recommend_has_it_as_an_option(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    for option in ([], ["--approximate"]):
        main(["recommend", str(run), "--history", "100", "101", "--k", "3", "--json", *option])
    exact, approximate = capsys.readouterr().out.splitlines()
    assert exact == approximate
