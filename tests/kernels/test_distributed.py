"""Two processes compute what one computes: distributed tensors, DistributedDataParallel and FSDP2, over gloo.

One pair of processes runs all checks, which are in distributed_tensors.py and distributed_models.py.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import distributed_models  # noqa: F401  registers its checks
import distributed_tensors  # noqa: F401
import pytest
import torch
import torch.distributed as dist
from two_processes import CHECKS, WORLD

from tests.interpreter import start


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For each check, what went wrong in either process."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    printed = [folder / f"printed {rank}" for rank in range(WORLD)]
    processes = [start(__file__, folder, rank, out=printed[rank]) for rank in range(WORLD)]
    found: dict[str, str] = {}
    for rank, process in enumerate(processes):
        process.join(240)
        process.kill()  # it may still wait for the other process
        report = folder / f"{rank}.json"
        assert report.exists(), (printed[rank] / "2").read_text()
        found |= json.loads(report.read_text())
    return found


@pytest.mark.parametrize("name", ["import_comes_late", *CHECKS])
def test_two_processes(name: str, failures: dict[str, str]) -> None:
    assert name not in failures, failures[name]


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    failed = {}
    if "torch.distributed.tensor" in sys.modules:
        failed["import_comes_late"] = "importing the kernels imported torch.distributed.tensor"
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    for name, run in CHECKS.items():
        torch.manual_seed(0)
        try:
            run(mesh)
        except Exception:
            failed[name] = f"process {rank}: {traceback.format_exc()}"
    (folder / f"{rank}.json").write_text(json.dumps(failed))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
