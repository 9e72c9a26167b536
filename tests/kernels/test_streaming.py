"""Contract 4: prefill and step equal the forward pass, from a state of fixed size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_checks import check_streaming
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenarec_kernels.nn import CosineFilter, HyenaMixer, MixerState

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 2, 7, 40])
@pytest.mark.parametrize("short_width", [1, 4])
def test_contract_4_streaming(order: int, horizon: int, short_width: int, backend: str) -> None:
    mixer = HyenaMixer(6, horizon, order=order, short_width=short_width, groups=3, gate="silu", terms=4).double()
    x = torch.randn(3, 17, 6, dtype=torch.float64)
    for prompt in (0, 1, 9):
        check_streaming(mixer, x, prompt, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("filter", ["legendre", "implicit"])
def test_contract_4_streaming_dtypes(dtype: torch.dtype, filter: str, backend: str) -> None:
    mixer = HyenaMixer(8, 20, filter=filter).to(dtype)
    check_streaming(mixer, torch.randn(2, 41, 8, dtype=dtype), 13, TOLERANCE[dtype])


def test_contract_4_streaming_under_autocast() -> None:
    mixer = HyenaMixer(8, 20)
    with torch.autocast("cpu", torch.bfloat16):
        check_streaming(mixer, torch.randn(2, 31, 8), 13, TOLERANCE[torch.bfloat16])


@torch.no_grad()
@pytest.mark.parametrize("layout", ["right", "left", "mask", "packed"])
def test_contract_4_prefill_of_every_layout(layout: str, backend: str) -> None:
    """A ragged prefill leaves each sequence, an empty one too, in the state that steps alone would have reached."""
    mixer = HyenaMixer(6, 5, order=3, terms=3).double()
    lengths = torch.tensor([9, 0, 1, 4])
    x = torch.randn(4, 9, 6, dtype=torch.float64)
    state = mixer.init_state(4)
    for t in range(9):
        _, ahead = mixer.step(x[:, t], state)
        live = lengths > t
        state = MixerState(
            torch.where(live[:, None, None], ahead.projected, state.projected),
            torch.where(live[:, None, None, None], ahead.gated, state.gated),
            state.taps,
        )
    real = torch.arange(9) < lengths[:, None]
    shifted = torch.stack([row.roll(9 - int(n), 0) for row, n in zip(x, lengths, strict=True)])
    arguments: dict[str, tuple[Tensor, dict[str, Tensor]]] = {
        "right": (x, {"lengths": lengths}),
        "left": (shifted, {"lengths": lengths, "starts": 9 - lengths}),
        "mask": (x, {"mask": real}),
        "packed": (x[real], {"cu_seqlens": torch.tensor([0, 9, 9, 10, 14])}),
    }
    inputs, where = arguments[layout]
    y, got = mixer.prefill(inputs, **where)
    torch.testing.assert_close(y, mixer(inputs, **where), rtol=0, atol=0)
    torch.testing.assert_close(got.projected, state.projected)
    torch.testing.assert_close(got.gated, state.gated)


@torch.no_grad()
def test_contract_4_state_size_does_not_grow() -> None:
    mixer = HyenaMixer(6, 5, order=3, short_width=4)
    state = mixer.init_state(2)
    sizes = (2, 3, 4 * 6), (2, 2, 4, 6), (2, 5, 6)
    for _ in range(12):
        assert (state.projected.shape, state.gated.shape, state.taps.shape) == sizes
        _, state = mixer.step(torch.randn(2, 6), state)
    _, state = mixer.prefill(torch.randn(2, 50, 6))
    assert (state.projected.shape, state.gated.shape, state.taps.shape) == sizes


@torch.no_grad()
def test_contract_4_step_has_no_matmul_over_history() -> None:
    class Largest(TorchDispatchMode):
        products, largest = 0, 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm)
            if isinstance(out, Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    mixer = HyenaMixer(8, 64)
    state = mixer.init_state(3)
    with Largest() as seen:
        mixer.step(torch.randn(3, 8), state)
    assert seen.products == 2  # in_proj and out_proj
    assert seen.largest == 3 * 64 * 8  # one pass over K events a channel


@torch.no_grad()
def test_states_can_be_joined_and_picked() -> None:
    """Users whose histories differ in length share a batch; stepping leaves the given state alone."""
    mixer = HyenaMixer(6, 5, filter=CosineFilter)
    parts = [mixer.prefill(torch.randn(n, length, 6))[1] for n, length in ((1, 3), (2, 11))]
    joined = MixerState.cat(parts)
    x = torch.randn(3, 6)
    y, after = mixer.step(x, joined)
    again, _ = mixer.step(x, joined)
    torch.testing.assert_close(y, again, rtol=0, atol=0)
    alone = torch.cat([mixer.step(x[:1], parts[0])[0], mixer.step(x[1:], parts[1])[0]])
    torch.testing.assert_close(y, alone)
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        picked, _ = mixer.step(x[rows], after.index(rows))
        torch.testing.assert_close(picked, mixer.step(x, after)[0][rows])


def test_step_refuses_a_state_of_another_batch() -> None:
    mixer = HyenaMixer(6, 5)
    with pytest.raises(ValueError, match=r"HyenaMixer.step: x must be \(2, 6\) beside this state, got \(3, 6\)"):
        mixer.step(torch.randn(3, 6), mixer.init_state(2))
