"""A pretended GPU, for rehearsals and tests: the host's memory stands in for the device's, kernels compute nothing, and
events tell the host's time.

``pretend`` is for a process of its own, because it changes torch for good. Triton compiles for compute capability 9.0
and launches into the stub driver of tests/native/stub_cuda.c, which ``stub_driver`` builds; the reference stands in for
the cuda backend.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.machine import ROOT
from hyenarec_kernels import backends
from hyenarec_kernels.backends import reference

CAPABILITY = 90
NAME = "no GPU: a rehearsal"
LIBRARY, LIBRARY_VARIABLE = "libcuda.so.1", "TRITON_LIBCUDA_PATH"


class OnCpu(TorchFunctionMode):
    """Makes on the CPU what is asked for on CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0]
        if func is torch.device:
            return on_cpu(func(*args, **(kwargs or {})))
        args = [on_cpu(argument) for argument in args]
        kwargs = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def on_cpu(value: Any) -> Any:
    """The value, or the CPU where it names a GPU."""
    named = isinstance(value, (str, torch.device)) and str(value).split(":")[0] == "cuda"
    return torch.device("cpu") if named else value


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at) + 1e-6  # a real one is never zero


class Nothing:
    """Stands in for streams, graphs and context managers."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...

    def replay(self) -> None: ...


PROPERTIES = SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=139 << 30)
SAID: dict[str, Any] = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": NAME,
    "get_device_capability": divmod(CAPABILITY, 10),
    "get_device_properties": PROPERTIES,
    "mem_get_info": (0, 139 << 30),  # none is free: tests that need much are skipped
    "memory_allocated": 0,
    "max_memory_allocated": 9,
    "is_initialized": False,
}
IGNORED = ("_sleep", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode", "manual_seed_all")


def pretended() -> dict[tuple[Any, str], Any]:
    """What is replaced: new values by owner and name."""
    autocast = torch.autocast
    found: dict[tuple[Any, str], Any] = {(torch.cuda, name): answer(value) for name, value in SAID.items()}
    found |= {(torch.cuda, name): answer(None) for name in IGNORED}
    found |= {(torch.cuda, name): Nothing for name in ("Stream", "CUDAGraph", "graph", "stream")}
    found[torch.cuda, "current_stream"] = Nothing
    found[torch.cuda, "Event"] = Event
    found[torch.version, "cuda"] = "13.0"
    found[nn.Module, "cuda"] = lambda module: module
    found[torch, "autocast"] = lambda device, *options, **named: autocast("cpu", *options, **named)
    return found


def answer(value: Any) -> Any:
    return lambda *_, **__: value


def pretend() -> None:
    """Pretends for the rest of this process."""
    for (where, name), value in pretended().items():
        setattr(where, name, value)
    OnCpu().__enter__()
    triton, rest = backends.BACKENDS["triton"].load, backends.BACKENDS["reference"]
    backends.BACKENDS.clear()
    backends.BACKENDS |= {  # Triton first, so that everything it may have to compile is counted
        "triton": backends.Backend(("cpu",), lambda: None, triton),
        "cuda": backends.Backend(("cpu",), lambda: None, lambda: reference),
        "reference": rest,
    }
    if LIBRARY_VARIABLE in os.environ:
        use_stub_driver()


def use_stub_driver() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    ctypes.CDLL(f"{os.environ[LIBRARY_VARIABLE]}/{LIBRARY}", ctypes.RTLD_GLOBAL)  # for what Triton links against it

    class StubDriver(nvidia.CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
            self.get_device_capability = answer(divmod(CAPABILITY, 10))
            self.get_current_device = self.get_current_stream = answer(0)
            self.set_current_device = answer(None)

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", CAPABILITY, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    driver.set_active(StubDriver())


def stub_driver(folder: Path) -> None:
    """Builds the stub driver in ``folder``, and makes the processes that this one starts use it."""
    folder.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests/native/stub_cuda.c"
    flags = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(folder / LIBRARY)], check=True)
    os.environ[LIBRARY_VARIABLE] = str(folder)
