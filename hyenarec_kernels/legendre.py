"""The Legendre filter: polynomial basis, exponential window, and the taps they span.

    h[g, tau] = w_g(tau) * sum_{n<N} c[g, n] * sqrt(2n+1) * P_n(2*tau/(K-1) - 1),    0 <= tau < K
    w_g(tau)  = exp(-a_g * tau / K)

``sqrt(2n+1) P_n`` has mean square 1 over [-1, 1], so a coefficient vector of norm ``1/sqrt(K)`` gives taps of norm
about 1. ``a_g`` >= 0 is the window's rate in units of 1/K: over the horizon the window falls by a factor ``exp(a_g)``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.integers import integer
from hyenarec_kernels.sharding import beside
from hyenarec_kernels.tracing import concrete, plain, readable, unwrapped


def legendre_basis(terms: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``sqrt(2n+1) P_n`` on the grid ``2*tau/(K-1) - 1``; ``K == 1`` is the single point -1.

    Returns (terms, horizon) in ``dtype``, rounded once from float64. The result is cached and shared: do not write to
    it.
    """
    if not plain():  # a cache entry made while tracing would hold a fake tensor, and one used there would be real
        return _basis(terms, horizon, dtype, device)
    return _cached_basis(terms, horizon, dtype, device)


@lru_cache(maxsize=64)
def _cached_basis(terms: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward
        return _basis(terms, horizon, dtype, device)


def _basis(terms: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    lags = torch.arange(horizon, dtype=torch.float64, device="cpu")  # whatever device is the default
    return legendre_at(lags, terms, horizon).to(dtype).to(device)  # in two steps: not every device has float64


def legendre_at(lags: Tensor, terms: int, horizon: int) -> Tensor:
    """``sqrt(2n+1) P_n(2 lag / (K-1) - 1)`` at any lags, whole or not: (P,) float64 to (terms, P) float64."""
    x = 2 * lags / max(horizon - 1, 1) - 1
    rows = [torch.ones_like(x), x][:terms]
    for n in range(1, terms - 1):  # Bonnet: (n+1) P_{n+1} = (2n+1) x P_n - n P_{n-1}
        rows.append(((2 * n + 1) * x * rows[n] - n * rows[n - 1]) / (n + 1))
    norms = torch.arange(1, 2 * terms, 2, dtype=torch.float64, device=lags.device).sqrt()  # (N,)
    return torch.stack(rows) * norms[:, None]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of a filter's matrices, in float64 and rounded once to the dtype of ``a``.

    Products of float32 may be rounded on the way by whoever asks for speed elsewhere: autocast, and
    `torch.set_float32_matmul_precision`, by which a GPU takes TF32, of ten bits, and a CPU bfloat16 (errors of 2e-3).
    """
    b = beside(a, b)
    if a.device.type == "mps":  # has no float64
        with torch.autocast("mps", enabled=False):
            return a @ b
    return (a.double() @ b.double()).to(a.dtype)


# A window's rate per event at which exp(-rate) is 0 in every dtype. Faster ones give the same window, lag 0 alone, and
# are computed as this one, for an infinite rate times a lag of 0 would be NaN.
FASTEST = 1000.0


def event_rate(decay: Tensor, horizon: int) -> Tensor:
    """The rate per event, ``decay / horizon``, no faster than ``FASTEST``; NaN stays NaN. ``decay`` must be float32 or
    float64: in float16 a finite rate may be beyond what the dtype holds."""
    return torch.where(too_fast(decay, horizon), FASTEST, decay / horizon)


def too_fast(decay: Tensor, horizon: int) -> Tensor:
    """Where ``event_rate`` does not depend on ``decay``, so that its gradient is 0."""
    return decay > FASTEST * horizon


def window(decay: Tensor, horizon: int, taps: int) -> Tensor:
    """``exp(-decay * tau / horizon)`` for the first ``taps`` lags: (G,) float32 or float64 to (G, taps)."""
    tau = beside(decay, torch.arange(taps, device=decay.device, dtype=decay.dtype))
    return torch.exp(-event_rate(decay, horizon)[:, None] * tau)


def filter_gradients(
    dh: Tensor, h: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of coefficients and decay from that of the first taps ``h`` (G, k)."""
    taps = h.shape[1]
    basis = legendre_basis(coefficients.shape[1], horizon, h.dtype, h.device)[:, :taps]  # (N, k)
    if decay is None:
        return product(dh, basis.T).to(coefficients.dtype), None
    dcoefficients = product(dh * window(decay.to(h.dtype), horizon, taps), basis.T)
    age = torch.arange(taps, device=h.device, dtype=h.dtype) / horizon
    ddecay = -(dh * h * age).sum(1)
    return dcoefficients.to(coefficients.dtype), ddecay.to(decay.dtype)


def legendre_filter(
    coefficients: Tensor, horizon: int, decay: Tensor | None = None, *, taps: int | None = None
) -> Tensor:
    """The taps of Legendre filters (the module's first equation).

    Args:
        coefficients: (G, N), floating point.
        horizon: K >= 1; the filter's support, a constant of the model and not the length of a batch.
        decay: (G,) rates ``a_g`` of the windows, >= 0, in units of 1/K; None for no window. inf leaves lag 0 alone, NaN
            makes its group's taps NaN.
        taps: return no more than the first ``taps`` lags; all ``horizon`` by default.

    Returns:
        (G, min(taps, K)) in float64 for float64 coefficients, float32 otherwise. Differentiable.

    Raises:
        ValueError: wrong types, shapes or devices, ``horizon`` below 1, or a negative ``decay``, which is looked for on
            the CPU only.
    """
    for name, given in (("coefficients", coefficients), ("decay", decay)):
        if not isinstance(given, Tensor | None):
            raise ValueError(f"legendre_filter: {name} must be a tensor, got {type(given).__qualname__}")
    if coefficients.dim() != 2 or not coefficients.is_floating_point() or coefficients.shape[1] < 1:
        raise ValueError(
            f"legendre_filter: coefficients must be a floating-point (groups, terms >= 1) tensor, "
            f"got {tuple(coefficients.shape)} {coefficients.dtype}"
        )
    horizon = integer("legendre_filter", "horizon", horizon)
    taps = None if taps is None else integer("legendre_filter", "taps", taps, 0)
    if decay is not None and decay.shape != coefficients.shape[:1]:
        raise ValueError(
            f"legendre_filter: decay must have one entry a group, ({coefficients.shape[0]},), got {tuple(decay.shape)}"
        )
    if decay is not None and decay.device != coefficients.device:
        raise ValueError(
            f"legendre_filter: decay is on {decay.device} and coefficients on {coefficients.device}; they must share a "
            f"device"
        )
    check_decay("legendre_filter", decay)
    return taps_of(coefficients, horizon, decay, taps)


def taps_of(coefficients: Tensor, horizon: int, decay: Tensor | None, taps: int | None) -> Tensor:
    """:func:`legendre_filter` of arguments that have been checked."""
    dtype = wide(coefficients.dtype)
    basis = legendre_basis(coefficients.shape[1], horizon, dtype, coefficients.device)[:, :taps]  # (N, K)
    h = product(coefficients.to(dtype), basis)  # (G, K)
    return h if decay is None else h * window(decay.to(dtype), horizon, h.shape[1])


def check_decay(op: str, decay: Tensor | None) -> None:
    """No rate is negative; on other devices than the CPU, which are not waited for, nobody looks."""
    if decay is None or not readable(decay):
        return
    values = concrete(decay)
    if values is None:  # traced below a transform: checked when the compiled program runs
        torch._assert_async(~(unwrapped(decay) < 0).any(), f"{op}: decay must be at least 0")
    elif bool((values < 0).any()):
        raise ValueError(f"{op}: decay must be at least 0, got {values[values < 0][0].item()}")
