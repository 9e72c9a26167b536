"""How long operators would take on an H100, predicted from their compiled code: estimates, not measurements.

    python -m benchmarks model [--out benchmarks/results/gpu-model.json] [--lengths 200 1024] [--terms 16]

Some blocks of every launch run in the machine of :mod:`benchmarks.gpu.ptx`, which counts what they use:

* issue slots: each PTX instruction that a warp executes, as the machine instructions that ptxas makes of it (`SLOTS`);
* wavefronts of the load-store unit, from the addresses: lines of global memory, banks of shared memory;
* matrix instructions;
* bytes of global memory, each sector once a launch.

A launch takes as long as the busiest of these, at the rates of `H100`, all multiprocessors evenly loaded. A figure is
two numbers: at full rates, and at those shares of them that good kernels reach (`REACHED`). Left out: what launches
cost, the host, waits of too few warps, the small tensor operations around the launches, and the second-level cache.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from torch import Tensor

from benchmarks.gpu.ptx.counting import SECTOR, Counts
from benchmarks.gpu.ptx.launches import TritonLaunches
from benchmarks.gpu.ptx.machine import Launch
from benchmarks.gpu.ptx.memory import GlobalMemory
from benchmarks.gpu.ptx.parsing import Instruction
from benchmarks.harness.recording import write
from hyenarec_kernels.backends import triton as backend

# Picoseconds of one multiprocessor's cycle when all 132 work, and bytes a picosecond that a copy moves (3.0 TB/s).
CYCLE = 1e12 / 1.755e9 / 132
BYTES = 3.0
SCHEDULERS = 4  # of a multiprocessor: an instruction each a cycle
MATRIX_CYCLES = 6.5  # of a scheduler for one mma.sync of 4,096 flop in bfloat16: 62% of the dense rate
REACHED = {"issue": 0.6, "load-store": 0.7, "matrix": 0.8, "memory": 0.93}
COPY = 8 / BYTES  # picoseconds an element: x, two gates and the output, in 16 bits
# Machine instructions for a PTX instruction, by the beginning of its opcode; the first that fits, otherwise one. The
# whole is within 30% of what ptxas makes of kernels without loops (a test compares them).
SLOTS: tuple[tuple[str, float], ...] = (
    ("cvt.u64.u32", 0), ("cvt.u32.u64", 0), ("cvta", 0), ("membar", 1),
    ("cvt.s64.s32", 0.5), ("mov", 0.5), ("ld.param", 0.5),
    ("ld.", 1), ("st.", 1), ("cp.", 1), ("mul.wide", 1), ("mad.wide", 1), ("bfe", 1.5),
    ("ex2.approx.ftz", 1), ("ex2", 4), ("div.full.f32", 8), ("div.rn.f32", 10), ("div.f32", 8),
)  # fmt: skip
SLOTS_64 = {"min": 4.0, "max": 4.0, "mul": 4.0, "mad": 4.0, "div": 80.0, "rem": 80.0}
SLOTS_OF = {"div": 16.0, "rem": 16.0}
ROWS, BLOCKS = 1024, 6  # of what is computed, that run: rows, or blocks
TOKENS, DIM = 131_072, 64
LENGTHS = (200, 1024, 4096, 16384, 65536)
TERMS = (16, 32)
# Issue 22's goals: of the time of a copy forwards, and picoseconds an element forwards and backwards.
GOAL_OF_COPY, GOAL_BOTH = 0.65, 12.0


def slots(instruction: Instruction) -> float:
    """The issue slots of an instruction of a warp."""
    opcode = instruction.opcode
    kind, _, rest = opcode.partition(".")
    if opcode.startswith("mov") and any(operand.startswith("{") for operand in instruction.operands):
        return 1
    for beginning, count in SLOTS:
        if opcode.startswith(beginning):
            return count
    if opcode.endswith("pred"):
        return 0.5
    if rest.endswith(("s64", "u64", "b64")) and not opcode.startswith("cvt"):
        return SLOTS_64.get(kind, 2)
    return SLOTS_OF.get(kind, 1)


@dataclass(frozen=True)
class Use:
    """What a launch uses: an estimate.

    Attributes:
        kernel: its name.
        cycles: of a multiprocessor, all of them together, for `issue`, `load-store` and `matrix`.
        bytes: of global memory.
    """

    kernel: str
    cycles: dict[str, float]
    bytes: float

    @classmethod
    def of(cls, launch: Launch, counts: Counts, memory: GlobalMemory) -> Use:
        scale = launch.blocks / counts.blocks
        executed = list(zip(counts.executed.tolist(), launch.program.instructions, strict=True))
        issued = sum(count * slots(instruction) for count, instruction in executed)
        products = sum(count for count, instruction in executed if instruction.opcode.startswith("mma"))
        touched = 0.0
        owners = counts.sectors * SECTOR // memory.WINDOW
        for number, buffer in enumerate(memory.buffers):
            inside = int((owners == number).sum()) * SECTOR
            if buffer.writable:  # not the launch's parameters
                touched += min(inside * scale, buffer.size)
        cycles = {
            "issue": issued * scale / SCHEDULERS,
            "load-store": sum(counts.wavefronts.values()) * scale,
            "matrix": products * scale * MATRIX_CYCLES / SCHEDULERS,
        }
        return cls(launch.program.name, cycles, touched)

    def picoseconds(self, *, reached: bool) -> dict[str, float]:
        """By each limit; at full rates, or at what good kernels reach of them."""
        times = {name: cycles * CYCLE for name, cycles in self.cycles.items()} | {"memory": self.bytes / BYTES}
        return {name: time / REACHED[name] if reached else time for name, time in times.items()}


class Uses(TritonLaunches):
    """Takes the Triton backend's launches and runs some blocks of each.

    Kernels on tiles of slots, along axis 0 of their grids, run the first ones, those of the first ROWS rows, so that
    one finds what the one before it wrote. Of what small whole numbers the others would have written, the same follows
    again and again, as the sequences do. Other kernels run blocks spread by the golden ratio, which meet repeated
    patterns evenly, and those that only find rows run whole.
    """

    WHOLE = ("borders_kernel", "name_slots_kernel")
    PLACES = ("sequences_ptr", "starts_ptr", "ends_ptr", "chunks_ptr")

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.share = min(ROWS / rows, 1.0)
        self.found: list[Use] = []

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
        self.found.append(Use.of(launch, launch.sample(memory, number), memory))
        if tiled:
            for name, value in arguments.items():
                if isinstance(value, Tensor) and value.dtype == torch.int32 and name not in self.PLACES:
                    period = first * along // max(arguments["per_row"], 1) * arguments["per_row"] or first * along
                    value.copy_(value[..., torch.arange(value.shape[-1]) % period])


def legendre(length: int, terms: int, *, backward: bool, packed: bool = False, tokens: int = TOKENS) -> list[Use]:
    """What the launches of one gated Legendre convolution use, bfloat16, its horizon the length of the sequences."""
    operators: Any = import_module(f"{backend.__name__}.operators")  # not typed: calls share lists of arguments
    batch = max(tokens // length, 1)
    shape = (batch * length, DIM) if packed else (batch, length, DIM)
    x, pre, post, grad = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(4))
    bounds = torch.arange(0, batch * length + 1, length)
    where = (bounds[:-1], bounds[1:]) if packed else (None, None)
    call = (x, torch.zeros(DIM, terms), None, torch.zeros(DIM), pre, post, *where, length, False)
    uses = Uses(batch * length)
    with uses.emulated(poison=False), mock.patch.object(torch, "empty", torch.zeros):
        if backward:
            operators.legendre_conv_backward(grad, *call, [True] * 6)
        else:
            operators.legendre_conv(*call)
    return uses.found


def estimate(uses: Iterable[Use], elements: int) -> dict[str, Any]:
    """Picoseconds an element of all launches, and of each kernel, at full and at reached rates."""
    kernels: dict[str, dict[str, float]] = {}
    for use in uses:
        row = kernels.setdefault(use.kernel, dict.fromkeys(("launches", "at least", "likely", "bytes"), 0.0))
        full, reached = use.picoseconds(reached=False), use.picoseconds(reached=True)
        for name, value in full.items():
            row[name] = row.get(name, 0.0) + value / elements
        row["launches"] += 1
        row["at least"] += max(full.values()) / elements
        row["likely"] += max(reached.values()) / elements
        row["bytes"] += use.bytes / elements
    total = {name: sum(row[name] for row in kernels.values()) for name in ("at least", "likely", "bytes")}
    return {
        **{name: round(value, 3) for name, value in total.items()},
        "kernels": {kernel: {name: round(v, 3) for name, v in row.items()} for kernel, row in kernels.items()},
    }


def case(length: int, terms: int, *, packed: bool = False, tokens: int = TOKENS) -> dict[str, Any]:
    """Both passes at one shape."""
    elements = max(tokens // length, 1) * length * DIM
    forward = legendre(length, terms, backward=False, packed=packed, tokens=tokens)
    both = [*forward, *legendre(length, terms, backward=True, packed=packed, tokens=tokens)]
    row = {"forward": estimate(forward, elements), "forward and backward": estimate(both, elements)}
    return {"backend": "triton", "length": length, "terms": terms, "packed": packed, "dim": DIM, **row}


def told(row: dict[str, Any]) -> str:
    forward, both = row["forward"], row["forward and backward"]
    shares = [COPY / forward[name] for name in ("likely", "at least")]
    return (
        f"{row['backend']} L={row['length']} N={row['terms']}{' packed' if row['packed'] else ''}: "
        f"forward {forward['at least']:.1f} to {forward['likely']:.1f} ps an element, {shares[0]:.0%} to "
        f"{shares[1]:.0%} of a copy (goal {GOAL_OF_COPY:.0%}); with backward {both['at least']:.1f} to "
        f"{both['likely']:.1f} ps (goal {GOAL_BOTH:.0f}); estimates"
    )


def main() -> None:
    if backend.INTERPRETED:
        raise SystemExit("error: TRITON_INTERPRET=1 is set; the interpreter compiles nothing")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-model.json"))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--terms", type=int, nargs="+", default=TERMS)
    arguments = parser.parse_args()
    settings: dict[str, Any] = {
        "estimate": True,
        "gpu": "H100 SXM: 132 multiprocessors, 1.755 GHz, a copy at 3.0 TB/s",
        "triton": triton.__version__,
        "tokens": TOKENS,
        "rows": ROWS,
        "reached": REACHED,
        "copy": round(COPY, 3),
        "goals": {"of a copy, forward": GOAL_OF_COPY, "ps, forward and backward": GOAL_BOTH},
    }
    title = "what the GPU kernels would take on an H100: estimates from compiled code, nothing measured"
    rows = []
    for length in arguments.lengths:
        for terms in arguments.terms:
            rows.append(case(length, terms))
            print(told(rows[-1]))
            write(arguments.out, "model", title, {"settings": settings, "cases": [], "estimates": rows})
            sys.stdout.flush()


if __name__ == "__main__":
    main()
