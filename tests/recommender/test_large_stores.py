"""Stores that are too large to be verified when they are opened."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from test_store import assert_same, make_store

from hyenarec import tensor_file
from hyenarec.data import store as store_module
from hyenarec.data.store import KIND, STORE, SequenceStore
from hyenarec.errors import UserError
from hyenarec.source import Source, load_source


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_store().save(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def large(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that counts as too large to be verified when it is opened."""
    monkeypatch.setattr(store_module, "VERIFIED_AT_ONCE", 100)
    return saved


def flip_item(path: Path, place: int, bit: int) -> None:
    """Flips a bit in the last byte of an item."""
    file = tensor_file.opened(path / STORE, KIND)
    data = bytearray((path / STORE).read_bytes())
    data[file.places["items"] + 4 * place + 3] ^= bit
    (path / STORE).write_bytes(data)


def test_a_large_store_is_verified_by_what_reads_all_of_it(large: Path, tmp_path: Path) -> None:
    opened = SequenceStore.load(large)
    opened.verify()
    assert_same(opened, make_store())
    flip_item(large, 0, 1)
    damaged = SequenceStore.load(large)
    message = f"^{large / STORE}: damaged store: its contents do not match its checksum; prepare it again$"
    for read in (
        damaged.verify,
        lambda: damaged.save(tmp_path / "copy"),
        lambda: load_source(Source(str(large))),
    ):
        with pytest.raises(UserError, match=message):
            read()
    assert not (tmp_path / "copy").exists()


def test_a_history_of_a_large_store_is_of_the_catalogue(large: Path) -> None:
    flip_item(large, 4, 1)
    store = SequenceStore.load(large)
    assert store.history(0).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"damaged store \(items: each must be from 0 to 3, the catalogue's last\)"):
        store.history(1)


def test_a_billion_events_are_open_at_once(tmp_path: Path) -> None:
    """Opening does not read the events, 12 GB, which are holes in the file."""
    events, users = 1_000_000_000, 1_000_000
    arrays = make_store()._arrays() | {"offsets": np.arange(users + 1) * 1_000, "user_ids.values": np.arange(users)}
    header = {"items": ("I32", 4), "timestamps": ("I64", 8)}
    entries, end = {}, 0
    metadata = {"format": f'{KIND.format} {KIND.version} 00000000 {{"time_unit": "s"}}'}
    for name in sorted(arrays, key=lambda name: name == "items"):
        kind, size = header.get(name, ("I64", 8))
        shape = events if name in header else len(arrays[name])
        begin, end = end, end + shape * size
        entries[name] = {"dtype": kind, "shape": [shape], "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / STORE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in arrays.keys() - header.keys():
            file.seek(8 + len(text) + entries[name]["data_offsets"][0])
            file.write(arrays[name].tobytes())
        file.truncate(8 + len(text) + end)
    began = time.perf_counter()
    store = SequenceStore.load(tmp_path)
    assert time.perf_counter() - began < 1
    assert store.n_events == events and store.history(users - 1).tolist() == [0] * 1_000
