"""What the launches of the cuda backend use, for :mod:`benchmarks.gpu.model`."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.host_library import (
    DTYPES,
    BlockArguments,
    BlockHost,
    LegendreArguments,
    LongConvArguments,
    RowsArgument,
    ToeplitzHost,
    block_host,
    toeplitz_host,
)
from benchmarks.gpu.machine_code import TOOLS
from benchmarks.gpu.ptx.launches import CudaLaunches
from benchmarks.gpu.ptx.machine import Launch
from benchmarks.gpu.ptx.memory import GlobalMemory
from benchmarks.gpu.ptx.parsing import Program
from benchmarks.gpu.triton_model import DIM
from benchmarks.gpu.usage import Use
from hyenarec_kernels.backends.crossovers import CUDA_TOEPLITZ
from hyenarec_kernels.backends.cuda.block_plan import constants, plan_for

BLOCKS = 528  # most blocks of a launch of Toeplitz products (kToeplitzBlocks)
TOGETHER = 2  # neighbouring blocks that run, at each of two places in a launch
CHANNELS = 4  # so many blocks, or a divisor of it, cover all channels of some rows
DTYPE = torch.bfloat16
# Tokens of the calls that are estimated. The calls that run here may have fewer. Programs whose work does not grow with
# the tokens (ONCE) count by the ratio of the two.
CALL = 1_048_576
ONCE = ("MakeTaps", "FilterGradients", "PrepareBlocks", "ParametersGradient", "SumRows")


def tokens(length: int) -> int:
    """Tokens of the calls that run here, enough to have the launches of long calls: blocks of Toeplitz products make
    their tables once for all their rounds, and blocks of tiles on one level make the moments themselves if they have
    enough rounds."""
    if length <= CUDA_TOEPLITZ:
        return CALL
    return CALL // 2 if length <= 4096 else CALL // 8


class CudaUses(CudaLaunches):
    """Receives a library's launches and runs some blocks of each."""

    FINDING = ("PrepareBlocks", "FindBorders", "AssignBuckets")  # the host runs these whole: they find rows

    def __init__(self, host: ToeplitzHost | BlockHost, header: str, folder: Path) -> None:
        super().__init__(host.library, (header,), folder)
        self.host = host
        self.found: list[Use] = []
        self.resources: dict[str, dict[str, int]] = {}
        self.share = 1.0  # of CALL's tokens that the call has

    def compiled(self, types: list[str], architecture: str = "sm_90a") -> dict[str, Program]:
        found = super().compiled(types, architecture)
        text = max(self.folder.glob("programs*.ptx"), key=lambda path: path.stat().st_mtime_ns)
        binary = text.with_suffix(".cubin")
        subprocess.run(["nvcc", "-cubin", f"-arch={architecture}", str(text), "-o", str(binary)], check=True)
        command = [str(TOOLS / "cuobjdump"), "-res-usage", str(binary)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for name, registers, stack in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", said):
            self.resources[name] = {"registers": int(registers), "stack": int(stack)}
        return found

    def start(self, launch: Launch, memory: GlobalMemory, type: str) -> bool:
        places = [np.arange(launch.blocks)]
        if launch.blocks > 4 * CHANNELS:
            # Both places have the same channels. Where a launch alternates between two inputs, each place has one of
            # them.
            places = [
                np.arange(TOGETHER) + (int(launch.blocks * at) // (2 * CHANNELS) * 2 + turn) * CHANNELS
                for turn, at in enumerate((0.2, 0.6))
            ]
        samples = [launch.sample(memory, numbers) for numbers in places]
        kernel = re.sub(r"hyenarec::cuda::|\(.*?\)", "", type)
        use = Use.of(kernel, launch, samples, memory, self.resources[launch.program.name])
        self.found.append(use.times(self.share) if kernel.startswith(ONCE) else use)
        return not any(name in type for name in self.FINDING)


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for what compilers write, until the process ends."""
    return tempfile.TemporaryDirectory()


@cache
def toeplitz() -> CudaUses:
    path = Path(folder().name) / "toeplitz"
    path.mkdir()
    return CudaUses(toeplitz_host(path / "host.so", BLOCKS), "cuda/legendre_schedule.h", path)


@cache
def blocks() -> CudaUses:
    path = Path(folder().name) / "blocks"
    path.mkdir()
    return CudaUses(block_host(path / "host.so"), "cuda/block_schedule.h", path)


def legendre(length: int, terms: int, *, backward: bool, packed: bool) -> list[Use]:
    """What the launches of one gated Legendre convolution use, in bfloat16, with the sequence length as its horizon."""
    batch = max(tokens(length) // length, 1)
    shape = (batch * length, DIM) if packed else (batch, length, DIM)
    wide = {name: torch.zeros(DIM, terms) for name in ("coefficients", "dcoefficients")}
    wide |= {name: torch.zeros(DIM) for name in ("skip", "dskip")}
    rows = {name: torch.zeros(shape, dtype=DTYPE) for name in ("x", "pre_gate", "post_gate", "out", "grad")}
    rows |= {name: torch.zeros(shape, dtype=DTYPE) for name in ("dx", "dpre_gate", "dpost_gate")}
    bounds = torch.arange(0, batch * length + 1, length)
    tensors = rows | wide | {"bounds": bounds}
    located = {name: RowsArgument.of(t) for name, t in rows.items()}
    parameters = {name: t.data_ptr() for name, t in wide.items()}
    layout = {
        "dtype": DTYPES[DTYPE],
        "packed": packed,
        "sequences": batch,
        "rows": batch * length if packed else length,
        "channels": DIM,
        "groups": DIM,
        "max_length": length,
        "starts": bounds.data_ptr() if packed else None,
        "ends": bounds[1:].data_ptr() if packed else None,
        "wide_index": True,
    }
    uses: CudaUses
    arguments: LegendreArguments | BlockArguments
    if length <= CUDA_TOEPLITZ:
        uses, filter = toeplitz(), {"filter": parameters.pop("coefficients")}
        filter["dfilter"] = parameters.pop("dcoefficients")
        wide_dtype = DTYPES[torch.float32]
        arguments = LegendreArguments(
            rows=LongConvArguments(**layout, **located),
            parameters=wide_dtype,
            skip_dtype=wide_dtype,
            terms=terms,
            horizon=length,
            **filter,
            **parameters,
        )
    else:
        uses, plan = blocks(), plan_for(terms, length, False, False, DTYPE)
        assert plan is not None
        tensors["constants"] = constants(plan, False, torch.device("cpu"))
        arguments = BlockArguments(
            **layout,
            **located,
            **parameters,
            terms=terms,
            horizon=length,
            constants=tensors["constants"].data_ptr(),
        )
        arguments.set_levels(plan.numbers)
    workspace = torch.zeros(uses.host.workspace(arguments, backward), dtype=torch.uint8)  # type: ignore[arg-type]
    run = partial(uses.host.run, arguments, backward, False, workspace.data_ptr())  # type: ignore[arg-type]
    uses.found, uses.share = [], batch * length / CALL
    uses.call(run, tensors | {"workspace": workspace})
    return uses.found
