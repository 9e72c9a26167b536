"""torch.func's transforms and forward mode refuse, log and compile as plain calls do; a step refuses the transforms."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product

import pytest
import torch
from test_backends import logged
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import hyenarec_kernels as hk
from hyenarec_kernels.nn import HyenaMixer, MixerState

X, C = torch.randn(2, 9, 4), torch.randn(2, 3)
GOOD, BAD = torch.tensor([0.5, 1.0]), torch.tensor([0.5, -1.0])
Function = Callable[[Tensor, Tensor], Tensor]


def total(x: Tensor, decay: Tensor) -> Tensor:
    return hk.legendre_conv(x, C, horizon=5, decay=decay, lengths=torch.tensor([9, 4])).sin().sum()


def dual(x: Tensor, decay: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(total(forward_ad.make_dual(x, x), decay)).primal


TRANSFORMS: dict[str, Function] = {
    "grad": grad(total),
    "grad of decay": grad(total, 1),
    "jvp": lambda x, decay: jvp(lambda x: total(x, decay), (x,), (x,))[1],
    "jacfwd": jacfwd(total),
    "hessian": hessian(total),
    "vmap of grad": lambda x, decay: vmap(grad(total), (None, 0))(x, torch.stack([decay.abs(), decay])),
}


@pytest.mark.parametrize("transform", [*TRANSFORMS, "vmap", "dual"])
def test_a_negative_decay_is_refused(transform: str) -> None:
    more: dict[str, Function] = {
        "vmap": lambda x, decay: vmap(total, (None, 0))(x, torch.stack([decay.abs(), decay])),
        "dual": dual,
    }
    call = (TRANSFORMS | more)[transform]
    call(X, GOOD)
    with pytest.raises(ValueError, match=r"^legendre_conv: decay must be at least 0, got -1.0$"):
        call(X, BAD)


COMPILED = ("grad of decay", "jvp", "hessian")


@pytest.mark.parametrize(
    "transform", [pytest.param(name, marks=() if name in COMPILED else pytest.mark.slow) for name in TRANSFORMS]
)
def test_a_transform_compiles(transform: str) -> None:
    """A compiled transform is one graph, gives eager code's values, and refuses the same when it runs."""
    torch._dynamo.reset()
    call = TRANSFORMS[transform]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, GOOD), call(X, GOOD))
    with pytest.raises(RuntimeError, match="legendre_conv: decay must be at least 0"):
        compiled(X, BAD)


@pytest.mark.parametrize(
    ("operator", "taps"),  # direct, FFT
    [
        ("short_conv", 3),
        ("long_conv", 40),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("short_conv", 40), ("long_conv", 3))),
        *(pytest.param("mixer", taps, marks=pytest.mark.slow) for taps in (3, 40)),
    ],
)
def test_the_gradient_of_other_operators_compiles(operator: str, taps: int) -> None:
    torch._dynamo.reset()
    mixer = HyenaMixer(4, taps, terms=3)
    calls: dict[str, Callable[..., Tensor]] = {
        "short_conv": lambda x, n: hk.short_conv(x, torch.ones(4, taps), lengths=n),
        "long_conv": lambda x, n: hk.long_conv(x, torch.ones(2, taps), lengths=n),
        "mixer": lambda x, n: mixer(x, lengths=n),
    }
    call = grad(lambda x, n: calls[operator](x, n).sin().sum())
    x, lengths = torch.randn(2, 50, 4), torch.tensor([50, 17])
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, lengths), call(x, lengths))
    for run in (call, compiled):
        with pytest.raises(ValueError, match="row 1 runs from 0 to 51"):
            run(x, torch.tensor([50, 51]))


FIRST_LINEAR = ((False, 5, 2), (False, 40, 1), (True, 40, 1))  # 2 s each


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize(
    ("derivative", "horizon", "order"),  # the horizons: direct, FFT
    [
        pytest.param(*case, marks=() if case in FIRST_LINEAR else pytest.mark.slow)
        for case in product((False, True), (5, 40), (1, 2))
    ],
)
def test_linearize_equals_forward_mode(derivative: bool, horizon: int, order: int) -> None:
    """`linearize` keeps what does not depend on the input as constants, even tensors that are written in place
    later."""
    mixer = HyenaMixer(4, horizon, order=order, terms=3).requires_grad_(False)
    x, v, lengths = torch.randn(2, 50, 4), torch.randn(2, 50, 4), torch.tensor([50, 9])

    def call(x: Tensor) -> Tensor:
        return mixer(x, lengths=lengths)

    function = grad(lambda x: call(x).sin().sum()) if derivative else call
    torch.testing.assert_close(linearize(function, x)[1](v), jvp(function, (x,), (v,))[1])


def test_a_compiled_transform_of_packed_rows_is_refused() -> None:
    torch._dynamo.reset()
    call = grad(lambda x: hk.long_conv(x, C, cu_seqlens=torch.tensor([0, 3, 9])).sum())
    assert call(X[0]).norm() > 0
    with pytest.raises(Exception, match=r"packed x \(T, D\) under torch.compile of a transform .* is not supported"):
        torch.compile(call, fullgraph=True, backend="aot_eager")(X[0])


def test_a_mode_that_looks_on_changes_nothing() -> None:
    call = grad(lambda x: hk.long_conv(x, C, cu_seqlens=torch.tensor([0, 3, 9])).sin().sum())
    with FlopCounterMode(display=False):
        torch.testing.assert_close(call(X[0]), call(X[0]))
        with pytest.raises(ValueError, match=r"decay must be at least 0, got -1.0"):
            TRANSFORMS["grad"](X, BAD)


def test_a_program_traced_by_fx_holds_no_lengths() -> None:
    """A program traced by `make_fx` with real tensors is right for other lengths than the example's."""
    call = grad(lambda x, n: hk.long_conv(x, torch.ones(2, 3), lengths=n).sin().sum())
    traced = make_fx(call, tracing_mode="real")(X, torch.tensor([2, 1]))
    for lengths in ([2, 1], [9, 4], [0, 9]):
        torch.testing.assert_close(traced(X, torch.tensor(lengths)), call(X, torch.tensor(lengths)))


def test_the_log_shows_what_serves_a_transform() -> None:
    code = """
torch.func.grad(lambda x: hk.long_conv(x, h).sum())(x)
torch.func.jvp(lambda x: hk.short_conv(x, torch.ones(4, 3)), (x,), (x,))
"""
    lines = logged(code, HYENAREC_LOG="1")
    assert [line.split("; not by ")[0] for line in lines] == [
        "long_conv: cpu, float32, padded, 3 taps, 2 groups: served by reference",
        "short_conv: cpu, float32, padded, 3 taps: served by reference",
    ]
    assert lines[0].endswith("transforms of torch.func and forward mode differentiate PyTorch's own operations")


def test_a_step_has_no_gradient_to_lose() -> None:
    mixer = HyenaMixer(4, 5)
    x, state = torch.randn(2, 4, requires_grad=True), mixer.init_state(2)
    with pytest.raises(NotImplementedError, match=r"^HyenaMixer.step: it has no gradients .* torch\.no_grad"):
        mixer.step(x, state)
    for transformed in (grad(lambda x: mixer.step(x, state)[0].sum()), vmap(lambda x: mixer.step(x, state)[0])):
        with pytest.raises(NotImplementedError, match=r"^HyenaMixer.step: it has no gradients"):
            transformed(torch.randn(3, 2, 4))
    assert state.steps.tolist() == [0, 0]  # a refused step does not change the state
    with torch.no_grad():
        assert mixer.step(x, state)[0].shape == (2, 4)
    assert not mixer.step(x.detach(), state)[0].requires_grad


def test_vmap_is_refused_in_one_line() -> None:
    x, history = torch.randn(3, 2, 4), torch.zeros(3, 2, 5, 4)
    with torch.no_grad(), pytest.raises(NotImplementedError, match=r"^conv_step: vmap over it is not supported"):
        vmap(lambda x, h: hk.conv_step(x, h, torch.ones(6, 4), torch.zeros(2).long()))(x, history)
    mixer, rows = HyenaMixer(4, 5), torch.randn(3, 2, 6, 4)
    for name, where in (("lengths", torch.ones(3, 2).long()), ("mask", torch.ones(3, 2, 6).bool())):
        with pytest.raises(NotImplementedError, match=r"^HyenaMixer: vmap over lengths, .* a mask is not supported"):
            vmap(lambda x, w, name=name: mixer(x, **{name: w}))(rows, where)


def test_a_state_loads_without_trust_in_its_file() -> None:
    mixer = HyenaMixer(4, 5, order=3)
    _, state = mixer.prefill(torch.randn(2, 7, 4))
    torch.save({"alice": state}, file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["alice"]
    assert type(loaded) is MixerState
    for name, value in vars(state).items():
        same = getattr(loaded, name)
        assert torch.equal(same, value) if isinstance(value, Tensor) else same == value
    event = torch.randn(2, 4)
    assert torch.equal(mixer.step(event, loaded)[0], mixer.step(event, state)[0])
