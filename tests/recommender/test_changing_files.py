"""If files change while they are read or trained on, there is a one-line error, or the old content is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from generated import make_store, write_csv
from test_training import same, train, weights

from hyenarec.data import names, places
from hyenarec.data.names import read_item_list, read_names
from hyenarec.data.reading import read_log
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import STORE, SequenceStore
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.training import Trainer

WRITTEN = f"{STORE}: was written while this store was in use; "


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_store().save(tmp_path / "store")
    return tmp_path / "store"


def other_store() -> SequenceStore:
    return replace(make_store(), items=make_store().items[::-1].copy())


def copied_over(store: Path) -> None:
    other_store().save(store.parent / "other")
    (store / STORE).write_bytes((store.parent / "other" / STORE).read_bytes())


def one_event(store: Path) -> None:
    data = (store / STORE).read_bytes()
    items = make_store().items.tobytes()
    (store / STORE).write_bytes(data.replace(items, items[4:] + items[:4]))


def cut(store: Path) -> None:
    os.truncate(store / STORE, 0)


def prepared_anew(store: Path) -> None:
    other_store().save(store)


def touched(store: Path) -> None:
    os.utime(store / STORE)


def after_steps(monkeypatch: pytest.MonkeyPatch, steps: int, change: Callable[[], None]) -> None:
    """Calls ``change`` once, after ``steps`` steps of a training."""
    step, done = Trainer.step, [0]

    def changing(self: Trainer, *arguments: Any) -> Any:
        found = step(self, *arguments)
        done[0] += 1
        if done[0] == steps:
            change()
        return found

    monkeypatch.setattr(Trainer, "step", changing)


@pytest.mark.parametrize("change", [copied_over, one_event, cut])
def test_a_training_never_reads_what_was_written_over_its_store(
    change: Callable[[Path], None], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training refuses a changed store. With the original store back, the same command ends with the bits of an
    undisturbed run."""
    train(tmp_path / "whole", make_store())
    with monkeypatch.context() as patch, pytest.raises(UserError, match=WRITTEN):
        after_steps(patch, 15, lambda: change(saved))  # in the second epoch
        train(tmp_path / "run", SequenceStore.load(saved))
    assert not (tmp_path / "run" / "result.json").exists()
    shutil.rmtree(saved)
    make_store().save(saved)
    train(tmp_path / "run", SequenceStore.load(saved))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("change", [prepared_anew, shutil.rmtree, touched])
def test_a_store_that_is_replaced_or_removed_trains_on_as_it_was(
    change: Callable[[Path], None], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", make_store())
    after_steps(monkeypatch, 15, lambda: change(saved))
    found = train(tmp_path / "run", SequenceStore.load(saved))
    assert found["test"] == whole["test"]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("change", [copied_over, cut])
def test_nothing_is_ranked_or_saved_of_what_was_written_over_a_store(
    change: Callable[[Path], None], saved: Path, tmp_path: Path
) -> None:
    store = SequenceStore.load(saved)
    targets = leave_one_out(store).test
    rank_targets(Constant(store.n_items), store, targets, max_length=8)
    change(saved)
    with pytest.raises(UserError, match=WRITTEN):
        rank_targets(Constant(store.n_items), store, targets, max_length=8)
    with pytest.raises(UserError, match=WRITTEN):
        store.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


class Constant:
    def __init__(self, n_items: int) -> None:
        self._n_items = n_items

    def scores(self, batch: Any) -> Any:
        import torch

        return torch.zeros(len(batch.packing.lengths), self._n_items)


def test_a_large_store_that_is_replaced_before_it_is_verified_is_not_called_damaged(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyenarec.data.store.VERIFIED_AT_ONCE", 100)
    store = SequenceStore.load(saved)
    prepared_anew(saved)
    with pytest.raises(UserError, match=r"was replaced while it was opened; run the same command again$"):
        store.verify()


@pytest.mark.parametrize("kind", ["csv", "parquet", "parts"])
def test_a_log_that_is_written_while_it_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_csv(tmp_path / "log.csv", make_store())
    written = log
    if kind != "csv":
        written = tmp_path / "log" / "1.parquet"
        written.parent.mkdir()
        pl.read_csv(log).write_parquet(written)
        log = written.parent if kind == "parts" else written
    read_log(log)
    reads = "_read_bytes" if kind == "csv" else "choose"
    read = getattr(places, reads)

    def disturbed(*arguments: Any) -> Any:
        found = read(*arguments)
        with written.open("ab") as file:
            file.write(b"user-001,101,5\n")
        return found

    monkeypatch.setattr(places, reads, disturbed)
    with pytest.raises(UserError, match=rf"^{log}: has changed while it was read; read it again when nobody writes"):
        read_log(log)


def test_a_catalogue_whose_rows_move_between_ids_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue is read once for the ids and once for the names, and may change in between."""
    catalogue, ids = tmp_path / "items.csv", make_store().item_ids
    catalogue.write_text("item_id,name\n100,one\n101,two\n")
    assert read_names(catalogue, ids) == {100: "one", 101: "two"}
    read = names._read_ids

    def disturbed(*arguments: Any, **options: Any) -> Any:
        found = read(*arguments, **options)
        catalogue.write_text("item_id,name\n101,two\n100,one\n")
        os.utime(catalogue, ns=(1, 1))  # as a coarse clock would show it
        return found

    monkeypatch.setattr(names, "_read_ids", disturbed)
    with pytest.raises(UserError, match=r"items\.csv: has changed while it was read"):
        read_names(catalogue, ids)


def test_a_list_of_items_that_is_removed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "in-stock.txt"
    listed.write_text("100\n101\n")
    read = Path.read_text

    def disturbed(self: Path, *arguments: Any, **options: Any) -> str:
        found = read(self, *arguments, **options)
        self.unlink()
        return found

    monkeypatch.setattr(Path, "read_text", disturbed)
    with pytest.raises(UserError, match=r"in-stock\.txt: has gone while the list was read"):
        read_item_list(listed, make_store().item_ids)


def test_a_log_that_grew_between_two_commands_is_told_apart(tmp_path: Path) -> None:
    train(tmp_path / "run", make_store(), epochs=1)
    with pytest.raises(
        UserError, match=r"data\.events: .* there, .* here.*: the log changed since, or is another one; "
    ):
        train(tmp_path / "run", make_store(n_users=41), epochs=1)
    with pytest.raises(UserError, match=r"\(training\.seed: 0 there, 1 here\): choose another folder$"):
        train(tmp_path / "run", make_store(), epochs=1, seed=1)
