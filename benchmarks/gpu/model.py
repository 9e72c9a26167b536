"""How long operators would take on an H100, predicted from their compiled code: estimates, not measurements.

    python -m benchmarks model [--out benchmarks/results/gpu-model.json] [--lengths 200 1024] [--terms 16]
                               [--backends triton cuda]

Some blocks of every launch run in the emulator :mod:`benchmarks.gpu.ptx`, which counts what they use:

* issue slots: each PTX instruction that a warp executes counts as the machine instructions that ptxas makes of it
  (:mod:`benchmarks.gpu.usage`);
* wavefronts of the load-store unit, from the addresses: lines of global memory, banks of shared memory;
* matrix instructions;
* bytes of global memory, each sector once per launch.

A launch is taken to last as long as the busiest of these needs, at the rates of an H100 whose multiprocessors are all
evenly loaded. A figure is two numbers: at full rates, and at the share of them that good kernels reach (`REACHED`).
Left out are the cost of launches, the host, stalls where warps are too few, the small tensor operations around the
launches, and the L2 cache. It also tells each kernel's registers per thread, and its bytes of stack, where spilled
registers go.

The kernels of the cuda backend need nvcc and g++.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import triton

from benchmarks.gpu import cuda_model, triton_model
from benchmarks.gpu.triton_model import DIM, ROWS
from benchmarks.gpu.usage import BYTES, REACHED, Use
from benchmarks.harness.recording import write
from hyenarec_kernels.backends import triton as backend

COPY = 8 / BYTES  # picoseconds per element: x, two gates and the output, in 16 bits
MODELS: dict[str, ModuleType] = {"triton": triton_model, "cuda": cuda_model}
LENGTHS = (200, 1024, 4096, 16384, 65536)
TERMS = (16, 32)
# What kernels should reach: forward, this share of a copy's speed; forward and backward, picoseconds per element.
GOAL_OF_COPY, GOAL_BOTH = 0.65, 12.0


def estimate(uses: Iterable[Use], elements: int) -> dict[str, Any]:
    """Picoseconds per element of all launches, and of each kernel, at full and at reached rates."""
    kernels: dict[str, dict[str, float]] = {}
    for use in uses:
        row = kernels.setdefault(use.kernel, dict.fromkeys(("launches", "at least", "likely", "bytes"), 0.0))
        full, reached = use.picoseconds(reached=False), use.picoseconds(reached=True)
        for name, value in full.items():
            row[name] = row.get(name, 0.0) + value / elements
        row["launches"] += 1
        row["at least"] += max(full.values()) / elements
        row["likely"] += max(reached.values()) / elements
        row["bytes"] += use.bytes / elements
        for name, count in use.resources.items():
            row[name] = max(row.get(name, 0), count)
    total = {name: sum(row[name] for row in kernels.values()) for name in ("at least", "likely", "bytes")}
    return {
        **{name: round(value, 3) for name, value in total.items()},
        "kernels": {kernel: {name: round(v, 3) for name, v in row.items()} for kernel, row in kernels.items()},
    }


def case(backend: str, length: int, terms: int, *, packed: bool = False) -> dict[str, Any]:
    """Estimates of a backend's forward, and of its forward and backward, at one shape."""
    model = MODELS[backend]
    tokens = max(model.tokens(length) // length, 1) * length
    forward, backward = (model.legendre(length, terms, backward=which, packed=packed) for which in (False, True))
    shape = {"backend": backend, "length": length, "terms": terms, "packed": packed, "dim": DIM, "tokens": tokens}
    both = estimate([*forward, *backward], tokens * DIM)
    return {**shape, "forward": estimate(forward, tokens * DIM), "forward and backward": both}


def told(row: dict[str, Any]) -> str:
    forward, both = row["forward"], row["forward and backward"]
    shares = [COPY / forward[name] for name in ("likely", "at least")]
    return (
        f"{row['backend']} L={row['length']} N={row['terms']}{' packed' if row['packed'] else ''}: "
        f"forward {forward['at least']:.1f} to {forward['likely']:.1f} ps an element, {shares[0]:.0%} to "
        f"{shares[1]:.0%} of a copy (goal {GOAL_OF_COPY:.0%}); with backward {both['at least']:.1f} to "
        f"{both['likely']:.1f} ps (goal {GOAL_BOTH:.0f}); estimates"
    )


def nvcc() -> str | None:
    """nvcc's version; None where there is no nvcc."""
    try:
        said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except OSError:
        return None
    return said.strip().splitlines()[-1]


def main() -> None:
    if backend.INTERPRETED:
        raise SystemExit("error: TRITON_INTERPRET=1 is set; the interpreter compiles nothing")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-model.json"))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--terms", type=int, nargs="+", default=TERMS)
    parser.add_argument("--backends", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    settings: dict[str, Any] = {
        "estimate": True,
        "gpu": "H100 SXM: 132 multiprocessors, 1.755 GHz, a copy at 3.0 TB/s",
        "triton": triton.__version__,
        "nvcc": nvcc(),
        "rows": ROWS,
        "reached": REACHED,
        "copy": round(COPY, 3),
        "goals": {"of a copy, forward": GOAL_OF_COPY, "ps, forward and backward": GOAL_BOTH},
    }
    title = "what the GPU kernels would take on an H100: estimates from compiled code, nothing measured"
    rows = []
    for backend_name in arguments.backends:
        for length in arguments.lengths:
            for terms in arguments.terms:
                rows.append(case(backend_name, length, terms))
                print(told(rows[-1]))
                write(arguments.out, "model", title, {"settings": settings, "cases": [], "estimates": rows})
                sys.stdout.flush()


if __name__ == "__main__":
    main()
