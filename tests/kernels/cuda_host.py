"""The shipped CUDA programs, compiled for the host and run thread by thread: calls, expected results, random calls."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from operator_cases import TOLERANCE
from torch import Tensor

from benchmarks.gpu.host_library import (
    DTYPES,
    NATIVE,
    SOURCE,
    LongConvArguments,
    RowsArgument,
    block_host,
    toeplitz_host,
)

NAMES = ("out", "x", "filter", "skip", "pre_gate", "post_gate")


def compile_host(target: Path, top: int, source: Path = SOURCE) -> None:
    """Compiles the programs for blocks of up to 2^top rows into the library ``target``."""
    flags = ["-std=c++17", "-O1", "-g0", "-shared", "-fPIC", f"-DHYENAREC_TOP={top}", f"-I{source}"]
    subprocess.run(["g++", *flags, str(NATIVE / "host_test.cpp"), "-o", str(target)], check=True)


def host_library(factory: pytest.TempPathFactory) -> Path:
    """The library with programs of every size. It is compiled once per test run, as are the libraries below."""
    needs("g++")
    return shared(factory, "host.so", lambda target: compile_host(target, 14))


def toeplitz_library(factory: pytest.TempPathFactory) -> Path:
    needs("g++")
    return shared(factory, "toeplitz.so", toeplitz_host)


def block_library(factory: pytest.TempPathFactory) -> Path:
    needs("g++")
    return shared(factory, "blocks.so", block_host)


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path of a file that all workers of this test run share; the first worker that needs the file makes it."""
    own = factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name).exists():
            make(folder / name)
    return folder / name


class Host:
    """A compiled library's programs, with blocks of at most 2^top rows."""

    def __init__(self, path: Path, top: int) -> None:
        self.library, self.top = ctypes.CDLL(str(path)), top
        self.library.args_size.restype = self.library.host_workspace.restype = ctypes.c_int64
        assert self.library.args_size() == ctypes.sizeof(LongConvArguments)

    def workspace(self, args: LongConvArguments, backward: bool) -> int:
        size: int = self.library.host_workspace(ctypes.byref(args), self.top, backward)
        assert size >= 0, f"the library has no schedule with blocks of 2^{self.top} rows"
        return size

    def run(self, args: LongConvArguments, backward: bool, reversed: bool, workspace: int) -> None:
        args.workspace = workspace
        self.library.host_run(ctypes.byref(args), self.top, backward, reversed)

    def launches(self, args: LongConvArguments, backward: bool) -> int:
        launches: int = self.library.host_launches(ctypes.byref(args), self.top, backward)
        return launches


def far_rows(x: Tensor) -> Tensor:
    """A copy of ``x`` (1, 11, 2) with rows 2^28 values apart, so that offsets exceed 2^31. Pages of memory that nothing
    touches are never allocated."""
    try:
        far = torch.empty_strided(x.shape, (0, 1 << 28, 1), dtype=x.dtype)
    except RuntimeError:
        pytest.skip("no 11 GiB of address space")
    return far.copy_(x)


def mutated(folder: Path, name: str, old: str, new: str) -> Path:
    """Copies the shipped source to ``folder`` and replaces ``old``, which must occur once, in ``cuda/<name>``."""
    for part in ("common", "cuda"):
        shutil.copytree(SOURCE / part, folder / part)
    path = folder / "cuda" / name
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return folder


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@dataclass
class HostCase:
    """One call. A sequence is the rows [starts, ends) of all rows if packed, or of its own batch row if padded."""

    packed: bool
    rows: int
    starts: list[int]
    ends: list[int]
    channels: int
    groups: int
    taps: int
    dtype: torch.dtype = torch.float32
    pre: bool = True
    post: bool = True
    skip: bool = True
    full: bool = False  # starts and ends are not passed
    wide_index: bool = True
    max_length: int | None = None
    needs: frozenset[str] = frozenset(NAMES)
    seed: int = 0
    held: Tensor | None = None  # precomputed constants that the call reads, if any
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.rows,) if self.packed else (len(self.starts), self.rows)
        position = torch.arange(self.rows)
        starts, ends = torch.tensor(self.starts), torch.tensor(self.ends)
        real = (position >= starts[:, None]) & (position < ends[:, None])
        real = real.any(0) if self.packed else real  # (T,) or (B, L)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def activation() -> Tensor:
            # A slice of a tensor with more channels and rows, so that it is strided. NaN wherever nothing may be read.
            wide = draw(*shape[:-1], shape[-1] + 2, self.channels + 3).to(self.dtype)
            values = wide[..., 1:-1, 1 : self.channels + 1]
            values[~real] = torch.nan
            return values

        self.tensors = {"x": activation(), "pre_gate": activation(), "post_gate": activation(), "grad": activation()}
        self.tensors |= {"filter": draw(self.groups, self.taps), "skip": draw(self.channels)}
        index = torch.int64 if self.wide_index else torch.int32
        self.tensors |= {"starts": starts.to(index), "ends": ends.to(index)}

    def present(self) -> set[str]:
        optional = {"pre_gate": self.pre, "post_gate": self.post, "skip": self.skip}
        return {name for name in self.needs if optional.get(name, True)}

    def expected(self) -> dict[str, Tensor]:
        """Outputs and gradients by the definition: float64, without FFT."""
        t = {name: value.double().numpy() for name, value in self.tensors.items() if name not in ("starts", "ends")}
        result = {"out": np.zeros_like(t["x"])} | {name: np.zeros_like(t[name]) for name in NAMES[1:]}
        for at, d, u, dy, pre, post in self._products(t):
            taps, gain = t["filter"][d // (self.channels // self.groups), : len(u)], t["skip"][d] * self.skip
            y, du = gain * u, gain * dy
            if len(taps):
                y += np.convolve(u, taps)[: len(u)]
                du += np.convolve(dy[::-1], taps)[: len(u)][::-1]
            result["out"][at] = post * y
            result["x"][at] = pre * du
            result["pre_gate"][at] = t["x"][at] * du
            result["post_gate"][at] = t["grad"][at] * y
            self._add(result, d, u, dy)
        return {name: torch.from_numpy(result[name]) for name in self.present()}

    def squares(self) -> dict[str, Tensor]:
        """The sums of squares, in float64, of the terms that the gradients of filter and skip are sums of."""
        t = {name: value.double().numpy() for name, value in self.tensors.items() if name not in ("starts", "ends")}
        result = {name: np.zeros_like(t[name]) for name in ("filter", "skip")}
        for _, d, u, dy, _, _ in self._products(t):
            self._add(result, d, u**2, dy**2)
        return {name: torch.from_numpy(value) for name, value in result.items()}

    def _products(self, t: dict[str, Any]) -> Iterator[tuple[Any, int, Any, Any, Any, Any]]:
        """Yields for each sequence and channel: its index into the tensors, the channel, u, dy, and the two gates."""
        one = np.ones_like(t["x"])
        pre, post = (t["pre_gate"] if self.pre else one), (t["post_gate"] if self.post else one)
        for s, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            for d in range(self.channels if start < end else 0):
                at = (slice(start, end), d) if self.packed else (s, slice(start, end), d)
                yield at, d, pre[at] * t["x"][at], post[at] * t["grad"][at], pre[at], post[at]

    def _add(self, result: dict[str, Any], d: int, u: Any, dy: Any) -> None:
        """Adds the part of one sequence and channel to the gradients of filter and skip."""
        result["skip"][d] += dy @ u
        lags = np.convolve(dy, u[::-1])[len(u) - 1 :][: self.taps]
        result["filter"][d // (self.channels // self.groups), : len(lags)] += lags

    def arguments(self, results: dict[str, Tensor]) -> Any:
        t = self.tensors

        def pointer(values: Tensor | None) -> int | None:
            return None if values is None else values.data_ptr()

        return LongConvArguments(
            dtype=DTYPES[self.dtype],
            packed=self.packed,
            sequences=len(self.starts),
            rows=self.rows,
            channels=self.channels,
            groups=self.groups,
            taps=self.taps,
            max_length=self.rows if self.max_length is None else self.max_length,
            starts=None if self.full else pointer(t["starts"]),
            ends=None if self.full else pointer(t["ends"]),
            wide_index=self.wide_index,
            x=RowsArgument.of(t["x"]),
            pre_gate=RowsArgument.of(t["pre_gate"] if self.pre else None),
            post_gate=RowsArgument.of(t["post_gate"] if self.post else None),
            filter=pointer(t["filter"]),
            skip=pointer(t["skip"]) if self.skip else None,
            out=RowsArgument.of(results.get("out")),
            grad=RowsArgument.of(t["grad"]),
            dx=RowsArgument.of(results.get("x")),
            dpre_gate=RowsArgument.of(results.get("pre_gate")),
            dpost_gate=RowsArgument.of(results.get("post_gate")),
            dfilter=pointer(results.get("filter")),
            dskip=pointer(results.get("skip")),
        )

    def results(self) -> dict[str, Tensor]:
        """Tensors full of NaN, into which outputs and gradients are to be written."""
        like = {name: self.tensors["x" if name == "out" else name] for name in self.present()}
        return {name: torch.full(v.shape, torch.nan, dtype=v.dtype) for name, v in like.items()}

    def run(self, host: Any, *, reversed: bool = False) -> dict[str, Tensor]:
        """Outputs and gradients by name; with `reversed`, threads and blocks run in the opposite order."""
        results = self.results()
        args = self.arguments(results)
        for backward in (False, True):
            if not backward and "out" not in results:
                continue
            size = host.workspace(args, backward)
            workspace = torch.full((size // 4 + 64,), torch.nan)  # no result may depend on it; 64 more as a guard
            host.run(args, backward, reversed, workspace.data_ptr())
            assert workspace[size // 4 :].isnan().all(), "written past the workspace"
        return results


def error(got: Tensor, want: Tensor, squares: Tensor | None = None) -> float:
    """Norm-wise relative error. `squares`: for a gradient that is a sum over rows, the sums of its terms' squares.

    The terms may nearly cancel: by chance the one decay of a group or the skips of two channels do, in one call of 30.
    What is left is then as small as the rounding of a single term, in whatever order they are added. The error is
    therefore measured against the larger of the gradient's norm and the norm that such a sum would have with random
    signs: the root of its terms' squares.
    """
    size = float(want.norm().clamp_min(1e-30))
    return float((got - want).norm()) / (size if squares is None else max(size, float(squares.sum().sqrt())))


def wrong(case: HostCase, found: dict[str, Tensor]) -> dict[str, float]:
    """The results whose error is above the tolerance; padding must be exactly zero."""
    limit = {torch.float32: 1e-6 * max(np.log2(case.rows), 1) ** 0.5}.get(case.dtype, TOLERANCE[case.dtype])
    errors, squares = {}, case.squares()
    for name, expected in case.expected().items():
        got = found[name].double()
        padded = torch.zeros_like(expected, dtype=torch.bool) if name in squares else expected == 0
        errors[name] = torch.inf if got[padded].any() else error(got, expected, squares.get(name))
    return {name: error for name, error in errors.items() if not error < limit}


def check(host: Host, case: HostCase) -> None:
    found = case.run(host)
    bad = wrong(case, found)
    assert not bad, f"{bad} in {case}"
    backwards = case.run(host, reversed=True)
    for name, value in found.items():
        assert torch.equal(value, backwards[name]), f"{name} depends on the order of threads in {case}"


def ragged(generator: np.random.Generator, count: int, rows: int, packed: bool) -> tuple[list[int], list[int]]:
    """Random starts and ends of sequences, some of which are empty."""
    if packed:
        cuts = np.sort(generator.integers(0, rows + 1, count - 1)).tolist()
        return [0, *cuts], [*cuts, rows]
    pairs = np.sort(generator.integers(0, rows + 1, (count, 2)), axis=1)
    return pairs[:, 0].tolist(), pairs[:, 1].tolist()


def random_case(seed: int, most_rows: int, most_taps: int) -> HostCase:
    generator = np.random.default_rng(seed)
    packed, full = generator.random() < 0.5, generator.random() < 0.3
    groups = int(generator.integers(1, 7))
    channels = groups * int(generator.integers(1, 6))
    count, rows = int(generator.integers(1, 5)), int(generator.integers(1, most_rows + 1))
    if packed and full:
        count = 1
    starts, ends = ragged(generator, count, rows, packed)
    if full:
        starts, ends = [0] * count, [rows] * count
    flags = generator.random(4) < 0.7
    needs = frozenset(name for name in NAMES if generator.random() < 0.8)
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    return HostCase(
        packed,
        rows,
        starts,
        ends,
        channels,
        groups,
        int(generator.integers(0, most_taps + 1)),
        list(DTYPES)[generator.integers(0, 3)],
        *(bool(flag) for flag in flags[:3]),
        full,
        bool(flags[3]),
        longest if packed and generator.random() < 0.5 else None,
        needs,
        seed,
    )


def one(rows: int, taps: int, *, count: int = 1, channels: int = 2, groups: int = 2, **options: Any) -> HostCase:
    """A call on a padded batch in which every sequence fills its row."""
    return HostCase(False, rows, [0] * count, [rows] * count, channels, groups, taps, full=True, **options)
