"""The operator on a CPU against torch: FFT, attention, depthwise convolution and a plain copy of the same tensors.

    python -m benchmarks operator [--out benchmarks/results/operator-cpu] [--seconds 8] [--threads 2]

It runs in one process. The contestants of a row take turns in alternating order, and each row gives medians and
quartiles over the rounds. Freed memory is kept for the next call, as in the steady state of a training loop: fresh
pages cost 0.2 to 0.9 us each, and most rows would be won by whoever happens to get old pages. `best FFT` is the fastest
of contiguous and channels-first inputs at 5-smooth and power-of-two sizes.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

import hyenarec_kernels as hk
from benchmarks.harness.convolutions import against_reference, case
from benchmarks.harness.measuring import take_turns
from benchmarks.harness.recording import RESULTS, write
from hyenarec.allocator import keep_freed_memory
from hyenarec.display import show_table
from hyenarec.errors import UserError
from hyenarec.plots import write_figure
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.backends.cpu import convolutions
from hyenarec_kernels.backends.cpu.plan import Plan
from hyenarec_kernels.ops.conv_step import conv_step

SHAPES = ((128, 50), (128, 200), (32, 1024), (8, 4096), (2, 16384), (1, 1024))
DIM, TERMS = 64, 32
Contestants = dict[str, Callable[[], Any]]


def fft_sizes(length: int) -> list[int]:
    """The smallest power of two and the smallest 5-smooth number that hold 2 L - 1."""
    smooth = [2**a * 3**b * 5**c for a in range(18) for b in range(8) for c in range(5)]
    need = 2 * length - 1
    return sorted({min(n for n in smooth if n >= need), 1 << (need - 1).bit_length()})


def fft(x: Tensor, h: Tensor, size: int, dim: int) -> Tensor:
    y: Tensor = torch.fft.irfft(torch.fft.rfft(x, size, dim=dim) * torch.fft.rfft(h, size, dim=dim), size, dim=dim)
    return y.narrow(dim, 0, x.shape[dim])


def fft_paths(batch: int, length: int) -> Contestants:
    """Every way to call torch's FFT on this shape: (B, L, D) as it is, or (B, D, L) contiguous."""
    last, middle = torch.randn(batch, DIM, length), torch.randn(batch, length, DIM)
    h_last, h_middle = torch.randn(DIM, length), torch.randn(length, DIM)
    paths: Contestants = {}
    for n in fft_sizes(length):
        paths[f"FFT {n}, (B, D, L)"] = partial(fft, last, h_last, n, -1)
        paths[f"FFT {n}, (B, L, D)"] = partial(fft, middle, h_middle, n, -2)
    return paths


def fft_training(name: str, batch: int, length: int, basis: Tensor) -> Callable[[], None]:
    """Forward and backward through gates, coefficients and the FFT path of that name."""
    size, dim = int(name.split()[1].rstrip(",")), -1 if name.endswith("(B, D, L)") else -2
    shape = (batch, DIM, length) if dim == -1 else (batch, length, DIM)
    x, pre, post = (torch.randn(shape, requires_grad=True) for _ in range(3))
    c, grad = torch.randn(DIM, TERMS, requires_grad=True), torch.randn(shape)

    def run() -> None:
        h = c @ basis if dim == -1 else (c @ basis).T
        out = post * fft(pre * x, h, size, dim)
        torch.autograd.grad(out, (x, pre, post, c), grad)

    return run


def operator_row(batch: int, length: int, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    x, pre, post, grad = (torch.randn(batch, length, DIM) for _ in range(4))
    c = torch.randn(DIM, TERMS)
    tail = (None, None, length, False)
    decay = torch.linspace(0, math.log(length / 4), DIM).exp()  # windows from the whole history to four events
    bare, gated = (x, c, None, None, None, None, *tail), (x, c, None, None, pre, post, *tail)
    windowed, windowed_gated = (x, c, decay, *bare[3:]), (x, c, decay, *gated[3:])
    query = torch.randn(batch, 1, length, DIM)
    target = torch.empty_like(x)

    def train(arguments: tuple[Any, ...]) -> None:
        cpu.legendre_conv(*arguments)
        needs = [True, True, arguments[2] is not None, False, True, True]
        cpu.legendre_conv_backward(*(grad, *arguments, needs))

    paths = fft_paths(batch, length)
    trial = take_turns(paths, seconds / 4, 3)
    fastest = min(trial, key=lambda name: trial[name]["median"])
    basis = torch.randn(TERMS, length)
    # ours never runs right after ours, which would leave the data in the caches
    contestants: Contestants = {
        "ours": lambda: cpu.legendre_conv(*bare),
        "best FFT": paths[fastest],
        "ours, window": lambda: cpu.legendre_conv(*windowed),
        "copy": lambda: target.copy_(x),
        "ours, forward + backward": lambda: train(gated),
        "best FFT, forward + backward": fft_training(fastest, batch, length, basis),
        "ours, window, forward + backward": lambda: train(windowed_gated),
    }
    if length <= 4096:
        contestants["attention"] = lambda: F.scaled_dot_product_attention(query, query, query, is_causal=True)
    times = take_turns(contestants, seconds)
    plan = convolutions._plan(x, TERMS, length, length)
    work = multiply_adds(plan, length) * x.numel()
    ours = times["ours"]
    return {
        "batch": batch,
        "length": length,
        "fft": fastest,
        "times": times,
        "levels": [[level.chunk, level.rank, level.degree] for level in plan.levels],
        "bound": plan.bound,
        "multiply_adds_per_element": work / x.numel(),
        "scratch": scratch(contestants["ours"], 4 * x.numel()),
        "scratch_training": scratch(lambda: train(gated), 4 * x.numel()),
        "rate": work / ours["median"] / 1e6,
        "nanoseconds_per_element": 1e6 * ours["median"] / x.numel(),
        "error": legendre_error(x[:2], c, None, pre[:2], post[:2], grad[:2]),
        "error_window": legendre_error(x[:2], c, decay, pre[:2], post[:2], grad[:2]),
    }


def legendre_error(x: Tensor, c: Tensor, decay: Tensor | None, pre: Tensor, post: Tensor, grad: Tensor) -> float:
    def run(x: Tensor, c: Tensor, pre: Tensor, post: Tensor, decay: Tensor | None = None) -> Tensor:
        return hk.legendre_conv(x, c, horizon=x.shape[1], decay=decay, pre_gate=pre, post_gate=post)

    return against_reference(run, (x, c, pre, post) if decay is None else (x, c, pre, post, decay), grad)


def multiply_adds(plan: Plan, length: int) -> float:
    """Multiply-adds per element that the kernels do, without building tables and applying gates."""
    if not plan.levels:
        return (length + 1) / 2
    total = (plan.levels[0].chunk + 1) / 2
    for index, level in enumerate(plan.levels):
        chunks, below = -(-length // level.chunk), plan.levels[index - 1]
        half = level.chunk / 2 if index == 0 else below.fan * below.rank / 2
        total += 2 * half * level.rank * chunks / length
        kept = sum(min(level.rank, level.degree - r) for r in range(level.rank))
        group = level.fan or chunks
        total += kept * sum(min(i % group, level.near_pairs) for i in range(chunks)) / length
    return total


def short_row(seconds: float) -> dict[str, Any]:
    """Short convolution of width 4 with SiLU on 192 channels, forward and backward."""
    batch, length, dim, width = 128, 200, 3 * DIM, 4
    x, grad = torch.randn(batch, length, dim), torch.randn(batch, length, dim)
    weight, bias = torch.randn(dim, width), torch.randn(dim)
    leaves = [t.clone().requires_grad_() for t in (x.transpose(1, 2).contiguous(), weight[:, None], bias)]
    grad_last = grad.transpose(1, 2).contiguous()

    def ours() -> None:
        cpu.short_conv(x, weight, bias, None, None, "silu")
        cpu.short_conv_backward(grad, x, weight, bias, None, None, "silu", [True] * 3)

    def conv1d() -> None:
        out = F.silu(F.conv1d(leaves[0], leaves[1], leaves[2], padding=width - 1, groups=dim)[..., :length])
        torch.autograd.grad(out, leaves, grad_last)

    def first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return hk.short_conv(x, weight, bias, activation="silu")

    error = against_reference(first, (x[:2], weight, bias), grad[:2])
    return {"times": take_turns({"ours": ours, "nn.Conv1d + SiLU": conv1d}, seconds), "error": error}


def step_row(seconds: float) -> dict[str, Any]:
    """The next output of one sequence of 1,024 events: by a streaming step, as the last row from scratch, by a whole
    forward."""
    x, c = torch.randn(1, 1024, DIM), torch.randn(DIM, TERMS)
    arguments = (x, c, None, None, None, None, None, None, 1024)
    history, taps, steps = torch.randn(1, 1023, DIM), torch.randn(1024, DIM), torch.tensor([500])
    row = torch.randn(1, DIM)
    return {
        "times": take_turns(
            {
                "step": lambda: conv_step(row, history, taps, steps, pre_gate=row, post_gate=row),
                "last row": lambda: cpu.legendre_conv(*arguments, True),
                "forward": lambda: cpu.legendre_conv(*arguments, False),
            },
            seconds,
        )
    }


def peak() -> float:
    """Multiply-adds per second of all threads, in 1e9: the best of a few runs of a register-only loop of the same
    binary."""

    def once() -> float:
        start = time.perf_counter()
        done: float = torch.ops.hyenarec_cpu.peak(1_000_000)
        return done / (time.perf_counter() - start)

    return max(once() for _ in range(9)) / 1e9


def scratch(run: Callable[[], Any], size: int) -> float:
    """The most bytes that the kernels hold at once beside inputs and outputs, as a multiple of ``size`` bytes."""
    torch.ops.hyenarec_cpu.scratch_peak()
    run()
    return float(torch.ops.hyenarec_cpu.scratch_peak()) / size


def ratio(times: dict[str, dict[str, float]], slow: str, fast: str) -> str:
    return f"{times[slow]['median'] / times[fast]['median']:.1f}x" if slow in times else "-"


def table(result: dict[str, Any]) -> list[list[str]]:
    head = [
        "B x L",
        "ms",
        "FFT",
        "attention",
        "copy",
        "window",
        "fwd+bwd ms",
        "FFT fwd+bwd",
        "window fwd+bwd",
        "mul-adds",
        "of peak",
        "ns/element",
        "scratch",
    ]
    rows = [head]
    for row in result["rows"]:
        times = row["times"]
        both = "ours, forward + backward"
        rows.append(
            [
                f"{row['batch']} x {row['length']}",
                f"{times['ours']['median']:.3f}",
                ratio(times, "best FFT", "ours"),
                ratio(times, "attention", "ours"),
                ratio(times, "copy", "ours"),
                ratio(times, "ours, window", "ours"),
                f"{times[both]['median']:.3f}",
                ratio(times, "best FFT, forward + backward", both),
                ratio(times, "ours, window, forward + backward", both),
                f"{row['multiply_adds_per_element']:.0f}",
                f"{100 * row['rate'] / result['peak']:.0f}%",
                f"{row['nanoseconds_per_element']:.2f}",
                f"{100 * row['scratch']:.0f}%",
            ]
        )
    return rows


def show(result: dict[str, Any]) -> None:
    head, *rows = table(result)
    title = "legendre_conv, float32, D=64, N=32; other columns: how many times slower"
    show_table(title, head, [dict(zip(head, row, strict=True)) for row in rows])
    short, step = result["short_conv"]["times"], result["step"]["times"]
    print(f"short_conv 4 + SiLU, 128 x 200 x 192, forward + backward: {short['ours']['median']:.2f} ms,", end=" ")
    print(f"nn.Conv1d {ratio(short, 'nn.Conv1d + SiLU', 'ours')}")
    print(f"step, K=1024: {1e3 * step['step']['median']:.0f} us; the last row from scratch", end=" ")
    print(f"{ratio(step, 'last row', 'step')}, a full forward {ratio(step, 'forward', 'step')}")
    print(f"peak {result['peak']:.0f}e9 multiply-adds/s; {result['settings']}")


def cases(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Cases of every row's forward, and forward with backward, and of the short convolution."""
    found = []
    for what, ours, suffix, error in (
        ("Legendre convolution", "ours", "", "error"),
        ("Legendre convolution with gates", "ours", ", forward + backward", "error"),
        ("Legendre convolution with a window", "ours, window", "", "error_window"),
        ("Legendre convolution with gates and a window", "ours, window", ", forward + backward", "error_window"),
    ):
        rivals = {name: name + suffix for name in ("best FFT", "attention", "copy")}
        for row in result["rows"]:
            shape = f"{row['batch']} x {row['length']:,} x {DIM}"
            found.append(case(what + suffix, shape, row["times"], ours + suffix, rivals, row[error], "float32"))
    short = result["short_conv"]
    what, rivals = "Short convolution with SiLU, forward + backward", {"nn.Conv1d": "nn.Conv1d + SiLU"}
    return [*found, case(what, f"128 x 200 x {3 * DIM}", short["times"], "ours", rivals, short["error"], "float32")]


def plot(result: dict[str, Any], path: Path) -> None:
    rows = result["rows"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in ("copy", "ours", "best FFT", "attention", "ours, forward + backward", "best FFT, forward + backward"):
        points = [(i, row["times"][name]) for i, row in enumerate(rows) if name in row["times"]]
        middle = [t["median"] for _, t in points]
        spread = [[t["median"] - t["q1"] for _, t in points], [t["q3"] - t["median"] for _, t in points]]
        axes.errorbar([i for i, _ in points], middle, spread, marker="o", capsize=3, label=name)
    axes.set_xticks(range(len(rows)), [f"{row['batch']} x {row['length']}" for row in rows])
    axes.set(yscale="log", xlabel="batch x length", ylabel="milliseconds (median, quartiles)")
    axes.set_title(f"float32, D={DIM}, N={TERMS}, {torch.get_num_threads()} threads")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "operator-cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    reason = cpu.probe()
    if reason is not None:
        raise UserError(reason)
    torch.set_num_threads(arguments.threads)
    settings = {
        "dim": DIM,
        "terms": TERMS,
        "seconds": arguments.seconds,
        "load": os.getloadavg()[0],
        "instruction_set": torch.ops.hyenarec_cpu.isa(),
        "keeps_freed_memory": keep_freed_memory(),
    }
    result: dict[str, Any] = {"settings": settings, "peak": peak()}
    result["rows"] = [operator_row(*shape, arguments.seconds) for shape in SHAPES]
    result["short_conv"], result["step"] = short_row(arguments.seconds), step_row(arguments.seconds / 4)
    title = f"the Legendre convolution, float32, d={DIM}, {TERMS} terms"
    write(arguments.out.with_suffix(".json"), "operator", title, result | {"cases": cases(result)})
    plot(result, arguments.out.with_suffix(".png"))
    show(result)
