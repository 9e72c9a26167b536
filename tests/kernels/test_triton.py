"""The Triton kernels by themselves: every part equals the oracle or the dense definition.

Without a GPU they run in Triton's interpreter (conftest.py), also in float64, which shows errors that rounding would
hide.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import LAYOUTS, TOLERANCE, Answer, Case, assert_close
from operator_checks import check_step
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.lowrank.blocks import sampled_basis
from hyenarec_kernels.lowrank.levels import block_map, transfer
from hyenarec_kernels.nn import HyenaMixer
from tests.interpreter import python

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu.ahead_of_time import launches
from hyenarec_kernels.backends.triton import launching, operators, plan, tables
from hyenarec_kernels.backends.triton import legendre_conv as block
from hyenarec_kernels.backends.triton.arithmetic import Arithmetic
from hyenarec_kernels.backends.triton.rows import ChunkedRows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these run in the interpreter, where there is no GPU")
ROOT = Path(__file__).parents[2]
DTYPES = (torch.float64, torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with backends.use("triton"):
        yield


@contextmanager
def launches_run() -> Iterator[set[str]]:
    """Collects the names of the kernels that are launched inside."""
    names: set[str] = set()
    run = launching.run

    def noted(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        names.add(kernel.fn.__name__)
        run(kernel, grid, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "run", noted)
        yield names


def assert_oracle(case: Case, got: Answer, dtype: torch.dtype) -> None:
    assert_close(got, case.expected(), TOLERANCE[dtype])


# By default every dtype with packed rows, and strided rows with starts and lengths; `make test-all` runs every dtype in
# every layout. test_triton_scratch.py and tests below cover other combinations with fewer rows.
FIRST = {("middle", torch.float64)} | {("packed", dtype) for dtype in DTYPES}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        pytest.param(layout, dtype, marks=() if (layout, dtype) in FIRST else pytest.mark.slow)
        for layout in LAYOUTS
        for dtype in DTYPES
    ],
)
def test_chunks_and_one_level(layout: str, dtype: torch.dtype) -> None:
    """Results are right for whole and partial chunks, with and without the filter's end in a sequence, and for
    sequences of length 0 and 1."""
    lengths = (90, 90) if layout == "full" else (64, 0, 1, 90)
    case = Case.random("legendre_conv", lengths, dim=3, taps=66, dtype=dtype)
    assert len(plan.plan_for(case.parameters["coefficients"].shape[1], 66, True, True, dtype).levels) == 1
    assert_oracle(case, case.run(layout, dtype, strided=layout == "middle", index_dtype=torch.int32), dtype)


@pytest.mark.parametrize(  # 4 s each
    ("taps", "dtype"),
    [
        (520, torch.float64),
        pytest.param(520, torch.float16, marks=pytest.mark.slow),
        pytest.param(512, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_several_levels(taps: int, dtype: torch.dtype) -> None:
    case = Case.random("legendre_conv", (600, 3, 70), dim=2, groups=1, taps=taps, terms=6, dtype=dtype)
    assert len(plan.plan_for(6, taps, True, True, torch.float32).levels) > 1
    assert_oracle(case, case.run("packed", dtype), dtype)


@pytest.mark.parametrize("windowed", [False, True])
def test_sequences_within_the_horizon(windowed: bool) -> None:
    """Levels that no sequence of the batch reaches do not run; all gradients are right without them."""
    x, post, grad = (torch.randn(2, 90, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    c, skip, decay = (torch.rand(s, dtype=torch.float64, requires_grad=True) for s in ((3, 6), (3,), (3,)))

    def answer() -> list[Tensor]:
        out = hk.legendre_conv(x, c, skip, horizon=700, decay=decay if windowed else None, post_gate=post)
        return [out, *torch.autograd.grad(out, (x, c, skip, post, *([decay] if windowed else [])), grad)]

    got = answer()
    with backends.use("reference"):
        torch.testing.assert_close(got, answer(), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_decays_too_fast_to_be_divided_out(dtype: torch.dtype) -> None:
    """Channels on both sides of the limit, down to a filter of one tap, are right, without overflow or lost digits."""
    horizon, limit = 70, plan.fastest(dtype)
    rate = limit * horizon * torch.tensor([0.01, 0.9, 0.999, 1.001, 1.3, 3.0, 40.0], dtype=torch.float64)
    case = Case.random("legendre_conv", (100,), dim=7, groups=7, taps=horizon, dtype=dtype)
    case.parameters["decay"] = rate.to(dtype).double().numpy()
    (out,), gradients = case.run("packed", dtype)
    (want,), wanted = case.expected()
    tolerance = {torch.float64: 1e-10, torch.float32: TOLERANCE[torch.float32]}[dtype]
    for got, expected in [(out, want), (gradients["x"][0], wanted["x"][0])]:
        assert (np.linalg.norm(got - expected, axis=0) <= tolerance * np.linalg.norm(expected, axis=0)).all()
    error = np.linalg.norm(gradients["coefficients"] - wanted["coefficients"], axis=1)
    assert (error <= tolerance * np.linalg.norm(wanted["coefficients"], axis=1)).all()
    assert np.abs(gradients["decay"] - wanted["decay"]).max() <= tolerance * np.abs(wanted["decay"]).max()


@pytest.mark.parametrize(
    ("layout", "lengths", "taps", "dim", "groups", "dtype"),
    [
        ("full", (110, 110), 97, 32, 2, torch.float64),
        ("middle", (100, 0, 1, 40), 66, 16, 1, torch.float32),
        ("left", (60, 40), 34, 16, 1, torch.float16),
        ("packed", (3, 70, 0, 33), 33, 48, 1, torch.float64),
    ],
)
def test_groups_of_channels(
    layout: str, lengths: tuple[int, ...], taps: int, dim: int, groups: int, dtype: torch.dtype
) -> None:
    """Toeplitz products are right if taps end at a block's border or one later, and blocks precede a sequence."""
    case = Case.random("long_conv", lengths, dim=dim, groups=groups, taps=taps, dtype=dtype)
    with launches_run() as names:
        got = case.run(layout, dtype, strided=layout == "middle")
    toeplitz = {"long_conv_toeplitz_kernel", "long_conv_toeplitz_gradient_kernel"}
    assert toeplitz <= names and not names & {"long_conv_direct_kernel", "long_conv_tap_gradient_kernel"}
    assert_oracle(case, got, dtype)


@pytest.mark.parametrize(("dim", "last_only"), [(16, False), (2, True)])
def test_only_wanted_gradients(dim: int, last_only: bool) -> None:
    """Each gradient of Toeplitz products and of last positions is the same alone as among all."""
    x, pre = torch.randn(2, 2, 40, dim).unbind()
    post = torch.randn(2, dim) if last_only else torch.randn(2, 40, dim)
    call = (post.sin(), x, torch.randn(1, 34), torch.randn(dim), pre, post, None, None, last_only)
    whole = operators.long_conv_backward(*call, [True] * 5)
    for wanted in range(5):
        alone = operators.long_conv_backward(*call, [i == wanted for i in range(5)])
        assert [t.numel() > 0 for t in alone] == [i == wanted for i in range(5)]
        assert torch.equal(alone[wanted], whole[wanted])


def test_many_short_sequences() -> None:
    lengths = torch.randint(0, 4, (18,)).tolist()
    for operator, taps in (("legendre_conv", 70), ("long_conv", 3), ("short_conv", 3)):
        case = Case.random(operator, lengths, dim=3, dtype=torch.float32, taps=taps)
        assert_oracle(case, case.run("packed", torch.float32), torch.float32)


@pytest.mark.parametrize("dim", [1, pytest.param(17, marks=pytest.mark.slow), 70])  # fewer than a tile, and two tiles
def test_any_number_of_channels(dim: int) -> None:
    case = Case.random("legendre_conv", (70, 40), dim=dim, groups=1, taps=66, dtype=torch.float32)
    assert_oracle(case, case.run("right", torch.float32), torch.float32)


@pytest.mark.parametrize(("terms", "horizon"), [(16, 256), (8, 500), (40, 300)])
def test_error_stays_under_the_plans_bound(terms: int, horizon: int) -> None:
    """In float64, where rounding plays no part, a coarse plan's error is within its bound, with windows and without."""
    coarse = plan.plan_for(terms, horizon, True, False, torch.bfloat16)
    x = torch.randn(1, horizon, 4, dtype=torch.float64)
    c, decay = torch.randn(4, terms, dtype=torch.float64), torch.tensor([0.0, 0.7, 3.0, 20.0], dtype=torch.float64)
    assert coarse is not None
    found = block.BlockLowRank.of(coarse, x, c, decay, None, ChunkedRows.of(x, None, None)).forward(x, None, None)
    with backends.use("reference"):
        error = (found - hk.legendre_conv(x, c, horizon=horizon, decay=decay))[0]
    for rows in error.split(plan.CHUNK):
        assert (rows.norm(dim=0) <= coarse.bound * horizon**0.5 * c.norm(dim=1) * x[0].norm(dim=0)).all()
    assert error.abs().max() > 1e-9  # the plan is coarse enough to have an error
    assert 0 < coarse.bound < 1e-3


def test_later_input_changes_nothing_before_it() -> None:
    x, c = torch.randn(1, 150, 3), torch.randn(3, 5)
    changed = torch.cat([x[:, :77], torch.randn(1, 73, 3)], 1)
    for horizon in (20, 100, 150):
        before, after = (hk.legendre_conv(t, c, horizon=horizon)[0, :77] for t in (x, changed))
        assert torch.equal(before, after)


def test_same_bits_every_time() -> None:
    case = Case.random("legendre_conv", (64, 0, 1, 90), taps=66, dtype=torch.float32)
    (out, gradients), (again, gradients_again) = (case.run("packed", torch.float32) for _ in range(2))
    for a, b in [*zip(out, again, strict=True), *((gradients[n], gradients_again[n]) for n in gradients)]:
        np.testing.assert_equal(a, b)


@pytest.mark.parametrize(  # 3 s each
    "broken", ["transfer", *(pytest.param(part, marks=pytest.mark.slow) for part in ("edge", "window", "table"))]
)
def test_the_oracle_notices_what_is_broken(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random("legendre_conv", (530,), dim=2, groups=2, taps=512, terms=6, dtype=torch.float32)
    tables.constants.cache_clear()
    if broken == "transfer":
        monkeypatch.setattr(tables, "transfer", lambda below, above: 0 * transfer(below, above))
    elif broken == "edge":
        monkeypatch.setattr(plan.GpuPlan, "has_edge", lambda self, length: False)
    elif broken == "window":
        monkeypatch.setattr(block, "fastest", lambda dtype: 0.0)
    else:
        monkeypatch.setattr(tables, "block_map", lambda level: block_map(level)[::-1])
    try:
        with pytest.raises(AssertionError, match="norm-wise errors"):
            assert_oracle(case, case.run("packed", torch.float32), torch.float32)
    finally:
        tables.constants.cache_clear()


class Called(TorchDispatchMode):
    """Records the torch operations run inside, with their keyword arguments, and the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(f"{func} {kwargs}")
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "mv", "dot"):
            self.products |= {t.dtype for t in args if isinstance(t, Tensor)}
        return func(*args, **(kwargs or {}))


def test_no_length_is_read_on_the_host() -> None:
    """The host does the same whatever the lengths, as CUDA graphs and the cache of kernels need."""

    def host_side(bounds: Tensor) -> tuple[list[str], list[str]]:
        x, h, skip, last = torch.zeros(300, 4), torch.zeros(4, 5), torch.zeros(4), torch.zeros(2, 4)
        where = (bounds[:-1], bounds[1:])
        with launches() as found, Called() as called:
            for last_only in (False, True):
                post = last if last_only else x
                legendre = (x, h, skip, None, x, post, *where, 200, last_only)
                operators.legendre_conv(*legendre)
                operators.legendre_conv_backward(post, *legendre, [True] * 6)
                explicit = (x, h, skip, x, post, *where, last_only)
                operators.long_conv(*explicit)
                operators.long_conv_backward(post, *explicit, [True] * 5)
            short = (x, h, skip, *where, "silu")
            operators.short_conv(*short)
            operators.short_conv_backward(x, *short, [True] * 3)
            projected = (x, h, skip, *where, 2)
            operators.gated_short_conv_backward(*operators.gated_short_conv(*projected), *projected, [True] * 3)
            operators.conv_step(last, torch.zeros(2, 4, 4), torch.zeros(5, 4), bounds[1:], None, last)
        shapes = lambda value: value.shape if isinstance(value, Tensor) else value  # noqa: E731
        return [f"{kernel.fn.__name__} {tree_map(shapes, arguments)}" for kernel, arguments in found], called.names

    host_side(torch.tensor([0, 300, 300]))  # makes plans and constants, which happens once
    one, other = (host_side(torch.tensor(bounds)) for bounds in ([0, 300, 300], [0, 7, 300]))
    assert one == other and one[0]
    assert not any("_local_scalar_dense" in name or ("_to_copy" in name and "device" in name) for name in one[1])


@pytest.mark.parametrize("windowed", [False, True])
def test_no_setting_reaches_the_tables(windowed: bool) -> None:
    """All products outside the kernels are float64: `torch.set_float32_matmul_precision` may round float32 ones."""
    x, c, skip = torch.zeros(2, 90, 4), torch.zeros(4, 5), torch.zeros(4)
    for horizon, last_only in ((80, False), (20, False), (80, True)):
        call = (x, c, skip if windowed else None, skip, x, None, None, None, horizon, last_only)
        grad = x[:, 0] if last_only else x
        with launches(), Called() as called:
            operators.legendre_conv(*call)
            operators.legendre_conv_backward(grad, *call, [True] * 6)
        assert called.products == {torch.float64}


@pytest.mark.parametrize(  # 2 s each; test_ptx_triton tests float32
    "dtype", [pytest.param(dtype, marks=pytest.mark.slow if dtype == torch.float32 else ()) for dtype in DTYPES]
)
def test_step(dtype: torch.dtype) -> None:
    """The step is right with rings of several chunks at different places, and channels that do not fill a tile."""
    check_step(17, 40, 2, dtype)
    check_step(3, 1, 1, dtype, gated=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", ["legendre_conv", "long_conv"])
def test_last_position(operator: str, dtype: torch.dtype) -> None:
    """The last position is right with more taps than a chunk and fewer than a sequence, with sequences of length 0 and
    1, and with more than one program."""
    case = Case.random(operator, (100, 0, 1, 40), dim=5, groups=1, taps=70, dtype=dtype, last_only=True)
    assert_oracle(case, case.run("middle", dtype, strided=True), dtype)


@pytest.mark.parametrize("layout", [pytest.param("full", marks=pytest.mark.slow), "packed"])  # 6 s each
def test_one_graph_serves_several_lengths(layout: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    mixer = HyenaMixer(4, 70, terms=4, dtype=torch.float64)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend=counter)
    for length in (71, 20):  # above the horizon and below
        shape = (2 * length, 4) if layout == "packed" else (2, length, 4)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        where = {"cu_seqlens": torch.tensor([0, 3, 2 * length])} if layout == "packed" else {}
        leaves = [x, *mixer.parameters()]
        got, want = (torch.autograd.grad(f(x, **where).square().sum(), leaves) for f in (compiled, mixer))
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


def test_second_derivatives() -> None:
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    run = lambda x, c: hk.legendre_conv(x, c, horizon=4, pre_gate=x)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, (x, c), fast_mode=True)


def test_what_the_kernels_do_not_take_goes_to_the_reference() -> None:
    x, h = torch.randn(1, 9, 2).bfloat16(), torch.randn(2, 4).bfloat16()  # bfloat16 is wrong in the interpreter
    with backends.use("reference"):
        want = hk.long_conv(x, h)
    assert torch.equal(hk.long_conv(x, h), want)


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    arguments = program.split(" ", 1) if program.startswith("-c ") else program.split()
    return python(*arguments, cwd=ROOT, env=inherited | environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_says_what_would_help() -> None:
    done = run("-c from hyenarec_kernels.backends.triton import probe; print(probe())")
    assert done.stdout.strip() == "no NVIDIA GPU (TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly)"
    done = run("-c from hyenarec_kernels.backends.triton import probe; print(probe())", TRITON_INTERPRET="1")
    assert done.stdout.strip() == "None"


def test_no_length_compiles_anything_new() -> None:
    """The key under which Triton caches a compiled kernel is the same whatever the lengths of a packed batch."""
    done = run("""-c import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from hyenarec_kernels.backends.triton import operators
from benchmarks.gpu.ahead_of_time import launches

target = make_backend(GPUTarget("cuda", 90, 32))
def kinds(*bounds):
    x, c = torch.empty(bounds[-1], 32), torch.empty(32, 8)
    cu_seqlens = torch.tensor(bounds)
    call = (x, c, None, None, None, x, cu_seqlens[:-1], cu_seqlens[1:], 2048, False)
    with launches() as found:
        operators.legendre_conv(*call)
        operators.legendre_conv_backward(x, *call, [True] * 6)
    return {
        (kernel.__name__, str(create_function_from_signature(kernel.signature, kernel.params, target)(**arguments)[1:]))
        for kernel, arguments in found
    }
first = kinds(0, 7, 1500)
print(len(first), all(kinds(*more) == first for more in [(0, 1501), (0, 5, 5, 9, 1400), (0, 1, 2, 3, 4, 5, 1499)]))
""")
    assert done.stdout.split()[1:] == ["True"] and int(done.stdout.split()[0]) > 5, done.stderr


def test_sampled_basis_is_what_the_tables_hold() -> None:
    """The tables' first rows, for the first taps, are the sampled basis itself."""
    chosen = plan.plan_for(5, 100, False, False, torch.float64)
    held = tables.constants(chosen, Arithmetic(torch.float64), torch.device("cpu"))
    want = sampled_basis(np.arange(32, dtype=np.float64), 5, 100)
    np.testing.assert_allclose(held.rows[:32].numpy(), want)
