"""An item table that is divided among processes trains, evaluates and recommends like a whole one."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from jobs import LOSS_TOLERANCE, STORE, Command, run
from test_training import same, weights

from hyenarec import checkpoint, distributed, item_shards
from hyenarec.cli import main
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.item_shards import ItemShard
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, read_history
from hyenarec.trained import BEST


@pytest.mark.parametrize(
    ("processes", "mixer"),
    [(2, "hyena"), *(pytest.param(3, mixer, marks=pytest.mark.slow) for mixer in ("gru", "bert4rec"))],
)
def test_shards_of_the_items_train_as_the_whole_table(
    processes: int, mixer: str, job_store: Path, tmp_path: Path
) -> None:
    """Losses are the same. Checkpoints hold whole tables, so that any number of processes can continue from them."""
    options = ("--dropout", "0", "--loss", "sampled", "--negatives", "64", "--mixer", mixer, "--clip-norm", "0.1")
    sharded = (*options, "--shard-items")
    run(processes, job_store, tmp_path / "many", *sharded, "--epochs", "1")
    run(1, job_store, tmp_path / "one", *options, "--epochs", "2")
    many, one = (checkpoint.load(tmp_path / name / BEST)[0] for name in ("many", "one"))
    assert {name: tensor.shape for name, tensor in many.items()} == {name: tensor.shape for name, tensor in one.items()}
    for name, number, more in (("fewer", processes - 1, ()), ("more", processes + 1, sharded[-1:])):
        shutil.copytree(tmp_path / "many", tmp_path / name)
        run(number, job_store, tmp_path / name, *options, *more, "--epochs", "2")
    run(processes, job_store, tmp_path / "many", *sharded, "--epochs", "2")
    run(processes, job_store, tmp_path / "again", *sharded, "--epochs", "2")
    assert same(weights(tmp_path / "many"), weights(tmp_path / "again"))
    results = [json.loads((tmp_path / "one" / "result.json").read_text())]
    for name in ("many", "fewer", "more"):
        for ours, theirs in zip(read_history(tmp_path / name), read_history(tmp_path / "one"), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE)
            assert ours["validation"] == pytest.approx(theirs["validation"], rel=1e-3)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert len({result["parameters"] for result in results}) == 1
    tables = [checkpoint.load(tmp_path / name / LAST)[0] for name in ("one", "many")]
    for name in checkpoint.OF_ITEMS:
        torch.testing.assert_close(tables[1][name], tables[0][name], rtol=1e-3, atol=1e-4)
    ranking = rank_targets(Recommender.load(tmp_path / "many"), STORE, leave_one_out(STORE).test, max_length=8)
    test = json.loads((tmp_path / "many" / "result.json").read_text())["test"]
    assert ranking.metrics().items() <= test.items()


@pytest.fixture(scope="module")
def model(job_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    run(1, job_store, out, "--epochs", "1")
    return out


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("divided", [("--shard-items",), ()])
def test_several_processes_evaluate_as_one_does(
    processes: int, divided: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    found = []
    for number in (1, processes):
        out = tmp_path / f"{number}.json"
        job = Command(number, tmp_path / "evaluate", "evaluate", str(model), *divided, "--json-out", str(out))
        assert job.wait() == [0] * number, job.said()
        assert "the best ten for everyone" in job.said(0) and not any(job.said(rank) for rank in range(1, number))
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] and found[0]["metrics"]["MRR"] > 0


@pytest.mark.parametrize("seen", ["--exclude-seen", "--no-exclude-seen"])
def test_the_best_of_shards_are_those_of_the_whole_table(seen: str, model: Path, tmp_path: Path) -> None:
    """More items are asked for than a process holds, some are denied, and one history is unknown."""
    names = STORE.item_ids.decode([0, 1, STORE.n_items // 2, STORE.n_items - 1])
    histories, denied = tmp_path / "histories.txt", tmp_path / "denied.txt"
    histories.write_text("".join(f"{a} {b}\n" for a, b in pairwise([*names, "nothing"])) + "nothing\n")
    denied.write_text(f"{names[2]}\n")
    k = STORE.n_items // 3 + 5
    arguments = ["recommend", str(model), "--histories", str(histories), "--deny", str(denied), "--k", str(k), "--json"]
    found = []
    for number in (1, 3):
        job = Command(number, tmp_path / "recommend", *arguments, seen, "--shard-items")
        assert job.wait() == [1] * number, job.said()
        assert not any(job.said(rank) for rank in range(1, number))
        found.append([json.loads(line) for line in job.said().splitlines() if line.startswith("{")])
    assert len(found[0]) == 5 and [len(one.get("recommendations", ())) for one in found[0]] == [k, k, k, k, 0]
    for whole, shards in zip(*found, strict=True):
        assert whole.get("error") == shards.get("error") and whole["unknown"] == shards["unknown"]
        scores = [[entry["score"] for entry in one.get("recommendations", ())] for one in (whole, shards)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-4)
        items = [{entry["item"] for entry in one.get("recommendations", ())} for one in (whole, shards)]
        assert len(items[0] & items[1]) >= k - 1 or not items[0]


def test_one_shard_is_the_whole_table(model: Path) -> None:
    whole, shard = Recommender.load(model), Recommender.load(model, shard_items=True)
    assert shard.model.shard is not None and whole.model.shard is None
    histories = [STORE.item_ids.decode(STORE.history(user)) for user in range(3)]
    assert whole.recommend(histories) == shard.recommend(histories)
    for refused in (shard.approximate, shard.session, shard.compile, lambda: shard.similar(histories[0][0])):
        with pytest.raises(UserError, match="needs the whole item table, and this process holds a part"):
            refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--loss", "full"), "option shard_items: not used by loss full; only by loss sampled"),
        ((), "option shard_items: not used by loss full; only by loss sampled"),
        (("--loss", "sampled", "--embedding", "decoupled"), "option shard_items: not used with embedding decoupled"),
    ],
)
def test_where_shards_cannot_work_a_line_says_so(
    options: tuple[str, ...], message: str, job_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(job_store), "--out", str(tmp_path / "run"), "--shard-items", *options])
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_fewer_items_than_processes_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 5)
    with pytest.raises(UserError, match="option shard_items: 4 items cannot be divided among 5 processes"):
        ItemShard(4, 8)


@pytest.mark.parametrize(("items", "dim"), [(777, 7), (20_000, 8), (5, 3)])
def test_shards_begin_as_the_whole_table(items: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are drawn with the whole table's values, and leave torch's generator in the same state."""
    monkeypatch.setattr(item_shards, "ROWS_AT_A_TIME", 64)
    torch.manual_seed(0)
    whole = torch.nn.Embedding(items, dim)
    torch.nn.init.normal_(whole.weight, std=0.3)
    after = torch.rand(3)
    monkeypatch.setattr(distributed, "size", lambda: 3)
    rows = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        shard = ItemShard(items, dim)
        shard.draw(0.3)
        assert torch.equal(torch.rand(3), after)
        rows.append(shard.weight)
    assert torch.equal(torch.cat(rows), whole.weight)
