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
        filter: (G, K), lag 0 first, G a divisor of D; the dtype of ``x``, or float32 (float64 beside float64). K may
            exceed L.
        skip: (D,), dtype as ``filter``.
        pre_gate: the shape and dtype of ``x``.
        post_gate: the shape of the output and the dtype of ``x``.
        lengths: (B,) int32 or int64 (a list or a NumPy array too), padded ``x`` only: row ``b``'s sequence is
            ``x[b, starts[b]:starts[b] + lengths[b]]``. All of each row by default. The rest is padding: it
            may hold anything, in the gates too, and its output is 0.
        starts: (B,) beside ``lengths``; 0 (right padding) by default, ``L - lengths`` for left padding.
        cu_seqlens: (S + 1,) int32 or int64, packed ``x`` only: sequence ``s`` is ``x[cu_seqlens[s]:cu_seqlens[s +
            1]]``.
        segments: in place of these three, a :class:`hyenarec_kernels.segments.Segments` that was made of them for
            several calls with inputs of one shape; its values are not checked again.
        last_only: compute the last position of each sequence only, at a cost of O(K D) a sequence.

    Returns:
        The shape and dtype of ``x``, contiguous; with ``last_only`` (B, D) or (S, D), 0 for an empty sequence. Computed
        in float32 (float64 for float64) and rounded once. Under autocast ``x`` and the gates are cast to the autocast
        dtype.

    Outputs and gradients are the same run to run. Between numbers of CPU threads their last bits may differ where the
    taps are so many that they go through an FFT: torch's FFTs divide their work by the number of threads.

    Raises:
        ValueError: an argument has a shape, dtype, device or value that does not fit. Values of ``lengths``, ``starts``
            and ``cu_seqlens`` are checked on the CPU, in compiled and exported programs too; on other devices, which
            are not waited for, they are clamped to the positions that ``x`` has.
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
    """The output's shape: that of ``x``, or one row a sequence."""
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
