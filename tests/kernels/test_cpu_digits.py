"""The precision that the compiled CPU kernels keep for small values and for sums over many rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyenarec_kernels.backends import cpu, reference
from hyenarec_kernels.backends.cpu import convolutions
from hyenarec_kernels.backends.cpu.plan import direct_plan

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")


@pytest.mark.parametrize("size", [1e-34, 1e-36, 1e-38])
def test_small_values_keep_their_digits(size: float) -> None:
    """Subnormal products and sums keep their digits like other numbers. Only windows are cut off, far below what they
    are added to."""
    x, weight = torch.randn(2, 300, 16), torch.randn(16, 4)
    convolutions_of = {
        "short_conv": lambda x: cpu.short_conv(x, weight, None, None, None, ""),
        "long_conv": lambda x: cpu.long_conv(x, weight, None, None, None, None, None, False),
        "legendre_conv": lambda x: cpu.legendre_conv(
            x, weight, torch.zeros(16), None, None, None, None, None, 300, False
        ),
    }
    for name, conv in convolutions_of.items():
        exact = conv(x.double() * size)
        error = (conv(x * size).double() / size - exact / size).norm() / (exact / size).norm()
        assert error < 2e-6, f"{name} of {size}: {float(error):.1e}"


def test_the_processors_mode_stays() -> None:
    tiny = torch.full((2, 40, 16), 1e-40)
    out = convolutions._conv(tiny, torch.ones(40, 16), None, None, None, None, None, direct_plan(40, 40))
    assert torch.allclose(out * 1e38, (tiny * 1e38).cumsum(1), rtol=1e-4)
    assert (tiny * torch.ones(())).count_nonzero() == tiny.numel()


ROWS = 1_000_000


def gradients_over_many_rows(backend: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """For each parameter, a backend's float32 gradient and the float64 one. All terms are positive; none cancel."""
    dim = 2

    def positive(*shape: int) -> Tensor:
        return torch.rand(*shape) + 0.5

    x, grad, last = positive(1, ROWS, dim), positive(1, ROWS, dim), positive(ROWS, 1, dim)
    weight, bias, skip, decay = positive(dim, 3), positive(dim), positive(dim), positive(dim)
    wide = (positive(1, ROWS, 2 * dim), positive(2 * dim, 3), positive(2 * dim))
    # fmt: off
    calls: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
        "short_conv": ("weight bias", (grad,), (x, weight, bias, None, None, "")),
        "gated_short_conv": ("weight bias", (grad, grad[..., :0]), (*wide, None, None, dim)),
        "long_conv": ("filter skip", (grad,), (x, weight, skip, None, None, None, None, False)),
        "long_conv, last only": ("filter skip", (last[:, 0],), (last, weight, skip, None, None, None, None, True)),
        "legendre_conv": (
            "coefficients decay skip", (grad,), (x, weight, decay, skip, None, None, None, None, 64, False)
        ),
    }
    # fmt: on
    found = {}
    for call, (names, grads, arguments) in calls.items():
        backward = getattr(backend, f"{call.split(',')[0]}_backward")
        exact = getattr(reference, f"{call.split(',')[0]}_backward")
        count = len(names.split())
        needs = [False, *[True] * count, *[False] * (0 if "short" in call else 2)]  # the two gates
        doubles = [a.double() if isinstance(a, Tensor) else a for a in (*grads, *arguments)]
        results, expected = backward(*grads, *arguments, needs), exact(*doubles, needs)
        for name, f, e in zip(names.split(), results[1:], expected[1:], strict=False):
            found[f"{name} of {call}"] = f, e
    return found


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_gradients_over_many_rows(backend: Any) -> None:
    """Gradients are within 4e-7, whereas adding a million float32 numbers one after the other would be off by 3e-6."""
    for name, (found, expected) in gradients_over_many_rows(backend).items():
        error = float((found.double() - expected).norm() / expected.norm())
        assert error < 4e-7, f"{name}: {error:.1e}"
