"""The short depthwise convolution ``out = act(conv(x, weight) + bias)`` and its gradients."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad, silu

from hyenarec_kernels.backends.reference import direct
from hyenarec_kernels.backends.reference.rows import Rows
from hyenarec_kernels.dtypes import wide


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, activation: str
) -> Tensor:
    rows = Rows.of(x, starts, ends)
    u, taps = _inputs(x, weight, rows)
    z = _preactivation(u, taps, bias, rows)
    return rows.keep_real(silu(z) if activation else z).to(x.dtype).view(x.shape)


def short_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    rows = Rows.of(x, starts, ends)
    u, taps = _inputs(x, weight, rows)
    dz = rows.keep_real(grad.reshape(-1, grad.shape[-1]).to(u.dtype))
    if activation:
        z = _preactivation(u, taps, bias, rows)
        gate = z.sigmoid()
        dz = dz * gate * (1 + z * (1 - gate))
    dx, dweight, dbias = (x.new_empty(0) for _ in needs)  # no two outputs may be the same tensor
    if need_x:
        dx = rows.keep_real(direct.correlate(dz, taps, rows)).to(x.dtype).view(x.shape)
    if need_weight:
        dtaps = direct.tap_gradient(dz, u, taps.shape[1], rows)
        dweight = pad(dtaps, (0, weight.shape[1] - taps.shape[1])).to(weight.dtype)
    if need_bias and bias is not None:
        dbias = dz.sum(0).to(bias.dtype)
    return dx, dweight, dbias


def _inputs(x: Tensor, weight: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """``x`` as rows with zeros in padding, (R, D), and the taps that can reach a row, (D, min(W, longest)), at least
    one."""
    u = rows.keep_real(x.reshape(-1, x.shape[-1]).to(wide(x.dtype)))
    return u, weight[:, : max(rows.longest, 1)].to(u.dtype)


def _preactivation(u: Tensor, taps: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    z = direct.convolve(u, taps, rows)
    return z if bias is None else z + bias.to(z.dtype)
