"""The compiled CPU short convolution and its SiLU."""

from __future__ import annotations

import pytest
import torch

from hyenarec_kernels.backends import cpu

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("activation", ["", "silu"])
def test_short_conv(width: int, activation: str) -> None:
    batch, length, dim = 2, 1100, 21  # more rows than a thread takes at once
    x, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((batch, length, dim), (dim, width), (dim,)))
    grad = torch.randn(batch, length, dim, dtype=torch.float64)
    leaves = [t.float().double().requires_grad_() for t in (x, weight, bias)]
    z = torch.nn.functional.conv1d(
        leaves[0].transpose(1, 2), leaves[1].flip(1)[:, None], leaves[2], padding=width - 1, groups=dim
    )[..., :length].transpose(1, 2)
    out = torch.nn.functional.silu(z) if activation else z
    expected = [out.detach(), *torch.autograd.grad(out, leaves, grad.float().double())]
    arguments = (*(t.float() for t in (x, weight, bias)), None, None, activation)
    found = [cpu.short_conv(*arguments), *cpu.short_conv_backward(grad.float(), *arguments, [True] * 3)]
    for f, e in zip(found, expected, strict=True):
        assert float((f.double() - e).norm() / e.norm()) < 2e-6


def test_silu_far_from_zero() -> None:
    x = torch.tensor([-200.0, -90.0, -87.5, -1e-30, 0.0, 1e-30, 87.5, 90.0, 200.0, torch.inf, torch.nan]).view(1, -1, 1)
    found = cpu.short_conv(x, torch.ones(1, 1), None, None, None, "silu")
    expected = torch.nn.functional.silu(x)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-30, equal_nan=True)


def test_silu_is_accurate() -> None:
    x = torch.linspace(-80, 80, 100_001)
    found = cpu.short_conv(x[None, :, None], torch.ones(1, 1), None, None, None, "silu").flatten().double()
    expected = torch.nn.functional.silu(x.double())
    error = ((found - expected) / expected).abs().nan_to_num(0)  # 0 / 0 at x = 0
    assert error[x.abs() < 5].max() < 5e-7
    assert error.max() < 4e-6  # a large exp(-x) magnifies its exponent's rounding
