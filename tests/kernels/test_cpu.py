"""The compiled CPU kernels by themselves: every form against the dense float64 definition, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from operator_cases import TOLERANCE as CONTRACT
from torch import Tensor

from hyenarec_kernels import backends, long_conv
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.backends.cpu import convolutions
from hyenarec_kernels.backends.cpu.plan import Plan, block_plan, direct_plan
from hyenarec_kernels.backends.crossovers import CPU_DIRECT
from hyenarec_kernels.lowrank.blocks import sampled_basis
from hyenarec_kernels.ops.conv_step import conv_step

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")

# Of windows an event: none, a long memory, some events. The gradient of a faster one is a few lags', where a polynomial
# may be so near 0 that float32 has no digits of it left, in any form: the last is for float64.
RATES = torch.tensor([0.0, 0.003, 0.03, 0.3, 3.0])
LIMIT = {torch.float32: 5e-6, torch.float64: 1e-10}
NAMES = ("x", "coefficients", "rate", "skip", "pre_gate", "post_gate")


def dense(x: Tensor, taps: Tensor, skip: Tensor, pre: Tensor, post: Tensor, real: Tensor) -> Tensor:
    """The definition, (B, L, D) float64; taps (K, D)."""
    length, horizon = x.shape[1], taps.shape[0]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = torch.where(((lag >= 0) & (lag < horizon))[..., None], taps[lag.clamp(0, horizon - 1)], 0)
    u = torch.where(real, pre * x, 0)
    return torch.where(real, post * (torch.einsum("tsd,bsd->btd", toeplitz, u) + skip * u), 0)


def errors(
    plan: Plan, terms: int, batch: int, length: int, dim: int, dtype: torch.dtype, window: bool
) -> dict[str, float]:
    """Relative error of the output and of every gradient; padding rows hold NaN."""
    terms -= window  # a rate's gradient is that of a filter of one term more
    starts = torch.randint(0, length // 2 + 1, (batch,))
    ends = torch.maximum(starts, torch.randint(length // 2, length + 1, (batch,)))
    starts[0], ends[0] = 0, length
    position = torch.arange(length)
    real = ((position >= starts[:, None]) & (position < ends[:, None]))[..., None]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).double().requires_grad_()

    x, pre, post = (draw(batch, length, dim) for _ in range(3))
    coefficients, skip, grad = draw(dim, terms), draw(dim), torch.randn(batch, length, dim).to(dtype)
    lags = torch.arange(plan.horizon, dtype=torch.float64)
    rates = RATES if dtype == torch.float64 else RATES[:-1]
    rate = rates[torch.randint(len(rates), (dim,))].to(dtype).double().requires_grad_()
    taps = torch.from_numpy(sampled_basis(lags.numpy(), terms, plan.horizon)) @ coefficients.T
    damped = taps * torch.exp(-rate * lags[:, None]) if window else taps
    out = dense(x, damped, skip, pre, post, real)
    inputs = (x, coefficients, rate, skip, pre, post, damped)
    *gradients, dtaps = torch.autograd.grad(out, inputs, grad.double(), materialize_grads=True)
    expected = dict(zip(NAMES, gradients, strict=True)) | {"out": out.detach()}
    # A sum of one number a channel may cancel: its error is measured against its terms.
    scale = {name: float(value.norm()) for name, value in expected.items()}
    scale["rate"] = float((lags[:, None] * damped.detach() * dtaps).norm())
    scale["skip"] = float(torch.where(real, x * pre * post * grad, 0).detach().norm())

    basis = torch.from_numpy(sampled_basis(plan.lags, terms, plan.horizon)).to(dtype).contiguous()
    poison = [torch.where(real, t.detach().to(dtype), torch.nan) for t in (x, pre, post, grad)]
    nx, npre, npost, ngrad = poison
    layout = (skip.detach().to(dtype), npre, npost, starts, ends, plan)
    filter = (basis, rate.detach().to(dtype) if window else None)
    found = {"out": convolutions._conv(nx, coefficients.detach().to(dtype), *layout, *filter)}
    gradients = convolutions._conv_backward(ngrad, nx, coefficients.detach().to(dtype), *layout, [True] * 6, *filter)
    found |= dict(zip(NAMES, gradients, strict=True))
    if not window:
        assert found.pop("rate").numel() == 0
    for name in ("out", "x", "pre_gate", "post_gate"):
        assert not torch.where(real, 0, found[name]).any(), f"{name} has values in its padding"
    return {
        name: float((found[name].double() - value).norm()) / max(scale[name], 1e-30)
        for name, value in expected.items()
        if name in found
    }


def check(plan: Plan, terms: int, batch: int, length: int, dim: int, dtype: torch.dtype) -> None:
    for window in (False, True):
        found = errors(plan, terms, batch, length, dim, dtype, window)
        worst = max(found, key=lambda name: found[name])
        assert found[worst] < LIMIT[dtype], f"{worst}: {found[worst]:.1e}, {window=}, length {length}, {plan}"


@pytest.mark.parametrize("first", range(1, 300, 30))
def test_direct_at_every_length(first: int) -> None:
    for length in range(first, first + 30):
        check(direct_plan(length, length), 4, 2, length, 3, torch.float32)


@pytest.mark.parametrize("first", range(32, 300, 67))
def test_block_at_many_lengths(first: int) -> None:
    for length in range(first, first + 67, 9):
        plan = block_plan(4, length, length, 1e-6)
        assert plan is not None
        check(plan, 4, 2, length, 3, torch.float32)


@pytest.mark.parametrize(("horizon", "length"), [(1, 9), (2, 70), (5, 64), (64, 200), (65, 200), (130, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_direct_with_a_horizon_inside_the_sequence(horizon: int, length: int, dtype: torch.dtype) -> None:
    check(direct_plan(horizon, length), 3, 3, length, 5, dtype)


SEVERAL_LEVELS = [(4, 100, 230), (8, 333, 700), (16, 600, 600), (8, 1000, 1024)]


@pytest.mark.parametrize(("terms", "horizon", "length"), SEVERAL_LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_with_several_levels_and_ends(terms: int, horizon: int, length: int, dtype: torch.dtype) -> None:
    plan = block_plan(terms, horizon, length, {torch.float32: 1e-6, torch.float64: 1e-12}[dtype])
    assert plan is not None
    check(plan, terms, 2, length, 4, dtype)


@pytest.mark.parametrize("dim", [1, 3, 16, 64, 100])
def test_any_number_of_channels(dim: int) -> None:
    check(direct_plan(50, 50), 8, 5, 50, dim, torch.float32)
    plan = block_plan(8, 200, 200, 1e-6)
    assert plan is not None
    check(plan, 8, 3, 200, dim, torch.float32)


@pytest.mark.parametrize("dim", [1, 20, 64])
@pytest.mark.parametrize("batch", [1, 4])
def test_coefficients_of_any_number_of_channels(dim: int, batch: int) -> None:
    """The kernels' own product with a basis, there and back, against samples and their gradient."""
    for plan in (direct_plan(50, 50), block_plan(9, 300, 300, 1e-12)):
        assert plan is not None
        x, grad = (torch.randn(batch, plan.length, dim, dtype=torch.float64) for _ in range(2))
        basis = torch.from_numpy(sampled_basis(plan.lags, 9, plan.horizon)).contiguous()
        coefficients = torch.randn(dim, 9, dtype=torch.float64)
        layout = (None, None, None, None, None, plan)
        assert torch.allclose(
            convolutions._conv(x, coefficients, *layout, basis), convolutions._conv(x, basis @ coefficients.T, *layout)
        )
        needs = [True, True, False, False, False, False]
        dx, dsamples, *_ = convolutions._conv_backward(grad, x, basis @ coefficients.T, *layout, needs)
        found = convolutions._conv_backward(grad, x, coefficients, *layout, needs, basis)
        assert torch.allclose(found[0], dx) and torch.allclose(found[1], dsamples.T @ basis)


def test_random_larger_shapes() -> None:
    generator = np.random.default_rng(0)
    for _ in range(4):
        length = int(generator.integers(300, 1500))
        horizon = int(generator.integers(length // 3, 2 * length))
        plan = block_plan(8, horizon, length, 1e-6)
        assert plan is not None
        check(plan, 8, 1, length, 2, torch.float32)


@pytest.mark.parametrize("fastest", [0.0, 0.01, 0.3, 10.0])
def test_error_stays_under_the_plans_bound(fastest: float) -> None:
    """In float64 rounding plays no part: what is left is what the plan promised, chunk by chunk, under any window."""
    terms, length, dim = 16, 768, 8
    plan = block_plan(terms, length, length, 1e-4)
    assert plan is not None
    x, c = torch.randn(1, length, dim, dtype=torch.float64), torch.randn(dim, terms, dtype=torch.float64)
    exact = direct_plan(length, length)
    rate = fastest * torch.rand(dim, dtype=torch.float64)

    def conv(p: Plan) -> Tensor:
        basis = torch.from_numpy(sampled_basis(p.lags, terms, length)).contiguous()
        return convolutions._conv(x, c, None, None, None, None, None, p, basis, rate)

    found = conv(plan), conv(exact)
    error = (found[0] - found[1])[0].view(-1, plan.chunk, dim).norm(dim=1)  # (chunks, D)
    allowed = plan.bound * length**0.5 * c.norm(dim=1) * x[0].norm(dim=0)
    assert (error <= allowed).all()
    assert error.max() > 1e-9  # the coarse plan does approximate


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("period", [2, 7])
@pytest.mark.parametrize("memory", ["exp(-lag / 300)", "lag exp(-lag / 100)"])
def test_a_faint_period_in_a_smooth_filter_is_heard(memory: str, period: int, dtype: torch.dtype) -> None:
    """Of a part of the filter far below the rest, at the input's own period, as little is lost as of any other."""
    lag = torch.arange(CPU_DIRECT, dtype=torch.float64)
    smooth = torch.exp(-lag / 300) if memory == "exp(-lag / 300)" else lag * torch.exp(-lag / 100)
    beat = torch.cos(2 * torch.pi * lag / period)
    faint = {torch.float64: 1e-12, torch.float32: 4e-7, torch.float16: 2e-5, torch.bfloat16: 1e-4}[dtype]
    taps = (smooth / smooth.norm() + faint * beat / beat.norm()).to(torch.promote_types(dtype, torch.float32))
    x = beat[None, :, None].to(dtype)
    ones, zero = torch.ones(1, len(lag), 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    want = dense(x.double(), taps.double()[:, None], zero, ones, ones, torch.ones(1, len(lag), 1, dtype=torch.bool))
    found = long_conv(x, taps[None])
    assert (found.double() - want).norm() <= CONTRACT[dtype] * want.norm()


@pytest.mark.parametrize("rough", [True, False])
def test_many_taps_go_through_the_fft_unless_forced(rough: bool) -> None:
    taps = CPU_DIRECT + 76
    filter, x = torch.randn(4, taps) if rough else torch.linspace(1, 0, taps).expand(4, taps), torch.randn(2, taps, 4)
    arguments = (filter, torch.randn(4))
    with backends.use("reference"):
        want = long_conv(x, *arguments)
    assert torch.equal(long_conv(x, *arguments), want)
    assert not torch.equal(long_conv(x[:, 76:], *arguments), want[:, 76:])
    with backends.use("cpu"):
        found = long_conv(x, *arguments)
    assert not torch.equal(found, want) and (found - want).norm() < 1e-5 * want.norm()


def test_gradients_of_many_taps() -> None:
    x = torch.randn(1, CPU_DIRECT + 8, 1, dtype=torch.float64, requires_grad=True)
    filter = torch.linspace(1, 0, CPU_DIRECT + 8, dtype=torch.float64)[None].requires_grad_()
    for name in ("cpu", "reference"):
        # one output in 300, or the numbers would fill the time of the suite
        with backends.use(name):
            assert torch.autograd.gradcheck(lambda *t: long_conv(*t)[:, ::300], (x, filter))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("last_only", [False, True])
def test_nothing_to_convolve_is_zero(shape: tuple[int, ...], last_only: bool) -> None:
    """No sequences, empty ones, and empty ones among padding; the gradients of the parameters are zero too."""
    nowhere = torch.zeros(2, dtype=torch.int64)
    starts, ends = (None, nowhere) if shape == (2, 4, 3) else (nowhere, nowhere) if len(shape) == 2 else (None, None)
    x = torch.randn(shape)
    gate = torch.randn(len(nowhere) if len(shape) == 2 else shape[0], 3) if last_only else x
    tail = (torch.randn(3), x, gate, starts, ends)
    for name, call in (
        ("long_conv", (x, torch.randn(3, 7), *tail, last_only)),
        ("legendre_conv", (x, torch.randn(3, 7), torch.rand(3), *tail, 20, last_only)),
    ):
        needs = [True] * (5 + (name == "legendre_conv"))
        out, gradients = getattr(cpu, name)(*call), getattr(cpu, f"{name}_backward")(gate, *call, needs)
        assert out.shape == gate.shape and not out.any()
        shapes = [t.shape for t in call if isinstance(t, Tensor) and t is not nowhere]
        assert [g.shape for g in gradients] == shapes and not any(g.any() for g in gradients)


@pytest.mark.parametrize("horizon", [64, 512])
@pytest.mark.parametrize("batch", [1, 9])
def test_same_bits_for_one_and_two_threads(horizon: int, batch: int) -> None:
    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        x, grad, pre, post = (torch.randn(batch, horizon, 20) for _ in range(4))
        weight, bias = torch.randn(20, 4), torch.randn(20)
        tail = (None, None, horizon, False)
        arguments = (x, torch.randn(20, 8), torch.randn(20), torch.randn(20), pre, post, *tail)
        out = [cpu.legendre_conv(*arguments), *cpu.legendre_conv_backward(grad, *arguments, [True] * 6)]
        bare = (x, torch.randn(20, 8), None, None, None, None, *tail)
        out += [cpu.legendre_conv(*bare), cpu.legendre_conv_backward(grad, *bare, [True] * 6)[1]]
        last = (*arguments[:5], post[:, 0], None, None, horizon, True)
        out += [cpu.legendre_conv(*last), *cpu.legendre_conv_backward(grad[:, 0], *last, [True] * 6)]
        short = (x, weight, bias, None, None, "silu")
        return [*out, cpu.short_conv(*short), *cpu.short_conv_backward(grad, *short, [True] * 3)]

    before = torch.get_num_threads()
    try:
        one, two = run(1), run(2)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        assert a.numel() and torch.equal(a, b)


def test_strided_views_read_in_place() -> None:
    wide = torch.randn(4, 70, 3 * 18)
    x, pre, post = wide.split(18, -1)
    arguments = (torch.randn(18, 4), None, torch.randn(18))
    tail = (None, None, 70, False)
    found = cpu.legendre_conv(x, *arguments, pre, post, *tail)
    packed = [t.contiguous() for t in (x, pre, post)]
    assert torch.equal(found, cpu.legendre_conv(packed[0], *arguments, *packed[1:], *tail))
    flipped = x.transpose(1, 2).contiguous().transpose(1, 2)  # channels not adjacent: copied
    assert torch.equal(found, cpu.legendre_conv(flipped, *arguments, pre, post, *tail))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("activation", ["", "silu"])
def test_short_conv(width: int, activation: str) -> None:
    batch, length, dim = 2, 1100, 21  # longer than the rows a thread takes at once
    x, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((batch, length, dim), (dim, width), (dim,)))
    grad = torch.randn(batch, length, dim, dtype=torch.float64)
    leaves = [t.float().double().requires_grad_() for t in (x, weight, bias)]
    z = torch.nn.functional.conv1d(
        leaves[0].transpose(1, 2), leaves[1].flip(1)[:, None], leaves[2], padding=width - 1, groups=dim
    )[..., :length].transpose(1, 2)
    out = torch.nn.functional.silu(z) if activation else z
    expected = [out.detach(), *torch.autograd.grad(out, leaves, grad.float().double())]
    arguments = (*(t.float() for t in (x, weight, bias)), None, None, activation)
    found = [cpu.short_conv(*arguments), *cpu.short_conv_backward(grad.float(), *arguments, [True] * 3)]
    for f, e in zip(found, expected, strict=True):
        assert float((f.double() - e).norm() / e.norm()) < 2e-6


def test_silu_far_from_zero() -> None:
    x = torch.tensor([-200.0, -90.0, -87.5, -1e-30, 0.0, 1e-30, 87.5, 90.0, 200.0, torch.inf, torch.nan]).view(1, -1, 1)
    found = cpu.short_conv(x, torch.ones(1, 1), None, None, None, "silu")
    expected = torch.nn.functional.silu(x)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-30, equal_nan=True)


def test_silu_is_accurate() -> None:
    x = torch.linspace(-80, 80, 100_001)
    found = cpu.short_conv(x[None, :, None], torch.ones(1, 1), None, None, None, "silu").flatten().double()
    expected = torch.nn.functional.silu(x.double())
    error = ((found - expected) / expected).abs().nan_to_num(0)  # 0 / 0 at 0
    assert error[x.abs() < 5].max() < 5e-7
    assert error.max() < 4e-6  # where exp(-x) is large its exponent's rounding shows


@pytest.mark.parametrize("dim", [64, 80])
def test_large_outputs_equal_those_of_their_parts(dim: int) -> None:
    """Outputs past 4 MiB leave by another way than small ones: bit for bit the same, whole and partial blocks."""
    batch, length = 6, 4001
    plan = block_plan(8, length, length, 1e-5)
    assert plan is not None
    x, pre, post, grad = (torch.randn(batch, length, dim) for _ in range(4))
    assert x.nbytes > 4 << 20 > x[0].nbytes
    samples = torch.randn(len(plan.lags), dim)

    def run(rows: slice) -> tuple[Tensor, ...]:
        arguments = (x[rows], samples, None, pre[rows], post[rows], None, None, plan)
        dx, _, _, _, dpre, dpost = convolutions._conv_backward(
            grad[rows], *arguments, [True, False, False, False, True, True]
        )
        return convolutions._conv(*arguments), dx, dpre, dpost

    parts = [run(slice(i, i + 1)) for i in range(batch)]
    for whole, *pieces in zip(run(slice(None)), *parts, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def packed_bounds(*cu: int) -> tuple[Tensor, Tensor]:
    index = torch.tensor(cu)
    return index[:-1], index[1:]


WRONG_BOUNDS = {
    "length past the row": (
        (2, 200, 3),
        (None, torch.tensor([200, 250])),
        "row 1 runs from 0 to 250, .* 200 positions",
    ),
    "start before the row": ((2, 200, 3), (torch.tensor([0, -3]), torch.tensor([5, 9])), "row 1 runs from -3 to 9"),
    "end before start": ((2, 200, 3), (torch.tensor([9, 0]), torch.tensor([5, 9])), "row 0 runs from 9 to 5"),
    "decreasing": ((200, 3), packed_bounds(0, 100, 50, 200), "sequence 1 runs from 100 to 50"),
    "past the rows": ((200, 3), packed_bounds(0, 100, 300), "sequence 1 runs from 100 to 300, .* 200 rows"),
    "not from 0": ((200, 3), packed_bounds(5, 100, 200), "sequence 0 begins at row 5 and not at 0"),
    "not to the end": ((200, 3), packed_bounds(0, 100, 150), "must run from 0 to the 200 rows of x, got 0 to 150"),
    "none": ((200, 3), packed_bounds(0), "must run from 0 to the 200 rows of x, got 0 to 0"),
    "gap": ((200, 3), (torch.tensor([0, 120]), torch.tensor([100, 200])), "begins at row 120 and not at 100"),
    "one too few": ((2, 200, 3), (None, torch.tensor([7])), "ends: expected 2 values"),
    "int16": (
        (2, 200, 3),
        (None, torch.tensor([7, 7], dtype=torch.int16)),
        "ends: expected 2 values of int32 or int64",
    ),
}


@pytest.mark.parametrize("case", WRONG_BOUNDS)
def test_kernels_refuse_sequences_outside_the_rows(case: str) -> None:
    """Whoever calls them: programs that were compiled or exported come without the operators' own checks."""
    shape, (starts, ends), message = WRONG_BOUNDS[case]
    x, grad, taps, ops = torch.randn(shape), torch.randn(shape), torch.randn(4, 3), torch.ops.hyenarec_cpu
    layout, plan = (None, None, None, starts, ends), direct_plan(4, 200)
    numbers, constants = plan.numbers, plan.constants(torch.float32)
    samples = torch.randn(len(plan.lags), 3)
    calls = (
        lambda: ops.short_conv(x, taps, None, starts, ends, False),
        lambda: ops.short_conv_backward(grad, x, taps, None, starts, ends, False, [True] * 3),
        lambda: ops.conv(x, samples, None, None, *layout, numbers, constants),
        lambda: ops.conv_backward(grad, x, samples, None, None, *layout, numbers, constants, [True] * 6),
        lambda: ops.conv_last(x, taps, None, None, *layout),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_kernels_refuse_gates_of_another_shape() -> None:
    x, plan = torch.randn(2, 200, 3), direct_plan(4, 200)
    rest = (None, None, plan.numbers, plan.constants(torch.float32))
    for wrong in (x[:1], x[:, :-1], x.double()):
        with pytest.raises(RuntimeError, match="pre_gate: expected"):
            torch.ops.hyenarec_cpu.conv(x, torch.randn(len(plan.lags), 3), None, None, None, wrong, None, *rest)


def test_a_step_takes_any_strides() -> None:
    """And writes to the ring where it lies."""
    x, taps, ring = torch.randn(2, 7), torch.randn(7, 5).T, torch.randn(2, 7, 4).transpose(1, 2)
    for steps in (torch.arange(4)[::2], torch.tensor([-1, -6])):
        rings = {name: ring.clone(memory_format=torch.preserve_format) for name in ("cpu", "reference")}
        assert not rings["cpu"].is_contiguous()
        outs = {}
        for name, given in rings.items():
            with backends.use(name):
                outs[name] = conv_step(x, given, taps, steps)
        assert torch.allclose(outs["cpu"], outs["reference"], atol=1e-5)
        assert torch.equal(rings["cpu"], rings["reference"]) and not torch.equal(rings["cpu"], ring)
    assert conv_step(x[:0], ring[:0], taps, steps[:0]).shape == (0, 7)
