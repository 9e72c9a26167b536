from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyenarec import checkpoint, distributed, tensor_file
from hyenarec.errors import DamagedError, UserError
from hyenarec.files import write_text
from hyenarec.item_shards import ItemShard
from tests.interpreter import python


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"model.a": torch.randn(3, 4).T, "model.b": torch.arange(3, dtype=torch.int32), "c": torch.zeros(())}
    header = {"config": {"name": "ü", "rate": 0.1}, "rows": [1, None]}
    checkpoint.save(tmp_path / "x.safetensors", tensors, header)
    got, got_header = checkpoint.load(tmp_path / "x.safetensors")
    assert got_header == header
    assert got.keys() == tensors.keys() and all(torch.equal(got[name], tensors[name]) for name in got)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert checkpoint.without_prefix("model", got).keys() == {"a", "b"}


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x\.safetensors: truncated or damaged checkpoint"):
        checkpoint.load(path)


def test_every_single_bit_matters(tmp_path: Path) -> None:
    """A file with one bit flipped is refused in one line, or read as it was written if the bit has no effect."""
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3], dtype=torch.int64)}
    checkpoint.save(path, tensors, {"seed": 1, "text": "ü"})
    content, refused = path.read_bytes(), 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            got, header = checkpoint.load(path)
        except UserError as error:
            assert str(error).count("\n") == 0
            refused += 1
        else:
            assert header == {"seed": 1, "text": "ü"}
            assert got.keys() == tensors.keys() and all(torch.equal(got[name], tensors[name]) for name in got)
    assert refused > 0.95 * 8 * len(content)


def test_equal_checkpoints_have_equal_bytes(tmp_path: Path) -> None:
    """They are equal in every process, whatever the order of tensors and entries."""
    program = """
import sys, torch
from pathlib import Path
from hyenarec import checkpoint
names = ["b", "a", "c"][:: int(sys.argv[2])]
checkpoint.save(Path(sys.argv[1]), {name: torch.ones(3) for name in names}, {name: 1 for name in names})
"""
    files = [tmp_path / str(index) for index in range(2)]
    for path, order in zip(files, ("1", "-1"), strict=True):
        python("-c", program, path, order).check_returncode()
    assert len({path.read_bytes() for path in files}) == 1


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.zeros(1)}, {})

    def refuse(*_: object) -> None:  # simulated, because root may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"x\.safetensors: cannot read this checkpoint: Permission denied$"):
        checkpoint.load(path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot read this checkpoint: Is a directory"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    previous = os.umask(umask)
    try:
        checkpoint.save(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
        write_text(tmp_path / "x.json", "{}")
    finally:
        os.umask(previous)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_missing_foreign_and_other_version(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a hyenarec checkpoint"):
        checkpoint.load(path)
    save_file({"a": torch.zeros(1)}, path, {"format": checkpoint.KIND.format, "version": "99", "header": "{}"})
    with pytest.raises(
        UserError, match=f"checkpoint format 99, but this hyenarec reads format {checkpoint.KIND.version}"
    ):
        checkpoint.load(path)


def test_disk_full_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.zeros(3)}, {})
    old = path.read_bytes()
    # With a limit on file sizes the system itself refuses the write, as with a full disk.
    program = f"""
import resource, signal, torch
from pathlib import Path
from hyenarec import checkpoint
from hyenarec.errors import UserError
from hyenarec.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    checkpoint.save(Path({str(path)!r}), {{"a": torch.zeros(100_000)}}, {{}})
except UserError as error:
    print(error)
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot save {path}: ") and done.stdout.count("\n") == 1
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot save .*Not a directory"):
        write_text(tmp_path / "file" / "x.json", json.dumps({}))


def test_optimizer_state_round_trip() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    other = torch.optim.AdamW(model.parameters(), fused=True)
    checkpoint.restore_optimizer(model, other, checkpoint.optimizer_tensors(model, optimizer))
    for parameter in model.parameters():
        assert optimizer.state[parameter].keys() == other.state[parameter].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, other.state[parameter][key])


def test_a_file_of_parts_is_that_of_the_whole(tmp_path: Path) -> None:
    """A table that comes in blocks, and is never whole in memory, is written to the same bytes."""
    whole = np.arange(50_000, dtype=np.float32).reshape(-1, 5)
    others = {"b": np.arange(3, dtype=np.int64), "c": np.zeros(0, np.float32)}

    def blocks() -> Iterator[bytes]:
        for first in range(0, len(whole), 777):
            yield whole[first : first + 777].tobytes()

    streamed = tensor_file.Streamed(whole.shape, whole.dtype, blocks)
    for name, table in (("whole", whole), ("parts", streamed)):
        tensor_file.save(tmp_path / name, checkpoint.KIND, {"a": table, **others}, {"n": 1})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    assert torch.equal(load_file(tmp_path / "parts")["a"], torch.from_numpy(whole))
    arrays, header = tensor_file.load(tmp_path / "parts", checkpoint.KIND)
    assert header == {"n": 1} and np.array_equal(arrays["a"], whole)


def test_a_table_of_other_items_has_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "x", {"model.bias": torch.zeros(7), "other": torch.ones(2)}, {})
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    found, _ = checkpoint.load(tmp_path / "x", ItemShard(7, 4))
    assert found["model.bias"].shape == (4,) and found["other"].shape == (2,)
    with pytest.raises(DamagedError, match=r"x: model.bias has 7 rows, but there are 8 items"):
        checkpoint.load(tmp_path / "x", ItemShard(8, 4))
