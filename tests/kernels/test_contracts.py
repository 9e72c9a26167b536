"""The operators' contracts, on every backend of this machine. Streaming and the parts about torch have their own
files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from operator_cases import LAYOUTS, OPERATORS, RAGGED, TOLERANCE, Case, assert_close, errors
from operator_checks import check_causality, check_gradients, check_padding
from torch import Tensor

import hyenarec_kernels as hk

pytestmark = pytest.mark.usefixtures("backend")
LONG = ("long_conv", "legendre_conv")


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("taps", [1, 4, 40])
def test_contract_1_causality(operator: str, taps: int, backend: str) -> None:
    exact = operator == "short_conv" or (backend == "reference" and taps <= 4)  # direct; others round as FFTs do
    check_causality(operator, taps, 0 if exact else 1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("taps", [3, 9, 30])
def test_contract_2_padding(operator: str, layout: str, taps: int) -> None:
    check_padding(operator, layout, taps=taps)


@pytest.mark.parametrize("operator", LONG)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_contract_2_padding_last_only(operator: str, layout: str) -> None:
    check_padding(operator, layout, last_only=True)


@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_3_prefix_consistency(operator: str) -> None:
    whole = Case.random(operator, [29], taps=12)
    outputs, _ = whole.run("full")
    for n in (1, 2, 11, 28):
        rows = {name: [r[:n] for r in rows] for name, rows in whole.rows.items()}
        prefix = Case(operator, [n], rows, whole.parameters, whole.options, whole.dim)
        got, _ = prefix.run("full")
        np.testing.assert_allclose(got[0], outputs[0][:n], atol=1e-12)


@pytest.mark.parametrize("operator", LONG)
@pytest.mark.parametrize("taps", [1, 5, 13, 64])
def test_contract_5_last_position_only(operator: str, taps: int) -> None:
    case = Case.random(operator, (71, 1, 12), dim=36, taps=taps, last_only=True)
    for strided in (False, True):
        assert_close(case.run("packed", strided=strided), case.expected(), TOLERANCE[torch.float64])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("layout", ["left", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameter_dtype", [None, torch.float32])
def test_contract_6_dtypes(operator: str, layout: str, dtype: torch.dtype, parameter_dtype: torch.dtype | None) -> None:
    case = Case.random(operator, (37, 1, 0, 24, 5), taps=20, dtype=dtype)
    got = errors(case.run(layout, dtype, parameter_dtype=parameter_dtype), case.expected())
    eager = errors(case.run(layout, dtype, function=EAGER[operator]), case.expected())
    for name, e in got.items():
        assert e <= TOLERANCE[dtype], f"{name}: {e}"
        # `eager` may be exact where few terms are summed; half a unit in the last place is then allowed.
        assert e <= 2 * eager[name] + torch.finfo(dtype).eps / 2, f"{name}: {e}, eager {eager[name]}"


@pytest.mark.parametrize("operator", LONG)
def test_contract_6_dtypes_last_only(operator: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        case = Case.random(operator, (37, 1, 0, 24, 5), taps=20, dtype=dtype, last_only=True)
        assert_close(case.run("packed", dtype), case.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_6_autocast(operator: str) -> None:
    case = Case.random(operator, dtype=torch.bfloat16)

    def under_autocast(**arguments: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = getattr(hk, operator)(**arguments)
        assert out.dtype == torch.bfloat16
        return out.float()

    got = case.run("right", torch.float32, function=under_autocast)  # run() asserts float32 gradients of float32 inputs
    assert_close(got, case.expected(), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 17, 31, 97, 128])
def test_contract_7_any_length(operator: str, length: int) -> None:
    for taps in (4, 23):
        check_gradients(operator, taps, (length, length))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("dim", "groups"), [(1, 1), (5, 1), (5, 5), (6, 2)])
def test_contract_7_any_width(operator: str, dim: int, groups: int) -> None:
    check_padding(operator, "right", dim=dim, groups=groups)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_contract_7_strided_inputs(operator: str, layout: str) -> None:
    case = Case.random(operator, (9, 9) if layout == "full" else RAGGED)
    assert_close(case.run(layout, strided=True), case.expected(), TOLERANCE[torch.float64])


@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_7_empty_batch(operator: str) -> None:
    parameters = {n: torch.as_tensor(v).requires_grad_() for n, v in Case.random(operator).parameters.items()}
    options = Case.random(operator).options
    for shape, layout in (
        ((0, 7, 6), {}),
        ((0, 7, 6), {"lengths": torch.zeros(0, dtype=torch.int64)}),
        ((3, 0, 6), {}),
        ((0, 6), {"cu_seqlens": torch.zeros(1, dtype=torch.int32)}),
        ((0, 6), {"cu_seqlens": torch.zeros(4, dtype=torch.int32)}),
    ):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        for last in (False, True) if operator in LONG else (False,):
            extra = {"last_only": True} if last else {}
            out = getattr(hk, operator)(x, **parameters, **options, **layout, **extra)
            sequences = len(layout["cu_seqlens"]) - 1 if "cu_seqlens" in layout else shape[0]
            assert out.shape == ((sequences, 6) if last else shape)
            assert not out.any()
            gradients = torch.autograd.grad(out.sum(), [x, *parameters.values()])
            assert gradients[0].shape == shape and not any(g.any() for g in gradients)


@pytest.mark.parametrize("operator", OPERATORS)
def test_contract_7_index_dtypes(operator: str) -> None:
    case = Case.random(operator)
    for layout in ("left", "packed"):
        assert_close(case.run(layout, index_dtype=torch.int32), case.expected(), TOLERANCE[torch.float64])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("layout", ["right", "packed"])
def test_contract_8_deterministic(operator: str, layout: str) -> None:
    case = Case.random(operator, (37, 1, 0, 24, 5), taps=20)
    outputs, gradients = case.run(layout, torch.float32)
    for _ in range(3):
        again, gradients_again = case.run(layout, torch.float32)
        assert errors((again, gradients_again), (outputs, gradients)) == dict.fromkeys(["output", *gradients], 0.0)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("layout", ["right", "packed"])
@pytest.mark.parametrize("taps", [3, 20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_contract_9_nan_stays_in_its_channel_and_sequence(operator: str, layout: str, taps: int, bad: float) -> None:
    case = Case.random(operator, (11, 12, 10), taps=taps)
    case.rows["x"][1][5, 2] = bad
    outputs, gradients = case.run(layout)
    for rows in (outputs, gradients["x"]):
        for s, values in enumerate(rows):
            clean = np.delete(values, 2, axis=1) if s == 1 else values
            assert np.isfinite(clean).all()
    assert not np.isfinite(outputs[1][5, 2])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("taps", [3, 9, 40])
def test_gradients(operator: str, taps: int) -> None:
    check_gradients(operator, taps)


@pytest.mark.parametrize("operator", LONG)
def test_absent_arguments_are_identities(operator: str) -> None:
    """An absent skip acts as a skip of 0, an absent gate as a gate of 1, and an absent decay as a window of 1."""
    case = Case.random(operator, (8, 8))
    x = torch.as_tensor(np.stack(case.rows["x"]))
    parameters = {n: torch.as_tensor(v) for n, v in case.parameters.items()}
    del parameters["skip"]
    call = getattr(hk, operator)
    ones = torch.ones_like(x)
    bare = call(x, **parameters, **case.options)
    full = call(x, **parameters, **case.options, skip=torch.zeros(6).double(), pre_gate=ones, post_gate=ones)
    torch.testing.assert_close(bare, full)
    if operator == "legendre_conv":
        del parameters["decay"]
        gone = torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(
            call(x, **parameters, **case.options), call(x, **parameters, **case.options, decay=gone)
        )


# ---- the same-dtype eager path of contract 6: plain PyTorch that rounds each operation to the inputs' dtype ---------


def _by_sequence(function, x, gates, lengths=None, starts=None, cu_seqlens=None):  # type: ignore[no-untyped-def]
    if cu_seqlens is not None:
        spans = list(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True))
        return torch.cat([function(x[a:b], *(g[a:b] for g in gates)) for a, b in spans if a < b])
    out = torch.zeros_like(x)
    for b, (a, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if n == 0:
            continue
        rows = slice(a, a + n)
        out[b, rows] = function(x[b, rows], *(g[b, rows] for g in gates))
    return out


def _eager_long(x, filter, skip, pre_gate, post_gate, **layout):  # type: ignore[no-untyped-def]
    h = filter.repeat_interleave(x.shape[-1] // len(filter), 0)

    def one(x, pre, post):  # type: ignore[no-untyped-def]
        u, n = pre * x, len(x)
        size = n + h.shape[1]
        spectrum = torch.fft.rfft(u.float(), size, dim=0) * torch.fft.rfft(h.float(), size).T
        return post * (torch.fft.irfft(spectrum, size, dim=0)[:n].to(x.dtype) + skip * u)

    return _by_sequence(one, x, (pre_gate, post_gate), **layout)


def _eager_legendre(x, coefficients, decay, skip, horizon, **rest):  # type: ignore[no-untyped-def]
    basis = hk.legendre_filter(torch.eye(coefficients.shape[1]), horizon).to(x.dtype)
    window = torch.exp(-decay[:, None] * (torch.arange(horizon) / horizon).to(x.dtype))
    return _eager_long(x, coefficients @ basis * window, skip, **rest)


def _eager_short(x, weight, bias, activation, **layout):  # type: ignore[no-untyped-def]
    def one(x):  # type: ignore[no-untyped-def]
        z = bias.to(x.dtype).expand_as(x)
        for lag in range(min(len(x), weight.shape[1])):
            z = z + weight[:, lag].to(x.dtype) * torch.nn.functional.pad(x, (0, 0, lag, 0))[: len(x)]
        return torch.nn.functional.silu(z)

    return _by_sequence(one, x, (), **layout)


EAGER = {"short_conv": _eager_short, "long_conv": _eager_long, "legendre_conv": _eager_legendre}
