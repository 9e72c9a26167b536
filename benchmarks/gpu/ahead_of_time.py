"""Compiles the kernels that the Triton backend would launch, for a GPU that need not be there, and reads what ptxas
reports about them.

Inside ``launches``, operators run on CPU tensors; every launch is recorded and none is made. ``compiled`` then compiles
what a call of these shapes and options would run. A process with TRITON_INTERPRET=1 cannot compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from hyenarec_kernels.backends.triton import launching

# Bytes of shared memory that a program may have. Triton checks this only when it loads the kernel.
SHARED = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376}
SHARED |= {"gfx942": 65_536, "gfx950": 163_840}
TARGETS = {f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 89, 90, 100, 120)}
TARGETS |= {name: GPUTarget("hip", name, 64) for name in ("gfx942", "gfx950")}
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
WIDE_LOAD = re.compile(r"ld\.global\S*\.(?:v4\.b32|v2\.b64)|cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10")
Launch = tuple[Any, dict[str, Any]]
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # of a launch, besides its kernel's arguments


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Collects what operators called inside would launch: each kernel with its arguments and options by name."""
    found: list[Launch] = []
    with mock.patch.object(launching, "run", lambda kernel, grid, arguments: found.append((kernel, arguments))):
        yield found


def passed(launch: Launch) -> dict[str, Any]:
    """The arguments that the compiled kernel takes, in order: those that Triton does not compile in as constants."""
    kernel, values = launch
    return {p.name: values[p.name] for p in kernel.params if not _constant(p, values[p.name])}


def _constant(parameter: Any, value: Any) -> bool:
    if isinstance(value, Tensor):
        return False
    return bool(parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize))


def binary(launch: Launch, target: GPUTarget, **options: Any) -> Any:
    """What Triton compiles a launch to; `options` override the launch's own."""
    kernel, values = launch
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            aligned = value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment
        elif _constant(parameter, value):
            signature[name], constants[(index,)] = "constexpr", value
            aligned = False
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    own = {name: value for name, value in values.items() if name in OPTIONS}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=own | options)


def compiled(launch: Launch, target: str) -> dict[str, Any]:
    """Figures of a launch compiled for one of the TARGETS: registers, bytes spilled, bytes of stack, shared memory,
    128-bit loads of global memory, tensor-core instructions."""
    kernel, values = launch
    amd = TARGETS[target].backend == "hip"
    row: dict[str, Any] = {
        "kernel": kernel.__name__,
        "architecture": target,
        **{name: value for name, value in values.items() if name in OPTIONS},
    }
    made = binary(launch, TARGETS[target], **({"maxnreg": None} if amd else {}))
    return (
        row | {"shared": made.metadata.shared} | (_by_llvm(made.asm["amdgcn"]) if amd else _by_ptxas(made.asm["ptx"]))
    )


def _by_ptxas(ptx: str) -> dict[str, Any]:
    architecture = re.findall(r"^\.target (\w+)", ptx, re.M)[0]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        capability = int(re.findall(r"\d+", architecture)[0])
        command = [get_ptxas(capability).path, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, said)))

    return {
        "architecture": architecture,
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "loads_128": len(WIDE_LOAD.findall(ptx)),
        "tensor_core": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
    }


def _by_llvm(code: str) -> dict[str, Any]:
    """Figures from AMD's assembly text: vector registers per lane, and bytes of what did not fit into them.

    Spilled scalar registers go to lanes of vector registers, not to memory, and do not count.
    """

    def number(name: str) -> int:
        return sum(map(int, re.findall(rf"\.{name}:\s+(\d+)", code)))

    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "spilled": 4 * number("vgpr_spill_count"),
        "loads_128": len(re.findall(r"(?:global|buffer)_load_dwordx4", code)),
        "tensor_core": code.count("v_mfma"),
    }
