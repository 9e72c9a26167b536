"""What nvcc makes of the CUDA programs, run on the CPU by the machine of :mod:`benchmarks.gpu.ptx`."""

from __future__ import annotations

import ctypes
from functools import partial

import pytest
import torch
from cuda_host import Host, HostCase, compile_host, needs, one, wrong

from benchmarks.gpu.ptx.launches import CudaLaunches

HEADERS = ("cuda/schedule.h",)
TOP = 6  # log2 of the largest block, so that few programs are compiled


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> CudaLaunches:
    needs("g++")
    needs("nvcc")
    folder = tmp_path_factory.mktemp("ptx")
    compile_host(folder / "host.so", TOP)
    return CudaLaunches(Host(folder / "host.so", TOP).library, HEADERS, folder)


def run(launches: CudaLaunches, case: HostCase) -> dict[str, torch.Tensor]:
    results = case.results()
    arguments = case.arguments(results)
    for backward in (False, True):
        size = launches.library.host_workspace(ctypes.byref(arguments), TOP, backward)
        workspace = torch.full((size // 4 + 64,), torch.nan)
        arguments.workspace = workspace.data_ptr()
        tensors = {f"result {name}": t for name, t in results.items()} | case.tensors | {"workspace": workspace}
        launches.call(partial(launches.library.host_run, ctypes.byref(arguments), TOP, backward, False), tensors)
    return results


CASES = {
    "padded fp32, blocks with neighbours": one(100, 33, channels=18, groups=9),
    "packed bf16, every block size": HostCase(True, 170, [0, 40, 40, 71], [40, 40, 71, 170], 16, 4, 40, torch.bfloat16),
    "padded fp16, a filter in parts": one(100, 90, channels=3, groups=3, dtype=torch.float16),
}


@pytest.mark.parametrize("name", CASES)
def test_fft_programs(name: str, launches: CudaLaunches) -> None:
    bad = wrong(CASES[name], run(launches, CASES[name]))
    assert not bad
