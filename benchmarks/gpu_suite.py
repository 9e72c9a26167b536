"""Everything that needs a GPU, in one command: the tests of the triton and cuda backends, then the Legendre operator,
the mixer, and the FFT convolution.

    hyenarec bench gpu [--out benchmarks/results/gpu] [--seconds 1.0] [--minutes 7] [--skip-tests]
    python -m hyenarec_benchmarks.gpu_suite              # the same where tyro is missing

Contestants on the same data, bfloat16: ours, gated, padded and packed; torch.fft with gates; causal FlashAttention
through scaled_dot_product_attention, and varlen_attn where torch has it; a copy of as many bytes as the gated forward
must move (three tensors read, one written). Times are the device's, by CUDA events, with its caches flushed before each
round; `host ms` is how long Python takes to hand out the work. Errors are against the float64 definition, on two
sequences. Explicit filters, as long as the sequences, are against torch.fft in float32, in its layout and in ours.
Writes JSON and PNG; prints the table last. A row that fails, or that `minutes` leave no time for, is left out with its
reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hyenarec_kernels import backends

from .convolutions import case
from .gpu_measuring import Clock
from .gpu_rows import (
    DIMS,
    DRAWN,
    FOURIER_DIMS,
    FOURIER_LENGTHS,
    LENGTHS,
    TERMS,
    TOKENS,
    drawn_row,
    fourier_row,
    mixer_row,
    operator_row,
    scratch_row,
)
from .operator_cpu import ratio
from .recording import RESULTS, describe, write

MIXER_LENGTHS = (200, 1024, 4096)
RUNS = (1 << 22, 1 << 24, 1 << 26)  # elements
ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "rows": operator_row,
    "drawn": drawn_row,
    "mixer": mixer_row,
    "fourier": fourier_row,
    "scratch": scratch_row,
}
Row = dict[str, Any]


def shapes() -> list[tuple[str, Row]]:
    """What is measured, as a kind of row and its shape; by width, for the widths after the first compile little."""
    found: list[tuple[str, Row]] = []
    for dim in DIMS:
        found += [("rows", {"tokens": t, "length": n, "dim": dim}) for t in TOKENS for n in LENGTHS]
        found += [("drawn", {"drawn": name, "dim": dim}) for name in DRAWN]
        found += [("mixer", {"length": n, "dim": dim}) for n in MIXER_LENGTHS]
        found += [("fourier", {"length": n, "dim": dim}) for n in FOURIER_LENGTHS if dim in FOURIER_DIMS]
        found += [("scratch", {"run": run, "dim": dim}) for run in RUNS]
    return found


def measured(kind: str, shape: Row, clock: Clock, seconds: float, deadline: float) -> Row:
    """A row, or why it was left out: one that fails costs no other."""
    if time.perf_counter() > deadline:
        return shape | {"left_out": "no time was left"}
    reason = backends.BACKENDS["cuda"].probe() if kind == "fourier" else None
    if reason is not None:
        return shape | {"left_out": f"backend cuda: {reason}"}
    try:
        torch.cuda.empty_cache()
        return shape | ROWS[kind](**shape, clock=clock, seconds=seconds)
    except Exception as error:
        print(f"{kind} {shape}: {error!r}", file=sys.stderr)
        return shape | {"left_out": (str(error).splitlines() or [repr(error)])[0]}


def table(result: dict[str, Any]) -> list[str]:
    head = (
        "tokens",
        "L",
        "D",
        "fwd ms",
        "of copy",
        "FFT",
        "attention",
        "fwd+bwd ms",
        "FFT",
        "attention",
        "packed",
        "host ms",
        "memory",
    )
    lines = ["  ".join(f"{cell:>10}" for cell in head)]
    rows, drawn, mixer, fourier, scratch = (done(result[kind]) for kind in ROWS)
    for row in rows:
        times, both = row["times"], "ours, fwd+bwd"
        cells = (
            str(row["tokens"]),
            str(row["length"]),
            str(row["dim"]),
            f"{times['ours']['median']:.3f}",
            f"{100 * times['copy']['median'] / times['ours']['median']:.0f}%",
            ratio(times, "FFT", "ours"),
            ratio(times, "attention", "ours"),
            f"{times[both]['median']:.3f}",
            ratio(times, "FFT, fwd+bwd", both),
            ratio(times, "attention, fwd+bwd", both),
            ratio(times, "ours, packed, fwd+bwd", both),
            f"{row['host'][both]:.2f}",
            f"{row['memory']['training']:.2f}x",
        )
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    lines += [
        f"packed {row['drawn']}, D={row['dim']}: {100 * row['relative']:.0f}% of the dense tokens a second"
        for row in drawn
    ]
    for row in mixer:
        times = row["times"]
        lines.append(f"mixer L={row['length']} D={row['dim']}: attention takes {ratio(times, 'attention', 'mixer')}")
    for row in scratch:
        ms, host = row["times"]["ours, fwd+bwd"]["median"], row["host"]["ours, fwd+bwd"]
        lines.append(
            f"runs of {row['run']:,} elements, L=1024 D={row['dim']}: fwd+bwd {ms:.3f} ms, host {host:.2f} ms, memory "
            f"{row['memory']:.2f}x"
        )
    lines += map(fourier_line, fourier)
    for kind in ROWS:
        lines += [f"left out: {kind} {shape_of(row)}: {row['left_out']}" for row in result[kind] if "left_out" in row]
    errors = [(e, name, row["length"]) for row in rows for name, e in row.get("error", {}).items()]
    if errors:
        worst = max(errors)
        lines.append(f"largest error against float64: {worst[0]:.1e}, {worst[1]} at L={worst[2]}")
    return lines


def done(rows: list[Row]) -> list[Row]:
    """Those that were measured."""
    return [row for row in rows if "left_out" not in row]


def shape_of(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if name != "left_out")


def cases(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Forward, and forward with backward, of every row; the error at a length and width is that of any batch."""
    rows = done(result["rows"])
    errors = {(row["length"], row["dim"]): max(row["error"].values()) for row in rows if "error" in row}
    rows = [row for row in rows if (row["length"], row["dim"]) in errors]
    found = []
    for what in ("", ", fwd+bwd"):
        rivals = {name: name + what for name in ("ours, packed", "FFT", "attention", "attention, packed", "copy")}
        for row in rows:
            shape = f"{row['tokens'] // row['length']} x {row['length']:,} x {row['dim']}"
            error = errors[row["length"], row["dim"]]
            name = f"Gated Legendre convolution{what}"
            found.append(case(name, shape, row["times"], f"ours{what}", rivals, error, "bfloat16"))
    return found


def fourier_line(row: dict[str, Any]) -> str:
    """Forward and training: milliseconds, and the time and memory that torch takes in its faster layout."""
    cells = [f"explicit filter L={row['length']} D={row['dim']}:"]
    for suffix in ("", ", fwd+bwd"):
        times, memory = row["times"], row["memory"]
        rival = min(
            (f"FFT, ({layout}){suffix}" for layout in ("B, L, D", "B, D, L")), key=lambda name: times[name]["median"]
        )
        wide = f"ours, float32{suffix}"
        cells.append(
            f"{suffix.lstrip(', ') or 'fwd'} {times['ours' + suffix]['median']:.3f} ms, float32 "
            f"{times[wide]['median']:.3f} ms, {rival} takes {ratio(times, rival, wide)} the time and "
            f"{memory[rival] / memory[wide]:.1f}x the memory;"
        )
    return " ".join([*cells, f"error {row['error']:.1e}"])


def plot(result: dict[str, Any], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (axes,) = pyplot.subplots(1, len(DIMS), figsize=(14, 4.5), layout="constrained", sharey=True, squeeze=False)
    for axis, dim in zip(axes, DIMS, strict=True):
        rows = [row for row in done(result["rows"]) if row["dim"] == dim and row["tokens"] == TOKENS[-1]]
        for name in ("copy", "ours", "FFT", "attention", "ours, fwd+bwd", "FFT, fwd+bwd", "attention, fwd+bwd"):
            points = [(row["length"], row["times"][name]["median"]) for row in rows if name in row["times"]]
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="sequence length", title=f"D={dim}")
    axes[0].set_ylabel(f"milliseconds for {TOKENS[-1]:,} tokens")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def run_tests() -> int:
    """The exit status of the tests of both backends; no more than four minutes of them."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/kernels/test_gpu.py", "tests/kernels/test_cuda.py"]
    if find_spec("xdist") is not None:  # compiling takes most of their time
        command += ["-n", "4"]
    try:
        return subprocess.run(command, check=False, timeout=240).returncode
    except subprocess.TimeoutExpired as error:
        print(f"tests: {error}", file=sys.stderr)
        return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the contestants of a row together")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no row is begun, tests included")
    parser.add_argument("--skip-tests", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device; every figure of this suite needs one\n")
    reason = backends.BACKENDS["triton"].probe()
    if reason is not None:
        parser.exit(2, f"error: backend triton: {reason}\n")
    deadline, device = time.perf_counter() + 60 * arguments.minutes, torch.device("cuda")
    describe(device)  # fails now rather than at the end
    tests = 0 if arguments.skip_tests else run_tests()
    torch.manual_seed(0)
    clock = Clock()
    result: dict[str, Any] = {
        "settings": {"tokens": TOKENS, "terms": TERMS, "seconds": arguments.seconds},
        "tests_passed": None if arguments.skip_tests else tests == 0,
        **{kind: [] for kind in ROWS},
    }
    for kind, shape in shapes():
        result[kind].append(measured(kind, shape, clock, arguments.seconds, deadline))
    title = f"gated Legendre convolution, bfloat16, {TERMS} terms"
    write(arguments.out.with_suffix(".json"), "gpu", title, result | {"cases": cases(result)}, device)
    plot(result, f"{title}, {torch.cuda.get_device_name()}", arguments.out.with_suffix(".png"))
    print("\n".join(table(result)))
    sys.exit(tests)


if __name__ == "__main__":
    main()
