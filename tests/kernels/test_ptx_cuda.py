"""The CUDA programs as nvcc compiles them, run on the CPU by the machine of :mod:`benchmarks.gpu.ptx`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from blocks_host import whole
from blocks_host import wrong as wrong_blocks
from cuda_host import Host, HostCase, compile_host, needs, one, wrong

from benchmarks.gpu.host_library import BlockHost, block_host
from benchmarks.gpu.ptx.launches import CudaLaunches

TOP = 6  # log2 of the largest block; small, so that few programs are compiled


def folder_for(factory: pytest.TempPathFactory) -> Path:
    needs("g++")
    needs("nvcc")
    return factory.mktemp("ptx")


@pytest.fixture(scope="module")
def fft(tmp_path_factory: pytest.TempPathFactory) -> tuple[Host, CudaLaunches]:
    folder = folder_for(tmp_path_factory)
    compile_host(folder / "host.so", TOP)
    host = Host(folder / "host.so", TOP)
    return host, CudaLaunches(host.library, ("cuda/schedule.h",), folder)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlockHost, CudaLaunches]:
    folder = folder_for(tmp_path_factory)
    host = block_host(folder / "host.so")
    return host, CudaLaunches(host.library, ("cuda/block_schedule.h",), folder)


def run(host: Host | BlockHost, launches: CudaLaunches, case: HostCase) -> dict[str, torch.Tensor]:
    results = case.results()
    arguments = case.arguments(results)
    held = {} if case.held is None else {"constants": case.held}
    for backward in (False, True):
        workspace = torch.full((host.workspace(arguments, backward) // 4 + 64,), torch.nan)
        tensors = {f"result {name}": t for name, t in results.items()} | case.tensors | held | {"workspace": workspace}
        launches.call(partial(host.run, arguments, backward, False, workspace.data_ptr()), tensors)
    return results


CASES = {
    "padded fp32, blocks with neighbours": one(100, 33, channels=18, groups=9),
    "packed bf16, every block size": HostCase(True, 170, [0, 40, 40, 71], [40, 40, 71, 170], 16, 4, 40, torch.bfloat16),
    "padded fp16, a filter in parts": one(100, 90, channels=3, groups=3, dtype=torch.float16),
}


@pytest.mark.parametrize("name", CASES)
def test_fft_programs(name: str, fft: tuple[Host, CudaLaunches]) -> None:
    bad = wrong(CASES[name], run(*fft, CASES[name]))
    assert not bad


@pytest.mark.slow  # 15 s each, most of it for nvcc
@pytest.mark.parametrize(("rows", "horizon", "channels"), [(300, 290, 3), (600, 520, 18)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_programs(
    dtype: torch.dtype, rows: int, horizon: int, channels: int, blocks: tuple[BlockHost, CudaLaunches]
) -> None:
    """Programs are right with the filter's end inside a sequence, and with a level and a fast window. The channels fill
    no whole vector, so that blocks also read shared memory of channels that do not exist; nothing unwritten is read."""
    case = whole(rows, horizon, channels=channels, groups=channels, dtype=dtype, decay=0.5 * horizon, even=True)
    assert not wrong_blocks(case, run(*blocks, case))
