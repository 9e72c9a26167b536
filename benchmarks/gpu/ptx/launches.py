"""Where launches come from: the Triton backend on CPU tensors, and the programs of csrc/cuda as their host build
launches them.

Triton compiles its kernels ahead of time, nvcc the others; both for compute capability 9.0.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.ahead_of_time import TARGETS, binary, passed
from benchmarks.gpu.ptx import bits, matrices, scalar, transfers, warpgroups  # noqa: F401  what the instructions do
from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.machine import Launch
from benchmarks.gpu.ptx.memory import GlobalMemory
from benchmarks.gpu.ptx.parsing import Program, programs
from hyenarec_kernels import backends
from hyenarec_kernels.backends import triton as package
from hyenarec_kernels.backends.triton import launching

ROOT = Path(__file__).parents[3]


def add_storage(memory: GlobalMemory, tensor: Tensor, name: str) -> None:
    storage = tensor.untyped_storage()
    memory.add(storage.data_ptr(), storage.nbytes(), name)


class TritonLaunches:
    """Runs the Triton backend's launches inside `emulated`, and counts them by kernel in `seen`."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self._programs: dict[str, Program] = {}

    def change(self, program: Program) -> None:
        """Called with every program before it runs; negative controls override it to break the program."""

    def made(self, program: Program, binary: bytes) -> None:
        """Called with every program and the binary that ptxas made of it."""

    @contextmanager
    def emulated(self, *, poison: bool = True) -> Iterator[None]:
        """Forces the backend for CPU tensors. With `poison`, what it allocates is full of NaN until it is written."""
        assert not package.INTERPRETED, "with TRITON_INTERPRET=1 nothing is compiled"
        here = backends.Backend(("cpu",), lambda: None, backends.BACKENDS["triton"].load)
        deterministic: Any = torch.utils.deterministic
        before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(poison, warn_only=True)
        deterministic.fill_uninitialized_memory = True
        try:
            with (
                mock.patch.dict(backends.BACKENDS, triton=here),
                mock.patch.object(launching, "run", self.run),
                backends.use("triton"),
            ):
                yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            deterministic.fill_uninitialized_memory = before[1]

    def run(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        compiled = binary((kernel, arguments), TARGETS["sm_90"])
        text = compiled.asm["ptx"]
        if text not in self._programs:
            (program,) = programs(text)
            self.change(program)
            self.made(program, compiled.asm["cubin"])
            self._programs[text] = program
        program, memory = self._programs[text], GlobalMemory()
        values = []
        for name, value in passed((kernel, arguments)).items():
            if isinstance(value, Tensor):
                add_storage(memory, value, name)
            values.append(value.data_ptr() if isinstance(value, Tensor) else value)
        values += [0] * (len(program.parameters) - len(values))  # scratch memory for Triton itself, which is not used
        assert program.threads is not None
        x, y, z = (*grid, 1, 1)[:3]
        self.seen[program.name] = self.seen.get(program.name, 0) + 1
        launch = Launch(program, (x, y, z), program.threads, compiled.metadata.shared, tuple(values))
        self.start(launch, memory, arguments)

    def start(self, launch: Launch, memory: GlobalMemory, arguments: dict[str, Any]) -> None:
        launch.run(memory)


class CudaLaunches:
    """Runs launches of csrc/cuda that a host library (tests/native/emulation.h) hands over instead of running them.

    The first call of an operator only notes which programs it launches; nvcc then compiles these, and the second call
    runs them. `headers` are those that define the programs.
    """

    CALLBACK = ctypes.CFUNCTYPE(
        ctypes.c_bool, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int
    )

    def __init__(self, library: ctypes.CDLL, headers: tuple[str, ...], folder: Path) -> None:
        self.library, self.headers, self.folder = library, headers, folder
        self.programs: dict[str, Program] = {}
        self.seen: dict[str, int] = {}

    def change(self, program: Program) -> None:
        """Called with every program before it runs; negative controls override it to break the program."""

    def call(self, function: Callable[[], None], tensors: dict[str, Tensor]) -> None:
        """Calls `function`, which calls the library, with the launches run on these tensors."""
        missing: list[str] = []

        def note(type: str, *_: Any) -> bool:
            if type not in self.programs:
                missing.append(type)
            return True

        self._with(note, function)
        if missing:
            self.programs |= self.compiled(sorted(set(missing)))
        memory = GlobalMemory()
        for name, tensor in tensors.items():
            add_storage(memory, tensor, name)
        self._with(lambda *launch: self._run(memory, *launch), function)

    def compiled(self, types: list[str], architecture: str = "sm_90a") -> dict[str, Program]:
        """Compiles programs, given by their C++ types, with nvcc. Returns them by type."""
        source, text = (
            self.folder / f"programs{len(self.programs)}.cu",
            self.folder / f"programs{len(self.programs)}.ptx",
        )
        lines = [f'#include "{header}"' for header in (*self.headers, "cuda/launch.inc")]
        lines += [
            f"template __global__ void hyenarec::cuda::run<{type}>(const __grid_constant__ {type});" for type in types
        ]
        source.write_text("\n".join(lines) + "\n")
        flags = ["-ptx", "-O3", "-std=c++17", f"-arch={architecture}", f"-I{ROOT / 'csrc'}"]
        subprocess.run(["nvcc", *flags, str(source), "-o", str(text)], check=True)
        found = {}
        for program in programs(text.read_text()):
            named = subprocess.run(["c++filt", program.name], capture_output=True, text=True, check=True).stdout
            type = named.partition("run<")[2].rpartition(">(")[0].strip()
            assert type in types, named
            self.change(program)
            found[type] = program
        return found

    def _with(self, take: Callable[..., bool], function: Callable[[], None]) -> None:
        faults: list[BaseException] = []

        def taken(type: bytes, data: int, size: int, grid: int, threads: int, shared: int) -> bool:
            if faults:
                return True
            try:
                return take(type.decode(), ctypes.string_at(data, size), grid, threads, shared)
            except BaseException as error:  # an exception cannot pass through the library
                faults.append(error)
                return True

        callback = self.CALLBACK(taken)
        self.library.host_emulate(callback)
        try:
            function()
        finally:
            self.library.host_emulate(None)
        if faults:
            raise faults[0]

    def _run(self, memory: GlobalMemory, type: str, data: bytes, grid: int, threads: int, shared: int) -> bool:
        program = self.programs[type]
        if program.threads is not None and program.threads != threads:
            raise Fault(f"{type}: launched with {threads} threads, compiled for {program.threads}")
        self.seen[type] = self.seen.get(type, 0) + 1
        return self.start(Launch(program, (grid, 1, 1), threads, shared, (data,)), memory, type)

    def start(self, launch: Launch, memory: GlobalMemory, type: str) -> bool:
        """Runs a launch. Returns whether it was run here; otherwise the library runs it on the host."""
        launch.run(memory)
        return True
