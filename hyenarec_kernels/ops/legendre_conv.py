"""The gated long convolution with Legendre filters, whose taps need not be in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hyenarec_kernels.integers import integer
from hyenarec_kernels.legendre import check_decay
from hyenarec_kernels.ops.checks import autocast, check_gate, check_groups, check_input, check_parameter
from hyenarec_kernels.ops.long_conv import gated_shape
from hyenarec_kernels.ops.registration import register
from hyenarec_kernels.segments import Index, Segments


def legendre_conv(
    x: Tensor,
    coefficients: Tensor,
    skip: Tensor | None = None,
    *,
    horizon: int,
    decay: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    lengths: Index | None = None,
    starts: Index | None = None,
    cu_seqlens: Index | None = None,
    segments: Segments | None = None,
    last_only: bool = False,
) -> Tensor:
    """:func:`long_conv` with the taps of :func:`legendre_filter` (polynomial Legendre kernels: arXiv 2603.25027).

        h[g, tau] = w[g, tau] * sum_{n<N} coefficients[g, n] * sqrt(2n+1) * P_n(2*tau/(K-1) - 1)
        w[g, tau] = exp(-decay[g] * tau / K)
        u = pre_gate * x
        y[t, d] = sum_{tau<K} h[g(d), tau] * u[t - tau, d] + skip[d] * u[t, d],    g(d) = d // (D/G)
        out = post_gate * y

    Args:
        x: padded (B, L, D) or packed (T, D); float32, bfloat16, float16 or float64; any strides.
        coefficients: (G, N), N >= 1, G a divisor of D; the dtype of ``x``, or float32 (float64 if ``x`` is float64).
        skip: (D,), in a dtype as for ``coefficients``.
        horizon: K >= 1, the filter's length in events; a constant of the model, not the length of the batch.
        decay: (G,) rates of the windows, >= 0, in a dtype as for ``coefficients``; None for no window. The unit is 1/K:
            a window falls to 1/e in K / decay events. A rate of 0 is no window. inf keeps only lag 0, and its gradient
            is 0. NaN makes the outputs and gradients of its own group's channels NaN.
        pre_gate, post_gate, lengths, starts, cu_seqlens, segments, last_only: as in :func:`long_conv`.

    Returns:
        As :func:`long_conv`.

    Raises:
        ValueError: as :func:`long_conv`, and for a ``horizon`` below 1 or a negative ``decay``. Values of ``decay`` are
            checked on the CPU only; elsewhere a negative rate gives a window that grows with the lag, and accuracy is
            not promised.
    """
    op = "legendre_conv"
    check_input(op, x)
    x = autocast(x)
    pre_gate = None if pre_gate is None else autocast(pre_gate)
    post_gate = None if post_gate is None else autocast(post_gate)
    check_groups(op, "coefficients", coefficients, x)
    check_parameter(op, "decay", decay, (coefficients.shape[0],), x)
    check_parameter(op, "skip", skip, (x.shape[-1],), x)
    horizon = integer(op, "horizon", horizon)
    first, end = Segments.of(op, x, lengths, starts, cu_seqlens, segments)
    check_gate(op, "pre_gate", pre_gate, x.shape, x)
    check_gate(op, "post_gate", post_gate, gated_shape(x, first, last_only), x)
    out: Tensor = _operator(x, coefficients, decay, skip, pre_gate, post_gate, first, end, horizon, last_only)
    return out


def _output_shapes(
    x: Tensor,
    coefficients: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
) -> Sequence[Sequence[int]]:
    return [gated_shape(x, starts, last_only)]


def _check_values(*arguments: Any) -> None:
    _, _, decay, *_, horizon, _ = arguments
    integer("legendre_conv", "horizon", horizon)
    check_decay("legendre_conv", decay)


_operator = register(
    "legendre_conv",
    (
        "Tensor x",
        "Tensor coefficients",
        "Tensor? decay",
        "Tensor? skip",
        "Tensor? pre_gate",
        "Tensor? post_gate",
    ),
    "int horizon, bool last_only",
    _output_shapes,
    check=_check_values,
)
