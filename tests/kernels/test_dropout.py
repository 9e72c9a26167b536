"""Dropout by seed: the generator gives its published numbers, and values and gradients equal those in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hyenarec_kernels import backends
from hyenarec_kernels.backends import reference
from hyenarec_kernels.backends.reference.dropout import kept, philox
from hyenarec_kernels.ops.dropout import dropout

SERVING = [name for name in ("reference", "cpu") if name in backends.available("cpu")]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SEED = torch.tensor([-7_046_029_254_386_353_131])  # both 32-bit halves are nonzero


@pytest.fixture(params=SERVING)
def serving(request: pytest.FixtureRequest) -> Any:
    with backends.use(request.param):
        yield request.param


# The first row is from the authors' known-answer tests (Random123, kat_vectors); the others are compared with integer
# arithmetic.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (5, 2**63 - 1, None),
        (2**40 + 3, -(2**62) - 12345, None),
    ],
)
def test_philox(counter: int, key: int, words: tuple[int, ...] | None) -> None:
    got = philox(torch.tensor([counter]), torch.tensor([key]))[0].tolist()
    assert got == list(words or philox_by_integers(counter, key))
    assert list(philox_by_integers(0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def philox_by_integers(counter: int, key: int) -> tuple[int, ...]:
    low = 2**32 - 1
    x, k = [counter & low, counter >> 32 & low, 0, 0], [key & low, key >> 32 & low]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [b >> 32 ^ x[1] ^ k[0], b & low, a >> 32 ^ x[3] ^ k[1], a & low]
        k = [k[0] + 0x9E3779B9 & low, k[1] + 0xBB67AE85 & low]
    return tuple(x)


def test_which_byte_decides_which_element() -> None:
    keep = kept(1000, SEED, 77)
    for element in (0, 3, 4, 63, 64, 200, 255, 256, 999):
        group, within = divmod(element, 256)
        word = philox_by_integers(16 * group + within % 64 // 4, int(SEED))[within // 64]
        assert bool(keep[element]) == ((word >> 8 * (within % 4) & 255) >= 77)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("shape", [(0,), (1,), (255,), (3, 86), (5, 7, 33), (130, 131)], ids=str)
def test_oracle(shape: tuple[int, ...], activation: Any, dtype: torch.dtype, serving: str) -> None:
    """Values and gradients of strided inputs are right; NaN and Inf disappear where elements are dropped."""
    rng = np.random.default_rng(0)
    x, grad = (torch.as_tensor(3 * rng.standard_normal((*shape, 2))).to(dtype) for _ in range(2))
    x, grad = x[..., 0], grad[..., 0]  # strided
    keep = kept(x.numel(), SEED, 64).view(shape)
    poisoned = torch.where(keep, x, torch.where(x > 0, float("nan"), float("inf")).to(dtype)).detach().requires_grad_()
    out = dropout(poisoned, 0.25, SEED, activation=activation)
    assert out.dtype == dtype and out.is_contiguous()
    (got,) = torch.autograd.grad(out, poisoned, grad)

    exact = x.double().requires_grad_()
    value = torch.nn.functional.gelu(exact) if activation else exact
    want = torch.where(keep, value / 0.75, 0)
    (want_grad,) = torch.autograd.grad(want, exact, grad.double())
    # Where GELU or its slope is small, its terms cancel: errors are relative to what they multiply.
    for found, expected, size in ((out, want, x), (got, want_grad, grad)):
        error = (found.double() - expected).detach().abs()
        assert bool((error <= TOLERANCE[dtype] * size.double().abs().clamp(min=1)).all()), error.max()
        assert not found[~keep].any()


def test_the_oracle_notices_another_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.dropout
    monkeypatch.setattr(reference, "dropout", lambda x, seed, *rest: right(x, seed + 1, *rest))
    with backends.use("reference"), pytest.raises(AssertionError):
        test_oracle((130, 131), None, torch.float64, "reference")


def test_gelu_over_its_whole_range(serving: str) -> None:
    """In float32, GELU is within 4e-7 of the argument's size, also torch's own; NaN stays NaN."""
    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.tensor([-1e30, -1e-30, 0.0, 1e-30, 1e30])]).requires_grad_()
    out = dropout(x, 0, SEED, activation="gelu")
    exact = x.detach().double().requires_grad_()
    want = torch.nn.functional.gelu(exact)
    size = exact.detach().abs().clamp(min=1)
    assert float(((out - want).detach().abs() / size).max()) <= 4e-7
    (got,), (gradient,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(want.sum(), exact)
    assert float(((got - gradient).abs() / size).max()) <= 4e-7
    assert dropout(torch.tensor([float("nan")]), 0, SEED, activation="gelu").isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("left", [0, 5])
def test_rounding_over_the_whole_range(dtype: torch.dtype, left: int, serving: str) -> None:
    """Kept elements are the float32 product rounded to nearest even, as torch rounds, for every 16-bit value in whole
    vectors and for the elements left over after them. Inf and NaN are kept. Subnormal bfloat16 values may become
    zero."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = torch.cat([x, x[1 : 1 + left]])
    compared = kept(len(x), SEED, 77) & ~((x != 0) & (x.float().abs() < torch.finfo(torch.float32).tiny))
    out = dropout(x, 77 / 256, SEED)
    product = (x.float() * torch.tensor(256 / 179)).to(dtype)
    torch.testing.assert_close(out[compared], product[compared], rtol=0, atol=0, equal_nan=True)
    assert not out[~kept(len(x), SEED, 77)].any()


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_contract_8(activation: Any, serving: str) -> None:
    """The operators pass torch's checks of schema, fake tensors and autograd, and have second derivatives."""
    x = torch.randn(3, 13, dtype=torch.float64, requires_grad=True)
    operator = torch.ops.hyenarec.dropout.default
    gelu = activation == "gelu"
    opcheck(operator, [x, SEED, 64, gelu])
    opcheck(
        torch.ops.hyenarec.dropout_backward.default,
        [torch.randn_like(x), x.detach(), SEED, 64, gelu, [True]],
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    assert torch.autograd.gradcheck(lambda x: operator(x, SEED, 64, gelu), x)
    assert torch.autograd.gradgradcheck(lambda x: operator(x, SEED, 64, gelu), x)


def test_compiles_whole() -> None:
    """One compiled graph serves every seed and size."""

    def model(x: Tensor, seed: Tensor) -> Tensor:
        return dropout(2 * x, 0.5, seed, activation="gelu") + 1

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size, seed in ((300, 1), (77, 2)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x, torch.tensor([seed])), model(x, torch.tensor([seed])))


def test_a_chance_for_each_element_and_seed() -> None:
    seeds = torch.randint(2**62, (50,), generator=torch.Generator().manual_seed(0)).split(1)
    masks = torch.stack([kept(20_000, seed, 51) for seed in seeds]).double()
    assert float(masks.mean()) == pytest.approx(1 - 51 / 256, abs=0.002)
    assert float(masks.mean(1).std()) == pytest.approx((51 / 256 * 205 / 256 / 20_000) ** 0.5, rel=0.3)
    together = torch.corrcoef(masks)
    assert float((together - torch.eye(50)).abs().max()) < 0.04  # 0.007 is usual for 20,000 independent pairs


def test_the_backends_agree_on_the_mask() -> None:
    x = torch.ones(100_003)
    outs = []
    for name in SERVING:
        with backends.use(name):
            outs.append(dropout(x, 0.3, SEED))
    for out in outs[1:]:
        assert torch.equal(out, outs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": 1.0}, "probability must be from 0 to 255/256, got 1.0"),
        ({"probability": -0.1}, "probability must be from 0 to 255/256, got -0.1"),
        ({"activation": "relu"}, "activation must be None or 'gelu', got 'relu'"),
        ({"x": torch.ones(3, dtype=torch.int64)}, "x must be float32, bfloat16, float16 or float64, got torch.int64"),
        ({"seed": torch.ones(2, dtype=torch.int64)}, r"seed must be \(1,\) int64 on cpu, got \(2,\)"),
        ({"seed": torch.ones(1)}, r"seed must be \(1,\) int64 on cpu, got \(1,\) torch.float32"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.ones(3), "probability": 0.5, "seed": SEED} | change
    with pytest.raises(ValueError, match=f"^dropout: {message}"):
        dropout(**arguments)
