"""The sequence store in memory and on disk."""

import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hyenarec import checkpoint, tensor_file
from hyenarec.data.ids import Ids
from hyenarec.data.store import KIND, STORE, SequenceStore, is_store
from hyenarec.errors import UserError
from tests.interpreter import python


def make_store(events_each: int = 3, *, timestamps: bool = True, names: bool = False) -> SequenceStore:
    """A store of two users and four items."""
    items = np.arange(2 * events_each, dtype=np.int32) % 4
    user_ids: list[int | str] = ["ann", "bob"] if names else [10, 20]
    return SequenceStore(
        np.array([0, events_each, 2 * events_each]),
        items,
        100 + np.arange(len(items)) if timestamps else None,
        Ids.from_values(user_ids),
        Ids.from_values([5, 6, 7, 8]),
    )


def assert_same(a: SequenceStore, b: SequenceStore) -> None:
    for one, other in zip(a._arrays().items(), b._arrays().items(), strict=True):
        assert one[0] == other[0]
        assert one[1].dtype == other[1].dtype
        np.testing.assert_array_equal(one[1], other[1])


def test_sizes_histories_and_users_of_events() -> None:
    store = make_store()
    assert (store.n_users, store.n_items, store.n_events) == (2, 4, 6)
    assert store.history(1).tolist() == [3, 0, 1]
    assert np.shares_memory(store.history(1), store.items)
    assert store.users_of(np.array([0, 2, 3, 5])).tolist() == [0, 0, 1, 1]


def test_users_of_events_skips_users_without_any() -> None:
    none = SequenceStore(
        np.array([0, 0, 2, 2]), np.zeros(2, np.int32), None, Ids.from_values([1, 2, 3]), Ids.from_values([0])
    )
    assert none.users_of(np.array([0, 1])).tolist() == [1, 1]


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("names", [True, False])
def test_round_trip(tmp_path: Path, timestamps: bool, names: bool) -> None:
    store = make_store(timestamps=timestamps, names=names)
    store.save(tmp_path / "new" / "store")
    loaded = SequenceStore.load(tmp_path / "new" / "store")
    assert_same(loaded, store)
    assert os.listdir(tmp_path / "new") == ["store"]


def test_loaded_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    make_store().save(tmp_path / "store")
    loaded = SequenceStore.load(tmp_path / "store")
    for array in loaded._arrays().values():
        base = array
        while type(base) is np.ndarray:
            assert base.base is not None
            base = base.base
        assert isinstance(base, np.memmap)
        assert type(array) is np.ndarray
        assert array.flags.aligned and not array.flags.writeable


def test_a_store_replaces_a_store_even_its_own(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()  # an empty folder may be used
    make_store().save(path)
    make_store(50).save(path)
    loaded = SequenceStore.load(path)
    assert loaded.n_events == 100
    loaded.save(path)
    assert_same(SequenceStore.load(path), make_store(50))
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.parametrize("kind", ["file", "folder", "foreign store"])
def test_nothing_else_is_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    inner = path if kind == "file" else path / (STORE if kind == "foreign store" else "thesis.tex")
    inner.parent.mkdir(exist_ok=True)
    inner.write_text('{"format": "other"}')
    with pytest.raises(UserError, match="precious: there already, and not a store"):
        make_store().save(path)
    assert inner.read_text() == '{"format": "other"}'
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("failing", ["write", "rename"])
def test_failing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, older: bool
) -> None:
    path, whole = tmp_path / "store", make_store(7)
    if older:
        whole.save(path)

    def write(arrays: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def rename(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "save_file", write) if failing == "write" else patch.setattr(Path, "replace", rename)
        reason = "No space left on device" if failing == "write" else "Input/output error"
        with pytest.raises(UserError, match=f"^cannot save {path / STORE}: {reason}$"):
            make_store().save(path)
    assert os.listdir(tmp_path) == (["store"] if older else [])
    if older:
        assert os.listdir(path) == [STORE]
        assert_same(SequenceStore.load(path), whole)


def test_saving_copies_nothing(tmp_path: Path) -> None:
    """8 MB of values are saved with less than 1 MB of memory, as stores may be larger than memory; safetensors reads
    them."""
    arrays = {"a": np.arange(10**6), "b": np.zeros(0, np.float16), "c": np.arange(3, dtype=np.int32)}
    tracemalloc.start()
    try:
        tensor_file.save(tmp_path / "x", tensor_file.Kind("store", 1), arrays, {"é": 1})
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    found = load_file(tmp_path / "x")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_a_file_that_the_system_cuts_off_is_reported_with_its_reason(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # a larger write fails, as on a full disk
    try:
        with pytest.raises(UserError, match=f"^cannot save {tmp_path / 'store' / STORE}: File too large$"):
            make_store(200_000).save(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_killed_in_the_middle_the_old_store_stays(tmp_path: Path) -> None:
    make_store().save(tmp_path / "store")
    killed = """
import os, signal, sys
from hyenarec.data.store import SequenceStore
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing renamed
SequenceStore.load(sys.argv[1]).save(sys.argv[1])
"""
    assert python("-c", killed, tmp_path / "store").returncode == -9
    assert len(os.listdir(tmp_path / "store")) == 2
    assert_same(SequenceStore.load(tmp_path / "store"), make_store())
    make_store(9).save(tmp_path / "store")
    assert os.listdir(tmp_path / "store") == [STORE]


def test_a_store_opens_without_polars(tmp_path: Path) -> None:
    make_store().save(tmp_path / "store")
    code = """
import sys
sys.modules["polars"] = None  # importing it fails
from hyenarec.data import open_data
from hyenarec.errors import UserError
print(open_data(sys.argv[1]).history(0).tolist())
open(sys.argv[2], "w").write("user_id,item_id,timestamp\\n1,2,3\\n1,3,4\\n")
try:
    open_data(sys.argv[2])
except UserError as error:
    print(error)
"""
    log = tmp_path / "log.csv"
    done = python("-c", code, tmp_path / "store", log)
    assert done.stdout.splitlines() == [
        "[0, 1, 2]",
        f"{log}: reading a log needs polars: install hyenarec[rec], or prepare a store where it is installed",
    ], done.stderr


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_store().save(tmp_path / "store")
    return tmp_path / "store"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        SequenceStore.load(path)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(f"{path}")
    return str(refusal.value)


@pytest.mark.parametrize("left", [0, 5, 50, 500, -1])
def test_a_truncated_store_is_noticed(saved: Path, left: int) -> None:
    data = (saved / STORE).read_bytes()
    (saved / STORE).write_bytes(data[:left])
    assert "truncated or damaged store (" in refused(saved)
    assert refused(saved).endswith(f"; remove {saved / STORE} and prepare it again")
    store = make_store()
    with pytest.raises(UserError, match="there already, and not a store"):
        store.save(saved)
    (saved / STORE).unlink()
    store.save(saved)
    assert SequenceStore.load(saved).fingerprint() == store.fingerprint()


@pytest.mark.parametrize("name", sorted(make_store()._arrays()))
def test_missing_arrays_are_named(saved: Path, name: str) -> None:
    arrays = {entry: array for entry, array in make_store()._arrays().items() if entry != name}
    tensor_file.save(saved / STORE, KIND, arrays, {"time_unit": "s"})
    if name == "timestamps":
        assert SequenceStore.load(saved).timestamps is None
    else:
        assert f"damaged store ({name.replace('_ids.values', ' ids')}" in refused(saved)


def test_arrays_of_another_store_are_noticed(saved: Path) -> None:
    arrays = make_store()._arrays()
    for change, message in (
        ({"items": np.zeros(5, np.int32)}, "damaged store (items: expected shape (6,) int32, got 5 int32)"),
        ({"item_ids.values": np.arange(3)}, "damaged store (items: each must be from 0 to 2, the catalogue's last)"),
    ):
        tensor_file.save(saved / STORE, KIND, arrays | change, {"time_unit": "s"})
        assert message in refused(saved)
    tensor_file.save(saved / STORE, KIND, arrays, {})
    assert "damaged store (time_unit is missing)" in refused(saved)


def test_another_version_is_refused_and_may_be_replaced(saved: Path) -> None:
    tensor_file.save(saved / STORE, tensor_file.Kind("store", 99), make_store()._arrays(), {})
    wanted = f"{saved / STORE}: store format 99, but this hyenarec reads format 3; prepare it again"
    assert refused(saved) == wanted
    make_store().save(saved)
    assert_same(SequenceStore.load(saved), make_store())


def test_a_foreign_file_is_no_store(saved: Path) -> None:
    for write in (
        lambda path: path.write_bytes(b"{}"),
        lambda path: save_file({"items": np.zeros(3)}, path),
        lambda path: checkpoint.save(path, {"items": torch.zeros(3)}, {}),
    ):
        write(saved / STORE)
        assert not is_store(saved)
        assert "not a hyenarec store" in refused(saved) or "damaged store" in refused(saved)
        with pytest.raises(UserError, match="there already, and not a store"):
            make_store().save(saved)


def test_values_that_no_store_has_are_named(saved: Path) -> None:
    save_file({"items": np.zeros(3, np.complex64)}, saved / STORE)
    assert "holds 'C64' values, which no store has" in refused(saved)


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such store"):
        SequenceStore.load(tmp_path / "nowhere")
    wanted = rf"not a store: {STORE} is missing \(remove an older store, and prepare it again\)"
    with pytest.raises(UserError, match=wanted):
        SequenceStore.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 3])}, r"offsets: expected shape \(3,\) int64, got 2 int64"),
        ({"offsets": np.array([0, 3, 6], np.int32)}, "offsets: expected .* got 3 int32"),
        ({"offsets": np.array([1, 3, 6])}, "offsets: must start at 0 and never fall"),
        ({"offsets": np.array([0, 7, 6])}, "offsets: must start at 0 and never fall"),
        ({"offsets": np.array([0, 3, 5])}, r"items: expected shape \(5,\) int32, got 6 int32"),
        ({"items": np.zeros(6, np.int64)}, r"items: expected shape \(6,\) int32, got 6 int64"),
        ({"items": np.zeros((6, 1), np.int32)}, r"items: expected shape \(6,\) int32, got 6x1 int32"),
        ({"timestamps": np.zeros(5, np.int64)}, r"timestamps: expected shape \(6,\) int64, got 5 int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    store = make_store()
    fields = {name: getattr(store, name) for name in ("offsets", "items", "timestamps", "user_ids", "item_ids")}
    with pytest.raises(ValueError, match=message):
        SequenceStore(**(fields | change))


# What is lost and what is kept -------------------------------------------------------------------


def test_what_lies_beside_a_store_is_never_deleted(saved: Path) -> None:
    for name in ("notes.txt", "run"):
        other = saved / name
        other.mkdir() if name == "run" else other.write_text("precious")
        with pytest.raises(UserError, match=f"beside an older store there is '{name}'"):
            make_store(9).save(saved)
        assert_same(SequenceStore.load(saved), make_store())
        other.rmdir() if name == "run" else other.unlink()
    make_store(9).save(saved)
    assert SequenceStore.load(saved).n_events == 18


def test_a_link_to_a_store_stays_a_link(tmp_path: Path, saved: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    make_store(9).save(link)
    assert link.is_symlink()
    assert SequenceStore.load(saved).n_events == 18


def test_every_flipped_byte_is_noticed(saved: Path) -> None:
    data = (saved / STORE).read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        (saved / STORE).write_bytes(flipped)
        try:
            loaded = SequenceStore.load(saved)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # the bit has no effect, as in the header's padding
            assert loaded.fingerprint() == make_store().fingerprint() and place < data.index(b"}}") + 10


def test_items_beyond_the_catalogue_are_refused() -> None:
    for item in (-1, 4):
        with pytest.raises(ValueError, match="items: each must be from 0 to 3"):
            SequenceStore(
                np.array([0, 1]), np.array([item], np.int32), None, Ids.from_values([1]), Ids.from_values([5, 6, 7, 8])
            )


def test_a_header_that_asks_for_gigabytes_is_noticed(saved: Path) -> None:
    data = (saved / STORE).read_bytes()
    assert data.count(b'"shape":[6]') == 2
    changed = data.replace(b'"shape":[6]', b'"shape":[99999999999]')
    size = int.from_bytes(changed[:8], "little") + len(changed) - len(data)
    (saved / STORE).write_bytes(size.to_bytes(8, "little") + changed[8:])
    assert "truncated or damaged store" in refused(saved)


def test_a_file_that_may_not_be_read_is_not_called_damaged(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refused(saved) == f"{saved / STORE}: cannot read this store: Permission denied"


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        make_store().save(tmp_path / "store")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "store").iterdir()} == {0o640}


def test_fingerprints_tell_stores_apart(saved: Path) -> None:
    assert SequenceStore.load(saved).fingerprint() == make_store().fingerprint()
    others = (make_store(4), make_store(timestamps=False), make_store(names=True))
    assert len({store.fingerprint() for store in (make_store(), *others)}) == 4
    others[2].save(saved)
    assert SequenceStore.load(saved).fingerprint() == others[2].fingerprint()
