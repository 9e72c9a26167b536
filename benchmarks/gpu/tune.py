"""Measures other launch configurations of the Triton kernels on this GPU, and prints rows for configs.TABLE.

    python -m benchmarks.gpu.tune [--seconds 0.2] [--kernels chunks across ...]

A few shapes that differ in kind stand for all: no configuration depends on a length. Only configurations that compile
are measured. It prints the one with the least sum, over shapes, of the time relative to the shipped configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import hyenarec_kernels as hk
from benchmarks.gpu.clocks import Clock, draw, training
from benchmarks.harness.measuring import take_turns
from hyenarec_kernels import backends
from hyenarec_kernels.ops.conv_step import conv_step
from hyenarec_kernels.ops.gated_short_conv import gated_short_conv

COLUMNS, WARPS, STAGES = (32, 64, 128), (4, 8, 16), (1, 2, 3)
TOKENS = 131_072


def joined_short_conv(x: torch.Tensor, weight: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat(gated_short_conv(x, weight, None, dim), -1)


def calls() -> dict[str, Callable[[], Any]]:
    runs: dict[str, Callable[[], Any]] = {}
    for dtype, dim, length, horizon in (
        (torch.bfloat16, 64, 200, 200),
        (torch.bfloat16, 256, 4096, 4096),
        (torch.bfloat16, 128, 4096, 1000),
        (torch.float32, 64, 4096, 4096),
    ):
        x, pre, post = (draw(TOKENS // length, length, dim, dtype=dtype) for _ in range(3))
        c, h = (draw(dim, n, dtype=torch.float32) for n in (32, 50))
        wide, weight = draw(TOKENS // length, length, 3 * dim, dtype=dtype), draw(3 * dim, 3, dtype=torch.float32)
        history, taps = (torch.zeros(*size, dim, device="cuda") for size in ((64, horizon - 1), (horizon,)))
        event, steps = draw(64, dim, dtype=dtype).detach(), torch.arange(64, device="cuda")
        name = f"{dtype}, {dim}, {length}, {horizon}"
        options: dict[str, Any] = {"pre_gate": pre, "post_gate": post}
        legendre = partial(hk.legendre_conv, x, c, horizon=horizon, **options)
        runs[f"legendre {name}"] = training(legendre, [x, c, pre, post])
        runs[f"step {name}"] = partial(conv_step, event, history, taps, steps)
        runs[f"long {name}"] = training(partial(hk.long_conv, x, h, **options), [x, h])
        shared = draw(dim // 64, 50, dtype=torch.float32)
        runs[f"shared {name}"] = training(partial(hk.long_conv, x, shared), [x, shared])
        runs[f"gated {name}"] = training(partial(joined_short_conv, wide, weight, dim), [wide, weight])
        runs[f"short {name}"] = training(partial(hk.short_conv, wide, weight), [wide, weight])
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="of measuring one configuration at all shapes")
    parser.add_argument("--kernels", nargs="+", help="those to tune, all by default")
    arguments = parser.parse_args()
    reason = "no CUDA device" if not torch.cuda.is_available() else backends.BACKENDS["triton"].probe()
    if reason is not None:
        parser.exit(2, f"error: {reason}\n")
    from hyenarec_kernels.backends.triton.configs import TABLE

    clock, runs = Clock(), calls()

    def cost() -> dict[str, float]:
        return {name: t["median"] for name, t in take_turns(runs, arguments.seconds, 5, clock).items()}

    for kernel in arguments.kernels or list(TABLE):
        shipped = TABLE[kernel]
        base, best = cost(), (float(len(runs)), shipped)
        for columns in COLUMNS if kernel != "across_gradient" else (8, 16):
            for warps in WARPS:
                for stages in STAGES:
                    TABLE[kernel] = replace(shipped, columns=columns, num_warps=warps, num_stages=stages)
                    try:
                        found = cost()
                    except Exception as error:  # a configuration that does not fit is no candidate
                        print(f"{kernel} {TABLE[kernel]}: {str(error).splitlines()[0]}")
                        continue
                    best = min(best, (sum(found[n] / base[n] for n in runs), TABLE[kernel]), key=lambda pair: pair[0])
        TABLE[kernel] = best[1]
        print(f'"{kernel}": {best[1]},  # {best[0] / len(runs):.3f} of the shipped time', flush=True)


if __name__ == "__main__":
    main()
