"""Contract 8: torch.compile and torch.export serve every length, and refuse what eager code refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from operator_cases import OPERATORS, Case
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import hyenarec_kernels as hk
from hyenarec_kernels.nn import CosineFilter, HyenaMixer, ImplicitFilter
from hyenarec_kernels.segments import _check, _clamped


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


SEVERAL = (11, 12, 13, 16, 17, 25, 30)  # even, odd, prime, square, one more than a square


@pytest.mark.parametrize("layout", ["full", "right", "left", "packed"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_8_compile_without_recompiling(
    operator: str, layout: str, compiled_backend: str, counter: CompileCounterWithBackend
) -> None:
    """One graph serves all lengths, in forward and backward."""
    case = Case.random(operator, dim=6, dtype=torch.float32)
    parameters = {n: torch.as_tensor(v).float().requires_grad_() for n, v in case.parameters.items()}

    def call(x: Tensor, **where: Tensor) -> Tensor:
        out: Tensor = getattr(hk, operator)(x.sin(), **parameters, **case.options, **where)
        return out * 2

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    for length in SEVERAL:
        x = torch.randn((5 * length, 6) if layout == "packed" else (5, length, 6), requires_grad=True)
        where = _layouts(layout, length)
        grad = torch.randn_like(x)
        outs = [f(x, **where) for f in (compiled, call)]
        torch.testing.assert_close(*outs)
        gradients = [torch.autograd.grad(out, [x, *parameters.values()], grad) for out in outs]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


MIXERS = [("silu", False), ("silu", True), ("none", False)]
# By default each layout once and each mixer once; `make test-all` runs each mixer in each layout.
FIRST_MIXERS = {(*MIXERS[0], layout) for layout in ("full", "right", "mask", "packed")}
FIRST_MIXERS |= {(*MIXERS[1], "packed"), (*MIXERS[2], "right")}


@pytest.mark.parametrize(
    ("gate", "last_only", "layout"),
    [
        pytest.param(*mixer, layout, marks=() if (*mixer, layout) in FIRST_MIXERS else pytest.mark.slow)
        for mixer in MIXERS
        for layout in ("full", "right", "mask", "packed")
    ],
)
def test_contract_8_compile_the_mixer(
    gate: str, last_only: bool, layout: str, counter: CompileCounterWithBackend
) -> None:
    mixer = HyenaMixer(6, 7, order=3, gate=gate, terms=4)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend=counter)
    for length in SEVERAL:
        x = torch.randn((5 * length, 6) if layout == "packed" else (5, length, 6), requires_grad=True)
        where = _layouts(layout, length)
        got, want = (f(x, last_only=last_only, **where) for f in (compiled, mixer))
        torch.testing.assert_close(got, want)
        grad = torch.randn_like(got)
        leaves = [x, *mixer.parameters()]
        torch.testing.assert_close(torch.autograd.grad(got, leaves, grad), torch.autograd.grad(want, leaves, grad))
    assert counter.frame_count == 1


def test_contract_8_inductor() -> None:
    """Inductor compiles a mixer through code generation, with a filter whose taps are computed in the graph."""
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
    """A basis that was first needed while tracing or in inference mode can be used in eager training afterwards."""
    for filter in (hk.nn.LegendreFilter(3, 37), CosineFilter(3, 38), ImplicitFilter(3, 39)):
        traced = torch.compile(filter, fullgraph=True, backend=counter)()
        with torch.inference_mode():
            filter()
        torch.testing.assert_close(traced, filter())
        filter().sum().backward()
        assert all(p.grad is not None for p in filter.parameters())


@cache
def _exported(layout: str, strict: bool) -> tuple[HyenaMixer, torch.nn.Module]:
    """A mixer and its exported program. The program names no backend: it uses the one in force when it runs."""
    mixer = HyenaMixer(6, 7).eval()
    auto = torch.export.Dim.AUTO
    x = torch.randn((55, 6) if layout == "packed" else (5, 11, 6))
    where = _layouts(layout, 11)
    dynamic = {"x": {0: auto} if layout == "packed" else {0: auto, 1: auto}} | {name: {0: auto} for name in where}
    program = torch.export.export(mixer, (x,), where, dynamic_shapes=dynamic, strict=strict)
    names = {str(node.target) for node in program.graph.nodes}
    assert {"hyenarec.gated_short_conv.default", "hyenarec.legendre_conv.default"} <= names
    return mixer, program.module()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layout", ["full", "left", "packed"])
def test_contract_8_export(layout: str, strict: bool, backend: str) -> None:
    """A program that was exported at one batch size and length serves others."""
    mixer, program = _exported(layout, strict)
    for batch, length in ((5, 11), (3, 29), (4, 8)):
        if layout == "packed":
            x, where = torch.randn(length * batch, 6), {"cu_seqlens": torch.tensor([0, 4, length * batch])}
        else:
            x = torch.randn(batch, length, 6)
            where = {name: value[:batch] for name, value in _layouts(layout, length).items()}
        torch.testing.assert_close(program(x, **where), mixer(x, **where))


# By default each layout once and each way to trace once; `make test-all` traces each layout both ways.
@pytest.mark.parametrize(
    ("layout", "strict"),
    [
        ("padded", False),
        ("packed", True),
        pytest.param("padded", True, marks=pytest.mark.slow),
        pytest.param("packed", False, marks=pytest.mark.slow),
    ],
)
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


BAD_LAYOUTS: list[tuple[dict[str, Any], str]] = [
    ({"lengths": [20, 25, 5]}, "row 1 runs from 0 to 25"),
    ({"lengths": [20, -1, 5]}, "row 1 runs from 0 to -1"),
    ({"lengths": [4, 4, 4], "starts": [0, 18, 0]}, "row 1 runs from 18 to 22"),
    ({"lengths": [4, 4, 4], "starts": [0, -2, 0]}, "row 1 runs from -2 to 2"),
    ({"cu_seqlens": [0, 30, 20, 60]}, "must not decrease, but goes from 30 to 20"),
    ({"cu_seqlens": [2, 20, 30, 60]}, "must run from 0 to the 60 rows of x, got 2 to 60"),
    ({"cu_seqlens": [0, 20, 30, 50]}, "must run from 0 to the 60 rows of x, got 0 to 50"),
    ({"cu_seqlens": [0, 20, 30, 70]}, "must run from 0 to the 60 rows of x, got 0 to 70"),
    ({"mask": [[1] * 20, [1] * 5 + [0] + [1] * 14, [1] * 20]}, "row 1 has 2 runs"),
    ({"mask": [[1] * 20, [2] * 20, [1] * 20]}, "must hold 0 and 1 alone, got 2"),
]


class _Call(torch.nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mixer, self.mode = HyenaMixer(8, 5, terms=3), mode

    def forward(self, x: Tensor, where: dict[str, Tensor]) -> Tensor:
        if self.mode == "prefill":
            return self.mixer.prefill(x, **where)[1].projected
        return self.mixer(x, last_only=self.mode == "last_only", **where)


GOOD_LAYOUTS: dict[str, dict[str, Any]] = {
    "lengths": {"lengths": [20, 3, 5]},
    "lengths and starts": {"lengths": [20, 3, 5], "starts": [0, 2, 7]},
    "cu_seqlens": {"cu_seqlens": [0, 20, 30, 60]},
    "mask": {"mask": [[1] * 20] * 3},
}
# By default every layout in the forward call; `make test-all` runs all calls. They find sequences by the same function.
FIRST_REFUSALS = {("last_only", "cu_seqlens")} | {("forward", name) for name in GOOD_LAYOUTS}


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        pytest.param(mode, layout, marks=() if (mode, layout) in FIRST_REFUSALS else pytest.mark.slow)
        for mode in ("forward", "last_only", "prefill")
        for layout in GOOD_LAYOUTS
    ],
)
def test_contract_9_compiled_and_exported_code_refuses_what_eager_refuses(mode: str, layout: str) -> None:
    """Compiled and exported programs, made with a good layout, refuse each bad one, so that none reads another
    sequence's events."""
    auto, call = torch.export.Dim.AUTO, _Call(mode).eval()
    where = {name: torch.tensor(value) for name, value in GOOD_LAYOUTS[layout].items()}
    x = torch.randn(60, 8) if layout == "cu_seqlens" else torch.randn(3, 20, 8)
    bad_layouts = [(bad, message) for bad, message in BAD_LAYOUTS if bad.keys() == where.keys()]
    assert bad_layouts
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    sizes = {0: auto} if x.dim() == 2 else {0: auto, 1: auto}
    dynamic = {n: {0: auto, 1: auto} if t.dim() == 2 else {0: auto} for n, t in where.items()}
    with torch.no_grad():
        exported = torch.export.export(call, (x, where), dynamic_shapes=(sizes, dynamic)).module()
        for function in (compiled, exported):
            torch.testing.assert_close(function(x, where), call(x, where))
        for bad, message in bad_layouts:
            tensors = {name: torch.tensor(value) for name, value in bad.items()}
            for function in (call, compiled, exported):
                with pytest.raises(ValueError, match=f"^HyenaMixer: .*{message}"):
                    function(x, tensors)


def test_segments_on_a_device_are_clamped_to_x() -> None:
    """Clamping brings segments that the check on the CPU would refuse inside x, and leaves right ones as they are."""
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
