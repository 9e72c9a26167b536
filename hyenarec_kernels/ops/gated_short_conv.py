"""A mixer's short convolution, which also splits gates from values and multiplies the values by the first gate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hyenarec_kernels.integers import integer
from hyenarec_kernels.ops.checks import autocast, check_input, check_parameter, check_tensor
from hyenarec_kernels.ops.registration import register
from hyenarec_kernels.segments import Index, Segments


def gated_short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dim: int,
    *,
    lengths: Index | None = None,
    starts: Index | None = None,
    cu_seqlens: Index | None = None,
    segments: Segments | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`hyenarec_kernels.short_conv` of C channels; then the first ``dim`` channels multiply the last ``dim``.

        z[t, c] = sum_{j<W} weight[c, j] * x[t - j, c] + bias[c]
        u = z[:, :dim] * z[:, C-dim:],    q = z[:, dim:C-dim]

    Args:
        x: padded (B, L, C) or packed (T, C), C a multiple of ``dim``, at least ``2 * dim``.
        weight, bias, lengths, starts, cu_seqlens, segments: as in :func:`hyenarec_kernels.short_conv`.
        dim: D, the channels of one gate and of the values.

    Returns:
        ``u`` (..., D), the gated values, and ``q`` (..., C - 2 D), the other gates, in the dtype of ``x``, contiguous,
        0 in padding. Computed in float32 (float64 for float64) and each rounded once.

    Raises:
        ValueError: as :func:`hyenarec_kernels.short_conv`, and for a ``dim`` that does not fit.
    """
    op = "gated_short_conv"
    check_input(op, x)
    x = autocast(x)
    channels, dim = x.shape[-1], integer(op, "dim", dim)
    if channels % dim or channels < 2 * dim:
        raise ValueError(f"{op}: the channels of x must be a multiple of dim, 2 or more, got {channels} and {dim}")
    check_tensor(op, "weight", weight)
    if weight.dim() != 2 or weight.shape[1] < 1:
        raise ValueError(f"{op}: weight must be (C, W) with W >= 1, got {tuple(weight.shape)}")
    check_parameter(op, "weight", weight, (channels, weight.shape[1]), x)
    check_parameter(op, "bias", bias, (channels,), x)
    first, end = Segments.of(op, x, lengths, starts, cu_seqlens, segments)
    u, q = _operator(x, weight, bias, first, end, dim)
    return u, q


def _output_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, dim: int
) -> Sequence[Sequence[int]]:
    return [(*x.shape[:-1], dim), (*x.shape[:-1], x.shape[-1] - 2 * dim)]


_operator = register(
    "gated_short_conv", ("Tensor x", "Tensor weight", "Tensor? bias"), "int dim", _output_shapes, outputs=2
)
