"""The cuda backend on a machine that launches nothing: CPU tensors go all the way that a GPU's go on the host, and what
is left of a call is the host's time.

The short convolutions go through their compiled operators, whose launches are counted and left out. In the place of the
long convolutions stands a function that allocates what they would return.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import linear

from hyenarec_kernels import backends, legendre, segments
from hyenarec_kernels.backends import cuda
from hyenarec_kernels.backends.cuda import device, short_convolutions
from hyenarec_kernels.nn import projections

ROOT = Path(__file__).parents[2]
SHORT = ("short_conv", "gated_short_conv", "conv_step")


@cache
def _library() -> ctypes.CDLL:
    torch_home, target = Path(torch.__file__).parent, Path(tempfile.mkdtemp()) / "nothing.so"
    command = ["g++", "-std=c++17", "-O1", "-g0", "-shared", "-fPIC", "-DHYENAREC_NOTHING", f"-I{ROOT / 'csrc'}"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{torch_home / 'include'}", f"-L{torch_home / 'lib'}"]
    command += [str(ROOT / "tests" / "native" / "short_host_ops.cpp"), "-o", str(target)]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    torch.ops.load_library(target)
    library = ctypes.CDLL(str(target))
    library.short_launches.restype = ctypes.c_int64
    return library


def _allocate(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _allocate_gradients(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *arguments, needs = x, *rest
    return tuple(
        torch.empty_like(t) if need and t is not None else x.new_empty(0)
        for t, need in zip(arguments, needs, strict=False)
    )


@contextmanager
def null_machine() -> Iterator[Callable[[], int]]:
    """CPU tensors as if they were a GPU's; gives a function that says how many launches were left out so far."""
    library = _library()
    operators = {name: getattr(cuda, name) for name in cuda.__all__ if name.removesuffix("_backward") in SHORT}
    operators |= dict.fromkeys(("long_conv", "legendre_conv"), _allocate)
    operators |= {f"{name}_backward": _allocate_gradients for name in ("long_conv", "legendre_conv")}

    def accepts(call: backends.Call) -> str | None:
        return short_convolutions.accepts(call) if call.operator in SHORT else None

    table = {
        "cuda": backends.Backend(("cpu",), lambda: None, lambda: SimpleNamespace(**operators, accepts=accepts)),
        "reference": backends.BACKENDS["reference"],
    }
    with ExitStack() as patches:
        for target, name, value in (
            (backends.registry, "BACKENDS", table),
            (short_convolutions, "COMPILED", torch.ops.hyenarec_nothing),
            (device, "unsupported", lambda given: None),
            (projections, "fast_product", linear),  # what GPUs take
            *((module, "readable", lambda t: False) for module in (legendre, segments)),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        yield lambda: int(library.short_launches())
