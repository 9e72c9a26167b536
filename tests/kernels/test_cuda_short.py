"""The cuda backend's short convolutions and conv_step, on a GPU or run on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import operator_oracle as oracle
import pytest
import torch
from cuda_host import error, mutated, ragged
from cuda_ops import ROOT, SOURCES, load_short, race_program, without_device
from operator_cases import TOLERANCE
from operator_checks import check_step
from test_hostile_segments import CASES, PACKED, PADDED
from torch import Tensor

from hyenarec_kernels import backends
from hyenarec_kernels.backends import cuda
from hyenarec_kernels.ops.conv_step import conv_step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    load_short(tmp_path_factory.mktemp("cuda") / "short.so")


class Call:
    """A random call of short_conv, or with ``parts`` > 1 of gated_short_conv: sizes, dtypes, layout, alignment."""

    def __init__(self, seed: int, most_rows: int = 90) -> None:
        rng = np.random.default_rng(seed)
        self.dtype = DTYPES[seed % 3]
        self.parts, self.width = int(rng.choice([1, 2, 3, 4])), int(rng.choice([1, 2, 3, 3, 4, 4, 7, 8]))
        self.dim = int(rng.choice([1, 5, 8, 16, 24, 33, 64]))
        self.silu, self.biased, packed = self.parts == 1 and rng.random() < 0.5, rng.random() < 0.7, rng.random() < 0.6
        rows, count = int(rng.integers(1, most_rows)), int(rng.integers(1, 6))
        self.channels = self.parts * self.dim
        starts, ends = ragged(rng, count, rows, packed)
        if packed and rng.random() < 0.4:  # leave rows before the first sequence and after the last
            starts, ends = [min(s + 3, rows) for s in starts], [min(e + 3, rows) for e in ends[:-1]] + [ends[-1]]
            ends[-1] = max(starts[-1], rows - 5)
        self.starts, self.ends, self.packed = starts, ends, packed
        self.shape = (rows,) if packed else (count, rows)
        self.index_dtype = torch.int32 if rng.random() < 0.5 else torch.int64
        self.parameter_dtype = torch.float32 if rng.random() < 0.5 else self.dtype
        shift = int(rng.choice([0, 1]))  # aligned or not
        real = np.zeros(self.shape, bool)
        for s, (start, end) in enumerate(zip(starts, ends, strict=True)):
            real[slice(start, end) if packed else (s, slice(start, end))] = True
        self.real = torch.from_numpy(real)
        generator = torch.Generator().manual_seed(seed)

        def rows_of(channels: int) -> Tensor:
            """A slice of a tensor with more channels; NaN wherever nothing may be read."""
            wide = torch.randn(*self.shape, channels + 8 + 8 * shift, generator=generator).to(self.dtype)
            values = wide[..., shift : shift + channels]
            values[~self.real] = torch.nan
            return values

        def parameter(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.parameter_dtype)

        self.x, self.weight = rows_of(self.channels), parameter(self.channels, self.width)
        self.bias = parameter(self.channels) if self.biased else None
        outputs = [self.channels] if self.parts == 1 else [self.dim, self.channels - 2 * self.dim]
        self.grads = [rows_of(n) for n in outputs]
        self.needs = [bool(n) for n in rng.random(3) < 0.8]

    def where(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.starts, dtype=self.index_dtype), torch.tensor(self.ends, dtype=self.index_dtype)

    def run(self, device: str, needs: list[bool]) -> dict[str, Tensor]:
        """The outputs and gradients by name."""
        ops, option = cuda, [("silu" if self.silu else "") if self.parts == 1 else self.dim]
        name = "short_conv" if self.parts == 1 else "gated_short_conv"
        tensors = [self.x, self.weight, self.bias, *self.where()]
        arguments = [None if t is None else on(t, device) for t in tensors] + option
        out = getattr(ops, name)(*arguments)
        outputs = (out,) if isinstance(out, Tensor) else out
        gradients = getattr(ops, f"{name}_backward")(*(on(g, device) for g in self.grads), *arguments, needs)
        found = {f"out{i}": o.cpu() for i, o in enumerate(outputs)}
        return found | {n: g.cpu() for n, g in zip(("x", "weight", "bias"), gradients, strict=True)}

    def expected(self) -> dict[str, np.ndarray]:
        """The results by the definition, in float64, one sequence at a time; sets `squares` as
        `cuda_host.HostCase.squares`."""
        x, weight = self.x.double().numpy(), self.weight.double().numpy()
        bias = np.zeros(self.channels) if self.bias is None else self.bias.double().numpy()
        grads = [g.double().numpy() for g in self.grads]
        found: dict[str, np.ndarray] = {f"out{i}": np.zeros(g.shape) for i, g in enumerate(grads)}
        found |= {"x": np.zeros(x.shape), "weight": np.zeros(weight.shape), "bias": np.zeros(self.channels)}
        self.squares: dict[str, np.ndarray] = {}
        for s, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            rows: Any = slice(start, end) if self.packed else (s, slice(start, end))
            z = oracle.short_conv(x[rows], weight, bias, self.silu)
            if self.parts == 1:
                found["out0"][rows], dz = z, grads[0][rows]
            else:
                first, middle, last = np.split(z, [self.dim, self.channels - self.dim], 1)
                found["out0"][rows], found["out1"][rows] = first * last, middle
                dz = np.concatenate([grads[0][rows] * last, grads[1][rows], grads[0][rows] * first], 1)
            part = oracle.short_conv_gradients(dz, x[rows], weight, bias, self.silu)
            found["x"][rows] = part["x"]
            found["weight"] += part["weight"]
            found["bias"] += part["bias"]
            if self.silu:
                z, s = oracle.short_conv(x[rows], weight, bias, False), oracle.sigmoid
                dz = dz * s(z) * (1 + z * (1 - s(z)))
            part = oracle.short_conv_gradients(dz**2, x[rows] ** 2, weight, bias, False)
            self.squares = {name: self.squares.get(name, 0) + part[name] for name in ("weight", "bias")}
        return found


def on(t: Tensor, device: str) -> Tensor:
    """Moves a tensor to the device and keeps its strides."""
    return t if device == "cpu" else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).copy_(t)


def wrong(call: Call, found: dict[str, Tensor]) -> dict[str, float]:
    """The results whose error is above the tolerance; rows of no sequence must be exactly 0."""
    errors = {}
    for name, want in call.expected().items():
        got = found[name]
        if not got.numel():
            continue
        assert got.is_contiguous() and got.shape == want.shape
        terms = call.squares.get(name)
        relative = error(got.double(), torch.from_numpy(want), None if terms is None else torch.from_numpy(terms))
        outside = name not in ("weight", "bias") and bool(got[~call.real].any())
        errors[name] = float("inf") if outside else relative
    limit = {torch.float32: 2e-6}.get(call.dtype, TOLERANCE[call.dtype])
    return {name: error for name, error in errors.items() if not error < limit}


@pytest.mark.parametrize("seed", [*range(48), *(pytest.param(n, marks=pytest.mark.slow) for n in range(48, 600))])
def test_random_calls(seed: int, device: str) -> None:
    call = Call(seed)
    found = call.run(device, [True] * 3)
    bad = wrong(call, found)
    assert not bad, f"{bad} in {vars(call)}"
    assert found["x"].dtype == call.dtype and found["weight"].dtype == call.parameter_dtype


@pytest.mark.parametrize("seed", range(8))
def test_gradients_that_nobody_needs(seed: int, device: str) -> None:
    call = Call(seed)
    whole, some = call.run(device, [True] * 3), call.run(device, call.needs)
    for name, need in zip(("x", "weight", "bias"), call.needs, strict=True):
        assert torch.equal(some[name], whole[name]) if need else some[name].numel() == 0


@pytest.mark.parametrize("seed", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
def test_sums_over_many_blocks(seed: int, device: str) -> None:
    """Sums are right if there are more strips than blocks: a block takes several strips, and a second launch adds the
    blocks' sums."""
    call = Call(seed, 40)
    count = 24_000 if device == "cuda" else 2500
    call.x, call.starts, call.ends = call.x[..., :8], [0, count // 3, count - 7], [count // 3, count - 7, count - 2]
    call.packed, call.parts, call.dim, call.channels, call.silu, call.width = True, 2, 4, 8, False, 3
    call.shape, call.real = (count,), torch.arange(count) < count - 2
    call.x = torch.randn(count, 8).to(call.dtype)
    call.weight, call.bias = torch.randn(8, 3).to(call.parameter_dtype), None
    call.grads = [torch.randn(count, 4).to(call.dtype), torch.empty(count, 0, dtype=call.dtype)]
    found = call.run(device, [True, True, False])
    bad = {name: error for name, error in wrong(call, found).items() if name != "bias"}
    assert not bad


@without_device
@pytest.mark.parametrize("seed", range(12))
def test_no_result_depends_on_the_order_of_threads(seed: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(seed)
    first = call.run(device, [True] * 3)
    monkeypatch.setenv("HYENAREC_REVERSED", "1")
    for name, value in call.run(device, [True] * 3).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_segments_that_lie(layout: str, name: str, dtype: torch.dtype, device: str) -> None:
    """If starts and ends are wrong, nothing outside the rows is read or written, every row is written, and rows that no
    sequence claims are 0."""
    packed = layout == "packed"
    starts, ends = (PACKED if packed else PADDED)[name]
    if dtype == torch.int32 and any(abs(n) >= 1 << 31 for n in (*(starts or []), *ends)):
        pytest.skip("no int32")
    where = [None if w is None else torch.tensor(w, dtype=dtype, device=device) for w in (starts, ends)]
    around = torch.full((5, 20, 6), torch.nan, device=device)
    around[1:4] = torch.randn(3, 20, 6)
    x = around[1:4].reshape(-1, 6) if packed else around[1:4]
    weight, bias = torch.randn(6, 4, device=device), torch.randn(6, device=device)
    u, q = cuda.gated_short_conv(x, weight, bias, *where, 2)
    gradients = cuda.gated_short_conv_backward(u, q, x, weight, bias, *where, 2, [True] * 3)
    out = cuda.short_conv(x, weight, bias, *where, "silu")
    more = cuda.short_conv_backward(out, x, weight, bias, *where, "silu", [True] * 3)
    for result in (u, q, out, *gradients, *more):
        assert result.isfinite().all()
    claimed = torch.zeros(x.shape[:-1], dtype=torch.bool)
    for s, end in enumerate(ends):
        start = 0 if starts is None else starts[s]
        own = claimed if packed else claimed[s]
        own[max(start, 0) : max(min(end, own.shape[0]), 0)] = True
    for result in (u, q, out, gradients[0], more[0]):
        assert not result[~claimed].any()


def test_nan_stays_in_its_channel_and_sequence(device: str) -> None:
    x, weight = torch.randn(60, 8, device=device), torch.randn(8, 3, device=device)
    starts, ends = (torch.tensor(v, device=device) for v in ([0, 20, 41], [20, 41, 60]))
    clean = cuda.short_conv(x, weight, None, starts, ends, "silu")
    x[38, 3] = torch.nan
    out = cuda.short_conv(x, weight, None, starts, ends, "silu")
    touched = torch.zeros_like(x, dtype=torch.bool)
    touched[38:41, 3] = True  # the third tap of the next sequence and a fourth tap of this one are not touched
    assert torch.equal(out[~touched], clean[~touched]) and out[touched].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "taps", "batch"), [(1, 1, 1), (7, 2, 3), (32, 5, 2), (40, 67, 3), (131, 33, 2)])
def test_step(dim: int, taps: int, batch: int, dtype: torch.dtype, device: str) -> None:
    if device == "cuda":
        pytest.skip("its checks make tensors on the CPU")
    check_step(dim, taps, batch, dtype)
    check_step(dim, taps, batch, dtype, gated=False)


@torch.no_grad()
def test_step_of_any_number(device: str) -> None:
    """The ring wraps around for any step number, even negative or huge, and a strided history is written in place."""
    wide = torch.randn(2, 9, 24, device=device)
    history, taps = wide[:, 1:6, 4:20], torch.randn(6, 16, device=device)
    x = torch.randn(2, 16, device=device)
    steps = torch.tensor([-3, (1 << 62) + 1], device=device)
    before, ring = wide.clone(), history.clone()
    out = conv_step(x, history, taps, steps)
    for b in range(2):
        oldest = int(steps[b]) % 5
        want = (torch.cat([ring[b].roll(-oldest, 0), x[b : b + 1]]) * taps).sum(0)
        torch.testing.assert_close(out[b], want)
        ring[b, oldest] = x[b]
    before[:, 1:6, 4:20] = ring
    assert torch.equal(wide, before)


def test_what_it_leaves_to_others(device: str) -> None:
    def reason(x: Tensor, weight: Tensor) -> str | None:
        return cuda.accepts(backends.Call("short_conv", "short_conv", (x, weight, None, None, None, "")))

    x, weight = torch.randn(2, 5, 4, device=device), torch.randn(4, 3, device=device)
    assert reason(x, weight) is None
    assert "over 8 taps" in str(reason(x, torch.randn(4, 9, device=device)))
    assert "float64" in str(reason(x.double(), weight.double()))
    assert "no elements" in str(reason(x[:0], weight))
    history, taps, steps = torch.randn(2, 3, 8, device=device), torch.randn(4, 4, device=device), torch.zeros(2)
    step = backends.Call("conv_step", "conv_step", (x[:, 0], history[..., ::2], taps, steps, None, None))
    assert "not adjacent" in str(cuda.accepts(step))


def test_offsets_beyond_32_bits(device: str) -> None:
    """Rows lie 2^28 values apart, so that offsets exceed 2^31. Memory that nothing touches is never allocated."""
    if device == "cuda":
        pytest.skip("there, it would be")
    x, weight = torch.randn(11, 2), torch.randn(2, 3)
    try:
        far = torch.empty_strided((11, 2), (1 << 28, 1), dtype=torch.float32)
    except RuntimeError:
        pytest.skip("no 11 GiB of address space")
    far.copy_(x)
    where = torch.tensor([0]), torch.tensor([11])
    assert torch.equal(cuda.short_conv(far, weight, None, *where, ""), cuda.short_conv(x, weight, None, *where, ""))


def under_address_sanitizer(folder: Path, source: Path) -> list[subprocess.CompletedProcess[str]]:
    """Runs all calls of tests/native/short_calls.cpp, also with wrong segments, under address and overflow checks."""
    flags = [
        "-std=c++17",
        "-O1",
        "-DHYENAREC_BOUNDS",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ]
    program = folder / "short_bounds"
    command = ["g++", *flags, f"-I{source}", str(ROOT / "tests" / "native" / "short_calls.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    calls = ("short", "gated", "step")
    return [subprocess.run([program, call], capture_output=True, text=True) for call in calls]


@pytest.mark.slow
def test_segments_that_lie_under_address_sanitizer(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    for done in under_address_sanitizer(tmp_path, ROOT / "csrc"):
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_address_sanitizer_sees_a_start_that_is_not_clamped(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    source = mutated(tmp_path / "csrc", "rows.h", "row < 0 ? 0 : row > rows ? rows : int(row)", "int(row)")
    short, *_ = under_address_sanitizer(tmp_path, source)
    assert short.returncode != 0 and "ERROR: AddressSanitizer" in short.stderr


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bool]:
    """Runs calls of tests/native/short_calls.cpp."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return race_program("short_calls.cpp", tmp_path_factory.mktemp("cuda") / "short_calls")


@pytest.mark.parametrize("call", ["short", "gated", "step"])
def test_no_races(call: str, race: Callable[..., bool]) -> None:
    assert not race(call)


@pytest.mark.parametrize(
    ("call", "barrier"),
    [
        ("gated", 0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gated", 1), ("short", 1), ("step", 0))),
    ],
)
def test_a_dropped_barrier_is_a_race(call: str, barrier: int, race: Callable[..., bool]) -> None:
    # ThreadSanitizer remembers only a few accesses per place, so a run on a busy machine may miss the race
    assert any(race(call, dropped=barrier) for _ in range(8))


# Mutations of the shipped source, one place each: the file, the text there, and its replacement.
MUTATIONS = {
    "a tap into the sequence before": ("fir.h", "if (j <= reach(r)) z", "if (j <= reach(r) + 1) z"),
    "the next rows' past": (
        "fir.h",
        "window[f][i] = window[f][i + kRows];",
        "window[f][i] = window[f][i + kRows - 1];",
    ),
    "rows of no sequence": ("fir.h", "reach(r) >= 0 ? value : 0.f", "value"),
    "the search": ("strips.h", "low = middle + 1;", "low = middle + 2;"),
    "rows that reach back": ("fir_backward.h", "row < end + kWidth - 1; row", "row < end; row"),
    "the rows after a strip": ("fir_backward.h", "row + r < end ? slope", "true ? slope"),
    "a factor's gradient": ("fir_backward.h", "dz[0] = dout * z[1]", "dz[0] = dout * z[0]"),
    "a block's sums": (
        "fir_backward.h",
        "k < kThreads; k += mine.lanes) sum",
        "k < kThreads / 2; k += mine.lanes) sum",
    ),
}


@pytest.mark.slow
@without_device
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_shows(mutation: str, tmp_path: Path) -> None:
    """Tests fail on a broken kernel. They run in a process of their own, since its ops replace the right ones."""
    mutated(tmp_path / "csrc", *MUTATIONS[mutation])
    shutil.copytree(ROOT / "tests" / "native", tmp_path / "tests" / "native")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    command += ["-k", "random_calls or many_blocks or lie"]
    done = subprocess.run(command, env={**os.environ, SOURCES: str(tmp_path)}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-3000:]
