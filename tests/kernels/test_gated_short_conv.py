"""The short convolution that also multiplies by the first gate equals the oracle, and serves within the mixer."""

from __future__ import annotations

from itertools import product

import numpy as np
import operator_oracle as oracle
import pytest
import torch
from operator_cases import LAYOUTS, TOLERANCE, Answer, Layout, assert_close, stride
from torch import Tensor
from torch.library import opcheck

from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.ops.gated_short_conv import gated_short_conv

LENGTHS = (37, 0, 1, 5)


def answers(
    layout: str, dtype: torch.dtype, blocks: int, taps: int, *, dim: int = 3, strided: bool = False
) -> tuple[Answer, Answer]:
    """The operator's and the oracle's answers: outputs (u beside q) and gradients."""
    rng = np.random.default_rng(0)
    lengths = (37, 37) if layout == "full" else LENGTHS
    where, channels = Layout(layout, lengths), blocks * dim

    def draw(*shape: int) -> np.ndarray:
        return torch.as_tensor(rng.standard_normal(shape)).to(dtype).double().numpy()

    rows, grads = ([draw(n, size) for n in lengths] for size in (channels, channels - dim))
    weight, bias = draw(channels, taps), draw(channels)
    want_out, want_dx, dweight, dbias = [], [], 0.0, 0.0
    for x, grad in zip(rows, grads, strict=True):
        z = oracle.short_conv(x, weight, bias, silu=False)
        first, middle, last = np.split(z, [dim, channels - dim], 1)
        want_out.append(np.concatenate([first * last, middle], 1))
        du, dq = np.split(grad, [dim], 1)
        dz = np.concatenate([du * last, dq, du * first], 1)
        gradients = oracle.short_conv_gradients(dz, x, weight, bias, silu=False)
        want_dx.append(gradients["x"])
        dweight, dbias = dweight + gradients["weight"], dbias + gradients["bias"]
    want = want_out, {"x": want_dx, "weight": dweight, "bias": dbias}

    def tensor(values: list[np.ndarray]) -> Tensor:
        placed = where.place(values, dtype, float("nan"))
        return stride(placed) if strided else placed

    leaves = [tensor(rows), torch.as_tensor(weight).to(dtype), torch.as_tensor(bias).to(dtype)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    u, q = gated_short_conv(*leaves, dim, **where.arguments())
    assert u.is_contiguous() and q.is_contiguous() and u.dtype == q.dtype == dtype
    du, dq = tensor(grads).split([dim, channels - 2 * dim], -1) if blocks > 2 else (tensor(grads), q.detach())
    dx, dw, db = torch.autograd.grad([u, q], leaves, [du, dq])
    out = where.take(torch.cat([u, q], -1))
    return (out, {"x": where.take(dx), "weight": dw.double().numpy(), "bias": db.double().numpy()}), want


def quick(backend: str, layout: str, dtype: torch.dtype) -> bool:
    """Selects cases for the interpreter, which takes 1 s each: every layout once and every dtype once."""
    return backend != "triton" or dtype == torch.float64 or layout == "packed"


ORACLES = [
    pytest.param(*case, marks=() if quick(*case) else pytest.mark.slow)
    for case in product(backends.available("cpu"), LAYOUTS, (torch.float64, torch.float32, torch.float16))
]


@pytest.mark.parametrize(("backend", "layout", "dtype"), ORACLES, indirect=["backend"])
def test_oracle(backend: str, layout: str, dtype: torch.dtype) -> None:
    assert_close(*answers(layout, dtype, 3, 3, strided=layout == "left"), TOLERANCE[dtype])


@pytest.mark.parametrize(("blocks", "taps", "dim"), [(2, 1, 1), (2, 3, 17), (4, 4, 5), (6, 9, 2)])
def test_any_order_width_and_dim(blocks: int, taps: int, dim: int, backend: str) -> None:
    assert_close(*answers("packed", torch.float64, blocks, taps, dim=dim), TOLERANCE[torch.float64])


def test_the_oracle_notices_a_gate_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = backends.BACKENDS["reference"].load()
    right = module.gated_short_conv
    monkeypatch.setattr(module, "gated_short_conv", lambda *call: (right(*call)[0] * 0 + 1, right(*call)[1]))
    with backends.use("reference"), pytest.raises(AssertionError, match="norm-wise errors"):
        assert_close(*answers("packed", torch.float64, 3, 3), TOLERANCE[torch.float64])


@pytest.mark.parametrize("layout", ["left", "packed"])
def test_contract_8(layout: str, backend: str) -> None:
    """The operator passes torch's checks of schema, fake tensors and autograd, and has second derivatives. Leaving out
    one gradient does not change the others."""
    shape = (11, 6) if layout == "packed" else (2, 8, 6)
    starts, ends = torch.tensor([0, 3]), torch.tensor([3, 11] if layout == "packed" else [8, 7])
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (6, 2), (6,))]
    operator = torch.ops.hyenarec.gated_short_conv.default
    opcheck(operator, [*tensors, starts, ends, 2])
    if backend == "reference":
        assert torch.autograd.gradcheck(lambda *t: operator(*t, starts, ends, 2), tensors)
        assert torch.autograd.gradgradcheck(lambda *t: operator(*t, starts, ends, 2), tensors)
    grads = [torch.randn(*shape[:-1], 2, dtype=torch.float64) for _ in range(2)]
    backward = torch.ops.hyenarec.gated_short_conv_backward.default
    call = [*grads, *(t.detach() for t in tensors), starts, ends, 2]
    whole = backward(*call, [True] * 3)
    for missing in range(3):
        needs = [i != missing for i in range(3)]
        opcheck(backward, [*call, needs], test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))
        for got, want, need in zip(backward(*call, needs), whole, needs, strict=True):
            torch.testing.assert_close(got, want if need else torch.empty(0, dtype=torch.float64))


def test_same_bits_every_time(backend: str) -> None:
    first, again = (answers("packed", torch.float32, 3, 3)[0] for _ in range(2))
    for name in first[1]:
        for a, b in zip(first[1][name], again[1][name], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "weight", "bias", "dim", "message"),
    [
        ((1, 4, 6), (6, 3), (6,), 4, "channels of x must be a multiple of dim, 2 or more, got 6 and 4"),
        ((1, 4, 6), (6, 3), (6,), 6, "channels of x must be a multiple of dim, 2 or more, got 6 and 6"),
        ((1, 4, 6), (5, 3), (6,), 2, r"weight must have shape \(6, 3\), got \(5, 3\)"),
        ((1, 4, 6), (6,), (6,), 2, r"weight must be \(C, W\) with W >= 1"),
        ((1, 4, 6), (6, 3), (5,), 2, r"bias must have shape \(6,\), got \(5,\)"),
        ((4, 6), (6, 3), (6,), 2, "needs cu_seqlens"),
    ],
)
def test_contract_9_refuses_what_does_not_fit(
    shape: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...], dim: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^gated_short_conv: .*{message}"):
        gated_short_conv(torch.randn(shape), torch.randn(weight), torch.randn(bias), dim)


@pytest.mark.parametrize("layout", ["full", "left", "packed"])
@pytest.mark.parametrize(("order", "gate"), [(1, "silu"), (2, "identity"), (3, "sigmoid")])
def test_mixer_gives_what_the_reference_gives(layout: str, order: int, gate: str, backend: str) -> None:
    """The mixer's outputs, gradients, last positions and state after a prefill equal the reference's."""
    mixer = HyenaMixer(4, 9, order=order, gate=gate, terms=3).double()
    torch.nn.init.normal_(mixer.short_bias)
    lengths = (12, 12) if layout == "full" else (12, 0, 1, 4)
    where = Layout(layout, lengths)
    x = where.place([np.random.default_rng(n).standard_normal((n, 4)) for n in lengths], torch.float64, float("nan"))
    x.requires_grad_()

    def answer() -> list[Tensor]:
        y, state = mixer.prefill(x, **where.arguments())
        last = mixer(x, last_only=True, **where.arguments())
        leaves = [x, *(p for p in mixer.parameters() if p.numel())]
        gradients = torch.autograd.grad((y * y.cos()).sum() + last.square().sum(), leaves)
        return [y, last, state.projected, state.gated, *gradients]

    with backends.use("reference"):
        want = answer()
    torch.testing.assert_close(answer(), want)
