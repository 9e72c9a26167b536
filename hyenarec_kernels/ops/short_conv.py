"""The short depthwise causal convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from hyenarec_kernels.ops.checks import autocast, check_input, check_parameter, check_tensor
from hyenarec_kernels.ops.registration import register
from hyenarec_kernels.segments import Index, Segments


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    lengths: Index | None = None,
    starts: Index | None = None,
    cu_seqlens: Index | None = None,
    segments: Segments | None = None,
) -> Tensor:
    """Depthwise causal convolution with ``W`` taps per channel, as in Hyena's projections (arXiv 2302.10866, section
    3).

        out[t, d] = act(sum_{j<W} weight[d, j] * x[t - j, d] + bias[d])

    Positions before a sequence's start count as 0.

    Args:
        x: padded (B, L, D) or packed (T, D); float32, bfloat16, float16 or float64; any strides.
        weight: (D, W), W >= 1, lag 0 first; the dtype of ``x``, or float32 (float64 if ``x`` is float64).
        bias: (D,), in a dtype as for ``weight``.
        activation: None or "silu".
        lengths: (B,) int32 or int64, a tensor, list or NumPy array, for padded ``x`` only: row ``b``'s sequence is
            ``x[b, starts[b]:starts[b] + lengths[b]]``; by default, all of each row. The rest is padding: it may hold
            anything, and its output is 0.
        starts: (B,), only together with ``lengths``; 0 (right padding) by default, ``L - lengths`` for left padding.
        cu_seqlens: (S + 1,) int32 or int64, required for packed ``x``, and for it only: sequence ``s`` is
            ``x[cu_seqlens[s]:cu_seqlens[s + 1]]``.
        segments: instead of these three, a :class:`hyenarec_kernels.segments.Segments` that was made from them for
            several calls with inputs of one shape; its values are not checked again.

    Returns:
        The shape and dtype of ``x``, contiguous. Computed in float32 (float64 for float64) and rounded once. Under
        autocast ``x`` is cast to the autocast dtype.

    Raises:
        ValueError: an argument has a shape, dtype, device or value that does not fit. Values of ``lengths``, ``starts``
            and ``cu_seqlens`` are checked on the CPU, in compiled and exported programs too. On other devices a check
            would have to wait for the device, so they are clamped to the positions of ``x`` instead.
    """
    op = "short_conv"
    check_input(op, x)
    x = autocast(x)
    check_tensor(op, "weight", weight)
    if weight.dim() != 2 or weight.shape[1] < 1:
        raise ValueError(f"{op}: weight must be (D, W) with W >= 1, got {tuple(weight.shape)}")
    check_parameter(op, "weight", weight, (x.shape[-1], weight.shape[1]), x)
    check_parameter(op, "bias", bias, (x.shape[-1],), x)
    if activation not in (None, "silu"):
        raise ValueError(f"{op}: activation must be None or 'silu', got {activation!r}")
    first, end = Segments.of(op, x, lengths, starts, cu_seqlens, segments)
    out: Tensor = _operator(x, weight, bias, first, end, activation or "")
    return out


def _output_shapes(x: Tensor, *_: object) -> Sequence[Sequence[int]]:
    return [x.shape]


_operator = register("short_conv", ("Tensor x", "Tensor weight", "Tensor? bias"), "str activation", _output_shapes)
