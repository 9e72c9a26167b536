"""Compiles every Triton kernel in every shipped configuration, without a GPU, and records what comes out.

    python -m benchmarks compiled [--out benchmarks/results/triton-aot.json] [--cases ...] [--targets ...]
        [--kernels ...]

It records registers, spilled bytes, shared memory and tensor-core instructions of whatever the operators launch at the
CASES below, for sm_80 and sm_90 or other `--targets` (sm_100, gfx942, ...). `--cases` selects cases by number, from 0;
`--kernels` selects kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

from benchmarks.gpu.ahead_of_time import OPTIONS, SHARED, compiled, launches
from benchmarks.harness.recording import write
from hyenarec_kernels.backends import triton as backend
from hyenarec_kernels.backends.triton import arithmetic
from hyenarec_kernels.backends.triton.arithmetic import Arithmetic

TARGETS = ("sm_80", "sm_90")
# dtype, channels, sequence length, horizon, terms, packed, window. The first three use every kernel and configuration;
# the others only change ranks.
CASES = (
    (torch.bfloat16, 64, 4096, 4096, 32, False, True),
    (torch.float16, 64, 4096, 4000, 32, True, True),
    (torch.float32, 128, 1024, 1000, 16, True, True),
    (torch.bfloat16, 256, 200, 200, 32, False, True),
    (torch.bfloat16, 128, 65536, 65536, 32, False, False),
    (torch.bfloat16, 16, 1024, 1024, 64, True, True),
    (torch.float32, 96, 200, 256, 16, False, False),
    (torch.float32, 64, 16384, 16384, 32, False, True),
    (torch.bfloat16, 100, 131072, 100000, 32, True, True),
)


def call(dtype: torch.dtype, dim: int, length: int, horizon: int, terms: int, packed: bool, window: bool) -> None:
    """Calls every operator once, forward and backward; the tensors hold nothing, because no kernel is run."""
    operators: Any = import_module(f"{backend.__name__}.operators")  # not typed: calls share lists of arguments
    shape = (2 * length,) if packed else (2, length)
    wide = torch.empty(*shape, 3 * dim, dtype=dtype)
    x, pre, post = wide.chunk(3, -1)
    bounds = torch.tensor([0, length, 2 * length])
    where = (bounds[:-1], bounds[1:]) if packed else (None, None)

    def parameter(*size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype)

    legendre = (x, parameter(dim, terms), parameter(dim) if window else None, parameter(dim), pre, post, *where)
    operators.legendre_conv(*legendre, horizon, False)
    operators.legendre_conv_backward(x, *legendre, horizon, False, [True] * 6)
    for groups in (1, dim):
        explicit = (x, parameter(groups, 50), parameter(dim), pre, post, *where)
        operators.long_conv(*explicit, False)
        operators.long_conv_backward(x, *explicit, False, [True] * 5)
    last = wide[..., :2, :dim].reshape(-1, dim)[:2]
    operators.long_conv(*explicit[:4], last, *where, True)
    operators.long_conv_backward(last, *explicit[:4], last, *where, True, [True] * 5)
    wide_dtype = Arithmetic(dtype).wide
    history, taps = (torch.empty(*size, length, dim, dtype=wide_dtype) for size in ((2,), ()))
    operators.conv_step(last, history[:, 1:], taps, torch.zeros(2, dtype=torch.int64), last, last)
    short = (wide, parameter(3 * dim, 4), parameter(3 * dim), *where, "silu")
    operators.short_conv(*short)
    operators.short_conv_backward(wide, *short, [True] * 3)
    projected = (wide, parameter(3 * dim, 4), parameter(3 * dim), *where, dim)
    u, q = operators.gated_short_conv(*projected)
    operators.gated_short_conv_backward(u, q, *projected, [True] * 3)


def rows(cases: Sequence[Any], targets: Sequence[str], names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    for target in targets:
        for case in cases:
            with launches() as found, mock.patch.object(arithmetic, "AMD", target.startswith("gfx")):
                call(*case)
            seen = set()
            for launch in found:
                kernel, arguments = launch
                options = {name: value for name, value in arguments.items() if name.isupper() or name in OPTIONS}
                variant = (kernel.__name__, str(options), tuple(a is None for a in arguments.values()))
                if variant in seen or (names and kernel.__name__ not in names):
                    continue
                seen.add(variant)
                row = compiled(launch, target)
                shapes = ("RANK", "NEAR_RANK", "EDGE_RANK", "REVERSE", "PACKED", "PARTED", "SLOTS", "CHANNELS")
                yield {
                    "dtype": str(case[0]).removeprefix("torch."),
                    **row,
                    **{name.lower(): options[name] for name in shapes if name in options},
                    "shared_limit": SHARED[target],
                }


def main() -> None:
    if backend.INTERPRETED:
        raise SystemExit("error: TRITON_INTERPRET=1 is set; the interpreter compiles nothing")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/triton-aot.json"))
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)))
    parser.add_argument("--kernels", nargs="+")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=sorted(SHARED))
    arguments = parser.parse_args()
    cases = [CASES[number] for number in arguments.cases]
    kernels = list(rows(cases, arguments.targets, arguments.kernels))
    settings = {"triton": triton.__version__, "shared_limit": {name: SHARED[name] for name in arguments.targets}}
    title = "what the Triton kernels compile to, in every shipped configuration"
    write(arguments.out, "compiled", title, {"settings": settings, "cases": [], "kernels": kernels})
    for row in kernels:
        if row["spilled"] or row["shared"] > row["shared_limit"]:
            print("over:", row)
    print(
        f"{len(kernels)} kernels: at most {max(row['registers'] for row in kernels)} registers, "
        f"{max(row['spilled'] for row in kernels)} bytes spilled, "
        f"{max(row['shared'] for row in kernels)} bytes of shared memory"
    )


if __name__ == "__main__":
    main()
