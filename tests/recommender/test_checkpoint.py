from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyenarec import checkpoint
from hyenarec.errors import UserError
from hyenarec.files import write_text


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


def test_missing_foreign_and_other_version(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a hyenarec checkpoint"):
        checkpoint.load(path)
    save_file({"a": torch.zeros(1)}, path, {"format": checkpoint.FORMAT, "version": "99", "header": "{}"})
    with pytest.raises(UserError, match=f"checkpoint format 99, but this hyenarec reads format {checkpoint.VERSION}"):
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
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
