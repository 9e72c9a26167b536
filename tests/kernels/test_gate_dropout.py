"""A Hyena mixer that drops some channels of its gates in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hyenarec_kernels.nn import HyenaMixer, joint

DIM, HORIZON = 6, 9


def make(**options: Any) -> HyenaMixer:
    torch.manual_seed(0)
    mixer = HyenaMixer(DIM, HORIZON, **{"gate_dropout": 0.5, **options}).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return mixer


def without_drawn_gates(mixer: HyenaMixer, drawn: Tensor, **options: Any) -> HyenaMixer:
    """A mixer without dropout whose gate weights are multiplied by the factors that ``mixer`` has drawn."""
    twin = make(**options, gate_dropout=0.0)
    gates, values = drawn.split((mixer.num_gates * DIM, DIM))
    assert bool((values == 1).all())
    made = twin.in_proj if twin.gate_proj is None else twin.gate_proj
    with torch.no_grad():
        made.weight[: gates.shape[0]] *= gates[:, None]
    return twin


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"order": 1}, {"order": 3}, {"gate": "sigmoid"}, {"gate_dim": 4}, {"bidirectional": True}],
    ids=str,
)
def test_a_pass_is_that_of_the_mixer_without_the_dropped_gates(options: dict[str, Any], last_only: bool) -> None:
    mixer = make(**options)
    x = torch.randn(3, 12, mixer.width, dtype=torch.float64)
    lengths = torch.tensor([12, 4, 7])
    torch.manual_seed(5)
    drawn = mixer.draw_gates()
    assert drawn is not None
    twin = without_drawn_gates(mixer, drawn, **options)
    torch.manual_seed(5)
    got = mixer(x, lengths=lengths, last_only=last_only)
    torch.testing.assert_close(got, twin(x, lengths=lengths, last_only=last_only))
    assert not torch.allclose(got, make(**options).eval()(x, lengths=lengths, last_only=last_only))


@pytest.mark.parametrize("whole", [True, False])
def test_gradients_are_those_of_the_mixer_without_the_dropped_gates(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:
        monkeypatch.setattr(joint, "learned", lambda mixer, x: None)
    mixer, x = make(), torch.randn(2, 12, DIM, dtype=torch.float64)
    torch.manual_seed(5)
    drawn = mixer.draw_gates()
    assert drawn is not None
    twin = without_drawn_gates(mixer, drawn)
    torch.manual_seed(5)
    mixer(x).square().sum().backward()
    twin(x).square().sum().backward()
    twin.in_proj.weight.grad *= drawn[:, None]  # type: ignore[operator]
    wanted = dict(twin.named_parameters())
    for name, parameter in mixer.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, msg=name)
    assert int((mixer.in_proj.weight.grad == 0).all(1).sum()) == int((drawn == 0).sum()) > 0  # type: ignore[union-attr]


def test_second_derivatives() -> None:
    mixer, x = make(), torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(5)
        out: Tensor = torch.func.functional_call(mixer, {"in_proj.weight": weight}, (x,))
        return out

    assert torch.autograd.gradgradcheck(run, (x, mixer.in_proj.weight))


def test_every_call_draws_gates_anew_with_the_mean_of_all() -> None:
    mixer = HyenaMixer(4000, 5, groups=1, gate_dropout=0.2, device="meta")
    mixer.short_weight = nn.Parameter(torch.empty(0))  # the draw takes its dtype and device
    drawn = mixer.draw_gates()
    assert drawn is not None and drawn.shape == (12_000,)
    gates, values = drawn.split((8000, 4000))
    assert bool((values == 1).all())
    dropped = round(256 * 0.2) / 256
    assert gates.unique().tolist() == pytest.approx([0, 1 / (1 - dropped)])
    assert float((gates == 0).double().mean()) == pytest.approx(dropped, abs=4 * (0.2 * 0.8 / 8000) ** 0.5)
    assert not torch.equal(drawn, mixer.draw_gates())  # type: ignore[arg-type]


def test_nothing_is_dropped_but_by_forward_in_training() -> None:
    mixer, x = make(), torch.randn(2, 12, DIM, dtype=torch.float64)
    want = make(gate_dropout=0.0)(x)
    torch.testing.assert_close(mixer.eval()(x), want)
    mixer.train()
    with torch.no_grad():
        y, state = mixer.prefill(x[:, :8])
        torch.testing.assert_close(y, want[:, :8])
        for t in range(8, 12):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, want[:, t])
    ungated = make(gate="none")
    torch.testing.assert_close(ungated(x), ungated.eval()(x))


def test_compiled_training_drops_gates_too() -> None:
    """One graph serves every length, and draws gates anew in every call."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    mixer = make()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend=counter)
    for length in (11, 12, 13):
        x = torch.randn(2, length, DIM, dtype=torch.float64)
        torch.manual_seed(0)
        first, second = compiled(x), compiled(x)
        torch.manual_seed(0)
        torch.testing.assert_close(first, mixer(x))
        assert not torch.allclose(first, second)
    assert counter.frame_count == 1


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan"), "0.5", None])
def test_a_probability_outside_its_range_is_refused(probability: Any) -> None:
    with pytest.raises(ValueError, match="gate_dropout must be from 0 to 255/256, got"):
        HyenaMixer(DIM, HORIZON, gate_dropout=probability)
