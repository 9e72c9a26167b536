"""What a launch of a compiled kernel uses of a GPU, counted while some of its blocks run in the emulator
:mod:`benchmarks.gpu.ptx`, and how long an H100 would take for it: estimates, not measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.gpu.ptx.counting import SECTOR, Counts
from benchmarks.gpu.ptx.machine import Launch
from benchmarks.gpu.ptx.memory import GlobalMemory
from benchmarks.gpu.ptx.parsing import Instruction

# Picoseconds of a cycle when all 132 multiprocessors work, divided by their number; and bytes per picosecond that a
# copy moves (3.0 TB/s).
CYCLE = 1e12 / 1.755e9 / 132
BYTES = 3.0
SCHEDULERS = 4  # per multiprocessor; each issues one instruction per cycle
MATRIX_CYCLES = 6.5  # of a scheduler per mma.sync of 4,096 flop in bfloat16: 62% of the dense rate
REACHED = {"issue": 0.6, "load-store": 0.7, "matrix": 0.8, "memory": 0.93}
# Machine instructions per PTX instruction, by the beginning of its opcode: the first entry that fits, otherwise one.
# The total is within 30% of what ptxas makes of kernels without loops (a test compares them).
SLOTS: tuple[tuple[str, float], ...] = (
    ("cvt.u64.u32", 0), ("cvt.u32.u64", 0), ("cvta", 0), ("membar", 1),
    ("cvt.s64.s32", 0.5), ("mov", 0.5), ("ld.param", 0.5),
    ("ld.", 1), ("st.", 1), ("cp.", 1), ("mul.wide", 1), ("mad.wide", 1), ("bfe", 1.5),
    ("ex2.approx.ftz", 1), ("ex2", 4), ("div.full.f32", 8), ("div.rn.f32", 10), ("div.f32", 8),
)  # fmt: skip
SLOTS_64 = {"min": 4.0, "max": 4.0, "mul": 4.0, "mad": 4.0, "div": 80.0, "rem": 80.0}
SLOTS_OF = {"div": 16.0, "rem": 16.0}


def slots(instruction: Instruction) -> float:
    """The issue slots that a warp's instruction takes."""
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
        cycles: multiprocessor cycles, summed over all multiprocessors, for `issue`, `load-store` and `matrix`.
        bytes: bytes of global memory.
        resources: registers per thread, and bytes per thread of stack, where spilled registers go.
    """

    kernel: str
    cycles: dict[str, float]
    bytes: float
    resources: dict[str, int]

    @classmethod
    def of(
        cls, kernel: str, launch: Launch, samples: Sequence[Counts], memory: GlobalMemory, resources: dict[str, int]
    ) -> Use:
        """From samples of the launch's blocks. What all samples touch is assumed to be touched by every block."""
        scale = launch.blocks / sum(counts.blocks for counts in samples)
        total = sum(counts.executed for counts in samples)
        executed = list(zip(np.asarray(total).tolist(), launch.program.instructions, strict=True))
        issued = sum(count * slots(instruction) for count, instruction in executed)
        products = sum(count for count, instruction in executed if instruction.opcode.startswith("mma"))
        sectors, times = np.unique(np.concatenate([counts.sectors for counts in samples]), return_counts=True)
        shared, touched = (times == len(samples)) & (len(samples) > 1), 0.0
        owners = sectors * SECTOR // memory.WINDOW
        for buffer in memory.buffers:
            once, own = (SECTOR * int((owners == buffer.number)[kind].sum()) for kind in (shared, ~shared))
            if buffer.writable:  # not the launch's parameters
                touched += min(once + own * scale, buffer.size)
        cycles = {
            "issue": issued * scale / SCHEDULERS,
            "load-store": sum(sum(counts.wavefronts.values()) for counts in samples) * scale,
            "matrix": products * scale * MATRIX_CYCLES / SCHEDULERS,
        }
        return cls(kernel, cycles, touched, resources)

    def times(self, factor: float) -> Use:
        cycles = {name: factor * count for name, count in self.cycles.items()}
        return replace(self, cycles=cycles, bytes=factor * self.bytes)

    def picoseconds(self, *, reached: bool) -> dict[str, float]:
        """The time by each limit, at full rates or at the share of them that good kernels reach."""
        times = {name: cycles * CYCLE for name, cycles in self.cycles.items()} | {"memory": self.bytes / BYTES}
        return {name: time / REACHED[name] if reached else time for name, time in times.items()}
