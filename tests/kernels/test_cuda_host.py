"""The CUDA programs without a GPU: the shipped source compiled for the host and run thread by thread, and what nvcc
makes of it for the device.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import TOLERANCE
from torch import Tensor

SOURCE = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # hyenarec::Dtype
NAMES = ("out", "x", "filter", "skip", "pre_gate", "post_gate")


class Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64)]

    @classmethod
    def of(cls, t: Tensor | None) -> Rows:
        if t is None:
            return cls()
        return cls(t.data_ptr(), t.stride(0) if t.dim() == 3 else 0, t.stride(-2))


class Arguments(ctypes.Structure):
    """hyenarec::LongConvArgs."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("packed", ctypes.c_bool),
        *((name, ctypes.c_int64) for name in ("sequences", "rows", "channels", "groups", "taps", "max_length")),
        *((name, ctypes.c_void_p) for name in ("starts", "ends")),
        ("wide_index", ctypes.c_bool),
        *((name, Rows) for name in ("x", "pre_gate", "post_gate")),
        *((name, ctypes.c_void_p) for name in ("filter", "skip")),
        *((name, Rows) for name in ("out", "grad", "dx", "dpre_gate", "dpost_gate")),
        *((name, ctypes.c_void_p) for name in ("dfilter", "dskip", "workspace")),
    ]


def compiled(target: Path, top: int, source: Path = SOURCE) -> ctypes.CDLL:
    """The programs for blocks of up to 2^top rows."""
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-DHYENAREC_TOP={top}"]
    subprocess.run(["g++", *flags, str(source / "cuda" / "host_test.cpp"), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.args_size.restype = library.host_workspace.restype = ctypes.c_int64
    assert library.args_size() == ctypes.sizeof(Arguments)
    return library


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Every size."""
    needs("g++")
    return compiled(tmp_path_factory.mktemp("cuda_host") / "host.so", 14)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Blocks of at most 128 rows: longer filters go in parts, and a block takes several items one after the other."""
    needs("g++")
    return compiled(tmp_path_factory.mktemp("cuda_host") / "small.so", 7)


@dataclass
class Case:
    """One call. Sequences are rows [starts, ends); of padded input those of a batch row."""

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
            # A slice of more channels and rows: strided; NaN where nothing may be read.
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
        """By the definition, float64, without FFT."""
        t = {name: value.double().numpy() for name, value in self.tensors.items() if name not in ("starts", "ends")}
        one = np.ones_like(t["x"])
        pre, post = (t["pre_gate"] if self.pre else one), (t["post_gate"] if self.post else one)
        result = {"out": np.zeros_like(t["x"])} | {name: np.zeros_like(t[name]) for name in NAMES[1:]}
        for s, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            if start == end:
                continue
            for d in range(self.channels):
                at = (slice(start, end), d) if self.packed else (s, slice(start, end), d)
                taps = t["filter"][d // (self.channels // self.groups), : end - start]
                gain = t["skip"][d] * self.skip
                u, dy, count = pre[at] * t["x"][at], post[at] * t["grad"][at], end - start
                y, du = gain * u, gain * dy
                if len(taps):
                    y += np.convolve(u, taps)[:count]
                    du += np.convolve(dy[::-1], taps)[:count][::-1]
                result["out"][at] = post[at] * y
                result["x"][at] = pre[at] * du
                result["pre_gate"][at] = t["x"][at] * du
                result["post_gate"][at] = t["grad"][at] * y
                result["skip"][d] += dy @ u
                lags = np.convolve(dy, u[::-1])[count - 1 :][: len(taps)]
                result["filter"][d // (self.channels // self.groups), : len(taps)] += lags
        return {name: torch.from_numpy(result[name]) for name in self.present()}

    def run(self, host: ctypes.CDLL, *, reversed: bool = False, dropped: int = -1) -> dict[str, Tensor]:
        """The outputs and gradients, written over NaN. `reversed`, `dropped`: as Emulation in host_test.cpp."""
        t = self.tensors
        like = {name: t["x" if name == "out" else name] for name in self.present()}
        results = {name: torch.full(v.shape, torch.nan, dtype=v.dtype) for name, v in like.items()}

        def pointer(values: Tensor | None) -> int | None:
            return None if values is None else values.data_ptr()

        args = Arguments(
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
            x=Rows.of(t["x"]),
            pre_gate=Rows.of(t["pre_gate"] if self.pre else None),
            post_gate=Rows.of(t["post_gate"] if self.post else None),
            filter=pointer(t["filter"]),
            skip=pointer(t["skip"]) if self.skip else None,
            out=Rows.of(results.get("out")),
            grad=Rows.of(t["grad"]),
            dx=Rows.of(results.get("x")),
            dpre_gate=Rows.of(results.get("pre_gate")),
            dpost_gate=Rows.of(results.get("post_gate")),
            dfilter=pointer(results.get("filter")),
            dskip=pointer(results.get("skip")),
        )
        for backward in (False, True):
            if not backward and "out" not in results:
                continue
            size = host.host_workspace(ctypes.byref(args), backward)
            workspace = torch.full((size // 4 + 64,), torch.nan)  # nothing may depend on it; 64 more as a guard
            args.workspace = workspace.data_ptr()
            host.host_run(ctypes.byref(args), backward, reversed, dropped)
            assert workspace[size // 4 :].isnan().all(), "written past the workspace"
        return results


def wrong(case: Case, found: dict[str, Tensor]) -> dict[str, float]:
    """The results with an error above the tolerance; padding must be exactly zero."""
    limit = {torch.float32: 1e-6 * max(np.log2(case.rows), 1) ** 0.5}.get(case.dtype, TOLERANCE[case.dtype])
    errors = {}
    for name, expected in case.expected().items():
        got = found[name].double()
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        padded = expected == 0 if name not in ("filter", "skip") else torch.zeros_like(expected, dtype=torch.bool)
        errors[name] = torch.inf if got[padded].any() else error
    return {name: error for name, error in errors.items() if not error < limit}


def check(host: ctypes.CDLL, case: Case) -> None:
    found = case.run(host)
    bad = wrong(case, found)
    assert not bad, f"{bad} in {case}"
    backwards = case.run(host, reversed=True)
    for name, value in found.items():
        assert torch.equal(value, backwards[name]), f"{name} depends on the order of threads in {case}"


def ragged(generator: np.random.Generator, count: int, rows: int, packed: bool) -> tuple[list[int], list[int]]:
    """Starts and ends of sequences, some of them empty."""
    if packed:
        cuts = np.sort(generator.integers(0, rows + 1, count - 1)).tolist()
        return [0, *cuts], [*cuts, rows]
    pairs = np.sort(generator.integers(0, rows + 1, (count, 2)), axis=1)
    return pairs[:, 0].tolist(), pairs[:, 1].tolist()


def random_case(seed: int, most_rows: int, most_taps: int) -> Case:
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
    return Case(
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


def one(rows: int, taps: int, *, count: int = 1, channels: int = 2, groups: int = 2, **options: Any) -> Case:
    """Padded sequences without padding."""
    return Case(False, rows, [0] * count, [rows] * count, channels, groups, taps, full=True, **options)


def sizes_of_buckets() -> Case:
    """Packed sequences as long as blocks are, and one row off."""
    cuts = np.cumsum([0, 32, 64, 128, 33, 1, 0, 31, 65, 256, 0]).tolist()
    return Case(True, cuts[-1], cuts[:-1], cuts[1:], 6, 3, 100)


@pytest.mark.parametrize("library", ["host", "small"])
def test_sequences_as_long_as_blocks(library: str, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(library), sizes_of_buckets())


@pytest.mark.parametrize("seed", range(40))
def test_random_calls(host: ctypes.CDLL, seed: int) -> None:
    check(host, random_case(seed, 500, 700))


@pytest.mark.parametrize("seed", range(100, 140))
def test_random_calls_in_small_blocks(small: ctypes.CDLL, seed: int) -> None:
    check(small, random_case(seed, 500, 700))


@pytest.mark.parametrize("rows", [1, 31, 33, 127, 257, 769, 1031, 2049, 4099, 8209, 16381])
def test_every_size(host: ctypes.CDLL, rows: int) -> None:
    """Prime and odd lengths through every block size, each within the float32 bound."""
    check(host, one(rows, rows, channels=18 if rows < 1000 else 2))


@pytest.mark.parametrize(("rows", "taps"), [(1300, 512), (2500, 33), (4099, 1024), (20011, 16384), (17000, 17000)])
def test_sequences_of_many_blocks(host: ctypes.CDLL, rows: int, taps: int) -> None:
    """Up to the most taps a block takes each block needs its neighbour; beyond, filters go in parts."""
    check(host, one(rows, taps, channels=1, groups=1))


@pytest.mark.parametrize("log", range(5, 15))
def test_no_bank_conflicts(host: ctypes.CDLL, log: int) -> None:
    assert host.host_bank_conflicts(log) == 1


@pytest.mark.parametrize(("sequences", "rows", "packed"), [(0, 5, False), (3, 0, False), (0, 0, True), (2, 0, True)])
def test_no_rows(host: ctypes.CDLL, sequences: int, rows: int, packed: bool) -> None:
    """Gradients of parameters are zero, not left unwritten."""
    case = Case(packed, rows, [0] * sequences, [0 if packed else rows] * sequences, 3, 3, 4)
    for name, value in case.run(host).items():
        assert not value.any() and value.isfinite().all(), name


def test_nan_stays_in_its_channel_and_sequence(small: ctypes.CDLL) -> None:
    case = Case(True, 200, [0, 70, 81], [70, 81, 200], 5, 5, 90)
    before = case.run(small)
    case.tensors["x"][75, 3] = torch.nan
    after = case.run(small)
    elsewhere = torch.ones(200, 5, dtype=torch.bool)
    elsewhere[70:81, 3] = False
    for name in ("out", "x", "pre_gate", "post_gate"):
        assert torch.equal(before[name][elsewhere], after[name][elsewhere]), name
    assert after["out"][75:81, 3].isnan().all()


def test_offsets_beyond_32_bits(small: ctypes.CDLL) -> None:
    """Rows 2^28 values apart: 11 of them pass 2^31. Memory that nothing touches is never there."""
    case = one(11, 5)
    expected = case.run(small)
    try:
        far = torch.empty_strided((1, 11, 2), (0, 1 << 28, 1), dtype=torch.float32)
    except RuntimeError:
        pytest.skip("no 11 GiB of address space")
    far.copy_(case.tensors["x"])
    case.tensors["x"] = far
    for name, value in case.run(small).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("barrier", [1, 4], ids=["forward", "inverse"])
def test_a_dropped_barrier_shows(host: ctypes.CDLL, barrier: int) -> None:
    case = one(1500, 1500, skip=False, needs=frozenset({"out"}))
    assert not wrong(case, case.run(host))
    assert wrong(case, case.run(host, dropped=barrier))


# One wrong place each in the shipped source: file, what stands there, what to put.
MUTATIONS = {
    "a quarter of a twiddle": ("fft.h", "unit(-0.25f * half_turns)", "unit(0.25f * half_turns)"),
    "a high twiddle": ("fft.h", "high = k == 4 ? four", "high = k == 4 ? low[3]"),
    "rows past the end": ("rows.h", "stride < remaining", "stride <= remaining"),
    "the neighbour's side": ("convolve.h", "= float(round.history) * v", "= -float(round.history) * v"),
    "a share's later items": ("convolve.h", "first_item ? product : partial[at] + product", "product"),
    "the filter's windows": ("filter.h", "Complex{-next.y, next.x}", "Complex{next.y, -next.x}"),
    "a group's channels": ("sums.h", "d < (group + 1) * each_group", "d < (group + 1) * each_group - 1"),
    "a bucket's bound": ("buckets.h", "length <= bucket.above", "length < bucket.above"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_shows(mutation: str, tmp_path: Path) -> None:
    needs("g++")
    name, old, new = MUTATIONS[mutation]
    for folder in ("cuda", "cpu"):
        shutil.copytree(SOURCE / folder, tmp_path / folder)
    path = tmp_path / "cuda" / name
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    broken = compiled(tmp_path / "broken.so", 7, tmp_path)
    cases = [sizes_of_buckets(), *(random_case(seed, 300, 300) for seed in range(100, 140))]
    assert any(wrong(case, case.run(broken)) for case in cases)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[int]]:
    """Of each kernel and architecture: bytes of stack frame, of spill stores and of spill loads, and registers."""
    needs("nvcc")
    target = tmp_path_factory.mktemp("cuda_device")
    architectures = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]

    def compile_one(path: Path) -> str:
        flags = ["-std=c++17", "-O3", "-Xptxas", "-v", *architectures, "-c", str(path), "-o"]
        done = subprocess.run(["nvcc", *flags, str(target / f"{path.stem}.o")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    with ThreadPoolExecutor(2) as pool:
        text = "".join(pool.map(compile_one, sorted((SOURCE / "cuda").glob("*.cu"))))
    pattern = (
        r"entry function '(\w+)' for '(\w+)'\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*Used (\d+) registers"
    )
    return {(m[1], m[2]): [int(m[i]) for i in range(3, 7)] for m in re.finditer(pattern, text)}


def test_compiled_for_the_device_without_spills(kernels: dict[tuple[str, str], list[int]]) -> None:
    sizes, others = 10, 5
    assert len(kernels) == 2 * (3 * sizes + others)
    bad = {name: used for name, used in kernels.items() if any(used[:3])}
    assert not bad, f"stack frame, spill stores, spill loads, registers: {bad}"
