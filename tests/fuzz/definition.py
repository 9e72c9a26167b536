"""The operators by their equations, in float64 torch with gradients by autograd. Shares no code with the package.

A filter over a sequence of ``n`` rows is an (n, n) Toeplitz matrix, so that every sum of the definition is written out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def toeplitz(taps: Tensor, rows: int) -> Tensor:
    """out[g, t, s] = taps[g, t - s] where ``0 <= t - s < K``, 0 elsewhere: (G, K) to (G, rows, rows)."""
    lag = torch.arange(rows)[:, None] - torch.arange(rows)
    inside = (lag >= 0) & (lag < taps.shape[1])
    return torch.where(inside, taps[:, lag.clamp(0, taps.shape[1] - 1)], 0.0)


def convolve(u: Tensor, taps: Tensor) -> Tensor:
    """Convolves one sequence (n, D) with the filters (G, K); the D/G channels of a group lie side by side."""
    groups = taps.shape[0]
    grouped = u.view(len(u), groups, u.shape[1] // groups)  # (n, G, D/G)
    return torch.einsum("gts,sgd->tgd", toeplitz(taps, len(u)), grouped).reshape(u.shape)


def legendre_taps(coefficients: Tensor, horizon: int, decay: Tensor | None) -> Tensor:
    """``exp(-decay tau / K) sum_n c_n sqrt(2n+1) P_n(2 tau / (K-1) - 1)``, (G, K), by Bonnet's recurrence."""
    tau = torch.arange(horizon, dtype=torch.float64)
    x = 2 * tau / (horizon - 1) - 1 if horizon > 1 else torch.tensor([-1.0], dtype=torch.float64)
    basis = [torch.ones_like(x), x]
    for n in range(1, coefficients.shape[1]):
        basis.append(((2 * n + 1) * x * basis[n] - n * basis[n - 1]) / (n + 1))
    scaled = [(2 * n + 1) ** 0.5 * basis[n] for n in range(coefficients.shape[1])]
    taps = coefficients @ torch.stack(scaled)
    # At lag 0 the window is 1, whatever the decay.
    later = torch.zeros_like(taps) if decay is None else -decay[:, None] * tau.clamp(min=1) / horizon
    return taps * torch.where(tau > 0, later, 0.0).exp()


def long_conv(
    x: Tensor, taps: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    u = x if pre_gate is None else pre_gate * x
    y = convolve(u, taps)
    if skip is not None:
        y = y + skip * u
    return y if post_gate is None else post_gate * y


def short_conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    z = convolve(x, weight)
    if bias is not None:
        z = z + bias
    return z * torch.sigmoid(z) if silu else z
