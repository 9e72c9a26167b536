"""Compiles what the Triton backend would launch, for a GPU that need not be there, and reads what ptxas says of it.

``launches`` lets operators run on CPU tensors, writes down every launch and makes none. What ``compiled`` then compiles
is what a call of these shapes and options would run; a process with TRITON_INTERPRET=1 cannot compile.
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

# Bytes of shared memory a program may have; Triton finds out only when it loads the kernel.
SHARED = {80: 166_912, 86: 101_376, 90: 232_448}
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
Launch = tuple[Any, dict[str, Any]]
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # of a launch, beside its kernel's arguments


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Collects what operators called inside would launch: kernels, and their arguments and options by name."""
    found: list[Launch] = []
    with mock.patch.object(launching, "run", lambda kernel, grid, arguments: found.append((kernel, arguments))):
        yield found


def passed(launch: Launch) -> dict[str, Any]:
    """The arguments that the compiled kernel takes, in order: those that Triton compiles no constants of."""
    kernel, values = launch
    return {p.name: values[p.name] for p in kernel.params if not _constant(p, values[p.name])}


def _constant(parameter: Any, value: Any) -> bool:
    if isinstance(value, Tensor):
        return False
    return bool(parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize))


def binary(launch: Launch, target: GPUTarget, **options: Any) -> Any:
    """What Triton compiles a launch to; `options` in place of the launch's own."""
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


def compiled(launch: Launch, capability: int) -> dict[str, Any]:
    """What a launch compiles to on a GPU of a compute capability (90 for 9.0): registers, bytes spilled, shared memory,
    tensor-core instructions."""
    kernel, values = launch
    made = binary(launch, GPUTarget("cuda", capability, 32))
    ptx: str = made.asm["ptx"]
    architecture = re.findall(r"^\.target (\w+)", ptx, re.M)[0]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, said)))

    return {
        "kernel": kernel.__name__,
        "architecture": architecture,
        **{name: value for name, value in values.items() if name in OPTIONS},
        "registers": number(r"Used (\d+) registers"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "shared": made.metadata.shared,
        "tensor_core": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
    }
