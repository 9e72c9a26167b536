"""The gated long convolution with explicit filters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hyenarec_kernels.ops.checks import autocast, check_gate, check_groups, check_input, check_parameter
from hyenarec_kernels.ops.registration import register
from hyenarec_kernels.segments import Index, Segments


def long_conv(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None = None,
    *,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    lengths: Index | None = None,
    starts: Index | None = None,
    cu_seqlens: Index | None = None,
    segments: Segments | None = None,
    last_only: bool = False,
) -> Tensor:
    """Linear causal convolution with a long filter, gated before and after: Hyena's recurrence (arXiv 2302.10866,
    equation 4).

        u = pre_gate * x
        y[t, d] = sum_{tau<K} filter[g(d), tau] * u[t - tau, d] + skip[d] * u[t, d],    g(d) = d // (D/G)
        out = post_gate * y

    Positions before a sequence's start count as 0; nothing wraps around.

    Args:
        x: padded (B, L, D) or packed (T, D); float32, bfloat16, float16 or float64; any strides.
        filter: (G, K), lag 0 first, G a divisor of D; the dtype of ``x``, or float32 (float64 if ``x`` is float64). K
            may exceed L.
        skip: (D,), in a dtype as for ``filter``.
        pre_gate: in the shape and dtype of ``x``.
        post_gate: in the shape of the output and the dtype of ``x``.
        lengths: (B,) int32 or int64, a tensor, list or NumPy array, for padded ``x`` only: row ``b``'s sequence is
            ``x[b, starts[b]:starts[b] + lengths[b]]``; by default, all of each row. The rest is padding: it may hold
            anything, in the gates too, and its output is 0.
        starts: (B,), only together with ``lengths``; 0 (right padding) by default, ``L - lengths`` for left padding.
        cu_seqlens: (S + 1,) int32 or int64, required for packed ``x``, and for it only: sequence ``s`` is
            ``x[cu_seqlens[s]:cu_seqlens[s + 1]]``.
        segments: instead of these three, a :class:`hyenarec_kernels.segments.Segments` that was made from them for
            several calls with inputs of one shape; its values are not checked again.
        last_only: compute only the last position of each sequence, at a cost of O(K D) per sequence.

    Returns:
        The shape and dtype of ``x``, contiguous; with ``last_only`` (B, D) or (S, D), 0 for an empty sequence. Computed
        in float32 (float64 for float64) and rounded once. Under autocast ``x`` and the gates are cast to the autocast
        dtype.

    Outputs and gradients are the same from run to run. With another number of CPU threads their last bits may differ if
    there are so many taps that they go through an FFT: torch's FFTs divide their work by the number of threads.

    Raises:
        ValueError: an argument has a shape, dtype, device or value that does not fit. Values of ``lengths``, ``starts``
            and ``cu_seqlens`` are checked on the CPU, in compiled and exported programs too. On other devices a check
            would have to wait for the device, so they are clamped to the positions of ``x`` instead.
    """
    op = "long_conv"
    check_input(op, x)
    x = autocast(x)
    pre_gate = None if pre_gate is None else autocast(pre_gate)
    post_gate = None if post_gate is None else autocast(post_gate)
    check_groups(op, "filter", filter, x)
    check_parameter(op, "skip", skip, (x.shape[-1],), x)
    first, end = Segments.of(op, x, lengths, starts, cu_seqlens, segments)
    check_gate(op, "pre_gate", pre_gate, x.shape, x)
    check_gate(op, "post_gate", post_gate, gated_shape(x, first, last_only), x)
    out: Tensor = _operator(x, filter, skip, pre_gate, post_gate, first, end, last_only)
    return out


def gated_shape(x: Tensor, starts: Tensor | None, last_only: bool) -> Sequence[int]:
    """The output's shape: that of ``x`` or, with ``last_only``, one row per sequence."""
    if not last_only:
        return x.shape
    sequences = starts.shape[0] if x.dim() == 2 and starts is not None else x.shape[0]
    return sequences, x.shape[-1]


def _output_shapes(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    last_only: bool,
) -> Sequence[Sequence[int]]:
    return [gated_shape(x, starts, last_only)]


_operator = register(
    "long_conv",
    ("Tensor x", "Tensor filter", "Tensor? skip", "Tensor? pre_gate", "Tensor? post_gate"),
    "bool last_only",
    _output_shapes,
)
