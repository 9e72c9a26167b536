"""Everything that needs a GPU, in one command and a few minutes; the numbers that matter most come first.

    python -m benchmarks gpu [--out runs/gpu] [--minutes 7] [--seconds 0.3] [--commit HASH] [--skip-tests]

It runs in a bare checkout, with torch, triton, numpy and pytest. Where the compiled extension is missing or has no CUDA
kernels, it is compiled for this one GPU while Triton compiles its own kernels. Then, in this order:

1. the gated Legendre convolution, 1M tokens of bfloat16 at 200, 1,024 and 4,096 events: ours on both backends, padded
   and packed; a copy of as many bytes (8 per element); causal FlashAttention, padded and packed; torch.fft in both
   layouts; FlashFFTConv where it is installed;
2. the tests, except those of more than 2^31 elements;
3. the training step of HyenaRec, and of SASRec on flash attention;
4. other lengths, widths, filters and batches; mixers; explicit filters;
5. the tests of more than 2^31 elements, one at a time.

Each row is measured in a process that is killed when it takes too long. It is printed and written to `gpu.json` in the
folder at once; each test is written to `gpu-tests.jsonl`. A row has the times of the forward, and of forward and
backward, by three clocks: `wall` (host and device), `device` (by CUDA events, with the host out of the way) and `graph`
(a replayed CUDA graph). The last lines are a table and which targets are met. The exit code is 1 where the extension
does not work, a test fails, or no test of a file passes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.gpu import device_tests, extension, machine, plan, predictions, table, targets
from benchmarks.gpu.device_tests import DeviceTests
from benchmarks.gpu.results import Results, write_whole
from benchmarks.gpu.rows import warm
from benchmarks.gpu.worker import Row, Worker, nothing
from hyenarec_kernels import backends

# The most seconds that a part may take.
BUILDING, COMPILING, ROW, TESTS = 180.0, 120.0, 30.0, 120.0
LARGE_TESTS = 60.0  # reserved for them at the end
NO_TIME = "no time was left"


class GpuSuite:
    """One run, which writes into a folder. ``prepare`` is called in every process that measures; pytest gets
    ``plugins``."""

    patience = 1.0  # multiplies the limits; larger where there is no hurry
    processes = max((os.cpu_count() or 1) // 2, 1)  # that compile side by side

    def __init__(
        self,
        folder: Path,
        minutes: float,
        seconds: float,
        commit: str | None,
        prepare: Callable[[], None] = nothing,
        plugins: tuple[str, ...] = (),
    ) -> None:
        self.began = time.perf_counter()
        self.deadline, self.seconds = self.began + 60 * minutes, seconds
        self.folder, self.prepare, self.plugins = folder, prepare, plugins
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = machine.describe(commit)
        settings = {"seconds": seconds, "minutes": minutes, "precision": "bfloat16"}
        self.results = Results(folder, self.environment, settings)
        self.predicted = predictions.read()
        self.faults: list[str] = []
        self.phases: dict[str, float] = {}

    def left(self, kept: float = 0.0) -> float:
        """Seconds until the end, less ``kept`` seconds that are reserved for something else."""
        return self.deadline - kept - time.perf_counter()

    def run(self, tests: bool) -> int:
        """Runs all of it. Returns the exit code."""
        print(", ".join(f"{name} {value}" for name, value in self.environment.items()), flush=True)
        self.compile(plan.compiled_first(plan.essential()), build=True)
        print(table.HEAD, flush=True)
        with closing(Worker(self.prepare)) as worker:
            self.measure(worker, plan.essential(), 0.0)
            self.phase("essential rows")
            later = [*plan.steps(), *plan.rest()]
            first = plan.compiled_first(later, before=plan.essential())
            large = None
            if tests:
                large = self.test(first)
            else:
                self.compile(first)
            self.measure(worker, later, LARGE_TESTS if tests else 0.0)
            self.phase("other rows")
        if large is not None:
            self.test_large(large)
        return self.finish()

    def order(self, row: Row) -> Row:
        """What a process is asked to measure for a row."""
        return without_kind(row)

    def compile(self, rows: list[Row], build: bool = False) -> None:
        """Compiles what the rows launch, in several processes, and, with ``build``, the extension beside it."""
        jobs = deque(rows)

        def next_job() -> Row | None:
            try:
                return jobs.popleft()
            except IndexError:
                return None

        def one_after_another() -> list[float]:
            spent = []
            with closing(Worker(self.prepare)) as worker:
                while (row := next_job()) is not None:
                    what = {"measure": plan.MEASURES[row["what"]], "name": self.order(row)}
                    done = worker(warm, what, 0.0, min(self.patience * COMPILING, max(self.left(), 1.0)))
                    spent.append(float(done["took"]["processors"] or 0.0))
            return spent

        def extend() -> str | None:
            log = self.folder / "gpu-build.txt"
            write_whole(log, json.dumps(self.environment) + "\n")
            architecture = self.environment["capability"].replace(".", "")
            return extension.ready(architecture, log, min(self.patience * BUILDING, self.left()))

        processes = min(self.processes, len(jobs))
        with ThreadPoolExecutor(processes + 1) as pool:
            building = pool.submit(extend) if build else None
            compiling = [pool.submit(one_after_another) for _ in range(processes)]
            spent = [seconds for process in compiling for seconds in process.result()]
            reason = building.result() if building else None
        if reason is not None:
            self.fault(f"extension: {reason}; no figure here is the cuda backend's")
        self.phase("compiling" if build else "compiling for other rows", spent)

    def measure(self, worker: Worker, rows: Iterable[Row], kept: float) -> None:
        late = 0
        for row in rows:
            limit = min(self.patience * ROW, self.left(kept))
            if limit > 1:
                done = worker(plan.MEASURES[row["what"]], self.order(row), self.seconds, limit)
                done = done | row | {"predicted": self.predicted.of(row)}
                print(table.line(done), flush=True)
            else:
                done, late = row | {"left_out": NO_TIME}, late + 1
            self.results.add(done)
        if late:
            print(f"{late} rows: {NO_TIME}", flush=True)

    def test(self, rows: list[Row]) -> DeviceTests:
        """Runs the tests, and compiles beside them what the rows still to come launch."""
        tests = DeviceTests(self.folder, self.environment, self.plugins)
        process = tests.start()
        end = time.perf_counter() + min(self.patience * TESTS, self.left())
        self.compile(rows)
        tests.finish(process, end - time.perf_counter())
        outcomes = tests.outcomes()
        print("\n".join(device_tests.said(outcomes)), flush=True)
        self.results.save(tests=device_tests.counted(outcomes))
        self.phase("tests")
        return tests

    def test_large(self, tests: DeviceTests) -> None:
        large = tests.large()
        while large and self.left() > 5:
            large = tests.run_in_turn(large, min(self.patience * LARGE_TESTS, self.left()))
        for test in large:
            print(f"tests: {test}: {NO_TIME}")
        outcomes = tests.outcomes()
        print("\n".join(device_tests.said(outcomes)), flush=True)
        for reason in device_tests.faults(outcomes):
            self.fault(f"tests: {reason}")
        self.results.save(tests=device_tests.counted(outcomes))
        self.phase("large tests")

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"FAILED {text}", flush=True)

    def phase(self, name: str, processors: list[float] | None = None) -> None:
        """Notes when a part was done, and the processor seconds of its jobs."""
        self.phases[name] = round(time.perf_counter() - self.began, 1)
        jobs = {} if processors is None else {f"{name}, processor seconds": processors}
        self.results.save(done_after=dict(self.phases), **jobs)

    def finish(self) -> int:
        rows, path = self.results.rows, self.results.path
        verdicts = targets.lines(rows)
        self.results.save(targets=verdicts, faults=self.faults)
        print("\n".join(["", *table.table(rows), "", *verdicts]))
        for text in self.faults:
            print(f"FAILED {text}")
        print(f"{self.phases}; {time.perf_counter() - self.began:.0f} s; figures in {path}")
        return int(bool(self.faults))


def without_kind(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "what"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder to write to")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which nothing runs any more")
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring a row")
    parser.add_argument("--commit", help="to be recorded, where the checkout has no git history")
    parser.add_argument("--skip-tests", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device; every figure of this suite needs one\n")
    reason = backends.BACKENDS["triton"].probe()
    if reason is not None:
        parser.exit(2, f"error: backend triton: {reason}\n")
    suite = GpuSuite(arguments.out, arguments.minutes, arguments.seconds, arguments.commit)
    sys.exit(suite.run(tests=not arguments.skip_tests))


if __name__ == "__main__":
    main()
