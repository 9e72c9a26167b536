"""Operator calls whose compiled Triton kernels run in the machine of :mod:`ptx`, compared with the definition in
float64.

The tests' process has Triton's interpreter instead of its compiler, so this runs as a script in a process of its own:

    python tests/kernels/ptx_cases.py NAME...

It prints a line of JSON for each case: its largest norm-wise error, its kernels and launches, CPU seconds, and the
fault if there was one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from operator_cases import TOLERANCE, Case, errors
from operator_checks import check_step

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.launches import TritonLaunches
from benchmarks.gpu.ptx.parsing import Program
from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Call:
    """One operator's forward and backward pass in one layout. `rate`: the decay of every filter's window per event."""

    operator: str
    layout: str
    lengths: Sequence[int]
    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None

    def __call__(self, launches: TritonLaunches) -> float:
        case = Case.random(self.operator, self.lengths, dtype=self.dtype, **self.options)
        if self.rate is not None:
            decay = torch.full((self.options["groups"],), self.rate * self.options["taps"], dtype=self.dtype)
            case.parameters["decay"] = decay.double().numpy()
        with launches.emulated():
            got = case.run(self.layout, self.dtype, strided=self.layout == "middle")
        return max(errors(got, case.expected()).values())


@dataclass(frozen=True)
class Mixer:
    """A whole mixer, padded or packed: its outputs and all gradients."""

    dtype: torch.dtype
    packed: bool
    length: int = 130

    def __call__(self, launches: TritonLaunches) -> float:
        torch.manual_seed(0)
        mixer = HyenaMixer(16, self.length - 10, terms=8).to(self.dtype)
        x = torch.randn(2, self.length, 16).to(self.dtype).requires_grad_()
        where = {"lengths": torch.tensor([self.length, 37])}
        if self.packed:
            where = {"cu_seqlens": torch.tensor([0, self.length, self.length, 2 * self.length])}

        def answer(mixer: HyenaMixer, x: torch.Tensor) -> list[torch.Tensor]:
            out = mixer(x.flatten(0, 1) if self.packed else x, **where)
            return [out, *torch.autograd.grad(out.square().sum(), [x, *mixer.parameters()])]

        with launches.emulated():
            got = answer(mixer, x)
        with backends.use("reference"):
            want = answer(deepcopy(mixer).double(), x.detach().double().requires_grad_())
        return max(
            float((a.detach().double() - b).norm() / b.norm().clamp_min(1e-3)) for a, b in zip(got, want, strict=True)
        )


@dataclass(frozen=True)
class Steps:
    """The streaming step compared with the whole convolution. The check applies the dtype's tolerance itself."""

    dim: int
    taps: int
    dtype: torch.dtype

    def __call__(self, launches: TritonLaunches) -> float:
        with launches.emulated():
            check_step(self.dim, self.taps, 2, self.dtype)
        return 0.0


def legendre(
    layout: str, lengths: Sequence[int], dtype: torch.dtype, dim: int, taps: int, terms: int = 8, **options: Any
) -> Call:
    options = {"dim": dim, "groups": dim, "taps": taps, "terms": terms} | options
    return Call("legendre_conv", layout, lengths, dtype, options)


EMPTY = (70, 0, 1, 40)  # one sequence is empty, one has length 1

# These run in every test run, beside the unbroken control. Most of the time goes to Triton, which compiles them.
FEW: dict[str, Call | Mixer | Steps] = {
    "legendre bf16 packed, edge and window, empty sequences": legendre("packed", EMPTY, BF16, 16, 66),
    "legendre fp32 left-padded, groups": legendre("left", (80, 70), FP32, 24, 68, groups=3),
    "long_conv bf16 strided": Call("long_conv", "middle", (70, 40), BF16, {"dim": 16, "groups": 2, "taps": 12}),
    "short_conv fp16 packed": Call("short_conv", "packed", EMPTY, FP16, {"dim": 48, "taps": 3}),
    "last rows bf16": legendre("packed", EMPTY, BF16, 16, 66, last_only=True),
    "mixer bf16 packed": Mixer(BF16, True, 76),
    "conv_step fp32": Steps(17, 6, FP32),
}
MANY: dict[str, Call | Mixer | Steps] = {
    "legendre bf16 padded": legendre("full", (100, 100), BF16, 16, 100),
    "legendre bf16, fast window": replace(legendre("packed", EMPTY, BF16, 16, 66), rate=3.7),
    "legendre fp16 left-padded, groups": legendre("left", (100, 70), FP16, 24, 68, groups=3),
    "legendre fp32 right-padded": legendre("right", (80, 70), FP32, 16, 70),
    "short_conv bf16 packed": Call("short_conv", "packed", EMPTY, BF16, {"dim": 48, "taps": 3}),
    "legendre bf16 L=200 N=32": legendre("full", (200, 200), BF16, 64, 200, 32),
    "legendre bf16 two levels": legendre("full", (600,), BF16, 16, 512, 16),
    "legendre bf16 three levels": legendre("full", (2100,), BF16, 16, 2048),
    "legendre fp32 two levels": legendre("packed", (560, 33), FP32, 16, 520),
    "legendre fp16 two levels": legendre("packed", (560, 33), FP16, 16, 520),
    "mixer bf16 packed, longer": Mixer(BF16, True),
    "mixer bf16 padded": Mixer(BF16, False),
    "mixer fp16 packed": Mixer(FP16, True),
    "mixer fp32 packed": Mixer(FP32, True),
    "mixer fp32 padded": Mixer(FP32, False),
    "conv_step bf16": Steps(33, 40, BF16),
    "conv_step fp16": Steps(16, 40, FP16),
    "conv_step fp32 long": Steps(17, 40, FP32),
}
for dtype in (BF16, FP16, FP32):
    for rate in (0.05, 0.5, 2.0, 3.7, 6.0):  # the last two: just below and above the fastest window that is divided out
        MANY[f"legendre {dtype}, rate {rate}"] = replace(legendre("right", (100, 80), dtype, 16, 70), rate=rate)
    MANY[f"legendre {dtype} two levels, fast window"] = replace(
        legendre("right", (610, 520), dtype, 16, 520, 16), rate=0.5
    )
    name = str(dtype).removeprefix("torch.")
    MANY |= {
        f"legendre {name} packed, N=16": legendre("packed", (300, 64), dtype, 32, 128, 16),
        f"legendre {name} full, horizon shorter": legendre("full", (140, 140), dtype, 16, 101),
        f"legendre {name} strided": legendre("middle", (100, 37), dtype, 20, 101),
        f"last rows {name}": legendre("right", (100, 37), dtype, 16, 70, last_only=True),
        f"long_conv {name} packed, few taps": Call(
            "long_conv", "packed", (100, 0, 40), dtype, {"dim": 32, "groups": 32, "taps": 12}
        ),
        f"long_conv {name} padded, Toeplitz": Call(
            "long_conv", "middle", (100, 40), dtype, {"dim": 32, "groups": 2, "taps": 60}
        ),
        f"short_conv {name} left-padded": Call("short_conv", "left", (100, 40), dtype, {"dim": 40, "taps": 4}),
    }
CASES = FEW | MANY


# ---- broken kernels, which the checks must notice -------------------------------------------------------------------


class Broken(TritonLaunches):
    """Launches in which one kernel is broken.

    `without`: a prefix of opcodes, and which of the instructions with that prefix is left out (None: all of them).
    `added`: amounts added to the kernel's arguments. `left_out`: the kernel is not launched at all.
    """

    def __init__(
        self,
        kernel: str,
        without: tuple[str, int | None] | None = None,
        added: dict[str, int] | None = None,
        left_out: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.without, self.added, self.left_out = kernel, without, added or {}, left_out
        self.changed = 0

    def change(self, program: Program) -> None:
        if program.name != self.kernel or self.without is None:
            return
        opcode, which = self.without
        found = [i for i, instruction in enumerate(program.instructions) if instruction.opcode.startswith(opcode)]
        for i in found if which is None else found[which : which + 1]:
            program.instructions[i] = replace(program.instructions[i], opcode="membar.cta", operands=())
            self.changed += 1

    def run(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        if kernel.__name__ == self.kernel and (self.left_out or self.added):
            self.changed += 1
            if self.left_out:
                return
            arguments = arguments | {name: arguments[name] + more for name, more in self.added.items()}
        super().run(kernel, grid, arguments)


SMALL = legendre("full", (64,), BF16, 16, 66)
CONTROLS: dict[str, tuple[Call, Broken]] = {
    "nothing": (SMALL, Broken("legendre_chunks_kernel")),
    "a removed barrier": (SMALL, Broken("legendre_chunks_kernel", without=("bar", 0))),
    "no barriers": (SMALL, Broken("legendre_moments_kernel", without=("bar", None))),
    "a wrong stride": (SMALL, Broken("legendre_moments_kernel", added={"x_row": -8})),
    "a slot without a name": (legendre("packed", EMPTY, BF16, 16, 66), Broken("name_slots_kernel", left_out=True)),
    "an unwritten place": (SMALL, Broken("legendre_chunks_kernel", without=("st.shared", 0))),
    "a copy that is not waited for": (SMALL, Broken("legendre_chunks_kernel", without=("cp.async.wait", None))),
}
BARRIERS = {f"barrier {n}": (SMALL, Broken("legendre_chunks_kernel", without=("bar", n))) for n in range(40)}


def run(name: str) -> dict[str, Any]:
    case, launches = (CONTROLS | BARRIERS).get(name) or (CASES[name], TritonLaunches())
    result, begin = {"name": name, "tolerance": TOLERANCE[case.dtype]}, time.process_time()
    try:
        result["error"] = case(launches)
    except Fault as fault:
        result["fault"] = str(fault)
    result |= {"launches": launches.seen, "seconds": round(time.process_time() - begin, 1)}
    return result | ({"changed": launches.changed} if isinstance(launches, Broken) else {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        print(json.dumps(run(name)), flush=True)
