"""The cuda backend's kernels, on a GPU or run on the host."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from cuda_host import block_library, host_library, toeplitz_library
from cuda_ops import load, with_device
from operator_cases import LAYOUTS, TOLERANCE, Case, assert_close, on_device
from torch import Tensor
from torch.library import opcheck

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import compiled, cuda
from hyenarec_kernels.backends.cuda import legendre_blocks
from hyenarec_kernels.nn import CosineFilter, ImplicitFilter
from hyenarec_kernels.ops.dropout import dropout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HAS_OPS = compiled.probe() is None and compiled.has_cuda()


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Registers ops for CPU tensors that run the CUDA kernels on the host (tests/native/host_ops.cpp)."""
    if not HAS_OPS:
        pytest.skip("the extension was compiled without CUDA")
    programs = [library(tmp_path_factory) for library in (host_library, toeplitz_library, block_library)]
    defined = hasattr(torch.ops.hyenarec_cuda, "legendre_conv")
    flags = [] if defined else ["-DHYENAREC_DEFINE"]
    load("host_ops.cpp", tmp_path_factory.mktemp("cuda") / "host_ops.so", *flags, beside=programs)


Call = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]  # leaf tensors, where sequences lie, output's gradient


def draw_call(
    device: str, shape: tuple[int, ...], groups: int, taps: int, dtype: torch.dtype, bounds: list[int] | None = None
) -> Call:
    """Random arguments, packed if ``bounds`` are given."""
    channels = shape[-1]

    def leaf(*size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, device=device)).to(dtype).requires_grad_()

    leaves = {name: leaf(*shape, dtype=dtype) for name in ("x", "pre_gate", "post_gate")}
    leaves |= {"filter": leaf(groups, taps, scale=taps**-0.5), "skip": leaf(channels)}
    where = {} if bounds is None else {"cu_seqlens": torch.tensor(bounds, device=device)}
    return leaves, where, torch.randn(shape, device=device).to(dtype)


def answer(call: Call) -> dict[str, Tensor]:
    leaves, where, grad = call
    out = hk.long_conv(**leaves, **where)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def errors(call: Call, got: dict[str, Tensor]) -> dict[str, float]:
    """Norm-wise relative errors against the definition in float64."""
    leaves, where, grad = call
    with backends.use("reference"):
        wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
        want = answer((wide, where, grad.double()))
    return {name: float((got[name].double() - w).norm() / w.norm().clamp(min=1e-3)) for name, w in want.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps", [3, 101])
def test_oracle(layout: str, dtype: torch.dtype, taps: int, device: str) -> None:
    lengths = (140, 140) if layout == "full" else (100, 0, 1, 140, 70)
    case = Case.random("long_conv", lengths, taps=taps, dtype=dtype)
    options = {"strided": layout == "left", "index_dtype": torch.int32 if taps == 3 else torch.int64}
    options["parameter_dtype"] = torch.float32 if layout == "packed" else None
    got = case.run(layout, dtype, function=on_device("long_conv", device), **options)
    assert_close(got, case.expected(), TOLERANCE[dtype])


LONG = (63, 64, 65, 127, 257, 509, 1000, 2048, 4097, 8191, 16_384, 16_385, 40_009, 131_072)


@pytest.mark.parametrize("length", LONG)
def test_every_size(length: int, device: str) -> None:
    call = draw_call(device, (2, length, 5), 5, length, torch.float32)
    allowed = 1e-6 * math.sqrt(math.log2(length))
    wrong = {name: e for name, e in errors(call, answer(call)).items() if not e <= allowed}
    assert not wrong, f"norm-wise errors above {allowed:.1e}: {wrong}"


@pytest.mark.parametrize("most", [20, pytest.param(100, marks=pytest.mark.slow)])  # channels; 100 take 95 s on the host
def test_random_draws(most: int, device: str) -> None:
    whole = device == "cuda" or most > 20
    count = 500 if device == "cuda" else 30 if whole else 15
    rows = 20_000 if whole else 3000
    rng, wrong = np.random.default_rng(0), []
    for number in range(count):
        dtype = DTYPES[number % 3]
        dim = int(rng.integers(1, most))
        groups = int(rng.choice([g for g in range(1, dim + 1) if dim % g == 0]))
        longest = int(2 ** rng.uniform(0, 12.5))
        taps = int(rng.integers(1, 2 * longest + 1))
        sequences = int(rng.integers(1, max(2, rows // longest)))
        if number % 2:
            lengths = rng.integers(0, longest + 1, sequences)
            lengths[0] += 1
            bounds = [0, *np.cumsum(lengths).tolist()]
            call = draw_call(device, (bounds[-1], dim), groups, taps, dtype, bounds)
        else:
            call = draw_call(device, (sequences, longest, dim), groups, taps, dtype)
        found = errors(call, answer(call))
        if not max(found.values()) <= TOLERANCE[dtype]:
            wrong.append((number, call[0]["x"].shape, groups, taps, dtype, found))
    assert not wrong, f"{len(wrong)} of {count} draws, among them {wrong[:3]}"


@pytest.mark.parametrize("length", [50, 700, 5000, 20_000])
def test_same_bits_every_time(length: int, device: str) -> None:
    channels = 24 if device == "cuda" else 3
    bounds = [0, length, length, length + 3, 3 * length]
    calls = [draw_call(device, (4, length, channels), 3, length, torch.float32)]
    calls.append(draw_call(device, (3 * length, channels), 3, length, torch.bfloat16, bounds))
    for call in calls:
        first = answer(call)
        for _ in range(5 if device == "cuda" else 1):
            again = answer(call)
            assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_within_channel_and_sequence(bad: float, device: str) -> None:
    leaves, where, _ = draw_call(device, (500, 6), 6, 200, torch.float32, [0, 100, 300, 500])
    x = leaves["x"].detach().clone()
    x[150, 2] = bad
    with torch.no_grad():
        clean = hk.long_conv(**leaves, **where)
        out = hk.long_conv(**{**leaves, "x": x}, **where)
    touched = torch.zeros_like(out, dtype=torch.bool)
    touched[100:300, 2] = True
    assert torch.equal(out[~touched], clean[~touched])
    assert not out[150:300, 2].isfinite().any()


@pytest.mark.parametrize("length", [200, 3000, 20_000])
def test_causality(length: int, device: str) -> None:
    leaves, where, _ = draw_call(device, (1, length, 8), 8, length, torch.float32)
    changed = leaves["x"].detach().clone()
    cut = length // 3
    changed[:, cut:] *= -3
    with torch.no_grad():
        before = hk.long_conv(**leaves, **where)
        after = hk.long_conv(**{**leaves, "x": changed}, **where)
    assert (before - after)[:, :cut].norm() <= 1e-5 * before.norm()
    assert (before - after)[:, cut:].norm() > 0.1 * before.norm()


@pytest.mark.parametrize("basis", [ImplicitFilter, CosineFilter])
def test_filters_of_other_bases(basis: type[torch.nn.Module], device: str) -> None:
    filter = basis(8, 300).to(device)
    x = torch.randn(2, 300, 8, device=device, requires_grad=True)
    leaves = [x, *filter.parameters()]
    got = torch.autograd.grad(filter.convolve(x).square().sum(), leaves)
    with backends.use("reference"):
        want = torch.autograd.grad(filter.convolve(x).square().sum(), leaves)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_starts_and_lengths_of_different_types(device: str) -> None:
    x, h = torch.randn(2, 9, 4, device=device), torch.randn(2, 9, device=device)
    starts, lengths = torch.tensor([4, 0], dtype=torch.int32).to(device), torch.tensor([5, 7]).to(device)
    got = hk.long_conv(x, h, starts=starts, lengths=lengths)
    torch.testing.assert_close(got[0, 4:], hk.long_conv(x[:1, 4:], h)[0])
    assert not got[0, :4].any()


def test_many_last_positions_and_float64_are_left_to_others(device: str) -> None:
    for dtype, last_only, taps in ((torch.float64, False, 5), (torch.float32, True, 600)):
        case = Case.random("long_conv", (700, 3), dtype=dtype, last_only=last_only, taps=taps)
        got = case.run("packed", dtype, function=on_device("long_conv", device))
        assert_close(got, case.expected(), TOLERANCE[dtype])


FIRST = ("left", torch.bfloat16)
# By default each layout once and each dtype once; `make test-all` runs each dtype in each layout.
LAYOUTS_AND_DTYPES = [
    pytest.param(layout, dtype, marks=() if dtype == torch.bfloat16 or layout == "packed" else pytest.mark.slow)
    for layout, dtype in product(LAYOUTS, DTYPES)
]


@pytest.mark.parametrize("operator", ["long_conv", "legendre_conv"])
@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS_AND_DTYPES)
@pytest.mark.parametrize("last_only", [False, True])
def test_few_taps(operator: str, layout: str, dtype: torch.dtype, last_only: bool, device: str) -> None:
    """Toeplitz products give the right outputs and gradients in every layout, with parameters of both dtypes."""
    lengths = (140, 140) if layout == "full" else (100, 0, 1, 140, 70)
    case = Case.random(operator, lengths, taps=120, dtype=dtype, last_only=last_only)
    options = {"strided": layout == "left", "parameter_dtype": torch.float32 if layout == "packed" else None}
    got = case.run(layout, dtype, function=on_device(operator, device), **options)
    assert_close(got, case.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        pytest.param(layout, dtype, marks=() if layout == "packed" or (layout, dtype) == FIRST else pytest.mark.slow)
        for layout, dtype in product(LAYOUTS, DTYPES)
    ],
)
def test_blocks(layout: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more taps than Toeplitz products take, the block low-rank form is used, and is right in the same cases."""
    lengths = (560, 560) if layout == "full" else (257, 0, 1, 560)
    dim, groups = (6, 3) if device == "cuda" else (4, 2)  # 3 s a case on the host
    case = Case.random("legendre_conv", lengths, dim=dim, groups=groups, taps=550, dtype=dtype)
    options = {"strided": layout == "left", "parameter_dtype": torch.float32 if layout == "packed" else None}
    options["index_dtype"] = torch.int32 if layout == "packed" else torch.int64
    calls = []
    for name in ("convolve", "convolve_backward"):
        function = getattr(legendre_blocks, name)
        monkeypatch.setattr(legendre_blocks, name, lambda *a, f=function: (calls.append(f), f(*a))[1])
    got = case.run(layout, dtype, function=on_device("legendre_conv", device), **options)
    assert_close(got, case.expected(), TOLERANCE[dtype])
    assert len(calls) == 2


def test_what_it_lacks_is_named(device: str) -> None:
    with pytest.raises(NotImplementedError, match=r"dropout: not implemented for device '\w+' by backend cuda"):
        dropout(torch.randn(4, 2, device=device), 0.5, torch.zeros(1, dtype=torch.int64, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_rows(dtype: torch.dtype, device: str) -> None:
    """Inputs may be slices of one projection with an odd number of channels: every other row, at odd addresses."""
    leaves, where, grad = draw_call(device, (41, 5), 5, 30, dtype, [0, 3, 41])
    names = ("x", "pre_gate", "post_gate")
    wide = torch.full((82, 17), torch.nan, dtype=dtype, device=device)
    parts = {name: wide[1::2, 1 + 5 * i : 6 + 5 * i] for i, name in enumerate(names)}
    for name, part in parts.items():
        part.copy_(leaves[name].detach())
    want = answer((leaves, where, grad))
    got = answer((leaves | {name: part.requires_grad_() for name, part in parts.items()}, where, grad.expand(41, 5)))
    assert all(torch.equal(got[name], want[name]) for name in want)
    summed = answer((leaves, where, grad[:1, :1].expand(41, 5)))  # all strides are 0, like the gradient of a sum
    want = answer((leaves, where, grad[:1, :1].expand(41, 5).clone()))
    assert all(torch.equal(summed[name], want[name]) for name in want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bfloat16 goes with float32 parameters
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool, dtype: torch.dtype, device: str) -> None:
    arguments, grad = small_call(packed, dtype, device)
    opcheck(torch.ops.hyenarec.long_conv.default, arguments)
    detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    for needs in ([True, False, True, True, False], [False, True, False, False, True]):
        opcheck(torch.ops.hyenarec.long_conv_backward.default, (grad, *detached, needs))


@pytest.mark.parametrize("packed", [False, True])
def test_double_backward(packed: bool, device: str) -> None:
    arguments, grad = small_call(packed, torch.float32, device)
    x, h, _, pre, post = arguments[:5]

    def second() -> tuple[Tensor, ...]:
        (dh,) = torch.autograd.grad(torch.ops.hyenarec.long_conv(*arguments), h, grad, create_graph=True)
        return torch.autograd.grad(dh.square().sum(), (x, pre, post))

    got = second()
    with backends.use("reference"):
        torch.testing.assert_close(got, second(), rtol=TOLERANCE[torch.float32], atol=1e-5)


def small_call(packed: bool, dtype: torch.dtype, device: str) -> tuple[tuple[Any, ...], Tensor]:
    """Arguments of torch.ops.hyenarec.long_conv, with an empty sequence, and the output's gradient."""
    leaves, _, grad = draw_call(device, (9, 4) if packed else (3, 3, 4), 2, 5, dtype)
    x, pre, post, h, skip = leaves.values()
    ends = torch.tensor([2, 2, 9] if packed else [3, 0, 1], device=device)
    return (x, h, skip, pre, post, torch.tensor([0, 2, 2], device=device) if packed else None, ends, False), grad


# ---- what only a GPU can show ----------------------------------------------------------------------------------------


@with_device
def test_autocast_and_another_stream() -> None:
    leaves, _, _ = draw_call("cuda", (2, 3000, 32), 32, 3000, torch.float32)
    x, h = leaves["x"].detach(), leaves["filter"].detach()
    want = hk.long_conv(x.bfloat16(), h)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autocast("cuda", torch.bfloat16):
        torch.cuda._sleep(100_000_000)  # work on the default stream would be done before the copy, and be wrong
        late = torch.zeros_like(x).copy_(x)
        got = hk.long_conv(late, h)
    stream.synchronize()
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)


@with_device
@pytest.mark.parametrize("packed", [False, True])
def test_cuda_graph(packed: bool) -> None:
    """A graph that was captured once can be replayed on other data and, for packed input, other lengths."""
    bounds = [0, 5, 5, 900]
    shape = (900, 32) if packed else (3, 300, 32)
    call = draw_call("cuda", shape, 32, 300, torch.float32, bounds if packed else None)
    with backends.use("cuda"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                answer(call)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = answer(call)
        for cut in (300, 899):
            call[0]["x"].data.normal_()
            if packed:
                call[1]["cu_seqlens"].copy_(torch.tensor([0, 0, cut, 900]))
            graph.replay()
            again = answer(call)
            assert all(torch.equal(captured[name], again[name]) for name in again)


@with_device
@pytest.mark.parametrize("taps", [1000, 40_000])
def test_past_two_to_the_31(taps: int) -> None:
    length, dim = 65_536, 64
    batch = (1 << 31) // (length * dim) + 1
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("not enough memory")
    h = torch.randn(dim, taps, device="cuda") * taps**-0.5

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        out = hk.long_conv(x.requires_grad_(), h)
        return out.detach(), torch.autograd.grad(out, x, x.detach())[0]

    x = torch.zeros(batch, length, dim, dtype=torch.bfloat16, device="cuda")
    x[-1] = torch.randn(length, dim)
    with backends.use("cuda"):
        for alone, all_rows in zip(both(x[-1:].clone()), both(x), strict=True):
            assert alone.any() and torch.equal(alone[0], all_rows[-1]) and not all_rows[:-1].any()


@with_device
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_another_device_than_the_current_one() -> None:
    case = Case.random("long_conv", (100, 40), taps=101, dtype=torch.float32)
    got = case.run("packed", torch.float32, function=on_device("long_conv", "cuda:1"))
    assert_close(got, case.expected(), TOLERANCE[torch.float32])


@with_device
def test_it_is_what_serves_long_filters() -> None:
    x, h = torch.randn(2, 300, 8, device="cuda"), torch.randn(8, 300, device="cuda")
    out = hk.long_conv(x, h)
    with backends.use("cuda"):
        assert torch.equal(out, hk.long_conv(x, h))
    call = backends.Call("long_conv", "long_conv", (x, h, None, None, None, None, None, False))
    assert backends.implementation(call) is cuda.long_conv
