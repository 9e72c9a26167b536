"""The Legendre filter: polynomial basis, exponential window, and the taps made of them.

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
    if not plain():  # while tracing, tensors are fake: the cache must neither store nor return any
        return _basis(terms, horizon, dtype, device)
    return _cached_basis(terms, horizon, dtype, device)


@lru_cache(maxsize=64)
def _cached_basis(terms: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward
        return _basis(terms, horizon, dtype, device)


def _basis(terms: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    lags = torch.arange(horizon, dtype=torch.float64, device="cpu")  # even if the default device is another
    return legendre_at(lags, terms, horizon).to(dtype).to(device)  # in two steps: not every device has float64


def legendre_at(lags: Tensor, terms: int, horizon: int) -> Tensor:
    """``sqrt(2n+1) P_n(2 lag / (K-1) - 1)`` at any lags, integer or not: takes (P,) float64, returns (terms, P)
    float64."""
    x = 2 * lags / max(horizon - 1, 1) - 1
    rows = [torch.ones_like(x), x][:terms]
    for n in range(1, terms - 1):  # Bonnet: (n+1) P_{n+1} = (2n+1) x P_n - n P_{n-1}
        rows.append(((2 * n + 1) * x * rows[n] - n * rows[n - 1]) / (n + 1))
    norms = torch.arange(1, 2 * terms, 2, dtype=torch.float64, device=lags.device).sqrt()  # (N,)
    return torch.stack(rows) * norms[:, None]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for the matrices that make a filter: computed in float64, rounded once to the dtype of ``a``.

    A float32 product could lose accuracy to settings meant for speed elsewhere: autocast, or
    `torch.set_float32_matmul_precision`, with which a GPU uses TF32 (a mantissa of ten bits) and a CPU bfloat16 (errors
    of 2e-3).
    """
    b = beside(a, b)
    if a.device.type == "mps":  # has no float64
        with torch.autocast("mps", enabled=False):
            return a @ b
    return (a.double() @ b.double()).to(a.dtype)


# A window's rate per event at which exp(-rate) is 0 in every dtype. Any faster rate gives the same window, 1 at lag 0
# and 0 elsewhere, and is replaced by this one, because an infinite rate times a lag of 0 would be NaN.
FASTEST = 1000.0


def event_rate(decay: Tensor, horizon: int) -> Tensor:
    """The window's rate per event, ``decay / horizon``, but at most ``FASTEST``; NaN stays NaN. ``decay`` must be
    float32 or float64: in float16 a finite rate may overflow."""
    return torch.where(too_fast(decay, horizon), FASTEST, decay / horizon)


def too_fast(decay: Tensor, horizon: int) -> Tensor:
    """Where ``decay`` is so large that ``event_rate`` no longer depends on it, and its gradient is 0."""
    return decay > FASTEST * horizon


def window(decay: Tensor, horizon: int, taps: int) -> Tensor:
    """``exp(-decay * tau / horizon)`` for the first ``taps`` lags: takes (G,) float32 or float64, returns (G, taps)."""
    tau = beside(decay, torch.arange(taps, device=decay.device, dtype=decay.dtype))
    return torch.exp(-event_rate(decay, horizon)[:, None] * tau)


def filter_gradients(
    dh: Tensor, h: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``coefficients`` and ``decay``, given the first taps ``h`` (G, k) and their gradient ``dh``."""
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
    """The taps of Legendre filters.

        h[g, tau] = exp(-decay[g] * tau / K) * sum_{n<N} coefficients[g, n] * sqrt(2n+1) * P_n(2*tau/(K-1) - 1)

    Args:
        coefficients: (G, N), floating point.
        horizon: K >= 1, the length of the filters in events; a constant of the model, not the length of a batch.
        decay: (G,) rates of the windows, >= 0, in units of 1/K; None for no window. A rate of inf keeps only lag 0; NaN
            makes the taps of its group NaN.
        taps: return at most the first ``taps`` lags; all ``horizon`` of them by default.

    Returns:
        (G, min(taps, K)) in float64 for float64 coefficients, float32 otherwise. Differentiable.

    Raises:
        ValueError: a wrong type, shape or device, ``horizon`` below 1, ``taps`` below 0, or a negative ``decay`` (which
            is checked on the CPU only).
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
    """:func:`legendre_filter` for arguments that have been checked already."""
    dtype = wide(coefficients.dtype)
    basis = legendre_basis(coefficients.shape[1], horizon, dtype, coefficients.device)[:, :taps]  # (N, K)
    h = product(coefficients.to(dtype), basis)  # (G, K)
    return h if decay is None else h * window(decay.to(dtype), horizon, h.shape[1])


def check_decay(op: str, decay: Tensor | None) -> None:
    """Raises ValueError if a rate is negative. Only on the CPU: elsewhere the check would have to wait for the
    device."""
    if decay is None or not readable(decay):
        return
    values = concrete(decay)
    if values is None:  # traced inside a transform of torch.func: checked when the compiled program runs
        torch._assert_async(~(unwrapped(decay) < 0).any(), f"{op}: decay must be at least 0")
    elif bool((values < 0).any()):
        raise ValueError(f"{op}: decay must be at least 0, got {values[values < 0][0].item()}")
