"""Explicit filters that are polynomials of the lag: the fit that tells, and the fitted filter at any lags.

Polynomials orthonormal on the taps themselves (those of Gram) make the fit two products with a fixed matrix, and its
error what is left of the taps. Filters of one call are taken together: one that is rough makes the call rough.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hyenarec_kernels.lowrank.blocks import Array, sampled_basis

TERMS = (16, 32, 64)
# A polynomial of the lag is one on the first taps alone: what no polynomial fits there is rough, at little cost. Random
# taps add 0.1 to 0.2 ms to FFTs of 16 to 30 ms; a fit to all taps takes 0.3 to 3.4 ms and the blocks about 2 ms (64
# filters of 1,024 to 16,384 taps, 32,768 rows, two cores).
HEAD = 256


def fits(filter: Tensor, allowed: Tensor) -> Iterator[Tensor]:
    """Coefficients in the Gram polynomials, fewest first, that leave at most ``allowed`` of every filter.

    Args:
        filter: (G, K) float32 or float64, K >= 256.
        allowed: (G,) the largest 2-norm of what is left of a filter's taps.

    Yields:
        (G, N) for each N of ``TERMS`` that fits; nothing for rough filters and those with NaN or Inf.
    """
    head = filter[:, :HEAD]
    if not _within(_project(head, gram_polynomials(head.shape[1], filter.dtype))[1], allowed):
        return
    basis = gram_polynomials(filter.shape[1], filter.dtype)
    found, left = filter[:, :0], filter
    for terms in TERMS:
        more, left = _project(left, basis[:, found.shape[1] : terms])
        found = torch.cat([found, more], 1)
        if _within(left, allowed):
            yield found


@lru_cache(maxsize=64)
def condition(horizon: int, terms: int) -> float:
    """The norm of Legendre coefficients times ``sqrt(horizon)`` over that of the Gram coefficients, at most."""
    return float(np.linalg.norm(_to_legendre(horizon)[:terms, :terms], 2) * horizon**0.5)


def gram_at(lags: Array, terms: int, horizon: int) -> Array:
    """The Gram polynomials of ``horizon`` taps at any lags, (lags, terms)."""
    values: Array = sampled_basis(lags, terms, horizon) @ _to_legendre(horizon)[:terms, :terms]
    return values


@lru_cache(maxsize=16)
def gram_polynomials(horizon: int, dtype: torch.dtype) -> Tensor:
    """Polynomials of degree < 64 that are orthonormal on the lags 0 .. K-1, rounded once from float64: (K, 64)."""
    lags = np.arange(horizon, dtype=np.float64)
    with torch.inference_mode(False):
        return torch.from_numpy(gram_at(lags, TERMS[-1], horizon)).to(dtype)


@lru_cache(maxsize=16)
def _to_legendre(horizon: int) -> Array:
    """Gram to Legendre coefficients, (64, 64): upper triangular, so that its leading part serves fewer terms."""
    basis = sampled_basis(np.arange(horizon, dtype=np.float64), TERMS[-1], horizon)
    inverse: Array = np.linalg.inv(np.linalg.qr(basis)[1])
    return inverse


def _project(filter: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients in an orthonormal basis, and what is left.

    Twice: float32 sums over the taps leave 5e-7 of a filter that is in the basis, and 1e-7 to 2e-7 the second time.
    """
    first = filter @ basis
    left = torch.addmm(filter, first, basis.T, alpha=-1)
    second = left @ basis
    return first + second, torch.addmm(left, second, basis.T, alpha=-1)


def _within(left: Tensor, allowed: Tensor) -> bool:
    return bool((left.norm(dim=1) <= allowed).all())
