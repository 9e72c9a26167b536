"""Contract 8: schemas, fakes, autograd, double backward, torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import OPERATORS, Case, Layout
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import hyenarec_kernels as hk
from hyenarec_kernels.nn import CosineFilter, HyenaMixer, ImplicitFilter

LONG = ("long_conv", "legendre_conv")
PADDED, PACKED = "left", "packed"


def arguments(operator: str, layout: str, dtype: torch.dtype, *, last_only: bool = False, taps: int = 5) -> list[Any]:
    """The arguments of ``torch.ops.hyenarec.<operator>``, every tensor that may require a gradient requiring one."""
    case = Case.random(operator, (4, 0, 1, 14), dim=4, groups=2, taps=taps, terms=3, last_only=last_only)
    where = Layout(layout, case.lengths)
    rows = Layout("packed", case.lengths) if layout == PACKED else where

    def leaf(t: Tensor) -> Tensor:
        return t.to(dtype).requires_grad_()

    def gate(name: str) -> Tensor:
        if name == "post_gate" and last_only:
            return leaf(torch.randn(len(case.lengths), case.dim))
        return leaf(rows.place(case.rows[name], dtype, 0.5))

    tensors = [leaf(where.place(case.rows["x"], dtype, 0.5))]
    tensors += [leaf(torch.as_tensor(p)) for p in case.parameters.values()]
    tensors += [gate(name) for name in ("pre_gate", "post_gate") if name in case.rows]
    layout_arguments = where.arguments()
    if layout == PACKED:
        cu = layout_arguments["cu_seqlens"]
        segments = [cu[:-1], cu[1:]]
    else:
        starts = layout_arguments["starts"]
        segments = [starts, starts + layout_arguments["lengths"]]
    options: list[Any] = ["silu"] if operator == "short_conv" else [last_only]
    if operator == "legendre_conv":
        options.insert(0, taps)
    return [*tensors, *segments, *options]


CALLS = [(op, layout, last) for op in OPERATORS for layout in (PADDED, PACKED) for last in (False, True)]
CALLS = [c for c in CALLS if c[0] in LONG or not c[2]]


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
def test_contract_8_opcheck(operator: str, layout: str, last_only: bool, backend: str) -> None:
    opcheck(
        getattr(torch.ops.hyenarec, operator).default, arguments(operator, layout, torch.float32, last_only=last_only)
    )


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
def test_contract_8_opcheck_backward(operator: str, layout: str, last_only: bool, backend: str) -> None:
    args = arguments(operator, layout, torch.float32, last_only=last_only)
    op = getattr(torch.ops.hyenarec, f"{operator}_backward").default
    grad = torch.randn_like(getattr(torch.ops.hyenarec, operator)(*args)).requires_grad_()
    count = sum(isinstance(a, Tensor) and a.requires_grad for a in args)
    for needs in ([True] * count, [i % 2 == 0 for i in range(count)], [i % 2 == 1 for i in range(count)]):
        call = [grad, *args, needs]
        opcheck(op, call, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
        # As a compiled backward graph calls it: torch.compile has no double backward.
        plain = [a.detach() if isinstance(a, Tensor) else a for a in call]
        opcheck(op, plain, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("gated", [False, True])
def test_contract_8_opcheck_step(gated: bool, backend: str) -> None:
    gates = (torch.randn(3, 4), torch.randn(3, 4)) if gated else (None, None)
    call = (torch.randn(3, 4), torch.randn(3, 5, 4), torch.randn(6, 4), torch.tensor([0, 7, 2]), *gates)
    opcheck(torch.ops.hyenarec.conv_step.default, call)


def _differentiable(
    operator: str, layout: str, last_only: bool, taps: int
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    args = arguments(operator, layout, torch.float64, last_only=last_only, taps=taps)
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    rest = args[len(leaves) :]
    return lambda *tensors: getattr(torch.ops.hyenarec, operator)(*tensors, *rest), leaves


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
@pytest.mark.parametrize("taps", [3, 14])  # direct, Fourier
def test_contract_8_gradcheck(operator: str, layout: str, last_only: bool, taps: int, compiled_backend: str) -> None:
    function, leaves = _differentiable(operator, layout, last_only, taps)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)  # the oracle checks every entry


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
@pytest.mark.parametrize("taps", [3, 14])  # direct, Fourier
def test_contract_8_gradgradcheck(
    operator: str, layout: str, last_only: bool, taps: int, compiled_backend: str
) -> None:
    function, leaves = _differentiable(operator, layout, last_only, taps)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_contract_8_double_backward_of_a_tensor_given_twice() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, h: hk.long_conv(x, h, pre_gate=x, post_gate=x), (x, h))


@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_8_only_wanted_gradients(operator: str) -> None:
    """Freezing any argument leaves the other gradients as they are."""
    args = arguments(operator, PADDED, torch.float64)
    op = getattr(torch.ops.hyenarec, operator)
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    out = op(*args)
    grad = torch.randn_like(out)
    want = torch.autograd.grad(out, leaves, grad)
    for frozen in range(len(leaves)):
        some = [a.detach() if i == frozen else a for i, a in enumerate(args[: len(leaves)])]
        kept = [i for i in range(len(leaves)) if i != frozen]
        got = torch.autograd.grad(op(*some, *args[len(leaves) :]), [leaves[i] for i in kept], grad)
        for i, gradient in zip(kept, got, strict=True):
            torch.testing.assert_close(gradient, want[i])


def _layouts(name: str, length: int) -> dict[str, Tensor]:
    lengths = torch.tensor([length, length - 1, 0, 2, 1])
    return {
        "full": {},
        "right": {"lengths": lengths},
        "left": {"lengths": lengths, "starts": length - lengths},
        "mask": {"mask": torch.arange(length) >= length - lengths[:, None]},
        "packed": {"cu_seqlens": torch.tensor([0, 3, 3, length, 5 * length])},
    }[name]


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    torch._dynamo.reset()
    return CompileCounterWithBackend("aot_eager")


@pytest.mark.parametrize("layout", ["full", "right", "left", "packed"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_8_compile_without_recompiling(
    operator: str, layout: str, compiled_backend: str, counter: CompileCounterWithBackend
) -> None:
    """One graph serves 20 lengths, forward and backward."""
    case = Case.random(operator, dim=6, dtype=torch.float32)
    parameters = {n: torch.as_tensor(v).float().requires_grad_() for n, v in case.parameters.items()}

    def call(x: Tensor, **where: Tensor) -> Tensor:
        out: Tensor = getattr(hk, operator)(x.sin(), **parameters, **case.options, **where)
        return out * 2

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    for length in range(11, 31):
        x = torch.randn((5 * length, 6) if layout == "packed" else (5, length, 6), requires_grad=True)
        where = _layouts(layout, length)
        grad = torch.randn_like(x)
        outs = [f(x, **where) for f in (compiled, call)]
        torch.testing.assert_close(*outs)
        gradients = [torch.autograd.grad(out, [x, *parameters.values()], grad) for out in outs]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


@pytest.mark.parametrize("layout", ["full", "right", "mask", "packed"])
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("gate", ["silu", "none"])
def test_contract_8_compile_the_mixer(
    layout: str, last_only: bool, gate: str, counter: CompileCounterWithBackend
) -> None:
    mixer = HyenaMixer(6, 7, order=3, gate=gate, terms=4)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend=counter)
    for length in range(17, 37):
        x = torch.randn((5 * length, 6) if layout == "packed" else (5, length, 6), requires_grad=True)
        where = _layouts(layout, length)
        got, want = (f(x, last_only=last_only, **where) for f in (compiled, mixer))
        torch.testing.assert_close(got, want)
        grad = torch.randn_like(got)
        leaves = [x, *mixer.parameters()]
        torch.testing.assert_close(torch.autograd.grad(got, leaves, grad), torch.autograd.grad(want, leaves, grad))
    assert counter.frame_count == 1


def test_contract_8_inductor() -> None:
    """The whole way once, through code generation, with a filter whose taps are part of the graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    mixer = HyenaMixer(6, 7, filter=CosineFilter)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True)
    for length in (11, 13):
        x = torch.randn(4, length, 6, requires_grad=True)
        got, want = compiled(x), mixer(x)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_contract_8_filters_are_not_spoilt_by_tracing(counter: CompileCounterWithBackend) -> None:
    """A basis first needed while tracing, or in inference mode, serves eager training afterwards."""
    for filter in (hk.nn.LegendreFilter(3, 37), CosineFilter(3, 38), ImplicitFilter(3, 39)):
        traced = torch.compile(filter, fullgraph=True, backend=counter)()
        with torch.inference_mode():
            filter()
        torch.testing.assert_close(traced, filter())
        filter().sum().backward()
        assert all(p.grad is not None for p in filter.parameters())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layout", ["full", "left", "packed"])
def test_contract_8_export(layout: str, strict: bool, backend: str) -> None:
    """A program exported at one batch and length serves others."""
    mixer = HyenaMixer(6, 7).eval()
    auto = torch.export.Dim.AUTO
    x = torch.randn((55, 6) if layout == "packed" else (5, 11, 6))
    where = _layouts(layout, 11)
    dynamic = {"x": {0: auto} if layout == "packed" else {0: auto, 1: auto}} | {name: {0: auto} for name in where}
    program = torch.export.export(mixer, (x,), where, dynamic_shapes=dynamic, strict=strict)
    names = {str(node.target) for node in program.graph.nodes}
    assert {"hyenarec.gated_short_conv.default", "hyenarec.legendre_conv.default"} <= names
    for batch, length in ((5, 11), (3, 29), (4, 8)):
        if layout == "packed":
            x, where = torch.randn(length * batch, 6), {"cu_seqlens": torch.tensor([0, 4, length * batch])}
        else:
            x = torch.randn(batch, length, 6)
            where = {name: value[:batch] for name, value in _layouts(layout, length).items()}
        torch.testing.assert_close(program.module()(x, **where), mixer(x, **where))
