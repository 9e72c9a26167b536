"""The causal convolution by its definition, one multiply-add per lag. NaN and Inf spread as far as the taps reach.

Every function takes ``taps`` (D, K), one row per channel, 1 <= K <= the longest sequence (or 1), and values (R, D) that
are zero in padding. A first pass ignores the borders of sequences, so that lags run across them; the rows near a border
are then computed again. (Masking every lag instead took 14 ms where this takes 5: 14,000 rows of 192 channels, K = 3,
one core.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyenarec_kernels.backends.reference.rows import Rows
from hyenarec_kernels.tracing import transformed


def convolve(u: Tensor, taps: Tensor, rows: Rows) -> Tensor:
    """``y[t] = sum_tau taps[tau] u[t - tau]``: (R, D)."""
    weights = taps.T.contiguous()  # (K, D); strided rows would take twice as long
    y = u * weights[0]
    for lag in range(1, len(weights)):
        y = _add_product(y, lag, u[:-lag], weights[lag])
    if len(weights) > 1:
        heads, _ = rows.borders(len(weights) - 1)
        again = torch.stack([rows.shifted(u, heads, lag) * w for lag, w in enumerate(weights)]).sum(0)
        y = _set_rows(y, heads, again)
    return y


def correlate(dy: Tensor, taps: Tensor, rows: Rows) -> Tensor:
    """The gradient of ``u``: ``du[s] = sum_tau taps[tau] dy[s + tau]``: (R, D)."""
    weights = taps.T.contiguous()  # (K, D)
    du = dy * weights[0]
    for lag in range(1, len(weights)):
        du = _add_product(du, -lag, dy[lag:], weights[lag])
    if len(weights) > 1:
        _, tails = rows.borders(len(weights) - 1)
        again = torch.stack([rows.shifted(dy, tails, -lag) * w for lag, w in enumerate(weights)]).sum(0)
        du = _set_rows(du, tails, again)
    return du


def tap_gradient(dy: Tensor, u: Tensor, taps: int, rows: Rows) -> Tensor:
    """The gradient of the taps: ``dh[tau] = sum_t dy[t] u[t - tau]``: (D, taps)."""
    gradient = [(dy * u).sum(0)]
    for lag in range(1, taps):
        products = dy[lag:] * u[:-lag]  # (R - lag, D)
        heads, _ = rows.borders(lag)
        # The first `lag` heads are rows 0 .. lag-1, which are not in `products`.
        products = _set_rows(products, heads[lag:] - lag, products.new_zeros(()))
        gradient.append(products.sum(0))
    return torch.stack(gradient, 1)


def convolve_backward(
    dy: Tensor, u: Tensor, taps: Tensor, rows: Rows, *, y: bool, du: bool, dtaps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output again, the gradient of ``u`` and the gradient of the taps; empty tensors for those that are not asked
    for."""
    empty = u.new_empty(0)
    return (
        convolve(u, taps, rows) if y else empty,
        correlate(dy, taps, rows) if du else empty,
        tap_gradient(dy, u, taps.shape[1], rows) if dtaps else empty,
    )


# The next two functions write to ``y`` in place, except under transforms: `torch.func.linearize` treats ``y`` as a
# constant and would silently lose what is written to it.


def _add_product(y: Tensor, lag: int, values: Tensor, weights: Tensor) -> Tensor:
    """``y`` with ``values * weights`` added to its rows from ``lag`` on; for a negative ``lag``, to all but its last
    ``-lag``."""
    if transformed():
        return y + pad(values * weights, (0, 0, max(lag, 0), max(-lag, 0)))
    (y[lag:] if lag > 0 else y[:lag]).addcmul_(values, weights)
    return y


def _set_rows(y: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """``y`` with the rows ``at`` (n,) set to ``values``."""
    return y.index_put((at,), values) if transformed() else y.index_put_((at,), values)
