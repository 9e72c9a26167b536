"""The ops of namespace hyenarec_cuda for CPU tensors: the shipped kernels compiled for the host and run thread by
thread, or not run at all.
"""

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
SOURCES = "HYENAREC_TEST_SOURCES"  # compile what lies below this folder


def load(source: str, target: Path, *flags: str, beside: Sequence[Path] = ()) -> None:
    """Compiles ``tests/native/<source>`` and registers its ops, which call functions of the libraries ``beside`` it."""
    torch_home, root = Path(torch.__file__).parent, Path(os.environ.get(SOURCES, ROOT))
    command = ["g++", "-std=c++17", "-O0", "-g0", "-shared", "-fPIC", *flags]  # compiling takes longer than running
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{torch_home / 'include'}", f"-I{root / 'csrc'}"]
    command += [str(root / "tests" / "native" / source), "-o", str(target)]
    command += [part for library in beside for part in (str(library), f"-Wl,-rpath,{library.parent}")]
    subprocess.run([*command, f"-L{torch_home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    torch.ops.load_library(target)


def load_short(target: Path, *flags: str) -> None:
    """The short convolutions and conv_step; defines them where the extension has no CUDA part."""
    defined = hasattr(torch.ops.hyenarec_cuda, "conv_step")
    load("short_host_ops.cpp", target, *flags, *([] if defined else ["-DHYENAREC_DEFINE"]))


@contextmanager
def forced(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend forced, on a "cpu" with the ops of :func:`load`; every tensor that it allocates, workspace too, is
    full of NaN until it is written."""
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


LONGEST_RACE = 300  # seconds; the longest takes 25


def race_program(source: str, target: Path, *flags: str) -> Callable[..., bool]:
    """Compiles ``tests/native/<source>`` for ThreadSanitizer: whether two threads of a call, which words name, meet
    without a barrier between them. ``dropped``: the number of a barrier that every block leaves out."""
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
            return False  # the barrier that is left out keeps the threads waiting for ever
        if "FATAL: ThreadSanitizer" in done.stderr:
            pytest.skip("ThreadSanitizer does not run on this kernel")
        assert done.returncode in (0, 66), done.stderr
        return done.returncode == 66

    return run
