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


def compiled(launch: Launch, capability: int) -> dict[str, Any]:
    """What a launch compiles to on a GPU of a compute capability (90 for 9.0): registers, bytes spilled, shared memory,
    tensor-core instructions."""
    kernel, values = launch
    launch_options = {name: value for name, value in values.items() if name in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            if not parameter.do_not_specialize_on_alignment:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    binary = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=launch_options,
    )
    ptx: str = binary.asm["ptx"]
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
        **launch_options,
        "registers": number(r"Used (\d+) registers"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "shared": binary.metadata.shared,
        "tensor_core": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
    }
