from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from generated import make_batch
from torch import Tensor

from hyenarec.cloze import hide_events
from hyenarec.config import HyenaConfig, ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.mixers.attention import AttentionMixer
from hyenarec.model import Dropout, SequenceModel
from hyenarec.packing import Packing
from hyenarec_kernels.nn import HyenaMixer

LENGTHS = [1, 9, 4, 13, 2]
CAUSAL = [name for name, mixer in MIXERS.items() if mixer.causal]


def make_model(mixer: str) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(ModelConfig(mixer=mixer, dim=8, max_length=13), n_items=30).double().eval()


def hidden_of_one(model: SequenceModel, batch: Batch, row: int) -> Tensor:
    begin, end = batch.packing.cu_seqlens[row : row + 2].tolist()
    assert batch.timestamps is not None
    packing = Packing.from_lengths(torch.tensor([end - begin]))
    return model(Batch(batch.items[begin:end], packing, batch.timestamps[begin:end]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mixer", MIXERS)
def test_sequences_of_a_batch_do_not_see_each_other(mixer: str) -> None:
    model, batch = make_model(mixer), make_batch(LENGTHS)
    together = model(batch)
    for row in range(len(LENGTHS)):
        begin, end = batch.packing.cu_seqlens[row : row + 2].tolist()
        torch.testing.assert_close(together[begin:end], hidden_of_one(model, batch, row), rtol=1e-9, atol=1e-10)


def leak(model: SequenceModel, batch: Batch, event: int, change: str = "items") -> float:
    """How much the hidden states before ``event`` of the longest sequence change when that event changes."""
    begin, end = batch.packing.cu_seqlens[3:5].tolist()
    if change == "items":
        items = batch.items.clone()
        items[begin + event] = (items[begin + event] + 1) % 30
        changed = replace(batch, items=items)
    else:
        assert batch.timestamps is not None
        timestamps = batch.timestamps.clone()
        timestamps[begin + event : end] += 700
        changed = replace(batch, timestamps=timestamps)
    before, after = model(batch), model(changed)
    assert not torch.allclose(before[begin + event], after[begin + event])
    return float((before - after)[begin : begin + event].detach().abs().max())


@pytest.mark.parametrize("mixer", CAUSAL)
@pytest.mark.parametrize("event", [1, 6, 12])
def test_causality(mixer: str, event: int) -> None:
    assert leak(make_model(mixer), make_batch(LENGTHS), event) < 1e-12


@pytest.mark.parametrize("mixer", [name for name, mixer in MIXERS.items() if mixer.knows_time])
def test_causality_in_time(mixer: str) -> None:
    assert leak(make_model(mixer), make_batch(LENGTHS), 6, "timestamps") < 1e-12


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in CAUSAL])
def test_bidirectional_mixers_see_both_ways(mixer: str) -> None:
    assert leak(make_model(mixer), make_batch(LENGTHS), 6) > 1e-6


@pytest.mark.parametrize("mixer", MIXERS)
def test_only_mixers_that_know_time_use_it(mixer: str) -> None:
    """Without times, mixers that know time use positions instead."""
    model, batch = make_model(mixer), make_batch(LENGTHS)
    with_times, without = model(batch), model(replace(batch, timestamps=None))
    assert torch.equal(with_times, without) != MIXERS[mixer].knows_time
    if MIXERS[mixer].knows_time:
        day = 86_400 if mixer == "hytrec" else 1
        torch.testing.assert_close(without, model(replace(batch, timestamps=batch.packing.positions * day)))


def test_the_causality_check_catches_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "hyenarec.mixers.attention.scaled_dot_product_attention",
        lambda q, k, v, is_causal: sdpa(q, k, v, is_causal=False),
    )
    assert AttentionMixer.needs_positions
    assert leak(make_model("attention"), make_batch(LENGTHS), 6) > 1e-6


@pytest.mark.parametrize("mixer", MIXERS)
def test_last_only_is_the_last_row_of_the_whole(mixer: str) -> None:
    model, batch = make_model(mixer), make_batch(LENGTHS)
    torch.testing.assert_close(model(batch, last_only=True), model(batch)[batch.packing.last], rtol=1e-9, atol=1e-10)
    assert model.scores(batch).shape == (len(LENGTHS), 30)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_learns(mixer: str) -> None:
    model, batch = make_model(mixer), make_batch(LENGTHS)
    torch.manual_seed(1)
    hidden = model(batch if MIXERS[mixer].causal else hide_events(batch))
    (hidden @ model.items.weight.T + model.bias).square().mul(torch.randn(30).double()).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "option dim: 0 is below 1"),
        ({"dropout": 1.0}, "option dropout: 1.0 is outside"),
        ({"dropout": 0.999}, "option dropout: 0.999 is outside"),  # rounds to 1 in steps of 1/256
        ({"dim": 7, "mixer": "attention"}, "option attention.heads: 2 does not divide dim 7"),
        (
            {"max_length": 2**20, "hyena": HyenaConfig(terms=64)},
            "option hyena.terms: 64 terms of 1048576 taps are over",
        ),
    ],
)
def test_bad_options_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match="^" + message.replace("(", r"\(")):
        ModelConfig(**options)  # type: ignore[arg-type]


def test_an_unknown_mixer_is_one_line() -> None:
    with pytest.raises(UserError, match=rf"^option mixer: 'lstm' is none of {', '.join(MIXERS)}$"):
        SequenceModel(ModelConfig(mixer="lstm"), n_items=5)


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.01])
def test_dropout_drops_independently_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 333, requires_grad=True)
    y = Dropout(probability)(x)
    dropped, kept = y.unique().tolist()
    assert dropped == 0 and kept == pytest.approx(1 / (1 - probability), rel=0.01)
    rounded = round(256 * probability) / 256
    assert float((y == 0).double().mean()) == pytest.approx(rounded, abs=4 * (rounded * (1 - rounded) / 333_000) ** 0.5)
    assert float(y.detach().mean()) == pytest.approx(1, rel=0.01)
    columns = (y == 0).double().view(-1)[: 333_000 // 8 * 8].view(-1, 8).mean(0)  # each byte of a word
    torch.testing.assert_close(columns, columns.mean().expand(8), rtol=0.1, atol=0.003)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_dropout_compiles_whole() -> None:
    """The compiled program also draws the seed: it gives the same values as eager code, and others in the next call."""
    x, dropout = torch.randn(50, 8), Dropout(0.5, activation="gelu")
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(0)
    assert torch.equal(first, dropout(x)) and not torch.equal(first, second)


@pytest.mark.parametrize(("probability", "of_256"), [(0.0, 0), (0.2, 51), (0.5, 128), (0.99, 253)])
def test_the_gates_of_hyena_are_dropped_as_the_rest_is(probability: float, of_256: int) -> None:
    model = SequenceModel(ModelConfig(dim=8, max_length=13, dropout=probability), n_items=30)
    mixers = [module for module in model.modules() if isinstance(module, HyenaMixer)]
    assert [mixer.gates_dropped for mixer in mixers] == [of_256] * model.config.blocks


def test_dropout_is_the_identity_when_evaluating() -> None:
    x = torch.randn(5, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision_stays_close_over_long_histories(mixer: str) -> None:
    """The result is within a few bfloat16 roundings (1/256 each), so nothing may be summed in bfloat16."""
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(mixer=mixer, dim=16, max_length=2000), n_items=30).eval()
    batch = make_batch([2000, 500])
    want = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(batch)
    assert float((got - want).norm() / want.norm()) < 0.02


def test_scores_stay_float32_under_autocast() -> None:
    model, batch = make_model("hyena").float(), make_batch(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.scores(batch)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert4rec", "hydra", "hydra_bidirectional", "grela")]


@pytest.mark.parametrize("mixer", ["hyena", "attention", *SLOW])
def test_scores_compile_whole(mixer: str) -> None:
    """Scores compile to one graph for any number of users and events. The other mixers loop over events or have
    branches that depend on them, and GRU4Rec holds a module that torch does not compile."""
    model = make_model(mixer)

    def scores(items: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        return model.scores(Batch(items, Packing(cu_seqlens, 9)))

    compiled = torch.compile(scores, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for lengths in ([4, 3], [1, 9, 5]):
            packing = Packing.from_lengths(torch.tensor(lengths))
            items = torch.randint(30, (sum(lengths),))
            torch.testing.assert_close(compiled(items, packing.cu_seqlens), scores(items, packing.cu_seqlens))


class Scores(torch.nn.Module):
    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, cu_seqlens: Tensor) -> Tensor:
        return self.model.scores(Batch(items, Packing(cu_seqlens, 13)))


@pytest.mark.parametrize("strict", [False, True])
def test_scores_export_for_any_number_of_users_and_events(strict: bool) -> None:
    scores, auto = Scores(make_model("hyena")), torch.export.Dim.AUTO

    def inputs(*lengths: int) -> tuple[Tensor, Tensor]:
        return torch.randint(30, (sum(lengths),)), Packing.from_lengths(torch.tensor(lengths)).cu_seqlens

    with torch.no_grad():
        dynamic = ({0: auto}, {0: auto})
        program = torch.export.export(scores, inputs(7, 12), dynamic_shapes=dynamic, strict=strict).module()
        for lengths in ((7, 12), (3, 5), (9, 4, 5, 13), (1, 1, 1)):  # torch.export assumes sizes of at least 2
            given = inputs(*lengths)
            torch.testing.assert_close(program(*given), scores(*given))
