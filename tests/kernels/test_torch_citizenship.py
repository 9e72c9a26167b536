"""Contract 8: schemas, fakes, autograd, double backward, torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import OPERATORS, Case, Layout
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck

import hyenarec_kernels as hk
from hyenarec_kernels.nn import CosineFilter, HyenaMixer, ImplicitFilter
from hyenarec_kernels.segments import _check, _clamped

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
@pytest.mark.parametrize(("gate", "last_only"), [("silu", False), ("silu", True), ("none", False)])
def test_contract_8_compile_the_mixer(
    layout: str, gate: str, last_only: bool, counter: CompileCounterWithBackend
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


BAD_LAYOUTS = [
    ("padded", {"lengths": [20, 25, 5]}, "row 1 runs from 0 to 25"),
    ("padded", {"lengths": [20, -1, 5]}, "row 1 runs from 0 to -1"),
    ("padded", {"lengths": [4, 4, 4], "starts": [0, 18, 0]}, "row 1 runs from 18 to 22"),
    ("padded", {"lengths": [4, 4, 4], "starts": [0, -2, 0]}, "row 1 runs from -2 to 2"),
    ("packed", {"cu_seqlens": [0, 30, 20, 60]}, "must not decrease, but goes from 30 to 20"),
    ("packed", {"cu_seqlens": [2, 20, 30, 60]}, "must run from 0 to the 60 rows of x, got 2 to 60"),
    ("packed", {"cu_seqlens": [0, 20, 30, 50]}, "must run from 0 to the 60 rows of x, got 0 to 50"),
    ("packed", {"cu_seqlens": [0, 20, 30, 70]}, "must run from 0 to the 60 rows of x, got 0 to 70"),
    ("padded", {"mask": [[1] * 20, [1] * 5 + [0] + [1] * 14, [1] * 20]}, "row 1 has 2 runs"),
    ("padded", {"mask": [[1] * 20, [2] * 20, [1] * 20]}, "must hold 0 and 1 alone, got 2"),
]


class _Call(torch.nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mixer, self.mode = HyenaMixer(8, 5, terms=3), mode

    def forward(self, x: Tensor, where: dict[str, Tensor]) -> Tensor:
        if self.mode == "prefill":
            return self.mixer.prefill(x, **where)[1].projected
        return self.mixer(x, last_only=self.mode == "last_only", **where)


@pytest.mark.parametrize("mode", ["forward", "last_only", "prefill"])
def test_contract_9_compiled_and_exported_code_refuses_what_eager_refuses(mode: str) -> None:
    """No program reads another sequence's events: one graph each of the good layouts, called with the bad ones."""
    auto = torch.export.Dim.AUTO
    xs = {"padded": torch.randn(3, 20, 8), "packed": torch.randn(60, 8)}
    good: dict[tuple[str, ...], dict[str, Tensor]] = {
        ("lengths",): {"lengths": torch.tensor([20, 3, 5])},
        ("lengths", "starts"): {"lengths": torch.tensor([20, 3, 5]), "starts": torch.tensor([0, 2, 7])},
        ("cu_seqlens",): {"cu_seqlens": torch.tensor([0, 20, 30, 60])},
        ("mask",): {"mask": torch.ones(3, 20, dtype=torch.int64)},
    }
    call = _Call(mode).eval()
    for names, where in good.items():
        if mode == "prefill" and len(names) == 2:
            continue  # 4 s, for what forward shows
        x = xs["packed" if "cu_seqlens" in names else "padded"]
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        sizes = {0: auto} if x.dim() == 2 else {0: auto, 1: auto}
        dynamic = {n: {0: auto, 1: auto} if t.dim() == 2 else {0: auto} for n, t in where.items()}
        with torch.no_grad():
            exported = torch.export.export(call, (x, where), dynamic_shapes=(sizes, dynamic)).module()
            for function in (compiled, exported):
                torch.testing.assert_close(function(x, where), call(x, where))
            for _, bad, message in (b for b in BAD_LAYOUTS if tuple(b[1]) == names):
                tensors = {name: torch.tensor(value) for name, value in bad.items()}
                for function in (call, compiled, exported):
                    with pytest.raises(ValueError, match=f"^HyenaMixer: .*{message}"):
                        function(x, tensors)


def test_segments_on_a_device_are_clamped_to_x() -> None:
    """What the check on the CPU refuses lies within x after clamping; what is right stays as it is."""
    for starts, ends, packed in (
        ([0, 18, -2], [25, 22, 2], False),
        ([5, 9, 0], [3, -4, 0], False),
        ([0, 30, 20], [30, 20, 60], True),
        ([2, 20, 30], [20, 30, 70], True),
    ):
        rows = 60 if packed else 20
        first, last = _clamped(torch.tensor(starts), torch.tensor(ends), rows, packed)
        assert first is not None
        _check("clamped", first, last, rows, packed)
    for starts, ends, packed in (([0, 18, 3], [20, 20, 3], False), ([0, 30, 30], [30, 30, 60], True)):
        kept = _clamped(torch.tensor(starts), torch.tensor(ends), 60 if packed else 20, packed)
        assert [t.tolist() for t in kept if t is not None] == [starts, ends]


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("strict", [False, True])
def test_contract_8_export_last_only_serves_any_history(layout: str, strict: bool) -> None:
    mixer, auto = HyenaMixer(8, 40).eval(), torch.export.Dim.AUTO
    options: dict[str, Any] = {"last_only": True}
    if layout == "packed":
        x, where = torch.randn(30, 8), {"cu_seqlens": torch.tensor([0, 10, 30])}
        dynamic: dict[str, Any] = {"x": {0: auto}, "cu_seqlens": {0: auto}, "last_only": None}
    else:
        x, where = torch.randn(3, 17, 8), {"lengths": torch.tensor([17, 0, 4])}
        dynamic = {"x": {0: auto, 1: auto}, "lengths": {0: auto}, "last_only": None}
    program = torch.export.export(mixer, (x,), {**where, **options}, dynamic_shapes=dynamic, strict=strict).module()
    for lengths in ([7, 5], [50, 3, 0, 20], [300, 200], [1, 0], [1, 1, 1]):
        n = torch.tensor(lengths)
        if layout == "packed":
            x, where = torch.randn(sum(lengths), 8), {"cu_seqlens": torch.nn.functional.pad(n.cumsum(0), (1, 0))}
        else:
            x, where = torch.randn(len(lengths), max(lengths), 8), {"lengths": n}
        torch.testing.assert_close(program(x, **where, **options), mixer(x, **where, **options))


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
def test_contract_9_forward_mode_is_not_zero(operator: str, layout: str, last_only: bool) -> None:
    """Against finite differences, by dual tensors, of every argument at once."""
    function, leaves = _differentiable(operator, layout, last_only, 5)
    primals, tangents = tuple(t.detach() for t in leaves), tuple(torch.randn_like(t) for t in leaves)
    step = 1e-6
    ahead, behind = (function(*(p + s * t for p, t in zip(primals, tangents, strict=True))) for s in (step, -step))
    want = (ahead - behind) / (2 * step)
    assert want.norm() > 0.1
    torch.testing.assert_close(torch.func.jvp(function, primals, tangents)[1], want, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        dual = function(*(forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [9, 0, 4]])
def test_torch_func_agrees_with_autograd(lengths: list[int] | None) -> None:
    """grad, jacrev, jacfwd and vmap of them, of a whole mixer."""
    mixer = HyenaMixer(4, 6, order=3, terms=3).double()
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    where = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    parameters = {name: p.detach() for name, p in mixer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, where: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(mixer, parameters, (x,), where)
        return out.square().sum()

    want = torch.autograd.grad(mixer(x, **where).square().sum(), list(mixer.parameters()))
    got = torch.func.grad(loss)(parameters, x, where)
    torch.testing.assert_close(list(got.values()), list(want))
    if lengths is None:
        each = torch.func.vmap(torch.func.grad(lambda p, row: loss(p, row[None], {})), (None, 0))(parameters, x)
        torch.testing.assert_close([g.sum(0) for g in each.values()], list(want))
    torch.testing.assert_close(
        torch.func.vmap(lambda v: mixer(v, **where))(torch.stack([x, -x]))[1], mixer(-x, **where)
    )
    jacobians = [f(lambda v: mixer(v, **where).sum(0))(x) for f in (torch.func.jacrev, torch.func.jacfwd)]
    torch.testing.assert_close(*jacobians)
    assert jacobians[0].norm() > 0.1


def test_contract_9_vmap_over_lengths_is_refused() -> None:
    x, lengths = torch.randn(2, 3, 9, 4), torch.tensor([[9, 0, 4], [1, 2, 3]])
    with pytest.raises((NotImplementedError, ValueError), match="vmap over lengths"):
        torch.func.vmap(lambda x, n: hk.long_conv(x, torch.ones(4, 3), lengths=n))(x, lengths)


def test_contract_9_step_refuses_to_be_differentiated() -> None:
    call = (torch.randn(2, 6, requires_grad=True), torch.zeros(2, 4, 6), torch.randn(5, 6), torch.zeros(2).long())
    with pytest.raises(NotImplementedError, match=r"^conv_step: it has no gradients .* torch\.no_grad"):
        hk.conv_step(*call)
    with torch.no_grad():
        assert hk.conv_step(*call).shape == (2, 6)


def test_a_basis_made_under_fake_tensors_serves_nobody_else() -> None:
    with FakeTensorMode():
        fake = HyenaMixer(6, 43)
        assert fake(torch.randn(2, 9, 6)).shape == (2, 9, 6)
    real = HyenaMixer(6, 43)
    assert type(real.filters[0]()) is Tensor
    real(torch.randn(2, 9, 6)).sum().backward()
    with FakeTensorMode():  # the other way round
        assert HyenaMixer(6, 43)(torch.randn(2, 9, 6)).shape == (2, 9, 6)


def test_outputs_are_contiguous_where_every_sequence_is_empty() -> None:
    x, none = torch.randn(1, 4, 9).transpose(1, 2), torch.tensor([0])
    assert hk.long_conv(x, torch.randn(4, 3), lengths=none).is_contiguous()
    assert hk.legendre_conv(x, torch.randn(4, 3), horizon=5, lengths=none).is_contiguous()
