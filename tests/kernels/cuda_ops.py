"""The ops of namespace hyenarec_cuda for CPU tensors: the shipped kernels compiled for the host, where they run thread
by thread or, on request, not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hyenarec_kernels import backends
from hyenarec_kernels.backends import cuda
from hyenarec_kernels.backends.cuda import device as cuda_device

ROOT = Path(__file__).parents[2]
with_device = pytest.mark.skipif(cuda.probe() is not None, reason=f"cuda backend: {cuda.probe()}")
without_device = pytest.mark.skipif(cuda.probe() is None, reason="a device runs the kernels")
SOURCES = "HYENAREC_TEST_SOURCES"  # environment variable: compile the sources below this folder instead


def load(source: str, target: Path, *flags: str, beside: Sequence[Path] = ()) -> None:
    """Compiles ``tests/native/<source>`` and registers its ops. ``beside``: libraries whose functions the ops call."""
    torch_home, root = Path(torch.__file__).parent, Path(os.environ.get(SOURCES, ROOT))
    command = ["g++", "-std=c++17", "-O0", "-g0", "-shared", "-fPIC", *flags]  # compiling takes longer than running
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{torch_home / 'include'}", f"-I{root / 'csrc'}"]
    command += [str(root / "tests" / "native" / source), "-o", str(target)]
    command += [part for library in beside for part in (str(library), f"-Wl,-rpath,{library.parent}")]
    subprocess.run([*command, f"-L{torch_home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    torch.ops.load_library(target)


def load_short(target: Path, *flags: str) -> None:
    """Loads the ops of the short convolutions and of conv_step; defines them if the extension has no CUDA part."""
    defined = hasattr(torch.ops.hyenarec_cuda, "conv_step")
    load("short_host_ops.cpp", target, *flags, *([] if defined else ["-DHYENAREC_DEFINE"]))


@contextmanager
def forced(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forces the cuda backend; on "cpu" it uses the ops of :func:`load`. Every tensor that the backend allocates,
    workspace included, is full of NaN until it is written."""
    if device == "cpu":
        monkeypatch.setitem(backends.BACKENDS, "cuda", backends.Backend(("cpu",), lambda: None, lambda: cuda))
        monkeypatch.setattr(cuda_device, "unsupported", lambda device: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with backends.use("cuda"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


LONGEST_RACE = 300  # seconds; the slowest race program takes 25


def race_program(source: str, target: Path, *flags: str) -> Callable[..., bool]:
    """Compiles ``tests/native/<source>`` for ThreadSanitizer and returns a function that runs it.

    The function's ``words`` are the program's arguments, which choose a call. It returns whether two threads of the
    call access the same place without a barrier between them. ``dropped`` is the number of a barrier that every block
    leaves out.
    """
    options = ["-std=c++17", "-O0", "-fsanitize=thread", "-pthread", f"-I{ROOT / 'csrc'}", *flags]
    built = subprocess.run(
        ["g++", *options, str(ROOT / "tests" / "native" / source), "-o", str(target)], capture_output=True, text=True
    )
    if "tsan" in built.stderr:
        pytest.skip("g++ has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr

    def run(*words: object, dropped: int | None = None) -> bool:
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
        command = [str(target), *map(str, words), *([] if dropped is None else [str(dropped)])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST_RACE)
        except subprocess.TimeoutExpired:
            if dropped is None:
                raise
            return False  # threads wait for ever at a later barrier
        if "FATAL: ThreadSanitizer" in done.stderr:
            pytest.skip("ThreadSanitizer does not run on this kernel")
        assert done.returncode in (0, 66), done.stderr
        return done.returncode == 66

    return run
