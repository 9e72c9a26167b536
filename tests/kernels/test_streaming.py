"""Contract 4: prefill and step, from a state of fixed size, equal the forward pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_cases import TOLERANCE
from operator_checks import check_step, check_streaming
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenarec_kernels.backends import reference
from hyenarec_kernels.nn import CosineFilter, HyenaMixer, MixerState
from hyenarec_kernels.ops.conv_step import conv_step


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("dim", "batch"), [(1, 1), (7, 3), (16, 2), (64, 1), (131, 4)])
@pytest.mark.parametrize("taps", [1, 2, 5, 32])
def test_contract_4_step(dtype: torch.dtype, dim: int, batch: int, taps: int, compiled_backend: str) -> None:
    check_step(dim, taps, batch, dtype)
    check_step(dim, taps, batch, dtype, gated=False)


def test_contract_4_step_of_many_channels(compiled_backend: str) -> None:
    """The step is right with enough channels for several threads."""
    check_step(512, 220, 2, torch.float32)


@torch.no_grad()
def test_contract_9_step_keeps_nan_in_its_channel_and_sequence(backend: str) -> None:
    history, taps, steps = torch.randn(2, 4, 40), torch.randn(5, 40), torch.tensor([1, 2])
    history[1, 3, 17] = torch.nan
    for t in range(4):
        out = conv_step(torch.randn(2, 40), history, taps, steps + t)
        bad = out.isnan().nonzero().tolist()
        assert bad == ([[1, 17]] if t < 2 else [])  # row 3 of the ring, the oldest in step 2, is then overwritten


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"taps": torch.randn(4, 6)}, r"history must be \(2, 3, 6\) torch.float32 .* and 4 taps, got \(2, 4, 6\)"),
        ({"taps": torch.randn(5, 5)}, r"taps must be \(5, 6\) torch.float32 beside \(2, 6\)"),
        ({"history": torch.zeros(2, 4, 6).double()}, "history must be .* torch.float32 .* got .* torch.float64"),
        ({"steps": torch.zeros(2)}, r"steps must be \(2,\) torch.int64 .* got \(2,\) torch.float32"),
        ({"pre_gate": torch.randn(2, 5)}, r"pre_gate must have shape \(2, 6\), got \(2, 5\)"),
    ],
)
def test_contract_9_step_refuses_what_does_not_fit(arguments: dict[str, Tensor], message: str) -> None:
    given = {"x": torch.randn(2, 6), "history": torch.zeros(2, 4, 6), "taps": torch.randn(5, 6)}
    with pytest.raises(ValueError, match=f"^conv_step: {message}"):
        conv_step(**{**given, "steps": torch.zeros(2, dtype=torch.int64), **arguments})


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 2, 7, 40])
@pytest.mark.parametrize("short_width", [1, 4])
@pytest.mark.parametrize("gate", ["silu", "none"])
def test_contract_4_streaming(order: int, horizon: int, short_width: int, gate: str, compiled_backend: str) -> None:
    mixer = HyenaMixer(6, horizon, order=order, short_width=short_width, groups=3, gate=gate, terms=4).double()
    if mixer.skip is not None:
        torch.nn.init.normal_(mixer.skip)
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
@pytest.mark.parametrize("gate", ["identity", "none"])
def test_contract_4_prefill_of_every_layout(layout: str, gate: str, backend: str) -> None:
    """A prefill of sequences of different lengths, one of them empty, leaves the state that steps alone would leave."""
    mixer = HyenaMixer(6, 5, order=3, gate=gate, terms=3).double()
    lengths = torch.tensor([9, 0, 1, 4])
    x = torch.randn(4, 9, 6, dtype=torch.float64)
    alone = [mixer.init_state(1) for _ in lengths]
    for state, row, n in zip(alone, x, lengths, strict=True):
        for event in row[:n]:
            mixer.step(event[None], state)
    stepped = MixerState.cat(alone)
    assert stepped.steps.tolist() == lengths.tolist()
    real = torch.arange(9) < lengths[:, None]
    shifted = torch.stack([row.roll(9 - int(n), 0) for row, n in zip(x, lengths, strict=True)])
    arguments: dict[str, tuple[Tensor, dict[str, Tensor]]] = {
        "right": (x, {"lengths": lengths}),
        "left": (shifted, {"lengths": lengths, "starts": 9 - lengths}),
        "mask": (x, {"mask": real}),
        "packed": (x[real], {"cu_seqlens": torch.tensor([0, 9, 9, 10, 14])}),
    }
    inputs, where = arguments[layout]
    y, prefilled = mixer.prefill(inputs, **where)
    torch.testing.assert_close(y, mixer(inputs, **where), rtol=0, atol=0)
    for _ in range(7):  # more events than the rings hold
        event = torch.randn(4, 6, dtype=torch.float64)
        torch.testing.assert_close(mixer.step(event, prefilled)[0], mixer.step(event, stepped)[0])


@torch.no_grad()
@pytest.mark.parametrize("horizon", [17, 24, 25, 57])
def test_contract_4_pages(horizon: int, compiled_backend: str) -> None:
    """Rings of pages are right beyond the horizon, for users at different places, one of them without events."""
    mixer = HyenaMixer(5, horizon, order=3, gate="silu", terms=4).double()
    x, lengths = torch.randn(4, 130, 5, dtype=torch.float64), torch.tensor([61, 8, 0, 23])
    want = mixer(x)
    _, state = mixer.prefill(x[:, :61], lengths=lengths)
    assert isinstance(state, MixerState) and state.paged and state.gated.shape[2] == -(-horizon // 8) * 8
    users = torch.arange(4)
    for event in range(69):
        got = mixer.step(x[users, lengths + event], state)[0]
        torch.testing.assert_close(got, want[users, lengths + event])
    assert state.steps.tolist() == (lengths + 69).tolist()


@torch.no_grad()
@pytest.mark.parametrize("horizon", [20, 512])
def test_contract_4_states_are_not_rounded_under_autocast(horizon: int) -> None:
    """Apart from the projections, which autocast rounds, everything that makes up a state is computed in float32."""
    mixer = HyenaMixer(8, horizon, short_width=1)
    for weight in (mixer.in_proj.weight, mixer.short_weight):  # bfloat16 can then hold the projections exactly
        torch.nn.init.zeros_(weight)
    x = torch.randint(-2, 3, (2, 61, 8)).float()
    kind: Any = "compact" if horizon == 512 else "exact"
    _, want = mixer.prefill(x, state=kind)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = mixer.prefill(x, state=kind)
    for name, values in state.tensors().items():
        assert torch.equal(values, want.tensors()[name]), name


@torch.no_grad()
def test_contract_4_state_size_does_not_grow() -> None:
    mixer = HyenaMixer(6, 5, order=3, short_width=4)
    state = mixer.init_state(2)
    sizes = [(2, 3, 4 * 6), (2, 2, 4, 6), (2,), (4, 4 * 6), (4 * 6,), (2, 5, 6)]
    for _ in range(12):
        assert [t.shape for t in vars(state).values() if isinstance(t, Tensor)] == sizes
        _, state = mixer.step(torch.randn(2, 6), state)
    _, state = mixer.prefill(torch.randn(2, 50, 6))
    assert [t.shape for t in vars(state).values() if isinstance(t, Tensor)] == sizes


@torch.no_grad()
def test_contract_4_step_has_no_matmul_over_history() -> None:
    class Largest(TorchDispatchMode):
        products, largest, arguments = 0, 0, ()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.hyenarec.mixer_step:
                self.arguments = args
            self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm)
            if isinstance(out, Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    mixer = HyenaMixer(8, 64)
    state = mixer.init_state(3)
    with Largest() as step:
        mixer.step(torch.randn(3, 8), state)
    assert step.products == 0
    with Largest() as seen:  # looks inside the operator
        reference.mixer_step(*step.arguments)
    assert seen.products == 2  # in_proj and out_proj
    assert seen.largest == 3 * 64 * 8  # the state itself
    x, rows = torch.randn(3, 8), state.gated[:, 0, :63]
    with Largest() as seen:
        reference.conv_step(x, rows, state.taps[0], state.steps, x, x)
    assert seen.products == 0
    assert seen.largest == 3 * 63 * 8  # one pass over K events per channel


@torch.no_grad()
def test_states_can_be_joined_and_picked() -> None:
    """Users with histories of different lengths share a batch, and a copy of their state is independent of it."""
    mixer = HyenaMixer(6, 5, filter=CosineFilter)
    parts = [mixer.prefill(torch.randn(n, length, 6))[1] for n, length in ((1, 3), (2, 11))]
    joined = MixerState.cat(parts)
    x = torch.randn(3, 6)
    everyone = torch.arange(3)
    for _ in range(6):  # all around the rings, in which users have different places
        y, copied = mixer.step(x, joined.index(everyone))
        assert torch.equal(y, mixer.step(x, joined)[0])  # stepping the copy left its source unchanged
        alone = torch.cat([mixer.step(x[:1], parts[0])[0], mixer.step(x[1:], parts[1])[0]])
        torch.testing.assert_close(y, alone)
        for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
            picked, _ = mixer.step(x[rows], copied.index(rows))
            torch.testing.assert_close(picked, mixer.step(x, copied.index(everyone))[0][rows])


def test_step_refuses_a_state_of_another_batch() -> None:
    mixer = HyenaMixer(6, 5)
    with pytest.raises(ValueError, match=r"HyenaMixer.step: x must be \(2, 6\) beside this state, got \(3, 6\)"):
        mixer.step(torch.randn(3, 6), mixer.init_state(2))


@pytest.mark.parametrize(
    "other",
    [
        HyenaMixer(6, 9),
        HyenaMixer(6, 5, short_width=4),
        HyenaMixer(6, 5, order=3),
        HyenaMixer(7, 5),
        HyenaMixer(6, 5, gate="none"),
        HyenaMixer(6, 5, gate="silu"),
        HyenaMixer(6, 5).double(),
    ],
    ids=["horizon", "short_width", "order", "dim", "no gate", "gate", "dtype"],
)
def test_contract_9_step_refuses_the_state_of_another_mixer(other: HyenaMixer) -> None:
    with pytest.raises(ValueError, match=r"^HyenaMixer.step: this is no state of this mixer: \w+ must be .*, got"):
        HyenaMixer(6, 5).step(torch.randn(2, 6), other.init_state(2))
    with pytest.raises(ValueError, match=r"^MixerState.cat: states must be of one mixer, but \w+ of state 1"):
        MixerState.cat([HyenaMixer(6, 5).init_state(1), other.init_state(1)])


@pytest.mark.parametrize("wrong", [None, (torch.randn(2, 6), HyenaMixer(6, 5).init_state(2))], ids=["None", "a pair"])
def test_contract_9_what_is_no_state_is_refused(wrong: object) -> None:
    mixer, name = HyenaMixer(6, 5), type(wrong).__name__
    with pytest.raises(ValueError, match=f"^HyenaMixer.step: state must be a StreamingState, got {name}"):
        mixer.step(torch.randn(2, 6), wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^MixerState.cat: state 1 must be a MixerState, got {name}"):
        MixerState.cat([mixer.init_state(2), wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("gate", ["identity", "sigmoid"])
def test_contract_9_cat_refuses_another_gate(gate: str) -> None:
    state = HyenaMixer(6, 5, gate="silu").init_state(1)
    with pytest.raises(ValueError, match=f"^MixerState.cat: .* but gate of state 1, '{gate}', differs .* 0, 'silu'"):
        MixerState.cat([state, replace(state, gate=gate)])


@torch.no_grad()
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None), torch.tensor([0]), torch.tensor([True, False])])
def test_what_index_returns_is_a_copy(rows: Tensor | slice) -> None:
    mixer, x = HyenaMixer(6, 5), torch.randn(2, 6)
    _, state = mixer.prefill(torch.randn(2, 9, 6))
    before = copy.deepcopy(state)
    picked = state.index(rows)
    mixer.step(x[rows], picked)
    for name in ("projected", "gated", "steps"):
        assert torch.equal(getattr(state, name), getattr(before, name))
        assert not torch.equal(getattr(picked, name), getattr(before, name)[rows])
    with pytest.raises(ValueError, match=r"^MixerState.index: rows must be indices .* got \(\)"):
        state.index(torch.tensor(1))


def test_contract_9_cat_refuses_states_of_other_weights() -> None:
    states = [HyenaMixer(6, 5).init_state(1) for _ in range(2)]
    with pytest.raises(ValueError, match=r"^MixerState.cat: states must be of one mixer, but short_taps of state 1"):
        MixerState.cat(states)
    with pytest.raises(ValueError, match=r"^MixerState.cat: there must be at least one state"):
        MixerState.cat([])


def test_states_made_in_inference_mode_step_outside_it() -> None:
    mixer, x = HyenaMixer(6, 5), torch.randn(2, 9, 6)
    with torch.inference_mode():
        y, state = mixer.prefill(x[:, :4])
        assert y.is_inference()
        states = [state, MixerState.cat([state.index(torch.tensor([i])) for i in range(2)]), mixer.init_state(2)]
    for t in range(4):
        mixer.step(x[:, t], states[2])
    want = mixer(x)
    for t in range(4, 9):
        for state in states:
            torch.testing.assert_close(mixer.step(x[:, t], state)[0], want[:, t])
