"""Training continues from a trained run with later events, new users and new items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_store, write_csv
from numpy.typing import NDArray
from test_training import CONFIG, MODEL, SOURCE, same, weights

from hyenarec import checkpoint
from hyenarec.cli import main
from hyenarec.continuing import Start, known_until, load_start, take_over, trained_until, with_items_of
from hyenarec.data.batches import TrainingSlices
from hyenarec.data.ids import Ids
from hyenarec.data.splits import global_temporal, leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import DamagedError, UserError
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST, Run, read_history
from hyenarec.stopping import Interrupted
from hyenarec.trained import BEST, NEVER, Trained, load_trained
from hyenarec.training import Trainer

Fails = Callable[..., str]
Logs = tuple[SequenceStore, SequenceStore, SequenceStore]


def part_of(store: SequenceStore, kept: NDArray[np.bool_]) -> SequenceStore:
    """A log of the chosen events of ``store``, with only the users and items that occur in them."""
    users = np.repeat(np.arange(store.n_users), np.diff(store.offsets))[kept]
    own, lengths = np.unique(users, return_counts=True)
    items, places = np.unique(store.items[kept], return_inverse=True)
    assert store.timestamps is not None
    return SequenceStore(
        np.concatenate(([0], lengths.cumsum())).astype(np.int64),
        places.astype(np.int32),
        store.timestamps[kept],
        Ids.from_values(store.user_ids.decode(own)),
        Ids.from_values(store.item_ids.decode(items)),
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Three logs: one up to a certain time, the same after it has grown, and only the events since that time. Items
    from 125 on and some users are new in the second and third; items 100 and 101 are absent from the third."""
    grown = make_store(n_users=60)
    assert grown.timestamps is not None
    users = np.repeat(np.arange(grown.n_users), np.diff(grown.offsets))
    old = (grown.timestamps < 7_000_000) & (grown.items < 25) & (users % 5 > 0)
    return part_of(grown, old), grown, part_of(grown, (grown.timestamps >= 7_000_000) & (grown.items > 1))


@pytest.fixture(scope="module")
def old(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "run"
    Run(folder, logs[0], leave_one_out(logs[0]), MODEL, CONFIG, SOURCE).train()
    return folder


def go_on(old: Path, folder: Path, log: SequenceStore, **options: Any) -> dict[str, Any]:
    start, store = Start.of(load_start(old, MODEL), log)
    return Run(folder, store, leave_one_out(store), MODEL, replace(CONFIG, **options), SOURCE, start).train()


# The catalogue ------------------------------------------------------------------------------------


def test_the_catalogue_is_of_both_and_events_stay(logs: Logs) -> None:
    before, _, delta = logs
    joined = with_items_of(delta, before.item_ids)
    names = {*before.item_ids.decode(range(before.n_items)), *delta.item_ids.decode(range(delta.n_items))}
    assert joined.item_ids.decode(range(joined.n_items)) == sorted(names) and joined.n_items > before.n_items
    assert joined.item_ids.decode(joined.items) == delta.item_ids.decode(delta.items)
    assert joined.items.dtype == np.int32 and np.array_equal(joined.offsets, delta.offsets)


def test_ids_of_numbers_and_of_strings_meet(logs: Logs) -> None:
    """Ids of a joined catalogue are strings if either catalogue has an id that is no number."""
    before, _, _ = logs
    words = Ids.from_values(["101", "tea"])
    joined = with_items_of(before, words).item_ids
    assert not joined.integers and len(joined) == before.n_items + 1
    spelled = replace(before, item_ids=Ids.from_values([f"{n}" for n in range(100, 100 + before.n_items)]))
    assert len(with_items_of(spelled, before.item_ids).item_ids) == before.n_items
    model = SequenceModel(MODEL, before.n_items)
    into = SequenceModel(MODEL, len(joined))
    take_over(into, Trained(model, before.user_ids, before.item_ids, {}), joined)
    for number in range(100, 100 + before.n_items):
        (place,) = joined.encode([str(number)])
        assert torch.equal(into.items.weight[place], model.items.weight[number - 100])


@pytest.mark.parametrize("mixer", ["hyena", "attention", "bert4rec"])  # attention has positions, bert4rec a masked item
def test_known_rows_stay_and_new_ones_are_the_mean(mixer: str, logs: Logs) -> None:
    before, grown, _ = logs
    torch.manual_seed(3)
    model = SequenceModel(replace(MODEL, mixer=mixer), before.n_items)
    torch.nn.init.normal_(model.bias)
    trained = Trained(model, before.user_ids, before.item_ids, {})
    into = SequenceModel(replace(MODEL, mixer=mixer, dropout=0.5), grown.n_items)
    take_over(into, trained, grown.item_ids)
    places = before.item_ids.find(grown.item_ids.decode(range(grown.n_items)))
    known = torch.from_numpy(places >= 0)
    assert 0 < int((~known).sum()) < grown.n_items
    for ours, theirs in ((into.items.weight, model.items.weight), (into.bias, model.bias)):
        assert torch.equal(ours[known], theirs[places[places >= 0].astype(np.int64)])
        torch.testing.assert_close(ours[~known], theirs.mean(0).expand_as(ours[~known]))
    rest = {name: value for name, value in into.state_dict().items() if name not in ("items.weight", "bias")}
    assert same(rest, {name: model.state_dict()[name] for name in rest})


# What is trained on -------------------------------------------------------------------------------


def test_trained_on_is_what_has_something_later_to_predict(logs: Logs, old: Path) -> None:
    before, grown, _ = logs
    trained = load_trained(old)
    until = known_until(trained, grown)
    assert until is not None and grown.timestamps is not None
    for user, name in enumerate(grown.user_ids.decode(range(grown.n_users))):
        (own,) = before.user_ids.find([name])
        expected = NEVER
        if own >= 0:
            end = leave_one_out(before).train_ends[own]
            assert before.timestamps is not None
            expected = before.timestamps[end - 1] if end > before.offsets[own] else NEVER
        assert until[user] == expected
    split = leave_one_out(grown)
    everything = TrainingSlices(grown, split, MODEL.max_length, 4)
    chosen = TrainingSlices(grown, split, MODEL.max_length, 4, until)
    later = {
        (start, end)
        for start, end in zip(everything.starts.tolist(), everything.ends.tolist(), strict=True)
        if (grown.timestamps[start + 1 : end + 1] > until[grown.users_of(np.array([start]))[0]]).any()
    }
    assert {*zip(chosen.starts.tolist(), chosen.ends.tolist(), strict=True)} == later
    assert 0 < len(later) < len(everything.starts)
    assert chosen.tokens == sum(len(batch.items) for batch in chosen.epoch(0, 0)) < everything.tokens


def test_a_log_without_times_is_trained_on_whole(logs: Logs) -> None:
    before, grown, _ = logs
    timeless = replace(before, timestamps=None)
    assert trained_until(timeless, leave_one_out(timeless)) is None
    model = SequenceModel(MODEL, before.n_items)
    for start, store in ((None, grown), (np.zeros(before.n_users, np.int64), replace(grown, timestamps=None))):
        assert known_until(Trained(model, before.user_ids, before.item_ids, {}, start), store) is None


def test_a_period_that_the_old_run_held_back_is_new(logs: Logs, tmp_path: Path) -> None:
    _, grown, _ = logs
    split = global_temporal(grown, 0.2, 0.2)
    until = trained_until(grown, split)
    assert until is not None and grown.timestamps is not None
    first_cut = grown.timestamps[split.validation].min()
    assert until.max() < first_cut and (until == NEVER).any()


def test_a_log_without_anything_later_is_refused(logs: Logs, old: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^nothing to train on: .* later than what the model was trained on$"):
        go_on(old, tmp_path / "run", logs[0])


# Runs ---------------------------------------------------------------------------------------------


def test_it_begins_with_the_old_models_answers(logs: Logs, old: Path) -> None:
    """Before the first step, known items have the old model's scores: training does not start from scratch."""
    before, grown, _ = logs
    start, store = Start.of(load_start(old, MODEL), grown)
    trainer = Trainer(store, leave_one_out(store), MODEL, CONFIG, start.trained)
    assert not trainer.optimizer.state and trainer.progress.step == 0
    recommender = Recommender.load(old)
    now = Recommender(trainer.model, store.user_ids, store.item_ids, recommender.config, torch.device("cpu"))
    known = before.item_ids.decode(range(before.n_items))
    history = before.item_ids.decode(before.history(3))
    expected = {found.item: found.score for found in recommender.recommend([history], len(known))[0]}
    found = {found.item: found.score for found in now.recommend([history], len(known), allowed=now.allowed(known))[0]}
    assert found == pytest.approx(expected, abs=1e-5)
    assert (start.new_items, start.absent_items) == (5, 0) and start.new_users > 0


def test_it_is_resumed_and_made_again_with_the_same_bits(logs: Logs, old: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    whole = go_on(old, tmp_path / "whole", logs[1], learning_rate=0.05, epochs=6)
    steps = []

    def interrupting(self: Trainer, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 9:
            raise Interrupted(2)
        return STEP(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "step", interrupting)
        go_on(old, tmp_path / "run", logs[1], learning_rate=0.05, epochs=6)
    assert go_on(old, tmp_path / "run", logs[1], learning_rate=0.05, epochs=6)["test"] == whole["test"]
    for name in (LAST, BEST):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (tmp_path / "run" / BEST).unlink()
    go_on(old, tmp_path / "run", logs[1], learning_rate=0.05, epochs=6)
    assert (tmp_path / "run" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert not same(weights(tmp_path / "run"), weights(old))


STEP = Trainer.step


def test_runs_from_different_models_are_different_runs(logs: Logs, old: Path, tmp_path: Path) -> None:
    go_on(old, tmp_path / "run", logs[1], epochs=1)
    other = tmp_path / "other"
    Run(other, logs[0], leave_one_out(logs[0]), MODEL, replace(CONFIG, seed=1), SOURCE).train()
    with pytest.raises(UserError, match=r"holds a run with other options \(start\.model: .* there, .* here\)"):
        go_on(other, tmp_path / "run", logs[1], epochs=1)
    store = logs[1]
    with pytest.raises(UserError, match=r"start\.absent_items: 0 there, None here"):
        Run(tmp_path / "run", store, leave_one_out(store), MODEL, replace(CONFIG, epochs=1), SOURCE)


def test_a_damaged_record_of_the_times_is_found(old: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(old / BEST)
    assert len(tensors["trained_until"]) == len(load_trained(old).user_ids)
    for wrong in (tensors["trained_until"][1:], tensors["trained_until"].float()):
        checkpoint.save(tmp_path / "x.safetensors", tensors | {"trained_until": wrong}, header)
        with pytest.raises(DamagedError, match="trained_until is not one int64"):
            load_trained(tmp_path / "x.safetensors")
    del tensors["trained_until"]  # earlier versions did not write it
    checkpoint.save(tmp_path / "x.safetensors", tensors, header)
    assert load_trained(tmp_path / "x.safetensors").trained_until is None


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The three logs as CSV files, with other column names."""
    folder = tmp_path_factory.mktemp("files")
    paths = tuple(folder / f"{name}.csv" for name in ("old", "grown", "delta"))
    for path, store in zip(paths, logs, strict=True):
        write_csv(path, store)
        rows = path.read_text().splitlines()[1:]
        items = {str(100 + place): str(item) for place, item in enumerate(store.item_ids.decode(range(store.n_items)))}
        lines = [",".join((user, items[item], time)) for user, item, time in (row.split(",") for row in rows)]
        path.write_text("\n".join(["customer,sku,timestamp", *lines]) + "\n")
    return paths  # type: ignore[return-value]


TRAIN = ["--dim", "8", "--blocks", "1", "--max-length", "8", "--epochs", "2", "--batch-size", "16", "--seed", "3"]


def test_the_command_goes_on_with_the_options_of_the_run(
    files: tuple[Path, Path, Path], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    old, grown, delta = files
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    main(["train", str(old), "--out", str(first), *TRAIN, "--user", "customer", "--item", "sku", "--device", "cpu"])
    capsys.readouterr()
    main(["train", str(grown), "--from", str(first), "--out", str(second), "--epochs", "1", "--dropout", "0.1"])
    assert f"going on from {first}; new users: " in capsys.readouterr().out
    config = json.loads((second / "config.json").read_text())
    assert (config["model"]["dim"], config["training"]["seed"], config["source"]["item"]) == (8, 3, "sku")
    assert config["training"]["epochs"] == len(read_history(second)) == 1 and config["model"]["dropout"] == 0.1
    main(["train", str(delta), f"--from={second}", "--out", str(third)])  # from a log that lacks some items
    assert json.loads((third / "config.json").read_text())["start"]["absent_items"] > 0
    assert Recommender.load(third).item_ids.decode(range(30)) == list(range(100, 130))
    capsys.readouterr()
    main(["evaluate", str(third)])
    assert "of the log's items are newer" not in capsys.readouterr().out
    assert "its items are not those that the model was trained on" in fails("evaluate", second, "--data", delta)
    main(["prepare", str(grown), str(tmp_path / "store"), "--user", "customer", "--item", "sku"])
    main(["train", str(tmp_path / "store"), "--from", str(first), "--out", str(tmp_path / "fourth"), "--epochs", "1",
          "--dropout", "0.1"])  # fmt: skip
    assert same(weights(tmp_path / "fourth", BEST), weights(second, BEST))


def test_what_contradicts_the_run_is_refused(
    files: tuple[Path, Path, Path], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    old, grown, _ = files
    first = tmp_path / "first"
    main(["train", str(old), "--out", str(first), *TRAIN, "--user", "customer", "--item", "sku", "--device", "cpu"])
    capsys.readouterr()
    for option, value, there in (
        ("dim", "64", 8),  # 64 is the default of other commands
        ("blocks", "2", 1),
        ("max_length", "9", 8),
        ("mixer", "gru", "hyena"),
        ("hyena.terms", "4", 16),
    ):
        name = option.replace("_", "-")
        line = fails("train", grown, "--from", first, "--out", tmp_path / "x", f"--{name}", value)
        assert line == f"option {option}: {value}, but {first} has {there}, and its shape stays"
    assert "no such checkpoint" in fails("train", grown, "--from", tmp_path / "none", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
