"""The linear layer against ``torch.nn.Linear``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hyenarec_kernels.nn import Linear

WIDTHS = ((3, 8), (8, 3), (5, 5))  # to more channels, to fewer


def twins(width: tuple[int, int], bias: bool, dtype: torch.dtype = torch.float64) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, torchs = Linear(*width, bias=bias, dtype=dtype), nn.Linear(*width, bias=bias, dtype=dtype)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def values_and_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((weights * y).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [(7,), (2, 5), (0,), ()])
def test_it_is_torchs(width: tuple[int, int], bias: bool, shape: tuple[int, ...]) -> None:
    ours, torchs = twins(width, bias)
    x = torch.randn(*shape, width[0], dtype=torch.float64)
    for got, expected in zip(values_and_gradients(ours, x), values_and_gradients(torchs, x), strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), torchs(x))


@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_are_right_and_have_gradients(width: tuple[int, int]) -> None:
    ours, _ = twins(width, True)
    x = torch.randn(4, 2 * width[0], dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(ours, {"weight": weight, "bias": bias}, x[:, ::2])
        return out

    leaves = (x, *ours.parameters())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_runs_under_autocast(width: tuple[int, int]) -> None:
    ours, torchs = twins(width, True, torch.float32)
    x = torch.randn(6, width[0])
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = values_and_gradients(ours, x), values_and_gradients(torchs, x)
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    for ours_, torchs_ in zip(got, expected, strict=True):
        torch.testing.assert_close(ours_, torchs_, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_compiles_whole(width: tuple[int, int]) -> None:
    ours, _ = twins(width, True)
    x = torch.randn(6, width[0], dtype=torch.float64)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for got, expected in zip(values_and_gradients(compiled, x), values_and_gradients(ours, x), strict=True):
        torch.testing.assert_close(got, expected)


class Products(TorchFunctionMode):
    """Whether torch's own ``linear`` ran."""

    linear = False

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.linear |= func is nn.functional.linear
        return func(*args, **(kwargs or {}))


def test_torchs_own_serves_where_nothing_is_trained() -> None:
    ours, _ = twins((3, 8), True)
    x = torch.randn(6, 3, dtype=torch.float64)
    with Products() as training:
        ours(x)
    with Products() as serving, torch.no_grad():
        ours(x)
    assert (training.linear, serving.linear) == (False, True)
