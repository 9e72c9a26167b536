"""The operator for a whole mixer's step: its kernel gives the values and state of the reference and of float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hyenarec_kernels import backends
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.nn import CompactState, HyenaMixer, StreamingState
from hyenarec_kernels.ops import mixer_step as module

compiled = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")
OPTIONS: list[dict[str, Any]] = [
    {"order": 1},
    {"order": 1, "short_width": 1, "gate": "silu"},
    {"gate": "sigmoid", "short_width": 4},
    {"gate": "silu", "groups": 1, "gate_dim": 3},
    {"gate": "none", "order": 2},
    {"gate": "none", "order": 1, "short_width": 2},
    {"order": 3, "window": False},
    {"order": 4, "short_width": 1, "filter": "cosine"},
]
ARGUMENTS = (
    *("x", "w_in", "w_out", "projected", "short_taps", "short_bias"),
    *("memory", "tables", "steps", "gate"),
)


def arguments(mixer: HyenaMixer, state: StreamingState, x: Tensor) -> dict[str, Any]:
    matrices = mixer.matrices()
    assert matrices is not None
    short = state.projected, state.short_taps, state.short_bias
    values = (x, *matrices, *short, *state.memory(), state.steps, state.gate)
    return dict(zip(ARGUMENTS, (v.detach() if isinstance(v, Tensor) else v for v in values), strict=True))


def randomised(mixer: HyenaMixer) -> HyenaMixer:
    """Moves all parameters away from 0 and 1, as training does, so that every part of the mixer affects the output."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize(("horizon", "events"), [(9, 14), (25, 60)])  # the state is a ring of rows, and a ring of pages
@pytest.mark.parametrize("dim", [1, 5, 16, 37, 64, 130])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_float64(options: dict[str, Any], dim: int, horizon: int, events: int) -> None:
    """A float32 mixer's steps equal every position of the forward pass of a float64 copy on the reference."""
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(dim, horizon, **options))
    x = torch.randn(3, events, mixer.width)
    with torch.no_grad():
        with backends.use("reference"):
            want = mixer.double()(x.double())
        state = mixer.float().init_state(3)
        got = torch.stack([mixer.step(row, state)[0] for row in x.unbind(1)], 1)
    assert error(got, want) < 1e-5
    assert state.steps.tolist() == [events] * 3


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moments", [None, torch.bfloat16])
@pytest.mark.parametrize(("dim", "users"), [(64, 1), (13, 40)])
def test_compact_states_equal_the_reference(dtype: torch.dtype, moments: Any, dim: int, users: int) -> None:
    """They are equal past the ends of chunks at every level, for users at different places."""
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(dim, 512, order=3, terms=8, gate="silu").to(dtype))
    lengths = torch.randint(0, 251, (users,))
    lengths[0] = 250
    with torch.no_grad():
        x = torch.randn(users, 250, dim).to(dtype)
        _, state = mixer.prefill(x, lengths=lengths, state="compact", moments=moments)
        assert isinstance(state, CompactState)
        other = state.index(slice(None))
        for _ in range(140):
            row = torch.randn(users, dim).to(dtype)
            got = mixer.step(row, state)[0]
            with backends.use("reference"):
                want = mixer.step(row, other)[0]
            # A moment halfway between two bfloat16 values may be rounded to either.
            assert error(got, want) < (1e-3 if moments else 1e-5 if dtype == torch.float32 else 1e-12)
    wanted = other.tensors()
    for name, values in state.tensors().items():
        assert error(values, wanted[name]) < (1e-3 if moments else 1e-5), name


@compiled
@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_users_do_not_see_each_other(kind: Any, threads: int) -> None:
    """A large batch of users, divided over threads, gives the same numbers and states as each user alone."""
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(64, 512, terms=8, gate="sigmoid"))
    with torch.no_grad():
        lengths = torch.randint(1, 130, (150,))
        _, together = mixer.prefill(torch.randn(150, 130, 64), lengths=lengths, state=kind)
        alone = [together.index(torch.tensor([user])) for user in range(150)]
        for _ in range(3):
            x = torch.randn(150, 64)
            got = mixer.step(x, together)[0]
            for user, state in enumerate(alone):
                torch.testing.assert_close(mixer.step(x[user : user + 1], state)[0][0], got[user])
    joined = type(together).cat(alone)
    for name, values in together.tensors().items():
        torch.testing.assert_close(values, joined.tensors()[name], msg=name)


@compiled
@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_any_strides(kind: Any) -> None:
    """A state inside a larger tensor is written in place, and nothing next to it is changed."""
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(8, 512, order=3, terms=8))
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(3, 127, 8), state=kind)
        want, x = state.index(slice(None)), torch.randn(3, 8)
        expected = [mixer.step(x, want)[0] for _ in range(3)][-1]
        matrices = mixer.matrices()
        assert matrices is not None
        for beside in (-1, 0):  # values lie apart, or users are rows of a larger tensor
            pool = {name: torch.stack([v, v], beside) for name, v in state.tensors().items()}
            views = state.with_tensors({name: v.select(beside, 1) for name, v in pool.items()})
            for step in range(3):
                given = arguments(mixer, views, torch.stack([x, x], -1)[..., 0])
                if step:  # w_in in the order in which the kernel reads it, w_out strided
                    given["w_in"] = given["w_in"].contiguous()
                    given["w_out"] = torch.stack([given["w_out"]] * 2, -1)[..., 1]
                got = module.mixer_step(**given)
            torch.testing.assert_close(got, expected)
            for name, values in want.tensors().items():
                torch.testing.assert_close(pool[name].select(beside, 1), values)
                assert torch.equal(pool[name].select(beside, 0), state.tensors()[name]), name


@compiled
def test_nobody_is_a_batch_too() -> None:
    mixer = HyenaMixer(8, 512)
    with torch.no_grad():
        for kind in ("exact", "compact"):
            state = mixer.init_state(0, state=kind)  # type: ignore[arg-type]
            assert mixer.step(torch.randn(0, 8), state)[0].shape == (0, 8)
            _, state = mixer.prefill(torch.randn(0, 9, 8), state=kind)  # type: ignore[arg-type]
            assert mixer.step(torch.randn(0, 8), state)[0].shape == (0, 8)


@compiled
@pytest.mark.parametrize("gate", ["identity", "sigmoid", "silu"])
def test_nan_stays_with_its_user(gate: Any) -> None:
    mixer = HyenaMixer(40, 9, gate=gate)
    x = torch.randn(3, 40)
    x[1, 7] = torch.nan
    with torch.no_grad():
        y = mixer.step(x, mixer.init_state(3))[0]
    assert y[1].isnan().any() and y[[0, 2]].isfinite().all()


@compiled
def test_a_gate_that_is_nan_shows() -> None:
    """A NaN in a gate makes the output NaN: no sigmoid turns it into a number."""
    mixer = HyenaMixer(20, 9, gate="sigmoid", gate_dim=2)
    x = torch.randn(1, 22)
    x[0, 21] = torch.nan  # a channel of the gates only
    with torch.no_grad():
        assert mixer.step(x, mixer.init_state(1))[0].isnan().all()


@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_torch_knows_what_it_writes_to(kind: Any) -> None:
    mixer = HyenaMixer(4, 512, terms=8, gate_dim=2)
    given = arguments(mixer, mixer.init_state(2, state=kind), torch.randn(2, 6))
    opcheck(torch.ops.hyenarec.mixer_step.default, tuple(given.values()))


def test_gradients_are_refused() -> None:
    mixer = HyenaMixer(4, 9)
    given = arguments(mixer, mixer.init_state(1), torch.randn(1, 4))
    with pytest.raises(NotImplementedError, match=r"^mixer_step: it has no gradients"):
        module.mixer_step(**given | {"w_in": given["w_in"].clone().requires_grad_()})


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"x: expected \(B, E\) beside w_in \(E, C\)"),
        ({"x": torch.zeros(2, 4).bfloat16()}, "x: expected float32 or float64"),
        ({"w_in": torch.zeros(4, 10)}, "w_out: expected .* divisor of the 10 columns"),
        ({"w_in": torch.zeros(4, 12).double()}, "w_in and w_out: expected the dtype of x"),
        ({"w_in": torch.zeros(4, 8)}, "gate: identity with 1 gates and 1 filters"),
        ({"w_out": torch.zeros(4, 3)}, r"w_out: expected \(D, D\)"),
        ({"projected": torch.zeros(2, 3, 12)}, "projected: its sizes do not fit"),
        ({"projected": torch.zeros(2, 2, 12).double()}, "projected: expected the arithmetic type"),
        ({"short_taps": torch.zeros(3, 11)}, "short_taps: expected 36 values"),
        ({"short_bias": torch.zeros(11)}, "short_bias: expected 12 values"),
        ({"memory": [torch.zeros(3, 1, 8, 4)]}, "gated: its sizes do not fit"),
        ({"memory": []}, "memory and tables: expected page and near"),
        ({"memory": [torch.zeros(2, 1, 8, 4)] * 4}, "levels: expected 3 tensors a level"),
        ({"tables": []}, "memory and tables: expected page and near"),
        ({"tables": [torch.zeros(1, 9, 5)]}, r"near: expected \(F, C, D\)"),
        ({"tables": [torch.zeros(1, 20, 4)]}, "page: its sizes do not fit"),  # neither a ring of rows nor one of pages
        ({"steps": torch.zeros(3, dtype=torch.int64)}, "steps: expected 2 int64"),
        ({"steps": torch.zeros(2)}, "steps: expected 2 int64"),
        ({"gate": "tanh"}, "gate: expected identity, sigmoid, silu or none, got tanh"),
        ({"gate": "none"}, "gate: none with 2 gates"),
        ({"tables": [torch.zeros(1, 9, 4)] * 5}, "levels: expected 3 tensors a level"),
    ],
)
def test_what_would_be_read_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    mixer = HyenaMixer(4, 9)
    given = arguments(mixer, mixer.init_state(2), torch.randn(2, 4)) | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.hyenarec_cpu.mixer_step(*given.values())
