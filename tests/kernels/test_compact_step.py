"""The operator that moves a compact state on by one event: its kernel gives the reference's values and state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import TOLERANCE
from torch import Tensor
from torch.library import opcheck

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.nn import CompactState, HyenaMixer
from hyenarec_kernels.ops.compact_step import compact_step

compiled = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")
HORIZON = 512


def state_of(dim: int, dtype: torch.dtype, lengths: list[int], moments: torch.dtype | None = None) -> CompactState:
    torch.manual_seed(0)
    mixer = HyenaMixer(dim, HORIZON, order=3, terms=8).to(dtype)
    x = torch.randn(len(lengths), max(lengths), dim).to(dtype)
    _, state = mixer.prefill(x, lengths=torch.tensor(lengths), state="compact", moments=moments)
    assert isinstance(state, CompactState)
    return state


def arguments(state: CompactState) -> dict[str, Any]:
    (page, *levels), (near, *tables) = state.memory()
    return {"page": page, "levels": levels, "near": near, "tables": tables, "steps": state.steps}


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).double().norm() / want.double().norm().clamp(min=1e-30))


@compiled
@pytest.mark.parametrize("moments", [None, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 5, 37])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_kernel_equals_the_reference(dtype: torch.dtype, dim: int, moments: torch.dtype | None) -> None:
    """The kernel equals the reference past the ends of chunks at every level, for users at different places, one of
    them without events."""
    state = state_of(dim, dtype, [0, 250, 3], moments)
    other = state.index(slice(None))
    given, expected = arguments(state), arguments(other)
    # A moment halfway between two bfloat16 values may be rounded to either.
    tolerance = TOLERANCE[dtype] if moments is None else max(1e-3, TOLERANCE[dtype])
    for event in range(140):
        x, gates = torch.randn(3, dim).to(dtype), torch.randn(2, 3, dim).to(dtype)
        gate = {"pre_gate": gates[0], "post_gate": gates[1]} if event % 3 else {}
        for number in range(2):
            got = compact_step(x, **given, number=number, **gate)
            with backends.use("reference"):
                want = compact_step(x, **expected, number=number, **gate)
            assert got.dtype == dtype and error(got, want) < tolerance
        state.steps.add_(1), other.steps.add_(1)
    wanted = other.tensors()  # at least float32
    for name, values in state.tensors().items():
        tolerance = 1e-3 if moments is not None else 1e-5 if dtype != torch.float64 else 1e-12
        assert error(values, wanted[name]) < tolerance, name


@compiled
@pytest.mark.parametrize("dim", [64, 5, 37])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rings_of_pages_equal_the_reference(dtype: torch.dtype, dim: int) -> None:
    """A state without levels, which holds the inputs themselves, equals the reference to beyond the horizon, for users
    at different places."""
    torch.manual_seed(0)
    mixer = HyenaMixer(dim, 27, order=3, terms=8).to(dtype)
    x = torch.randn(3, 40, dim).to(dtype)
    _, state = mixer.prefill(x, lengths=torch.tensor([0, 40, 3]))
    other = state.index(slice(None))
    for event in range(60):
        x, gate = torch.randn(2, 3, dim).to(dtype)
        for number in range(2):
            got = state.convolve(number, x, gate, None if event % 3 else gate)
            with backends.use("reference"):
                want = other.convolve(number, x, gate, None if event % 3 else gate)
            assert got.dtype == dtype and error(got, want) < TOLERANCE[dtype]
        state.steps.add_(1), other.steps.add_(1)
    for name, values in state.tensors().items():
        assert error(values, other.tensors()[name]) < (1e-5 if dtype != torch.float64 else 1e-12), name


@compiled
def test_any_strides() -> None:
    """A state inside a larger tensor is written in place; one with other strides is copied to the kernel and back."""
    state = state_of(8, torch.float32, [100, 127])
    want, x = state.index(slice(None)), torch.randn(2, 8)
    pool = {name: torch.stack([values, values], -1) for name, values in state.tensors().items()}
    views = state.with_tensors({name: values[..., 1] for name, values in pool.items()})
    assert not views.page.is_contiguous()
    for now in (want, views):
        for _ in range(3):
            y = now.convolve(1, x, None, None)
            now.steps.add_(1)
        if now is want:
            expected = y
    torch.testing.assert_close(y, expected)
    for name, values in want.tensors().items():
        torch.testing.assert_close(pool[name][..., 1], values)
        assert torch.equal(pool[name][..., 0], state.tensors()[name]), name


def test_torch_knows_what_it_writes_to() -> None:
    given = arguments(state_of(4, torch.float32, [100, 0]))
    x = torch.randn(2, 4)
    call = (x, given["page"], given["levels"], given["near"], given["tables"], given["steps"], 1, None, x)
    opcheck(torch.ops.hyenarec.compact_step.default, call)


def test_gradients_are_refused() -> None:
    given = arguments(state_of(4, torch.float32, [100]))
    with pytest.raises(NotImplementedError, match=r"^compact_step: it has no gradients"):
        compact_step(torch.randn(1, 4, requires_grad=True), **given, number=0)


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 2}, "near: expected .* F above the number 2"),
        ({"number": -1}, "near: expected"),
        ({"steps": torch.zeros(2, dtype=torch.int32)}, "steps: expected 2 int64"),
        ({"steps": torch.tensor([5, -1])}, "steps: below 0"),
        ({"page": torch.zeros(2, 2, 3, 4)}, "page: its sizes do not fit"),
        ({"near": torch.zeros(2, 5, 4)}, "the chunks of level 0"),
        ({"levels": []}, "levels: expected 3 tensors a level"),
        ({"x": torch.zeros(2, 5)}, "enter: expected"),
    ],
)
def test_what_would_be_read_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.randn(2, 4), "number": 0} | arguments(state_of(4, torch.float32, [100, 0])) | change
    order = ("x", "page", "levels", "near", "tables", "steps", "number")
    with pytest.raises(RuntimeError, match=message):
        torch.ops.hyenarec_cpu.compact_step(*(given[name] for name in order), None, None)


@compiled
def test_it_serves_the_mixer() -> None:
    mixer, x = HyenaMixer(8, HORIZON), torch.randn(1, 8)
    with torch.no_grad():
        state = mixer.init_state(1, state="compact")
        call = backends.Call("compact_step", "compact_step", (x,))
        assert backends.implementation(call) is cpu.compact_step
        assert mixer.step(x, state)[1] is state and int(state.steps) == 1
    assert "compact_step" not in hk.__all__
