"""Windows from none to a single lag, on every backend: decays of 0, huge, infinite and NaN, beside ordinary ones."""

from __future__ import annotations

import numpy as np
import operator_oracle as oracle
import pytest
import torch
from operator_cases import TOLERANCE
from torch import Tensor

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.legendre import window

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
RATES = (0.0, 1.0, 300.0, 1e4, 6e4, 1e38, torch.inf, torch.nan)  # 1e38 is infinite in float16
TERMS, SHARED = 6, 2  # SHARED: channels per filter
NAMES = ("x", "coefficients", "decay", "skip", "pre_gate", "post_gate")


def expected(tensors: dict[str, Tensor], grad: Tensor, horizon: int, last_only: bool) -> dict[str, np.ndarray]:
    """The output and every gradient in float64, from convolutions of one channel at a time."""
    v = {name: t.double().numpy() for name, t in tensors.items()}
    x, pre, post, do = v["x"], v["pre_gate"], v["post_gate"], grad.double().numpy()
    length = x.shape[1]
    if last_only:  # as if all rows were outputs, and all but the last had weight 0
        post, do = (np.concatenate([np.zeros_like(x[:, 1:]), rows[:, None]], 1) for rows in (post, do))
    h = np.repeat(oracle.legendre_filter(v["coefficients"], horizon, v["decay"]), SHARED, 0)  # (D, K)
    dh = np.zeros((x.shape[2], length + horizon))
    u, dy = pre * x, post * do
    y, du = v["skip"] * u, v["skip"] * dy
    for b in range(len(x)):
        for d in range(x.shape[2]):
            y[b, :, d] += np.convolve(u[b, :, d], h[d])[:length]
            du[b, :, d] += np.convolve(dy[b, ::-1, d], h[d])[:length][::-1]
            dh[d, :length] += np.correlate(dy[b, :, d], u[b, :, d], "full")[length - 1 :]
    grouped = dh[:, :horizon].reshape(-1, SHARED, horizon).sum(1)
    rows = {"out": post * y, "x": pre * du, "pre_gate": x * du, "post_gate": do * y}
    if last_only:
        rows |= {name: rows[name][:, -1] for name in ("out", "post_gate")}
    parameters = oracle.legendre_filter_gradients(grouped, v["coefficients"], horizon, v["decay"])
    return rows | parameters | {"skip": (dy * u).sum((0, 1))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("horizon", "length", "last_only"),
    [(1, 9, False), (40, 50, False), (101, 150, False), (600, 640, False), (90, 70, True)],
)
def test_any_rate(backend: str, horizon: int, length: int, last_only: bool, dtype: torch.dtype) -> None:
    """Every group is right, whatever the others' decays; a NaN decay makes only its own outputs and gradients NaN."""
    dim = SHARED * len(RATES)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    rows = (2, dim) if last_only else (2, length, dim)
    tensors = {
        "x": draw(2, length, dim),
        "coefficients": draw(len(RATES), TERMS),
        "decay": torch.tensor(RATES).to(dtype),
    }
    tensors |= {"skip": draw(dim), "pre_gate": draw(2, length, dim), "post_gate": draw(*rows)}
    grad = draw(*rows)
    with np.errstate(invalid="ignore"):
        want = expected(tensors, grad, horizon, last_only)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    out = hk.legendre_conv(**leaves, horizon=horizon, last_only=last_only)
    found = {"out": out} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))
    for name, value in found.items():
        for group in range(len(RATES)):
            channels = slice(group * SHARED, (group + 1) * SHARED)
            part = (group,) if name in ("coefficients", "decay") else (..., channels)
            got, right = value.detach().double().numpy()[part], want[name][part]
            what = f"{name}, rate {RATES[group]}"
            if np.isnan(RATES[group]) and name != "skip":
                assert np.isnan(got).all() and np.isnan(right).all(), what
            else:
                # At decay 300 Triton's float32 gradient of the decay is off by 1.1e-5 of its own size, because it is
                # what remains of a chunk's sums after terms 100 times larger cancel. Its error is measured against the
                # norm of the whole gradient, as in the contract.
                together = name == "decay" and RATES[group] < 1e4 and backend == "triton" and dtype == torch.float32
                scale = np.linalg.norm(want[name][:-1] if together else right)
                assert np.linalg.norm(got - right) <= TOLERANCE[dtype] * max(scale, 1e-3), what
    assert found["decay"][RATES.index(torch.inf)] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_window_itself(dtype: torch.dtype) -> None:
    decay = torch.tensor(RATES, dtype=dtype, requires_grad=True)
    found = window(decay, 60, 60)
    with np.errstate(invalid="ignore"):
        want = oracle.window(decay.detach().double().numpy(), 60)
    np.testing.assert_allclose(found.detach(), want, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    (gradient,) = torch.autograd.grad(found.sum(), decay)
    assert gradient[-1].isnan() and gradient[-2] == 0 and gradient[:-1].isfinite().all()


def test_gradients_of_gradients_at_any_rate() -> None:
    with backends.use("reference"):
        x, c = torch.randn(1, 9, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        decay = torch.tensor([0.5, torch.inf], dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(hk.legendre_conv(x, c, horizon=7, decay=decay).sum(), decay, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), decay)
    assert second[0] != 0 and second[1] == 0


def test_negative_rates_are_refused_on_the_cpu(backend: str) -> None:
    x, c = torch.randn(1, 5, 2), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"legendre_conv: decay must be at least 0, got -0.5"):
        hk.legendre_conv(x, c, horizon=4, decay=torch.tensor([torch.nan, -0.5]))
    hk.legendre_conv(x, c, horizon=4, decay=torch.tensor([0.0, -0.0]))
