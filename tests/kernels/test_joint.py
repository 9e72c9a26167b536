"""A mixer's pass as a single autograd function equals the same mixer computed operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from hyenarec_kernels.nn import HyenaMixer, joint

DIM, HORIZON = 6, 9
LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "full": ((3, 12), {}),
    "right": ((3, 12), {"lengths": torch.tensor([12, 0, 5])}),
    "left": ((3, 12), {"lengths": torch.tensor([3, 12, 0]), "starts": torch.tensor([9, 0, 4])}),
    "mask": ((2, 4), {"mask": torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])}),
    "packed": ((20,), {"cu_seqlens": torch.tensor([0, 7, 7, 8, 20])}),
    "none": ((0,), {"cu_seqlens": torch.tensor([0, 0])}),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}
Run = Callable[[HyenaMixer, Tensor, dict[str, Any]], dict[str, Tensor]]


def make(dtype: torch.dtype = torch.float32, **options: Any) -> HyenaMixer:
    torch.manual_seed(0)
    mixer = HyenaMixer(DIM, **{"horizon": HORIZON, "terms": 4, **options}).to(dtype)
    for p in mixer.parameters():
        nn.init.normal_(p, std=0.3)
    return mixer


def draw(layout: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Any]]:
    """Random x with NaN in its padding, and the arguments that say where its sequences lie."""
    shape, where = LAYOUTS[layout]
    x = torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1)).to(dtype)
    if "lengths" in where:
        first = where.get("starts", torch.zeros(3, dtype=torch.int64))[:, None]
        position = torch.arange(shape[1])
        x[(position < first) | (position >= first + where["lengths"][:, None])] = torch.nan
    if "mask" in where:
        x[where["mask"] == 0] = torch.nan
    return x.requires_grad_(), where


def answer(mixer: HyenaMixer, x: Tensor, where: dict[str, Any]) -> dict[str, Tensor]:
    """The output, and the gradients of everything that requires one."""
    leaves = {"x": x, **dict(mixer.named_parameters())}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    y = mixer(x, **where)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    gradients = torch.autograd.grad(y, list(leaves.values()), grad)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Compares what a function returns with the single autograd function and without it."""

    def compare(run: Callable[..., dict[str, Tensor]], tolerance: float, *arguments: Any) -> None:
        calls = []
        forward = joint._compute
        with monkeypatch.context() as patched:
            patched.setattr(joint, "_compute", lambda *given: calls.append(1) or forward(*given))
            got = run(*arguments)
        assert calls
        with monkeypatch.context() as patched:
            patched.setattr(joint, "learned", lambda mixer, x: None)
            want = run(*arguments)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
            error = (got[name].double() - value.double()).norm()
            assert error <= tolerance * value.double().norm().clamp_min(1e-3), name

    return compare


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_operation_by_operation(layout: str, dtype: torch.dtype, both: Callable[..., None]) -> None:
    both(answer, TOLERANCE[dtype], make(dtype), *draw(layout, dtype))


@pytest.mark.parametrize("options", [{"window": False}, {"groups": 2}, {"short_width": 4}, {"filter": "legendre"}])
def test_every_option(options: dict[str, Any], both: Callable[..., None]) -> None:
    both(answer, 2e-5, make(**options), *draw("packed"))


NAMES = ["x", *(name for name, _ in make().named_parameters())]


@pytest.mark.parametrize("frozen", NAMES)
def test_one_gradient_fewer_and_one_alone(frozen: str, both: Callable[..., None]) -> None:
    mixer, (x, where) = make(), draw("right")
    leaves = {"x": x, **dict(mixer.named_parameters())}
    leaves[frozen].requires_grad_(False)
    both(answer, 2e-5, mixer, x, where)
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == frozen)
    both(answer, 2e-5, mixer, x, where)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_autocast(stored: torch.dtype, both: Callable[..., None]) -> None:
    def run(mixer: HyenaMixer, x: Tensor, where: dict[str, Any]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            found = answer(mixer, x, where)
        assert found["y"].dtype == torch.bfloat16 and found["x"].dtype == x.dtype
        return found

    both(run, 3e-2, make(), *draw("right", stored))


def test_second_derivative(both: Callable[..., None]) -> None:
    def run(mixer: HyenaMixer, x: Tensor, where: dict[str, Any]) -> dict[str, Tensor]:
        leaves = [x, *mixer.parameters()]
        first = torch.autograd.grad(mixer(x, **where).square().sum(), leaves, create_graph=True)
        names = ["x", *(name for name, _ in mixer.named_parameters())]
        return dict(zip(names, torch.autograd.grad(sum(g.square().sum() for g in first), leaves), strict=True))

    both(run, 1e-11, make(torch.float64), *draw("packed", torch.float64))


def test_prefill(both: Callable[..., None]) -> None:
    def run(mixer: HyenaMixer, x: Tensor, where: dict[str, Any]) -> dict[str, Tensor]:
        with torch.no_grad():
            y, state = mixer.prefill(x, **where)
        return {"y": y, **state.tensors()}

    for layout in ("right", "packed"):
        both(run, 1e-6, make(), *draw(layout))


def test_what_goes_operation_by_operation() -> None:
    x = torch.randn(2, 5, DIM)
    hooked, normed, replaced = make(), make(), make()
    hooked.in_proj.register_forward_hook(lambda *_: None)
    weight_norm(normed, "short_weight")
    weight_norm(normed.filters[0], "log_rate", dim=None)
    replaced.project_in = lambda x: x.repeat(1, 1, 3)  # type: ignore[method-assign]
    others = [make(**o) for o in ({"order": 3}, {"gate": "silu"}, {"bidirectional": True}, {"filter": "chebyshev"})]
    for mixer in (hooked, normed, replaced, *others):
        assert joint.learned(mixer, x) is None and mixer(x).shape == x.shape
    mixer, found = make(), []
    assert joint.learned(mixer, x) is not None
    torch.func.vmap(lambda x: found.append(joint.learned(mixer, x)) or x)(x)
    with torch.autograd.forward_ad.dual_level():
        found.append(joint.learned(mixer, x))
    weight_norm(mixer.filters[0], "log_rate", dim=None)
    assert [*found, joint.learned(mixer, x)] == [None, None, None]
