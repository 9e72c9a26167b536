"""What the compiled CPU kernels accept and refuse: layouts, threads, strides, sizes, bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyenarec_kernels import backends
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.backends.cpu import convolutions
from hyenarec_kernels.backends.cpu.plan import block_plan, direct_plan
from hyenarec_kernels.ops.conv_step import conv_step

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("last_only", [False, True])
def test_nothing_to_convolve_is_zero(shape: tuple[int, ...], last_only: bool) -> None:
    """Outputs and all gradients are zero if there are no sequences, or only empty ones, or empty ones among padding."""
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
    flipped = x.transpose(1, 2).contiguous().transpose(1, 2)  # channels are not adjacent: copied
    assert torch.equal(found, cpu.legendre_conv(flipped, *arguments, pre, post, *tail))


@pytest.mark.parametrize("dim", [64, 80])
def test_large_outputs_equal_those_of_their_parts(dim: int) -> None:
    """Outputs above 4 MiB, which are written in another way, equal small ones bit for bit, also in partial blocks."""
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
    """Kernels check bounds themselves, because compiled and exported programs bypass the operators' checks."""
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
    """The step takes inputs of any strides and writes into the ring in place."""
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
