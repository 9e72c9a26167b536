"""The compact streaming state: equal to the exact state up to the horizon, and dropping whole chunks after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import TOLERANCE
from torch import Tensor

from hyenarec_kernels.lowrank.compact import compact_levels
from hyenarec_kernels.nn import CompactState, HyenaMixer, MixerState, separate
from hyenarec_kernels.segments import Segments


def make(horizon: int, *, dtype: torch.dtype = torch.float64, **options: Any) -> HyenaMixer:
    torch.manual_seed(0)
    mixer = HyenaMixer(4, horizon, dtype=dtype, **options)
    with torch.no_grad():  # away from the initial values, which hide mistakes
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer


def error(got: Tensor, want: Tensor) -> float:
    return float(((got.double() - want.double()).norm() / want.double().norm()).detach())


def stepped(mixer: HyenaMixer, x: Tensor, prompt: int, **options: Any) -> Tensor:
    """The outputs after the first ``prompt`` events, computed one event at a time."""
    with torch.no_grad():
        if prompt:
            _, state = mixer.prefill(x[:, :prompt], state="compact", **options)
        else:
            state = mixer.init_state(len(x), state="compact", **options)
        assert isinstance(state, CompactState)
        return torch.stack([mixer.step(x[:, t], state)[0] for t in range(prompt, x.shape[1])], 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": False},
        {"filter": "chebyshev", "terms": 8},
        {"order": 3, "groups": 2},
        {"gate": "none", "short_width": 1},
        {"gate": "silu", "short_width": 4},
        {"order": 3, "bidirectional": False, "terms": 20},
    ],
)
@pytest.mark.parametrize("prompt", [0, 1, 77, 256, 301])
def test_equals_the_forward_up_to_the_horizon(options: dict[str, Any], prompt: int) -> None:
    mixer = make(512, **options)
    x = torch.randn(2, min(prompt + 140, 512), 4, dtype=torch.float64)
    got = stepped(mixer, x, prompt)
    assert error(got, mixer(x)[:, prompt:]) < TOLERANCE[torch.float64]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_the_forward_in_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    mixer = make(1024, dtype=dtype)
    x = torch.randn(1, 1000, 4, dtype=dtype)
    exact = make(1024).double()
    exact.load_state_dict(mixer.state_dict())
    assert error(stepped(mixer, x, 900), exact(x.double())[:, 900:]) < tolerance


def test_moments_in_half_precision_cost_little() -> None:
    mixer = make(1024, dtype=torch.float32)
    x = torch.randn(1, 1000, 4)
    got = stepped(mixer, x, 900, moments=torch.bfloat16)
    assert 1e-6 < error(got, mixer(x)[:, 900:]) < 4e-3


def test_oldest_chunks_leave_as_a_whole() -> None:
    """Beyond the horizon the output is that of the definition with filters cut off at the start of the oldest chunk
    that the top level still holds."""
    mixer = make(512)
    x = torch.randn(1, 700, 4, dtype=torch.float64)
    with torch.no_grad():
        got = stepped(mixer, x, 0)
        _, (*_, gate), u = separate.project(mixer, x, Segments(None, None), None)
        taps = mixer.filters[0]()
        (top,) = compact_levels(16, 512, torch.float64)[-1:]
        assert mixer.init_state(0, state="compact").reach == (top.slots + 1) * top.chunk == 512
        mixed = torch.zeros_like(u)
        for t in range(700):
            first = max((t // top.chunk - top.slots) * top.chunk, 0)
            lags = t - torch.arange(first, t + 1)
            assert 512 - top.chunk <= lags.max() < 512 or first == 0
            mixed[0, t] = (taps[:, lags].T * u[0, first : t + 1]).sum(0) + mixer.skip[0] * u[0, t]  # type: ignore[index]
        want = mixer.project_out(mixed * gate)
    assert error(got, want) < TOLERANCE[torch.float64]


def test_users_join_leave_and_are_stored() -> None:
    """Steps are right for users at different places in their chunks, one of them without events, while users join,
    leave and are stored and restored."""
    mixer = make(512)
    x = torch.randn(3, 200, 4, dtype=torch.float64)
    want = mixer(x)
    lengths = torch.tensor([130, 64])
    with torch.no_grad():
        _, state = mixer.prefill(x[:2, :130], lengths=lengths, state="compact")
        state = CompactState.cat([state, mixer.init_state(1, state="compact")])
        place = torch.tensor([130, 64, 0])
        for _ in range(70):
            y, state = mixer.step(x[torch.arange(3), place], state)
            assert error(y, want[torch.arange(3), place]) < TOLERANCE[torch.float64]
            place += 1
        left, other = state.index(torch.tensor([2, 1])), state.index(slice(0, 2))
        for name, values in left.tensors().items():  # a stored user replaces another one
            other.tensors()[name].copy_(values)
        y, _ = mixer.step(x[[2, 1], place[[2, 1]]], other)
    assert error(y, want[[2, 1], place[[2, 1]]]) < TOLERANCE[torch.float64]


def test_size_hardly_grows_with_the_horizon() -> None:
    sizes = {}
    for horizon in (1024, 4096, 65536):
        state = make(horizon, dtype=torch.float32).init_state(1, state="compact")
        sizes[horizon] = sum(values.numel() for values in state.tensors().values()) / 4
    assert sizes[4096] < 300 and sizes[65536] < 500
    assert sizes[1024] < sizes[4096] < sizes[65536]


def test_short_horizons_keep_the_inputs_themselves() -> None:
    assert isinstance(make(50, dtype=torch.float32).init_state(1, state="compact"), MixerState)


def test_bounds_hold_for_the_worst_input() -> None:
    """On every level, what the rank drops from the blocks of filters of norm 1 is at most the tolerance."""
    for dtype, tolerance in ((torch.float32, 4e-6), (torch.float64, 1e-12)):
        for level in compact_levels(16, 1024, dtype):
            coefficients = torch.eye(16, dtype=torch.float64)
            blocks = level.blocks(coefficients.numpy(), 1024)
            full = type(level)(level.chunk, 16, level.slots).blocks(coefficients.numpy(), 1024)
            full[:, : level.rank, : level.rank] -= blocks
            assert ((full**2).sum() / 1024) ** 0.5 < tolerance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "small"}, "state must be 'exact' or 'compact', got 'small'"),
        ({"state": "compact", "moments": torch.float16}, "moments must be torch.float64 or torch.bfloat16"),
        ({"moments": torch.bfloat16}, "an exact state has no moments"),
    ],
)
def test_wrong_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(512).init_state(1, **options)


@pytest.mark.parametrize("filter", ["implicit", "cosine", "explicit", "logsparse"])
def test_other_filters_have_none(filter: str) -> None:
    with pytest.raises(ValueError, match="filters must be polynomials"):
        make(512, filter=filter).init_state(1, state="compact")


def test_states_of_other_mixers_are_refused() -> None:
    mixer, compact = make(512), make(512).init_state(1, state="compact")
    x = torch.zeros(1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="no state of this mixer"), torch.no_grad():
        make(1024).step(x, compact)
    with pytest.raises(ValueError, match="must be a CompactState, got MixerState"):
        CompactState.cat([compact, mixer.init_state(1)])  # type: ignore[list-item]
