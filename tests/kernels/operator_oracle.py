"""The operators by their equations: float64 NumPy loops over one sequence at a time. Shares no code with the package.

Every function takes rows (n, D) of one sequence. The ``*_gradients`` functions return gradients of ``sum(do * out)``.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def long_conv(x: Array, h: Array, skip: Array, pre: Array, post: Array) -> Array:
    """``h`` is (D, K): one filter per channel."""
    n, channels = x.shape
    u, y = pre * x, np.zeros((n, channels))
    for t in range(n):
        for s in range(max(0, t - h.shape[1] + 1), t + 1):
            for d in range(channels):
                y[t, d] += h[d, t - s] * u[s, d]
    return post * (y + skip * u)


def long_conv_gradients(do: Array, x: Array, h: Array, skip: Array, pre: Array, post: Array) -> dict[str, Array]:
    u, dy = pre * x, post * do
    y, du, dh = skip * u, skip * dy, np.zeros_like(h)
    for t in range(len(x)):
        for s in range(max(0, t - h.shape[1] + 1), t + 1):
            y[t] += h[:, t - s] * u[s]
            du[s] += h[:, t - s] * dy[t]
            dh[:, t - s] += dy[t] * u[s]
    return {
        "x": pre * du,
        "pre_gate": x * du,
        "post_gate": do * y,
        "filter": dh,
        "skip": (dy * u).sum(0),
    }


def short_conv(x: Array, weight: Array, bias: Array, silu: bool) -> Array:
    z = np.zeros_like(x)
    for t in range(len(x)):
        for j in range(min(weight.shape[1], t + 1)):
            z[t] += weight[:, j] * x[t - j]
    z += bias
    return z * sigmoid(z) if silu else z


def short_conv_gradients(do: Array, x: Array, weight: Array, bias: Array, silu: bool) -> dict[str, Array]:
    z = short_conv(x, weight, bias, silu=False)
    s = sigmoid(z)
    dz = do * (s + z * s * (1 - s)) if silu else do
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for t in range(len(x)):
        for j in range(min(weight.shape[1], t + 1)):
            dx[t - j] += weight[:, j] * dz[t]
            dweight[:, j] += dz[t] * x[t - j]
    return {"x": dx, "weight": dweight, "bias": dz.sum(0)}


def legendre_basis(terms: int, horizon: int) -> Array:
    """``sqrt(2n+1) P_n`` at the lags, (N, K), from NumPy's evaluation of Legendre series (Clenshaw)."""
    grid = np.array([2 * tau / (horizon - 1) - 1 if horizon > 1 else -1.0 for tau in range(horizon)])
    return np.stack([np.sqrt(2 * n + 1) * legendre.legval(grid, np.eye(terms)[n]) for n in range(terms)])


def window(decay: Array, horizon: int) -> Array:
    exponent = decay[:, None] * np.arange(horizon) / horizon
    exponent[np.isinf(decay), 0] = 0  # at lag 0 even an infinite decay gives 1
    return np.exp(-exponent)


def legendre_filter(coefficients: Array, horizon: int, decay: Array) -> Array:
    """Coefficients (G, N), horizon K and decay (G,) to taps (G, K)."""
    return window(decay, horizon) * (coefficients @ legendre_basis(coefficients.shape[1], horizon))


def legendre_filter_gradients(dh: Array, coefficients: Array, horizon: int, decay: Array) -> dict[str, Array]:
    h = legendre_filter(coefficients, horizon, decay)
    basis = legendre_basis(coefficients.shape[1], horizon)
    return {
        "coefficients": (dh * window(decay, horizon)) @ basis.T,
        "decay": -(dh * h * np.arange(horizon) / horizon).sum(1),
    }
