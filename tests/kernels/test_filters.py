"""Filters: their scale, the spread of their memories, and their taps and convolutions."""

from __future__ import annotations

import numpy as np
import operator_oracle as oracle
import pytest
import torch
from torch.nn.utils import prune

import hyenarec_kernels as hk
from hyenarec_kernels.legendre import product
from hyenarec_kernels.nn import (
    ChebyshevFilter,
    CosineFilter,
    ExplicitFilter,
    Filter,
    HyenaMixer,
    ImplicitFilter,
    LegendreFilter,
    LogSparseFilter,
)
from hyenarec_kernels.nn.filters import _chebyshev_to_legendre
from hyenarec_kernels.nn.log_sparse import step_of_lags

KINDS = [LegendreFilter, ChebyshevFilter, CosineFilter, ImplicitFilter, ExplicitFilter, LogSparseFilter]
BASES = KINDS[:3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("horizon", [1, 2, 16, 200, 4096])
def test_norm_is_about_one_at_any_horizon(kind: type[Filter], horizon: int) -> None:
    squares = kind(256, horizon)().detach().square().sum(1)
    assert 0.6 < float(squares.mean()) < 1.6
    for band in squares.view(4, 64).mean(1):  # slow and fast channels have the same scale
        assert 0.3 < float(band) < 3


@pytest.mark.parametrize("kind", [*BASES, LogSparseFilter])
def test_filters_start_near_their_windows(kind: type[Filter]) -> None:
    torch.manual_seed(0)
    filter = kind(256, 200)
    windows = filter.windowed(torch.ones(256, 200))
    assert torch.cosine_similarity(filter(), windows).mean() > 0.75  # random coefficients would give .4 to .5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("horizon", [16, 4096])
def test_parameters_are_of_unit_scale_at_any_horizon(kind: type[Filter], horizon: int) -> None:
    filter = kind(64, horizon)
    for name, parameter in filter.named_parameters():
        if name == "log_rate":  # a logarithm, which starts at 0
            assert not parameter.any()
        else:
            assert 0.05 < float(parameter.detach().double().square().mean().sqrt()) < 10, name


@pytest.mark.parametrize("kind", [*BASES, ImplicitFilter, LogSparseFilter])
def test_memories_spread_from_the_horizon_to_a_few_events(kind: type[Filter]) -> None:
    filter = kind(64, 400)
    decay = filter.decay()
    assert decay is not None
    memory = 400 / decay  # events until the window falls to 1/e
    torch.testing.assert_close(memory[[0, -1]], torch.tensor([400.0, 4.0]))
    ratio = memory[1:] / memory[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand(63))
    assert kind(64, 400, window=False).decay() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_taps_are_wide_and_lead_to_every_parameter(kind: type[Filter], dtype: torch.dtype) -> None:
    filter = kind(3, 21).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        taps = filter()
    assert taps.shape == (3, 21)
    assert taps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(taps, filter(), rtol=0, atol=0)  # autocast has no effect inside a filter
    taps.square().sum().backward()
    for name, parameter in filter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last_only", [False, True])
def test_convolve_is_long_conv_with_the_taps(kind: type[Filter], last_only: bool) -> None:
    filter = kind(3, 21).double()
    x, pre = torch.randn(2, 40, 2, 6, dtype=torch.float64).unbind(2)
    skip, lengths = torch.randn(6, dtype=torch.float64), torch.tensor([33, 40])
    post = torch.randn(2, 6, dtype=torch.float64) if last_only else pre.flip(1)
    options = {"pre_gate": pre, "post_gate": post, "lengths": lengths, "last_only": last_only}
    torch.testing.assert_close(filter.convolve(x, skip, **options), hk.long_conv(x, filter(), skip, **options))


@pytest.mark.parametrize("window", [False, True])
def test_legendre_taps_are_legendre_filter(window: bool) -> None:
    filter = LegendreFilter(3, 21, terms=5, window=window).double()
    torch.testing.assert_close(filter(), hk.legendre_filter(filter.coefficients(), 21, filter.decay()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("terms", "horizon"), [(1, 1), (3, 2), (16, 200), (64, 900)])
def test_chebyshev_coefficients_become_legendre_ones_exactly(terms: int, horizon: int, dtype: torch.dtype) -> None:
    filter = ChebyshevFilter(4, horizon, terms, window=False).to(dtype)
    change = _chebyshev_to_legendre(terms).to(dtype)
    taps = hk.legendre_filter(product(filter.coefficients(), change), horizon)
    rounding = 4 * terms * torch.finfo(dtype).eps
    assert (taps - filter()).norm(dim=1).max() <= rounding * filter().norm(dim=1).max()


def test_bases_are_what_they_are_called() -> None:
    cpu, tau = torch.device("cpu"), np.arange(30)
    grid = 2 * tau / 29 - 1
    chebyshev = [np.polynomial.chebyshev.chebval(grid, np.eye(6)[n]) * (2**0.5 if n else 1) for n in range(6)]
    cosine = [np.cos(np.pi * n * (tau + 0.5) / 30) * (2**0.5 if n else 1) for n in range(6)]
    for kind, want in (
        (LegendreFilter, oracle.legendre_basis(6, 30)),
        (ChebyshevFilter, np.stack(chebyshev)),
        (CosineFilter, np.stack(cosine)),
    ):
        np.testing.assert_allclose(kind(1, 30, 6).basis(torch.float64, cpu), want, atol=1e-12)


def test_log_sparse_steps_double() -> None:
    assert step_of_lags(21).tolist() == [*range(8), 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 12, 13]
    widths = step_of_lags(4096).bincount().tolist()
    assert widths == [1] * 8 + [w for w in (2, 4, 8, 16, 32, 64, 128, 256, 512) for _ in range(4)]
    filter = LogSparseFilter(3, 4096, window=False).double()
    assert filter.weight.shape == (3 * 44,)
    for taps, weight in zip(filter(), 1 + filter.weight.view(3, 44), strict=True):
        torch.testing.assert_close(taps / taps[0], (weight / weight[0])[step_of_lags(4096)])


def test_a_filter_survives_its_state_dict() -> None:
    for kind in KINDS:
        source, target = kind(3, 21), kind(3, 21)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(), source(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_a_call_run_within_a_mixer(kind: type[Filter]) -> None:
    """Pruning computes a parameter in a hook of the call; what the mixer uses is the value of then."""
    torch.manual_seed(0)
    mixer, x = HyenaMixer(4, 9, filter=kind), torch.randn(2, 12, 4)
    prune.random_unstructured(mixer.filters[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    for _ in range(2):  # each pass makes the parameter again, with a graph of its own
        mixer(x).square().sum().backward()
    with torch.no_grad():
        mixer.filters[0].weight_orig.mul_(3.0)
        pruned, state = mixer(x), mixer.init_state(2)
        steps = torch.stack([mixer.step(row, state)[0] for row in x.unbind(1)], 1)
        prune.remove(mixer.filters[0], "weight")  # type: ignore[no-untyped-call]
        torch.testing.assert_close(pruned, mixer(x))
        torch.testing.assert_close(steps, pruned)
    mixer.filters[0].register_forward_hook(lambda filter, inputs, taps: 0 * taps)
    assert not mixer(x).any()  # neither filter nor skip passes anything on


def test_the_frequency_is_stored_with_the_weights() -> None:
    filter = ImplicitFilter(2, 9, frequency=3)
    ImplicitFilter(2, 9, frequency=3.0).load_state_dict(filter.state_dict())
    with pytest.raises(RuntimeError, match="frequency_3_0"):
        ImplicitFilter(2, 9).load_state_dict(filter.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_filters_refuse_bad_sizes(kind: type[Filter]) -> None:
    for name, (groups, horizon) in {"groups": (0, 5), "horizon": (3, 0)}.items():
        with pytest.raises(ValueError, match=f"{kind.__name__}: {name} must be at least 1, got 0"):
            kind(groups, horizon)


def test_the_base_class_asks_for_forward() -> None:
    with pytest.raises(NotImplementedError, match="Filter must define forward"):
        Filter(1, 1, window=False)()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_default_dtype_builds_filters_and_mixers(kind: type[Filter], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        filter, mixer = kind(3, 21), HyenaMixer(6, 21, filter=kind)
        y = mixer(torch.randn(2, 9, 6))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in filter.state_dict().values()} == {dtype} == {y.dtype}
    y.float().square().sum().backward()
    assert y.isfinite().all() and all(p.grad is not None for p in mixer.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_argument", [False, True])
def test_filters_and_mixers_are_built_on_the_meta_device_and_filled(kind: type[Filter], by_argument: bool) -> None:
    """They can be filled later by a state dict or by `reset_parameters`, which draws what the constructor draws."""
    for make in (lambda **o: kind(3, 21, **o), lambda **o: HyenaMixer(6, 21, filter=kind, **o)):
        torch.manual_seed(3)
        real = make()
        with torch.device("cpu" if by_argument else "meta"):
            deferred = make(**({"device": "meta", "dtype": torch.float32} if by_argument else {}))
        assert all(t.is_meta for t in deferred.state_dict().values())
        deferred.to_empty(device="cpu")
        for t in deferred.state_dict().values():
            t.fill_(torch.nan)
        deferred.reset_parameters()
        assert all(t.isfinite().all() for t in deferred.state_dict().values())
        if isinstance(real, Filter):
            torch.manual_seed(3)
            deferred.reset_parameters()
            torch.testing.assert_close(deferred.state_dict(), real.state_dict(), rtol=0, atol=0)
        deferred.load_state_dict(real.state_dict())
        torch.testing.assert_close(deferred.state_dict(), real.state_dict(), rtol=0, atol=0)
    assert kind(3, 21, dtype=torch.float64)().dtype == torch.float64
