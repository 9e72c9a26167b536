"""Plans of the GPU convolution meet their tolerance, also where filters change fastest."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from operator_cases import TOLERANCE, Case, assert_close

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends.triton import plan as plans
from hyenarec_kernels.lowrank import levels

interpreted = pytest.mark.skipif(
    "triton" not in backends.available("cpu"), reason="these run in Triton's interpreter, on CPU tensors"
)
DTYPES = (torch.float64, torch.float32, torch.float16)
SHORT = [(40, 95), (48, 128), (36, 95), (33, 65), (64, 70), (80, 130), (40, 300)]  # terms and taps


OTHERS = (torch.float64, torch.bfloat16, torch.float16)  # 4 s each


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in OTHERS)])
def test_every_plan_meets_its_tolerance(dtype: torch.dtype) -> None:
    """This holds for every horizon up to 160 with some numbers of terms, and for a sample of longer ones."""
    draw = random.Random(0)
    horizons = [*range(1, 161), *(draw.randint(161, 5000) for _ in range(40))]
    for horizon in horizons:
        for terms in (draw.randint(1, 32), draw.randint(33, 64)):
            windowed, beyond = draw.random() < 0.5, draw.random() < 0.5
            plan = plans.plan_for(terms, horizon, windowed, beyond, dtype)
            if plan is not None:
                assert plan.bound <= levels.TOLERANCE[dtype], (terms, horizon, windowed, beyond)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("terms", "horizon"), SHORT)
def test_a_plan_is_found_for_many_terms_and_few_taps(terms: int, horizon: int, windowed: bool) -> None:
    """A chunk of rows meets nearly twice as many lags as it has rows, and may need as many nodes."""
    for dtype in levels.TOLERANCE:
        plan = plans.plan_for(terms, horizon, windowed, True, dtype)
        assert plan is not None and plan.bound <= levels.TOLERANCE[dtype]
    exact = plans.plan_for(64, 64, windowed, True, torch.float32)
    assert exact is not None and exact.levels[0].nodes == 64 + windowed and exact.bound < 1e-12


def test_no_plan_where_none_is_precise_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "TOLERANCE", {torch.float32: 1e-20})
    plans.plan_for.cache_clear()
    assert plans.plan_for(40, 95, True, True, torch.float32) is None
    plans.plan_for.cache_clear()


def quick(terms: int, horizon: int, dtype: torch.dtype) -> bool:
    """Whether CI runs the case in the interpreter; the others take 2 to 8 s each."""
    return (terms, horizon, dtype) in ((33, 65, torch.float64), (64, 70, torch.float32))


MANY = [
    pytest.param(*case, dtype, marks=() if quick(*case, dtype) else pytest.mark.slow)
    for case in SHORT
    for dtype in DTYPES
]


@interpreted
@pytest.mark.parametrize(("terms", "horizon", "dtype"), MANY)
def test_many_terms_and_few_taps(terms: int, horizon: int, dtype: torch.dtype) -> None:
    """Outputs and every gradient are right with a window, packed, and with the filter's end inside a sequence."""
    lengths = (horizon + 45, 0, 1, horizon)
    case = Case.random("legendre_conv", lengths, dim=2, groups=1, taps=horizon, terms=terms, dtype=dtype)
    with backends.use("triton"):
        got = case.run("packed", dtype)
    assert_close(got, case.expected(), TOLERANCE[dtype])


@interpreted
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize(  # 1 to 3 s each
    ("terms", "horizon"),
    [pytest.param(*case, marks=pytest.mark.slow if case[1] > 100 or case == (36, 95) else ()) for case in SHORT],
)
def test_many_terms_and_few_taps_without_a_window(terms: int, horizon: int, beyond: bool) -> None:
    length = horizon + 45 if beyond else horizon
    x, grad = torch.randn(2, 1, length, 2, dtype=torch.float64).unbind()
    c = torch.randn(2, terms, dtype=torch.float64)

    def answer(dtype: torch.dtype, backend: str) -> list[np.ndarray]:
        inputs = [t.to(dtype).requires_grad_() for t in (x, c)]
        with backends.use(backend):
            out = hk.legendre_conv(*inputs, horizon=horizon)
            gradients = torch.autograd.grad(out, inputs, grad.to(dtype))
        return [t.detach().double().numpy() for t in (out, *gradients)]

    for got, want in zip(answer(torch.float32, "triton"), answer(torch.float64, "reference"), strict=True):
        assert np.linalg.norm(got - want) <= TOLERANCE[torch.float32] * np.linalg.norm(want)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("terms", "horizon"), SHORT[:3])
def test_many_terms_and_few_taps_at_the_last_position(terms: int, horizon: int, dtype: torch.dtype) -> None:
    lengths = (horizon + 45, 0, 1, horizon)
    case = Case.random(
        "legendre_conv", lengths, dim=2, groups=1, taps=horizon, terms=terms, dtype=dtype, last_only=True
    )
    with backends.use("triton"):
        got = case.run("right", dtype)
    assert_close(got, case.expected(), TOLERANCE[dtype])


@interpreted
@pytest.mark.parametrize("layout", ["packed", pytest.param("left", marks=pytest.mark.slow)])  # 2 and 4 s
def test_taps_serve_where_no_plan_is_precise_enough(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyenarec_kernels.backends.triton import launching
    from hyenarec_kernels.backends.triton import legendre_conv as module

    names: set[str] = set()
    run = launching.run
    monkeypatch.setattr(launching, "run", lambda kernel, *rest: (names.add(kernel.fn.__name__), run(kernel, *rest)))
    monkeypatch.setattr(module, "plan_for", lambda *arguments: None)
    case = Case.random("legendre_conv", (70, 3), dim=2, groups=2, taps=66, terms=40, dtype=torch.float32)
    with backends.use("triton"):
        got = case.run(layout, torch.float32)
    assert_close(got, case.expected(), TOLERANCE[torch.float32])
    assert "long_conv_direct_kernel" in names and not any(name.startswith("legendre") for name in names)
