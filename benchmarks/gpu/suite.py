"""Everything that needs a GPU, in one command: the tests of the triton and cuda backends, then the Legendre operator,
the mixer, and the FFT convolution.

    python -m benchmarks gpu [--out benchmarks/results/gpu] [--seconds 0.5] [--minutes 7] [--skip-tests]
    PYTHONPATH=.:python python -m benchmarks.gpu.suite    # in a checkout with nothing but torch and triton installed

Contestants on the same data, bfloat16: ours, gated, padded and packed; torch.fft with gates; causal FlashAttention
through scaled_dot_product_attention, and varlen_attn where torch has it; a copy of as many bytes as the gated forward
must move (three tensors read, one written: 8 bytes an element). Times are the device's, by CUDA events, with its caches
flushed before each round; `host ms` is how long Python takes to hand out the work; `memory` is the most allocated
during a call over the size of what it returns. Errors are against the float64 definition, on two sequences. Explicit
filters, as long as the sequences, are against torch.fft in float32, in its layout and in ours.

Rows are measured in a process of their own, the operator's first, and the JSON is written after each: one that fails,
that breaks the GPU's context, or that `minutes` leave no time for, is left out with its reason. The PNG is made and the
table printed at the end; beside the tests, processes compile what will be launched.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.rows import (
    DIMS,
    DRAWN,
    FOURIER_DIMS,
    FOURIER_LENGTHS,
    LENGTHS,
    ROWS,
    TERMS,
    TOKENS,
    drawn_row,
    mixer_row,
    warm,
)
from benchmarks.gpu.table import done, plot, table
from benchmarks.gpu.worker import Measure, Row, Worker
from hyenarec_kernels import backends

MIXER_LENGTHS = (200, 1024, 4096)
RUNS = ((1 << 22, 64), (1 << 24, 64), (1 << 26, 64), (1 << 24, 32))  # elements, channels
LONGEST_ROW, LONGEST_TESTS = 45.0, 200.0  # seconds


def shapes() -> Iterator[tuple[str, Row]]:
    """What is measured, as a kind of row and its shape, what matters most first."""
    for dim in DIMS:
        yield from (("rows", {"tokens": t, "length": n, "dim": dim}) for t in TOKENS for n in LENGTHS)
    for dim in DIMS:
        yield from (("drawn", {"drawn": name, "dim": dim}) for name in DRAWN)
    yield from (("scratch", {"run": run, "channels": channels, "dim": dim}) for dim in DIMS for run, channels in RUNS)
    yield from (("mixer", {"length": n, "dim": dim}) for dim in DIMS for n in MIXER_LENGTHS)
    yield from (("fourier", {"length": n, "dim": dim}) for dim in FOURIER_DIMS for n in FOURIER_LENGTHS)


def row_of(worker: Worker, kind: str, shape: Row, seconds: float, deadline: float) -> Row:
    """A row, or why it was left out: one that fails costs no other."""
    if time.perf_counter() > deadline:
        return shape | {"left_out": "no time was left"}
    reason = backends.BACKENDS["cuda"].probe() if kind == "fourier" else None
    if reason is not None:
        return shape | {"left_out": f"backend cuda: {reason}"}
    return worker(ROWS[kind], shape, seconds, LONGEST_ROW)


def prepare(deadline: float) -> None:
    """Compiles in several processes, for one width: the others launch the same kernels."""
    jobs: list[tuple[Measure, Row]] = [(warm, {"length": length, "dim": DIMS[0]}) for length in LENGTHS]
    jobs += [(mixer_row, {"length": length, "dim": DIMS[0]}) for length in MIXER_LENGTHS]
    jobs += [(drawn_row, {"drawn": name, "dim": DIMS[0]}) for name in DRAWN]

    def run(job: tuple[Measure, Row]) -> None:
        with closing(Worker()) as worker:
            worker(*job, 0.0, max(deadline - time.perf_counter(), 1.0))

    with ThreadPoolExecutor(max((os.cpu_count() or 1) // 2, 1)) as pool:
        list(pool.map(run, jobs))


def cases(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Forward, and forward with backward, of every row; the error at a length and width is that of any batch."""
    from benchmarks.harness.convolutions import case

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


def save(result: dict[str, Any], title: str, path: Path) -> None:
    """In the format of every suite where the recommender, which defines it, can be imported; otherwise as it is."""
    device = torch.device("cuda")
    try:
        from benchmarks.harness.recording import write

        with redirect_stdout(None):
            write(path, "gpu", title, result | {"cases": cases(result)}, device)
    except Exception as error:
        environment = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": sys.version}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"title": title, "environment": environment, "format": str(error), **result}))


def start_tests() -> list[subprocess.Popen[bytes]]:
    """One process for the tests of each backend."""
    if find_spec("pytest") is None:
        print("tests: pytest is not installed", file=sys.stderr)
        return []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if find_spec("xdist") is not None:  # compiling takes most of their time
        command += ["-n", "4"]
    folder = Path(__file__).resolve().parents[2] / "tests/kernels"
    names = ("test_gpu.py", "test_cuda.py")
    return [subprocess.Popen([*command, str(folder / name)], start_new_session=True) for name in names]


def passed(tests: list[subprocess.Popen[bytes]], deadline: float) -> bool:
    codes = []
    for process in tests:
        try:
            codes.append(process.wait(max(deadline - time.perf_counter(), 0)))
        except subprocess.TimeoutExpired:
            print(f"tests: not done after {LONGEST_TESTS:.0f} s", file=sys.stderr)
            os.killpg(process.pid, signal.SIGKILL)  # xdist's workers too
            codes.append(1)
    return not any(codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--seconds", type=float, default=0.5, help="for the contestants of a row together")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no row is begun, tests included")
    parser.add_argument("--skip-tests", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device; every figure of this suite needs one\n")
    reason = backends.BACKENDS["triton"].probe()
    if reason is not None:
        parser.exit(2, f"error: backend triton: {reason}\n")
    began = time.perf_counter()
    tests = [] if arguments.skip_tests else start_tests()
    prepare(began + LONGEST_TESTS)
    title = f"gated Legendre convolution, bfloat16, {TERMS} terms"
    result: dict[str, Any] = {
        "settings": {"tokens": TOKENS, "terms": TERMS, "seconds": arguments.seconds},
        "tests_passed": passed(tests, began + LONGEST_TESTS) if tests else None,
        **{kind: [] for kind in ROWS},
    }
    with closing(Worker()) as worker:
        for kind, shape in shapes():
            deadline = began + 60 * arguments.minutes
            result[kind].append(row_of(worker, kind, shape, arguments.seconds, deadline))
            save(result, title, arguments.out.with_suffix(".json"))
    try:
        plot(result, f"{title}, {torch.cuda.get_device_name()}", arguments.out.with_suffix(".png"))
    except Exception as error:
        print(f"no plot: {error!r}", file=sys.stderr)
    print("\n".join(table(result)))
    said = {True: "passed", False: "FAILED", None: "not run"}[result["tests_passed"]]
    print(f"tests {said}; {time.perf_counter() - began:.0f} s; figures in {arguments.out.with_suffix('.json')}")
    sys.exit(result["tests_passed"] is False)


if __name__ == "__main__":
    main()
