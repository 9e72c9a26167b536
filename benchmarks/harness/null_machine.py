"""The cuda backend without a device: CPU tensors take the whole path that a GPU's tensors take on the host, but no
kernel is launched, so a call's time is the host's time.

Calls go through the compiled operators, whose launches are counted and left out. Long convolutions of more than 512
taps have no such operator here.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from torch.nn.functional import linear

from hyenarec_kernels import backends, legendre, segments
from hyenarec_kernels.backends import cuda
from hyenarec_kernels.backends.cuda import device, short_convolutions, toeplitz, whole_mixer
from hyenarec_kernels.nn import projections

ROOT = Path(__file__).parents[2]


@cache
def _library() -> ctypes.CDLL:
    torch_home, target = Path(torch.__file__).parent, Path(tempfile.mkdtemp()) / "nothing.so"
    command = ["g++", "-std=c++17", "-O1", "-g0", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{torch_home / 'include'}", f"-L{torch_home / 'lib'}"]
    command += [str(ROOT / "tests" / "native" / "nothing_ops.cpp"), "-o", str(target)]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    torch.ops.load_library(target)
    library = ctypes.CDLL(str(target))
    library.host_launches.restype = ctypes.c_int64
    return library


@contextmanager
def null_machine() -> Iterator[Callable[[], int]]:
    """Treats CPU tensors as a GPU's. Yields a function that returns how many launches were left out so far."""
    library = _library()
    table = {
        "cuda": backends.Backend(("cpu",), lambda: None, lambda: cuda),
        "reference": backends.BACKENDS["reference"],
    }
    with ExitStack() as patches:
        for target, name, value in (
            (backends.registry, "BACKENDS", table),
            *(
                (module, "COMPILED", torch.ops.hyenarec_nothing)
                for module in (short_convolutions, toeplitz, whole_mixer)
            ),
            (device, "unsupported", lambda given: None),
            (projections, "fast_product", linear),  # as for GPU tensors
            *((module, "readable", lambda t: False) for module in (legendre, segments)),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        yield lambda: int(library.host_launches())
