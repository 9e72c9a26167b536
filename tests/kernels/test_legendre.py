"""The Legendre basis and filter."""

from __future__ import annotations

import numpy as np
import operator_oracle as oracle
import pytest
import torch

from hyenarec_kernels import legendre_filter
from hyenarec_kernels.legendre import legendre_basis, product

CPU = torch.device("cpu")


@pytest.mark.parametrize(("terms", "horizon"), [(1, 1), (5, 1), (1, 9), (2, 2), (16, 200), (64, 1001)])
def test_basis_matches_numpys_series(terms: int, horizon: int) -> None:
    basis = legendre_basis(terms, horizon, torch.float64, CPU)
    np.testing.assert_allclose(basis, oracle.legendre_basis(terms, horizon), atol=1e-11)
    rounded = legendre_basis(terms, horizon, torch.float32, CPU)
    torch.testing.assert_close(rounded, basis.float(), rtol=0, atol=0)  # rounded only once


def test_basis_is_nearly_orthonormal_over_a_long_horizon() -> None:
    basis = legendre_basis(16, 20_000, torch.float64, CPU)
    torch.testing.assert_close(basis @ basis.T / 20_000, torch.eye(16).double(), rtol=0, atol=2e-2)


def test_basis_is_cached() -> None:
    assert legendre_basis(3, 11, torch.float32, CPU) is legendre_basis(3, 11, torch.float32, CPU)
    assert legendre_basis(3, 11, torch.float32, CPU) is not legendre_basis(3, 12, torch.float32, CPU)


def test_basis_made_in_inference_mode_can_be_trained_with() -> None:
    coefficients = torch.randn(2, 3, requires_grad=True)
    with torch.inference_mode():
        legendre_filter(coefficients, 4321)
    (gradient,) = torch.autograd.grad(legendre_filter(coefficients, 4321).sum(), coefficients)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("horizon", [1, 2, 50])
def test_filter_follows_its_equation(horizon: int) -> None:
    c, a = torch.randn(3, 6, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    want = oracle.legendre_filter(c.numpy(), horizon, a.numpy())
    np.testing.assert_allclose(legendre_filter(c, horizon, a), want, atol=1e-12)
    np.testing.assert_allclose(legendre_filter(c, horizon, a, taps=7), want[:, :7], atol=1e-12)
    bare = c.numpy() @ oracle.legendre_basis(6, horizon)
    np.testing.assert_allclose(legendre_filter(c, horizon), bare, atol=1e-12)


def test_filter_is_differentiable() -> None:
    c = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    a = torch.rand(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, a: legendre_filter(c, 9, a), (c, a))


def test_filter_stays_wide_under_autocast_and_for_half_coefficients() -> None:
    c = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(legendre_filter(c, 33), legendre_filter(c, 33), rtol=0, atol=0)
        assert legendre_filter(c, 33).dtype == torch.float32
    assert legendre_filter(c.bfloat16(), 33).dtype == torch.float32


def test_no_setting_makes_products_less_precise() -> None:
    """Products stay in float32 under autocast and "medium" precision, with which CPUs that have bfloat16 products would
    use them. TF32 is tested on GPUs."""
    a, b = torch.randn(64, 64), torch.randn(64, 512)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = product(a, b)
    finally:
        torch.set_float32_matmul_precision(before)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, (a.double() @ b.double()).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("coefficients", "horizon", "decay", "message"),
    [
        (torch.ones(3), 5, None, "coefficients must be a floating-point"),
        (torch.ones(3, 0), 5, None, "coefficients must be a floating-point"),
        (torch.ones(3, 2).int(), 5, None, "coefficients must be a floating-point"),
        (torch.ones(3, 2), 0, None, "horizon must be at least 1, got 0"),
        (torch.ones(3, 2), 5, torch.ones(2), r"decay must have one entry a group, \(3,\), got \(2,\)"),
        (torch.ones(2, 2), 5, torch.tensor([1.0, -50.0]), "decay must be at least 0, got -50.0"),
    ],
)
def test_filter_refuses(coefficients: torch.Tensor, horizon: int, decay: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"legendre_filter: {message}"):
        legendre_filter(coefficients, horizon, decay)


def test_the_operator_itself_refuses_a_horizon_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"^legendre_conv: horizon must be at least 1, got 0"):
        torch.ops.hyenarec.legendre_conv(torch.ones(1, 3, 2), torch.ones(1, 3), *[None] * 6, 0, False)
