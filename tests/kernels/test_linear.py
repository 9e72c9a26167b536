"""The linear layer computes what ``torch.nn.Linear`` computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hyenarec_kernels.nn import HyenaMixer, Linear, fast_linear

WIDTHS = ((3, 8), (8, 3), (5, 5))  # to more channels, to fewer, to as many


class Fast(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return fast_linear(self.layer, x)


def twins(width: tuple[int, int], bias: bool, dtype: torch.dtype = torch.float64) -> tuple[Fast, nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(*width, bias=bias, dtype=dtype)
    return Fast(layer), layer


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
        out: Tensor = torch.func.functional_call(ours, {"layer.weight": weight, "layer.bias": bias}, x[:, ::2])
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
    """Records whether torch's own ``linear`` was called."""

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


def test_hooks_fire() -> None:
    x = torch.randn(6, 3, requires_grad=True)
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        layer, seen = nn.Linear(3, 8), []
        getattr(layer, f"register_{register}")(lambda module, *_, seen=seen: seen.append(module))
        fast_linear(layer, x).sum().backward()
        assert seen == [layer], register
    layer, every = nn.Linear(3, 8), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: every.append(module))
    try:
        fast_linear(layer, x)
    finally:
        handle.remove()
    assert every == [layer]


def test_what_stands_in_its_place_is_called() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    x, adapted = torch.randn(6, 3), Adapted(3, 8)
    assert torch.equal(fast_linear(adapted, x), adapted(x))
    scaled = nn.utils.parametrizations.weight_norm(nn.Linear(3, 8))
    torch.testing.assert_close(fast_linear(scaled, x), scaled(x))
    assert torch.equal(fast_linear(nn.Identity(), x), x)


@pytest.mark.filterwarnings("ignore")  # torch announces the end of torch.ao.quantization
@pytest.mark.parametrize("kind", [nn.Linear, Linear])
def test_dynamic_quantisation_reaches_every_layer(kind: type[nn.Module]) -> None:
    class Feed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer, self.head = HyenaMixer(16, 20), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return fast_linear(self.head, self.mixer(x))

    model, x = Feed().eval(), torch.randn(2, 9, 16)
    quantised = torch.ao.quantization.quantize_dynamic(model, {kind}, dtype=torch.qint8)
    assert not [name for name, module in quantised.named_modules() if isinstance(module, nn.Linear)]
    got, want = quantised(x), model(x)
    assert 0 < (got - want).norm() < 0.1 * want.norm()  # it is .06, because activations have 7 bits
    with torch.no_grad():
        state = quantised.mixer.prefill(x[:, :8])[1]
        torch.testing.assert_close(
            quantised.mixer.step(x[:, 8], state)[0], quantised.mixer(x)[:, 8], rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layers_of_an_implicit_filter_may_be_replaced(dtype: torch.dtype) -> None:
    mixer, x = HyenaMixer(16, 20, filter="implicit", dtype=dtype), torch.randn(2, 9, 16, dtype=dtype)
    want = mixer(x)
    hidden = mixer.filters[0].hidden
    hidden[1] = nn.Sequential(hidden[1])
    torch.testing.assert_close(mixer(x), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_implicit_filter_may_be_quantised() -> None:
    mixer, x = HyenaMixer(16, 20, filter="implicit").requires_grad_(False), torch.randn(2, 9, 16)
    quantised = torch.ao.quantization.quantize_dynamic(mixer, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.filters[0].hidden[0], nn.Linear)
    assert 0 < (quantised(x) - mixer(x)).norm() < mixer(x).norm()
