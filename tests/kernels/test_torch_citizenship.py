"""Contract 8: schemas, fake tensors, autograd, second derivatives, forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import OPERATORS, Case, Layout
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck

import hyenarec_kernels as hk
from hyenarec_kernels.nn import HyenaMixer

LONG = ("long_conv", "legendre_conv")
PADDED, PACKED = "left", "packed"


def arguments(operator: str, layout: str, dtype: torch.dtype, *, last_only: bool = False, taps: int = 5) -> list[Any]:
    """Arguments of ``torch.ops.hyenarec.<operator>``; every tensor that may require a gradient does."""
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


# By default each operator in each layout, and last positions in one; `make test-all` runs last positions in all
# layouts.
FIRST_BACKWARD = [c for c in CALLS if c[0] not in LONG or c[2] == (c[1] == PACKED)]


@pytest.mark.parametrize(
    ("operator", "layout", "last_only"),
    [pytest.param(*call, marks=() if call in FIRST_BACKWARD else pytest.mark.slow) for call in CALLS],
)
def test_contract_8_opcheck_backward(operator: str, layout: str, last_only: bool, backend: str) -> None:
    args = arguments(operator, layout, torch.float32, last_only=last_only)
    op = getattr(torch.ops.hyenarec, f"{operator}_backward").default
    grad = torch.randn_like(getattr(torch.ops.hyenarec, operator)(*args)).requires_grad_()
    count = sum(isinstance(a, Tensor) and a.requires_grad for a in args)
    for needs in ([True] * count, [i % 2 == 0 for i in range(count)], [i % 2 == 1 for i in range(count)]):
        call = [grad, *args, needs]
        opcheck(op, call, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
        # A compiled backward graph calls it this way: torch.compile has no second derivatives.
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
@pytest.mark.parametrize("taps", [3, 14])  # direct, FFT
def test_contract_8_gradcheck(operator: str, layout: str, last_only: bool, taps: int, compiled_backend: str) -> None:
    function, leaves = _differentiable(operator, layout, last_only, taps)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)  # fast mode, since the oracle checks every entry


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
@pytest.mark.parametrize("taps", [3, 14])  # direct, FFT
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
    """If any argument needs no gradient, the other gradients stay the same."""
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


@pytest.mark.parametrize(("operator", "layout", "last_only"), CALLS)
def test_contract_9_forward_mode_is_not_zero(operator: str, layout: str, last_only: bool) -> None:
    """Forward mode, by jvp and by dual tensors, equals finite differences along a change of every argument at once."""
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
    """grad, jacrev, jacfwd, and vmap of them, of a whole mixer equal autograd."""
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
    with FakeTensorMode():  # also if a real basis was made first
        assert HyenaMixer(6, 43)(torch.randn(2, 9, 6)).shape == (2, 9, 6)


def test_outputs_are_contiguous_where_every_sequence_is_empty() -> None:
    x, none = torch.randn(1, 4, 9).transpose(1, 2), torch.tensor([0])
    assert hk.long_conv(x, torch.randn(4, 3), lengths=none).is_contiguous()
    assert hk.legendre_conv(x, torch.randn(4, 3), horizon=5, lengths=none).is_contiguous()
