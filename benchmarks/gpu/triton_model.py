"""What the launches of the Triton backend use, for :mod:`benchmarks.gpu.model`."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.machine_code import resources
from benchmarks.gpu.ptx.launches import TritonLaunches
from benchmarks.gpu.ptx.machine import Launch
from benchmarks.gpu.ptx.memory import GlobalMemory
from benchmarks.gpu.ptx.parsing import Program
from benchmarks.gpu.usage import Use
from hyenarec_kernels.backends import triton as backend

DIM = 64
ROWS, BLOCKS = 1024, 6  # how much of a launch runs: rows, or blocks


class TritonUses(TritonLaunches):
    """Receives the Triton backend's launches and runs some blocks of each.

    Kernels whose grid has tiles of slots along axis 0 run their first tiles, those of the first ROWS rows, so that each
    kernel finds what the one before it wrote. The other tiles would have written small integers (int32) that repeat, as
    the sequences do, so those of the first tiles are repeated in their place. Other kernels run blocks spread by the
    golden ratio, which samples repeated patterns evenly. Kernels that only find rows run whole.
    """

    WHOLE = ("borders_kernel", "name_slots_kernel")
    PLACES = ("sequences_ptr", "starts_ptr", "ends_ptr", "chunks_ptr")

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.share = min(ROWS / rows, 1.0)
        self.found: list[Use] = []
        self.resources: dict[str, dict[str, int]] = {}  # by kernel, the most of its variants

    def made(self, program: Program, binary: bytes) -> None:
        found, before = resources(binary), self.resources.get(program.name, {})
        self.resources[program.name] = {
            name: max(found[word], before.get(name, 0)) for name, word in (("registers", "REG"), ("stack", "STACK"))
        }

    def start(self, launch: Launch, memory: GlobalMemory, arguments: dict[str, Any]) -> None:
        if launch.program.name in self.WHOLE:
            launch.run(memory)
        x, along = launch.grid[0], arguments.get("SLOTS", 0)
        tiled = along > 0 and x == -(-arguments["slots"] // along)
        number = np.arange(launch.blocks)
        if tiled:
            first = math.ceil(x * self.share)
            number = number[number % x < first]
        else:
            number = np.unique((np.arange(BLOCKS) * 0.6180339887 % 1 * launch.blocks).astype(np.int64))
        name = launch.program.name
        self.found.append(Use.of(name, launch, [launch.sample(memory, number)], memory, self.resources[name]))
        if tiled:
            for name, value in arguments.items():
                if isinstance(value, Tensor) and value.dtype == torch.int32 and name not in self.PLACES:
                    period = first * along // max(arguments["per_row"], 1) * arguments["per_row"] or first * along
                    value.copy_(value[..., torch.arange(value.shape[-1]) % period])


def tokens(length: int) -> int:
    return 131_072


def legendre(length: int, terms: int, *, backward: bool, packed: bool) -> list[Use]:
    """What the launches of one gated Legendre convolution use, in bfloat16, with the sequence length as its horizon."""
    operators: Any = import_module(f"{backend.__name__}.operators")  # not typed: calls share lists of arguments
    batch = max(tokens(length) // length, 1)
    shape = (batch * length, DIM) if packed else (batch, length, DIM)
    x, pre, post, grad = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(4))
    bounds = torch.arange(0, batch * length + 1, length)
    where = (bounds[:-1], bounds[1:]) if packed else (None, None)
    call = (x, torch.zeros(DIM, terms), None, torch.zeros(DIM), pre, post, *where, length, False)
    uses = TritonUses(batch * length)
    with uses.emulated(poison=False), mock.patch.object(torch, "empty", torch.zeros):
        if backward:
            operators.legendre_conv_backward(grad, *call, [True] * 6)
        else:
            operators.legendre_conv(*call)
    return uses.found
