"""The Triton backend on a GPU: the operator suite's cases, and what only a GPU can show."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from operator_cases import LAYOUTS, OPERATORS, TOLERANCE, Case, assert_close, on_device
from operator_checks import check_step
from torch import Tensor

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or backends.BACKENDS["triton"].probe() is not None,
    reason="no CUDA device that the triton backend runs on",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with backends.use("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("taps", [3, 40, 101])
def test_oracle(operator: str, layout: str, dtype: torch.dtype, taps: int) -> None:
    lengths = (140, 140) if layout == "full" else (100, 0, 1, 140, 70)
    case = Case.random(operator, lengths, taps=taps, dtype=dtype)
    got = case.run(layout, dtype, function=on_device(operator), strided=layout == "left")
    assert_close(got, case.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_levels(dtype: torch.dtype) -> None:
    case = Case.random("legendre_conv", (1100, 3, 300), dim=4, groups=2, taps=1024, terms=16, dtype=dtype)
    got = case.run("packed", dtype, function=on_device("legendre_conv"))
    assert_close(got, case.expected(), TOLERANCE[dtype])


def test_ten_thousand_sequences() -> None:
    lengths = torch.randint(0, 60, (10_000,))
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).cuda()
    x, c = torch.randn(int(bounds[-1]), 16, device="cuda"), torch.randn(16, 4, device="cuda")
    out = hk.legendre_conv(x, c, horizon=100, cu_seqlens=bounds)
    for s in (0, 17, 4321, 9999):
        rows = slice(int(bounds[s]), int(bounds[s + 1]))
        if lengths[s]:
            alone = hk.legendre_conv(x[None, rows], c, horizon=100)[0]
            assert (out[rows] - alone).norm() <= 2 * TOLERANCE[torch.float32] * alone.norm()


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_past_two_to_the_31(layout: str) -> None:
    """Tensors of more than 2^31 values are right: packed ones take one launch, and padded ones go in runs of sequences,
    each of which counts from its own first row."""
    length, dim = 65_536, 64
    batch = (1 << 31) // (length * dim) + 1
    if torch.cuda.mem_get_info()[0] < 5 * batch * length * dim * 2:
        pytest.skip("not enough memory")
    x = torch.zeros(batch, length, dim, dtype=torch.bfloat16, device="cuda")
    x[-1] = torch.randn(length, dim)
    c = torch.randn(dim, 8, device="cuda") * length**-0.5

    def run(x: Tensor) -> Tensor:
        if layout == "full":
            return hk.legendre_conv(x, c, horizon=length - 64)
        bounds = torch.arange(0, len(x) * length + 1, length, device="cuda")
        return hk.legendre_conv(x.flatten(0, 1), c, horizon=length - 64, cu_seqlens=bounds).view_as(x)

    with torch.no_grad():
        out = run(x)
        torch.testing.assert_close(out[-1:], run(x[-1:].clone()))
    assert not out[:-1].any()


def test_cuda_graph() -> None:
    mixer = HyenaMixer(32, 300, terms=8).cuda()
    x = torch.randn(900, 32, device="cuda", requires_grad=True)
    bounds = torch.tensor([0, 5, 5, 900], device="cuda")
    step = lambda: torch.autograd.grad(mixer(x, cu_seqlens=bounds).square().sum(), [x, *mixer.parameters()])  # noqa: E731
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for cut in (300, 899):  # other lengths, the same graph
        bounds.copy_(torch.tensor([0, 0, cut, 900]))
        graph.replay()
        torch.testing.assert_close(captured, step())


def test_nothing_waits_for_the_device() -> None:
    mixer = HyenaMixer(32, 300, terms=8).cuda()
    x, bounds = torch.randn(900, 32, device="cuda", requires_grad=True), torch.tensor([0, 5, 5, 900], device="cuda")
    mask = torch.ones(3, 300, dtype=torch.bool, device="cuda")

    def everything() -> None:
        for last_only in (False, True):
            mixer(x, cu_seqlens=bounds, last_only=last_only).square().sum().backward()
            mixer(x.view(3, 300, 32), mask=mask, last_only=last_only).square().sum().backward()
        _, state = mixer.prefill(x, cu_seqlens=bounds)
        mixer.step(x[:3].detach(), state)

    everything()  # makes plans and constants, which happens once
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["left", "packed"])
def test_mixer_against_the_reference(layout: str, dtype: torch.dtype) -> None:
    """A mixer, whose short convolution, split and gate are one kernel, gives what the reference gives."""
    mixer = HyenaMixer(48, 200, terms=8).to("cuda", dtype)
    x = torch.randn(3, 250, 48, device="cuda", dtype=dtype, requires_grad=True)
    lengths = torch.tensor([250, 0, 77], device="cuda")
    where = {"lengths": lengths, "starts": 250 - lengths}
    if layout == "packed":
        where = {"cu_seqlens": torch.tensor([0, 250, 250, 750], device="cuda")}

    def answer(mixer: HyenaMixer, x: Tensor) -> list[Tensor]:
        out = mixer(x.flatten(0, 1) if layout == "packed" else x, **where)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *mixer.parameters()])]

    got = answer(mixer, x)
    with backends.use("reference"):
        want = answer(deepcopy(mixer).double(), x.detach().double().requires_grad_())
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 3 * TOLERANCE[dtype] * b.norm()  # three operators, two projections


def test_step_equals_the_forward_pass() -> None:
    check_step(70, 100, 3, torch.float32, device="cuda")


def compiled_kernels() -> int:
    """The number of the package's kernels that Triton has compiled in this process."""
    from triton.runtime.jit import JITFunction

    from hyenarec_kernels.backends.triton.kernels import chunks, moments, slots

    functions = [f for module in (chunks, moments, slots) for f in vars(module).values()]
    caches = [cache for f in functions if isinstance(f, JITFunction) for cache in f.device_caches.values()]
    return sum(len(cache[0]) for cache in caches)


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_no_length_compiles_anything_new(layout: str) -> None:
    c = torch.randn(32, 8, device="cuda", requires_grad=True)

    def run(length: int) -> None:
        x = torch.randn(3, length, 32, device="cuda", requires_grad=True)
        if layout == "full":
            out = hk.legendre_conv(x, c, horizon=512)
        else:
            bounds = torch.tensor([0, 7, length, 3 * length], device="cuda")
            out = hk.legendre_conv(x.flatten(0, 1), c, horizon=2048, cu_seqlens=bounds)
        torch.autograd.grad(out.sum(), (x, c))

    for length in (500, 129):  # uses all levels that the lengths below can reach
        run(length)
    before = compiled_kernels()
    for length in (300, 257, 256, 255, 130):
        run(length)
    assert compiled_kernels() == before > 0


def test_same_bits_every_time() -> None:
    x, pre = (torch.randn(4, 3000, 48, device="cuda", requires_grad=True) for _ in range(2))
    c = torch.randn(48, 16, device="cuda", requires_grad=True)
    runs = [
        torch.autograd.grad(hk.legendre_conv(x, c, horizon=2048, pre_gate=pre).square().sum(), [x, pre, c])
        for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_autocast_and_another_stream() -> None:
    x, c = torch.randn(2, 300, 32, device="cuda"), torch.randn(32, 8, device="cuda")
    want = hk.legendre_conv(x.bfloat16(), c, horizon=300)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autocast("cuda", torch.bfloat16):
        got = hk.legendre_conv(x, c, horizon=300)
    stream.synchronize()
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_no_setting_makes_float32_less_precise(backend: str) -> None:
    """`torch.set_float32_matmul_precision` does not affect results: tables and taps are never rounded to TF32."""
    long = Case.random("legendre_conv", (600, 3, 70), taps=520, terms=16, dtype=torch.float32)
    short = Case.random("legendre_conv", (100, 40), taps=50, terms=16, dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with backends.use(backend):
            found = [case.run("packed", torch.float32, function=on_device("legendre_conv")) for case in (long, short)]
    finally:
        torch.set_float32_matmul_precision(before)
    for case, got in zip((long, short), found, strict=True):
        assert_close(got, case.expected(), TOLERANCE[torch.float32])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_another_device_than_the_current_one() -> None:
    case = Case.random("legendre_conv", (100, 40), taps=101, dtype=torch.float32)
    got = case.run("packed", torch.float32, function=on_device("legendre_conv", "cuda:1"))
    assert_close(got, case.expected(), TOLERANCE[torch.float32])


def test_fullgraph_compile() -> None:
    torch._dynamo.reset()
    mixer = HyenaMixer(32, 200, terms=8).cuda()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True)
    for length in (300, 211):
        x = torch.randn(2, length, 32, device="cuda", requires_grad=True)
        got, want = (torch.autograd.grad(f(x).square().sum(), x)[0].cpu() for f in (compiled, mixer))
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)
