"""Several processes train as one does; the death of one ends all, and the same command goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_batch, make_store
from test_training import same, weights
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hyenarec import checkpoint, distributed, item_shards, plots  # noqa: F401 (plots: so that forked processes have it)
from hyenarec.cli import main
from hyenarec.cloze import hide_events
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.data.batches import Batch, TrainingWindows
from hyenarec.data.splits import leave_one_out
from hyenarec.display import console
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.item_shards import ItemShard
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, read_history
from hyenarec.trained import BEST
from hyenarec.training import Trainer

STORE = make_store(n_users=400)  # two batches of evaluation
LOSS_TOLERANCE = 1e-5  # relative: processes add the same numbers in another order
OPTIONS = ("--dim", "8", "--blocks", "1", "--max-length", "8", "--device", "cpu", "--warmup-steps", "4")
LOST = "another process of this training has ended or cannot be reached; the same command goes on from the last"


def ragged() -> int:
    """A batch size whose last batch has one window or two, so that of three processes one has none of it."""
    windows = len(TrainingWindows(STORE, leave_one_out(STORE), 8, 1))
    return next(size for size in range(60, 200) if windows % size in (1, 2))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "store"
    STORE.save(path)
    return path


class Command:
    """A command in several processes, which find each other as those of torchrun do. They are forked, since
    most of the time of a short training would be imports; polars, which a fork would lock up, has nothing to do."""

    def __init__(self, processes: int, out: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [out.parent / f"{out.name}-{rank}.txt" for rank in range(processes)]
        fork = multiprocessing.get_context("fork")
        self.workers = [
            fork.Process(target=self._work, args=(rank, processes, port, [*arguments])) for rank in range(processes)
        ]
        for worker in self.workers:
            worker.start()

    def _work(self, rank: int, processes: int, port: int, arguments: list[str]) -> None:
        with self.logs[rank].open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            monkeypatch = pytest.MonkeyPatch()
            monkeypatch.setattr(console, "_file", sys.stdout)
            torch.set_num_threads(1)
            if processes > 1:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in (where | numbers).items()})
            main(arguments)

    def wait(self, seconds: float = 150) -> list[int | None]:
        """The exit codes."""
        end = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, end - time.monotonic()))
        codes = [worker.exitcode for worker in self.workers]
        for worker in self.workers:
            worker.kill()
        return codes

    def said(self, rank: int = 0) -> str:
        return self.logs[rank].read_text()


class Job(Command):
    """``hyenarec train``."""

    def __init__(self, processes: int, store: Path, out: Path, *options: str) -> None:
        arguments = ("train", str(store), "--out", str(out), "--batch-size", str(ragged()), *OPTIONS, *options)
        super().__init__(processes, out, *arguments)


def run(processes: int, store: Path, out: Path, *options: str) -> Job:
    job = Job(processes, store, out, *options)
    assert job.wait() == [0] * processes, job.said()
    return job


@pytest.mark.parametrize(
    ("processes", "loss", "mixer"),
    [
        (2, "full", "hyena"),
        (3, "sampled", "hyena"),
        pytest.param(3, "full", "gru", marks=pytest.mark.slow),
        pytest.param(2, "sampled", "bert4rec", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_one_process(processes: int, loss: str, mixer: str, store: Path, tmp_path: Path) -> None:
    """Without dropout, whose masks are each process's own; and evaluation finds the very same ranks."""
    options = ("--epochs", "2", "--dropout", "0", "--loss", loss, "--mixer", mixer)
    job = run(processes, store, tmp_path / "many", *options)
    assert "written to" in job.said() and not any(job.said(rank) for rank in range(1, processes))  # one speaks
    run(1, store, tmp_path / "one", *options)
    many, one = (read_history(tmp_path / name) for name in ("many", "one"))
    assert len(many) == 2 and one[0]["loss"] != pytest.approx(one[1]["loss"], rel=1e-3)
    for ours, theirs in zip(many, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE)
    recommender = Recommender.load(tmp_path / "many")
    ranking = rank_targets(recommender, STORE, leave_one_out(STORE).test, max_length=8)
    test = json.loads((tmp_path / "many" / "result.json").read_text())["test"]
    assert ranking.metrics().items() <= test.items()
    assert {path.name for path in (tmp_path / "many").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize(
    ("processes", "mixer"),
    [(2, "hyena"), (3, "gru"), pytest.param(3, "bert4rec", marks=pytest.mark.slow)],
)
def test_shards_of_the_items_train_as_the_whole_table(processes: int, mixer: str, store: Path, tmp_path: Path) -> None:
    """To the same losses; the checkpoints are files of whole tables, from which any number of processes goes on."""
    options = ("--dropout", "0", "--loss", "sampled", "--negatives", "64", "--mixer", mixer, "--clip-norm", "0.1")
    sharded = (*options, "--shard-items")
    run(processes, store, tmp_path / "many", *sharded, "--epochs", "1")
    run(1, store, tmp_path / "one", *options, "--epochs", "2")
    many, one = (checkpoint.load(tmp_path / name / BEST)[0] for name in ("many", "one"))
    assert {name: tensor.shape for name, tensor in many.items()} == {name: tensor.shape for name, tensor in one.items()}
    for name, number, more in (("fewer", processes - 1, ()), ("more", processes + 1, sharded[-1:])):
        shutil.copytree(tmp_path / "many", tmp_path / name)
        run(number, store, tmp_path / name, *options, *more, "--epochs", "2")
    run(processes, store, tmp_path / "many", *sharded, "--epochs", "2")
    if processes == 2:  # of more, sums have another order after a stop
        run(2, store, tmp_path / "again", *sharded, "--epochs", "2")
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
def model(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    run(1, store, out, "--epochs", "1")
    return out


@pytest.mark.parametrize("processes", [2, 3])
def test_shards_of_the_items_are_evaluated_as_the_whole_table(processes: int, model: Path, tmp_path: Path) -> None:
    found = []
    for number in (1, processes):
        out = tmp_path / f"{number}.json"
        job = Command(number, tmp_path / "evaluate", "evaluate", str(model), "--shard-items", "--json-out", str(out))
        assert job.wait() == [0] * number, job.said()
        assert "the best ten for everyone" in job.said(0) and not any(job.said(rank) for rank in range(1, number))
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] and found[0]["metrics"]["MRR"] > 0


@pytest.mark.parametrize("seen", ["--exclude-seen", "--no-exclude-seen"])
def test_the_best_of_shards_are_those_of_the_whole_table(seen: str, model: Path, tmp_path: Path) -> None:
    """More of them than a process has items, some denied, for histories of which one is unknown."""
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
    options: tuple[str, ...], message: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(store), "--out", str(tmp_path / "run"), "--shard-items", *options])
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_fewer_items_than_processes_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 5)
    with pytest.raises(UserError, match="option shard_items: 4 items cannot be divided among 5 processes"):
        ItemShard(4, 8)


@pytest.mark.parametrize(("items", "dim"), [(777, 7), (20_000, 8), (5, 3)])
def test_shards_begin_as_the_whole_table(items: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave torch's generator where it is then."""
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


@pytest.mark.parametrize(
    ("victim", "more"),
    [
        pytest.param(0, (), marks=pytest.mark.slow),
        (1, ()),
        pytest.param(1, ("--shard-items",), marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    victim: int, more: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    """With as many processes to the same bits, and with another number of them to the same losses."""
    options = ("--epochs", "3", "--dropout", "0", "--loss", "sampled", "--negatives", "64", *more)
    job = Job(2, store, tmp_path / "killed", *options, "--checkpoint-minutes", "0")
    while job.workers[1].is_alive() and not (tmp_path / "killed" / LAST).exists():
        time.sleep(0.01)
    job.workers[victim].kill()
    began = time.monotonic()
    codes = job.wait(30)
    assert time.monotonic() - began < 20
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2, job.said(1 - victim)
    assert f"error: process {1 - victim} of 2: {LOST}" in job.said(1 - victim)
    shutil.copytree(tmp_path / "killed", tmp_path / "three")
    for processes, name in ((2, "killed"), (2, "whole"), (3, "three")):
        run(processes, store, tmp_path / name, *options)
    for name in (LAST, BEST):
        assert same(weights(tmp_path / "killed", name), weights(tmp_path / "whole", name))
    whole, three = ([row["loss"] for row in read_history(tmp_path / name)] for name in ("whole", "three"))
    assert len(whole) == 3 and three == pytest.approx(whole, rel=LOSS_TOLERANCE)


def test_a_signal_stops_all_after_the_same_step(store: Path, tmp_path: Path) -> None:
    """Whichever process gets it; with dropout the run then ends with the bits of one that was not stopped."""
    options = ("--epochs", "3", "--patience", "50")
    job = Job(2, store, tmp_path / "stopped", *options, "--checkpoint-minutes", "0")
    while job.workers[1].is_alive() and not (tmp_path / "stopped" / LAST).exists():
        time.sleep(0.01)
    job.workers[1].terminate()
    assert set(job.wait(60)) <= {0, 143, 2}, job.said()
    run(2, store, tmp_path / "stopped", *options)
    run(2, store, tmp_path / "whole", *options)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_torchruns_agent_starts_it(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It forks here, where the command below starts three interpreters."""
    arguments = ["train", str(store), "--out", str(tmp_path / "run"), "--epochs", "1", *OPTIONS]
    agent = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        elastic_launch(agent, main)(arguments)
    finally:  # the agent, whose process ends with it, leaves its own
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    assert capfd.readouterr().out.count("written to") == 1 and (tmp_path / "run" / BEST).exists()


@pytest.mark.slow
def test_torchrun_starts_it(store: Path, tmp_path: Path) -> None:
    train = ["-m", "hyenarec", "train", str(store), "--out", str(tmp_path / "run"), "--epochs", "1", *OPTIONS]
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *train]
    done = subprocess.run(
        program, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1 and (tmp_path / "run" / BEST).exists()


def parts_of(batch: Batch, processes: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, float]]:
    monkeypatch.setattr(distributed, "size", lambda: processes)
    found = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        found.append(distributed.part(batch))
    return found


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("hidden", [False, True], ids=["next items", "hidden events"])
def test_parts_are_the_batch(hidden: bool, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch([3, 9, 1, 4, 4, 7, 2])
    if hidden:
        batch = hide_events(batch)
    parts = [part for part, _ in parts_of(batch, processes, monkeypatch)]

    def histories(batch: Batch) -> list[tuple[Any, ...]]:
        bounds = batch.packing.cu_seqlens.tolist()
        found = []
        for start, end in pairwise(bounds):
            assert batch.targets is not None
            targets = batch.targets[start:end]
            if batch.masked is not None:
                inside = (batch.masked >= start) & (batch.masked < end)
                targets = torch.stack((batch.masked[inside] - start, batch.targets[inside]))
            times = None if batch.timestamps is None else tuple(batch.timestamps[start:end].tolist())
            found.append((tuple(batch.items[start:end].tolist()), times, str(targets.tolist())))
        return sorted(found, key=str)

    assert sorted((history for part in parts for history in histories(part)), key=str) == histories(batch)
    for part, share in parts_of(batch, processes, monkeypatch):
        assert part.targets is not None and batch.targets is not None
        assert share == len(part.targets) / len(batch.targets)
        assert part.packing.max_length == int(part.packing.lengths.max())


def test_a_process_without_a_sequence_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch([3, 5])
    parts = parts_of(batch, 3, monkeypatch)
    assert sorted(share for _, share in parts) == [0.0, 3 / 8, 5 / 8]
    assert all(len(part.items) for part, _ in parts)


@pytest.mark.parametrize("parts", [2, 8])
def test_shares_have_equal_tokens_rather_than_equal_sequences(parts: int) -> None:
    lengths = np.random.default_rng(0).geometric(0.02, 128).clip(max=200)
    found = distributed.shares(lengths, parts)
    assert sorted(sequence for share in found for sequence in share) == list(range(128))
    tokens = [int(lengths[share].sum()) for share in found]
    by_count = [int(share.sum()) for share in np.array_split(lengths, parts)]
    assert max(tokens) - min(tokens) <= lengths.min() + 1
    assert max(by_count) - min(by_count) > 20 * (max(tokens) - min(tokens))
    assert distributed.shares(lengths, parts) == found


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch([3, 5])
    distributed.start()
    assert distributed.part(batch) == (batch, 1.0) and distributed.is_main() and distributed.size() == 1
    state = torch.get_rng_state()
    distributed.own_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    model = torch.nn.Linear(2, 2)
    assert distributed.wrap(model, []) is model


def test_the_end_of_a_process_is_one_line_and_other_errors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 2)

    def fails(reason: str) -> None:
        with distributed.peers():
            raise RuntimeError(reason)

    with pytest.raises(UserError, match=r"^process 0 of 2: another process of this training has ended [^\n]+$"):
        fails("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3421\nmore")
    with pytest.raises(RuntimeError, match="shapes"):
        fails("shapes differ")
    monkeypatch.setattr(distributed, "size", lambda: 1)
    with pytest.raises(RuntimeError, match="Connection closed"):
        fails("gloo: Connection closed by peer")


def test_dropout_differs_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 2)
    drawn = []
    for number in range(2):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        for seed in (1, 2):
            distributed.own_seed(seed)
            drawn.append(int(torch.randint(2**62, (1,))))
    assert len(set(drawn)) == 4


def test_gradients_of_shares_add_up_to_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's gradient is that of the whole batch, whatever the shares: in one process, added up by hand."""
    model = ModelConfig(dim=8, blocks=1, max_length=8, dropout=0.0)
    trainer = Trainer(STORE, leave_one_out(STORE), model, TrainingConfig(loss="full", batch_size=7, device="cpu"))
    batch = next(trainer.windows.epoch(0, 0))

    def gradient(of: Batch) -> torch.Tensor:
        assert of.targets is not None
        loss = trainer._full_loss(trainer.model(of), of.targets)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trainer.model.parameters()))])

    whole = gradient(replace(batch))
    parts = parts_of(batch, 3, monkeypatch)
    added = sum(share * gradient(part) for part, share in parts)
    assert isinstance(added, torch.Tensor)
    assert (added - whole).norm() <= 1e-5 * whole.norm()
    assert (sum(gradient(part) for part, _ in parts) / 3 - whole).norm() > 1e-3 * whole.norm()  # plain means do not
