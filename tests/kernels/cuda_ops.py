"""The ops of namespace hyenarec_cuda for CPU tensors: the shipped kernels compiled for the host and run thread by
thread, or not run at all.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SANITIZE = "HYENAREC_TEST_SANITIZE"  # compile with the checks that it names, such as "address"


def load(source: str, target: Path, *flags: str) -> None:
    """Compiles ``tests/native/<source>`` and registers its ops."""
    torch_home = Path(torch.__file__).parent
    checks = [f"-fsanitize={os.environ[SANITIZE]}"] if SANITIZE in os.environ else []
    command = ["g++", "-std=c++17", "-O1", "-g0", "-shared", "-fPIC", *checks, *flags]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{torch_home / 'include'}", f"-I{ROOT / 'csrc'}"]
    command += [str(ROOT / "tests" / "native" / source), "-o", str(target)]
    subprocess.run([*command, f"-L{torch_home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    torch.ops.load_library(target)


def load_short(target: Path, *flags: str) -> None:
    """The short convolutions and conv_step; defines them where the extension has no CUDA part."""
    defined = hasattr(torch.ops.hyenarec_cuda, "conv_step")
    load("short_host_ops.cpp", target, *flags, *([] if defined else ["-DHYENAREC_DEFINE"]))
