"""Several processes train as one does. If one dies, all end, and the same command continues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_batch, make_store, write_items
from jobs import LOSS_TOLERANCE, OPTIONS, STORE, Command, Job, run
from test_training import same, weights

from hyenarec import checkpoint, distributed, item_shards, plots  # noqa: F401 (plots: so that forked processes have it)
from hyenarec.cli import main
from hyenarec.cli.options import ItemFeatures
from hyenarec.cloze import hide_events
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.data.batches import Batch
from hyenarec.data.item_features import encode, learn, read_item_table
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, Run, read_history
from hyenarec.source import Source, load_source
from hyenarec.trained import BEST
from hyenarec.training import Trainer

LOST = "another process has ended or cannot be reached; run the same command again, and a training goes on from"


@pytest.mark.parametrize(
    ("processes", "loss", "mixer"),
    [
        (2, "full", "hyena"),
        (3, "sampled", "hyena"),
        pytest.param(3, "full", "gru", marks=pytest.mark.slow),
        pytest.param(2, "sampled", "bert4rec", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_one_process(
    processes: int, loss: str, mixer: str, job_store: Path, tmp_path: Path
) -> None:
    """This is without dropout, whose masks differ between processes. Evaluation finds exactly the same ranks."""
    options = ("--epochs", "2", "--dropout", "0", "--loss", loss, "--mixer", mixer)
    job = run(processes, job_store, tmp_path / "many", *options)
    assert "written to" in job.said() and not any(job.said(rank) for rank in range(1, processes))  # only one prints
    run(1, job_store, tmp_path / "one", *options)
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
    ("victim", "more"),
    [
        pytest.param(0, (), marks=pytest.mark.slow),
        (1, ()),
        pytest.param(1, ("--shard-items",), marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    victim: int, more: tuple[str, ...], job_store: Path, tmp_path: Path
) -> None:
    """With the same number of processes it ends with the same bits, with another number with the same losses."""
    options = ("--epochs", "3", "--dropout", "0", "--loss", "sampled", "--negatives", "64", *more)
    job = Job(3, job_store, tmp_path / "killed", *options, "--checkpoint-minutes", "0")
    while job.workers[2].is_alive() and not (tmp_path / "killed" / LAST).exists():
        time.sleep(0.01)
    job.workers[victim].kill()
    began = time.monotonic()
    codes = job.wait(30)
    assert time.monotonic() - began < 20
    assert codes[victim] == -signal.SIGKILL
    for survivor in {0, 1, 2} - {victim}:
        assert codes[survivor] == 2 and f"error: process {survivor} of 3: {LOST}" in job.said(survivor)
    shutil.copytree(tmp_path / "killed", tmp_path / "two")
    for processes, name in ((3, "killed"), (3, "whole"), (2, "two")):
        run(processes, job_store, tmp_path / name, *options)
    for name in (LAST, BEST):
        assert same(weights(tmp_path / "killed", name), weights(tmp_path / "whole", name))
    whole, two = ([row["loss"] for row in read_history(tmp_path / name)] for name in ("whole", "two"))
    assert len(whole) == 3 and two == pytest.approx(whole, rel=LOSS_TOLERANCE)


def test_a_signal_stops_all_after_the_same_step(job_store: Path, tmp_path: Path) -> None:
    """Any of the processes may get the signal. With dropout the run then ends with the bits of an undisturbed one."""
    options = ("--epochs", "3", "--patience", "50")
    job = Job(3, job_store, tmp_path / "stopped", *options, "--checkpoint-minutes", "0")
    while job.workers[1].is_alive() and not (tmp_path / "stopped" / LAST).exists():
        time.sleep(0.01)
    job.workers[1].terminate()
    assert set(job.wait(60)) <= {0, 143, 2}, job.said()
    run(3, job_store, tmp_path / "stopped", *options)
    run(3, job_store, tmp_path / "whole", *options)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_processes_save_by_their_own_clocks(job_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 0 takes long to write, so that the others' next save is due before its own."""
    save = Run.save_last

    def slowly(self: Run) -> None:
        save(self)
        time.sleep(0.05 * distributed.is_main())

    options = ("--epochs", "2", "--batch-size", "16", *OPTIONS)
    train = ("train", str(job_store), *options, "--out")
    assert Command(2, tmp_path / "whole", *train, str(tmp_path / "whole")).wait() == [0, 0]
    monkeypatch.setattr(Run, "save_last", slowly)
    job = Command(2, tmp_path / "often", *train, str(tmp_path / "often"), "--checkpoint-minutes", "0.0005")
    assert job.wait() == [0, 0], job.said()
    assert same(weights(tmp_path / "often"), weights(tmp_path / "whole"))


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

    with pytest.raises(UserError, match=r"^process 0 of 2: another process has ended [^\n]+$"):
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
    """The gradients of the shares, added up by hand in one process, are the gradient of the whole batch."""
    model = ModelConfig(dim=8, blocks=1, max_length=8, dropout=0.0, repeats="off")
    trainer = Trainer(STORE, leave_one_out(STORE), model, TrainingConfig(loss="full", batch_size=7, device="cpu"))
    batch = next(trainer.slices.epoch(0, 0))

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


@pytest.mark.parametrize(
    "arguments",
    [("recommend", "run", "--history", "a"), ("compare", "log.csv", "--out", "out"), ("prepare", "log.csv", "out")],
)
def test_what_one_process_does_is_refused_in_several(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for processes, refused in (("2", True), ("1", False)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        monkeypatch.setattr(distributed, "start", lambda: None)
        with pytest.raises(SystemExit):
            main([*arguments])
        said = capsys.readouterr().err
        assert ("is done by one process; start it without torchrun" in said) == refused, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "differs",
    ["log", "times", "features", "start", "folder", "options", "histories", "evaluated log", "evaluated times"],
)
def test_processes_that_are_given_something_else_are_refused(
    differs: str, job_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines may have different files of the same name; processes would then wait for each other for ever."""
    given, other = tmp_path / "given", tmp_path / "other"
    for place, items in ((given, STORE.items), (other, STORE.items[::-1].copy())):
        replace(STORE, items=items).save(place / "log")
        assert STORE.timestamps is not None
        replace(STORE, timestamps=STORE.timestamps + (place == other)).save(place / "times")
        (place / "histories").write_text("".join(f"{item}\n" for item in STORE.item_ids.decode(items[:3])))
    arguments = {
        "log": ["train", "log", "--out", str(tmp_path / "run"), *OPTIONS],
        "times": ["train", "times", "--out", str(tmp_path / "run"), *OPTIONS],
        "features": ["train", str(job_store), "--out", str(tmp_path / "run"), *OPTIONS, "--item-features", "items.csv"],
        "start": ["train", str(job_store), "--out", str(tmp_path / "run"), "--seed", "0", "--device", "cpu"],
        "folder": ["train", str(job_store), "--out", "run", "--epochs", "2", *OPTIONS],
        "options": ["train", str(job_store), "--out", str(tmp_path / "run"), *OPTIONS],
        "histories": ["recommend", str(tmp_path / "run"), "--histories", "histories", "--shard-items"],
        "evaluated log": ["evaluate", str(tmp_path / "run"), "--data", "log"],
        "evaluated times": ["evaluate", str(tmp_path / "run"), "--data", "times"],
    }[differs]
    if differs in ("histories", "evaluated log", "evaluated times"):
        run(1, job_store, tmp_path / "run", "--epochs", "1")
    if differs == "start":
        for place, seed in ((given, "0"), (other, "1")):
            run(1, job_store, place / "before", "--epochs", "1", "--seed", seed)
    if differs == "folder":  # each machine has its own, and only process 0's has a checkpoint
        assert Command(1, tmp_path / "first", *arguments[:3], str(given / "run"), "--epochs", "1", *OPTIONS).wait() == [
            0
        ]

    def start() -> None:
        joined()
        os.chdir(other if distributed.rank() else given)

    joined = distributed.start
    monkeypatch.setattr(distributed, "start", start)
    if differs == "features":  # read before the fork, because polars locks up after it
        tables = [write_items(tmp_path / f"{last}.parquet", last=last) for last in (130, 125)]
        read = [read_item_table(table, STORE.item_ids) for table in tables]
        features = [encode(table, learn(table, STORE.item_ids), STORE.item_ids) for table in read]
        monkeypatch.setattr(ItemFeatures, "of", lambda *_: features[distributed.rank()])
    work = Command._work
    own = {
        "options": [["--seed", str(rank)] for rank in range(2)],
        "start": [["--from", str(place / "before")] for place in (given, other)],
    }
    if differs in own:
        monkeypatch.setattr(
            Command,
            "_work",
            lambda self, rank, processes, port, same: work(self, rank, processes, port, [*same, *own[differs][rank]]),
        )
    job = Command(2, tmp_path / "job", *arguments)
    assert job.wait(60) == [2, 2], job.said()
    data = dict.fromkeys(("log", "times", "evaluated log", "evaluated times"), "option data")
    others = {"features": "option item_features", "start": "option from", "folder": "option out"}
    what = (data | others).get(differs, differs)
    for rank in range(2):
        assert f"error: {what}: process 1 of 2 has others than process 0; all must see the same" in job.said(rank)


@pytest.mark.slow
def test_shards_of_another_catalogue_are_not_called_damaged(job_store: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--loss", "sampled", "--negatives", "64", "--shard-items")
    run(2, job_store, tmp_path / "run", *options)
    make_store(n_users=400, n_items=31).save(tmp_path / "grown")
    job = Job(2, tmp_path / "grown", tmp_path / "run", *options)
    assert job.wait(60) == [2, 2]
    assert all("the log changed since, or is another one" in job.said(rank) for rank in range(2))


def test_a_pipe_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "events.csv")
    monkeypatch.setattr(distributed, "size", lambda: 2)
    for data, name in (("-", "standard input"), (str(tmp_path / "events.csv"), "events.csv")):
        with pytest.raises(UserError, match=f"{name}: only one process can read a pipe; name a file, or a store"):
            load_source(Source(data))


def test_sharing_a_model_warns_of_nothing_and_leaves_its_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.BatchNorm1d(2)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = distributed.wrap(model, [*model.parameters()])
        assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        assert not wrapped.will_sync_module_buffers()
    finally:
        torch.distributed.destroy_process_group()
