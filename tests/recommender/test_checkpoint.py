from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyenarec import checkpoint
from hyenarec.errors import UserError
from hyenarec.files import write_text
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
    """Or is of no consequence: a file with one bit flipped is refused in one line, or read as it was written."""
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
    """In every process, whatever the order in which tensors and entries come."""
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

    def refuse(*_: object) -> None:  # what root, who may read everything, would not see
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
    # A file-size limit makes the system itself refuse the write, as a full disk does.
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
