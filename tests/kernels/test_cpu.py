"""The compiled CPU convolution by itself: every form equals the dense float64 definition, on every instruction set."""

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

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")


# Decay rates per event: no window, long memories, a memory of a few events. The last is for float64 only: the gradient
# of so fast a window comes from a few lags, where a polynomial may be so near 0 that float32 keeps no digits of it in
# any form.
RATES = torch.tensor([0.0, 0.003, 0.03, 0.3, 3.0])
LIMIT = {torch.float32: 5e-6, torch.float64: 1e-10}
NAMES = ("x", "coefficients", "rate", "skip", "pre_gate", "post_gate")


def dense(x: Tensor, taps: Tensor, skip: Tensor, pre: Tensor, post: Tensor, real: Tensor) -> Tensor:
    """The definition in float64, (B, L, D); ``taps`` is (K, D)."""
    length, horizon = x.shape[1], taps.shape[0]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = torch.where(((lag >= 0) & (lag < horizon))[..., None], taps[lag.clamp(0, horizon - 1)], 0)
    u = torch.where(real, pre * x, 0)
    return torch.where(real, post * (torch.einsum("tsd,bsd->btd", toeplitz, u) + skip * u), 0)


def errors(
    plan: Plan, terms: int, batch: int, length: int, dim: int, dtype: torch.dtype, window: bool
) -> dict[str, float]:
    """Relative errors of the output and of every gradient; padding rows hold NaN."""
    terms -= window  # the gradient of a rate needs a filter with one term more
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
    # The rate's gradient is one sum per channel, which may cancel: its error is measured against the norm of its terms.
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
    """The kernels' own product with a basis equals multiplying by the basis outside, in forward and backward."""
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
    """In float64, where rounding plays no part, each chunk's error is within the plan's bound under any window."""
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
    assert error.max() > 1e-9  # the plan is coarse enough to have an error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("period", [2, 7])
@pytest.mark.parametrize("memory", ["exp(-lag / 300)", "lag exp(-lag / 100)"])
def test_a_faint_period_in_a_smooth_filter_is_heard(memory: str, period: int, dtype: torch.dtype) -> None:
    """If the filter has a faint periodic part far below its smooth part, an input of the same period gets the right
    answer, within the contract."""
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
        # only one output in 300, because checking all would take too long
        with backends.use(name):
            assert torch.autograd.gradcheck(lambda *t: long_conv(*t)[:, ::300], (x, filter))
