"""Every option of the backbone and of its mixers keeps the properties of all models that it applies to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from generated import TRAIN, make_batch, make_store, write_csv
from test_mixers import Operations
from torch import Tensor
from torch.nn.functional import silu

from hyenarec.cli import main
from hyenarec.cloze import hide_events
from hyenarec.config import AttentionConfig, HyenaConfig, ModelConfig, TrainingConfig, refuse_unused
from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.mixers.recent import RecentAttention
from hyenarec.model import LiGRBlock, SequenceModel
from hyenarec.packing import Packing
from hyenarec.trained import load_trained

LENGTHS, ITEMS, LONGEST = [1, 9, 4, 13, 2], 30, 13
MODELS: list[dict[str, Any]] = [
    *({"mixer": name, "block": "ligr"} for name in MIXERS),
    {"mixer": "hyena", "hyena": HyenaConfig(local=2, gate="none")},
    {"mixer": "hyena", "hyena": HyenaConfig(local=5)},
    {"mixer": "attention", "embedding": "decoupled"},
    {"mixer": "hyena", "embedding": "decoupled"},
    {"mixer": "hyena", "embedding": "decoupled", "block": "ligr", "hyena": HyenaConfig(local=5, order=3)},
]
CAUSAL = [options for options in MODELS if MIXERS[options["mixer"]].causal]


def name(options: dict[str, Any]) -> str:
    hyena = options.get("hyena")
    named = [str(value) for key, value in options.items() if key != "hyena"]
    return "-".join(named + ([f"local-{hyena.local}-{hyena.gate}"] if hyena else []))


every_model = pytest.mark.parametrize("options", MODELS, ids=name)
causal_models = pytest.mark.parametrize("options", CAUSAL, ids=name)


def make(options: dict[str, Any]) -> SequenceModel:
    """A model whose weights are away from their initial values, which hide mistakes in gates."""
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(dim=8, max_length=LONGEST, **options), ITEMS).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def part(batch: Batch, row: int, events: int | None = None) -> Batch:
    """One sequence of a batch by itself, or only its first events."""
    begin, end = batch.packing.cu_seqlens[row : row + 2].tolist()
    end = end if events is None else begin + events
    assert batch.timestamps is not None
    packing = Packing.from_lengths(torch.tensor([end - begin]))
    return Batch(batch.items[begin:end], packing, batch.timestamps[begin:end])


@every_model
def test_a_sequence_alone_is_the_same_as_in_a_batch(options: dict[str, Any]) -> None:
    model, batch = make(options), make_batch(LENGTHS)
    alone = torch.cat([model(part(batch, row)) for row in range(len(LENGTHS))])
    torch.testing.assert_close(model(batch), alone, rtol=1e-9, atol=1e-10)


@causal_models
def test_nothing_depends_on_what_comes_later(options: dict[str, Any]) -> None:
    model, batch = make(options), make_batch(LENGTHS)
    begin, end = batch.packing.cu_seqlens[3:5].tolist()
    before = model(batch)
    for event in range(begin + 1, end):
        items = batch.items.clone()
        items[event] = (items[event] + 1) % ITEMS
        moved = (model(replace(batch, items=items)) - before).detach().abs().amax(1)
        assert float(moved[:event].max()) < 1e-12 < float(moved[event])
        assert float(moved[end:].max()) < 1e-12


@causal_models
def test_a_prefix_gives_the_prefix(options: dict[str, Any]) -> None:
    model, batch = make(options), make_batch(LENGTHS)
    whole = model(part(batch, 3))
    for events in (1, 5, 12):
        torch.testing.assert_close(model(part(batch, 3, events)), whole[:events], rtol=1e-9, atol=1e-10)


@every_model
def test_last_only_is_the_last_row(options: dict[str, Any]) -> None:
    model, batch = make(options), make_batch(LENGTHS)
    torch.testing.assert_close(model(batch, last_only=True), model(batch)[batch.packing.last], rtol=1e-9, atol=1e-10)


@causal_models
@torch.inference_mode()
def test_steps_are_the_forward(options: dict[str, Any]) -> None:
    """Steps equal the forward pass, from an empty state and from part of each history, while users join and leave."""
    model, batch = make(options), make_batch([13, 9])
    want = model(batch).split([13, 9])
    assert batch.timestamps is not None
    items, times = batch.items.split([13, 9]), batch.timestamps.split([13, 9])
    for first in (0, 1, 6):
        state = model.init_state(2)
        if first:
            parts = [torch.cat([one[:first] for one in both]) for both in (items, times)]
            head = Batch(parts[0], Packing.from_lengths(torch.tensor([first, first])), parts[1])
            hidden, state = model.prefill(head)
            torch.testing.assert_close(hidden, torch.stack([one[first - 1] for one in want]), rtol=1e-8, atol=1e-8)
        for t in range(first, 9):
            now, when = (torch.stack([one[t] for one in both]) for both in (items, times))
            hidden, state = model.step(now, state, when)
            torch.testing.assert_close(hidden, torch.stack([one[t] for one in want]), rtol=1e-8, atol=1e-8)
        only = state.index(torch.tensor([0]))
        for t in range(9, 13):
            hidden, only = model.step(items[0][t : t + 1], only, times[0][t : t + 1])
            torch.testing.assert_close(hidden[0], want[0][t], rtol=1e-8, atol=1e-8)


@every_model
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model, batch = make(options), make_batch(LENGTHS)
    hidden = model(batch if model.mask is None else hide_events(batch))
    torch.manual_seed(1)
    model.scores_of(hidden).square().mul(torch.randn(ITEMS).double()).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.abs().max() > 0, parameter


# Parts of DMAN and GEMs learn only from losses of their own, and stop the model's gradient.
@pytest.mark.parametrize("options", [o for o in MODELS if o["mixer"] not in ("dman", "gems")], ids=name)
def test_gradients_are_those_of_the_function(options: dict[str, Any]) -> None:
    """Along a random direction of all weights, the gradient equals a central difference."""
    model, batch = make(options), make_batch(LENGTHS)
    torch.manual_seed(1)
    weights = torch.randn(sum(LENGTHS), 8).double()
    model(batch).mul(weights).sum().backward()
    used = [parameter for parameter in model.parameters() if parameter.grad is not None]
    direction = [torch.randn_like(parameter) for parameter in used]
    slope = sum(float((parameter.grad * along).sum()) for parameter, along in zip(used, direction, strict=True))
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, along in zip(used, direction, strict=True):
                parameter += step * along
            values.append(float(model(batch).mul(weights).sum()))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("options", [o for o in MODELS if o["mixer"] in ("hyena", "attention")], ids=name)
def test_a_trained_model_is_read_again(options: dict[str, Any], tmp_path: Any) -> None:
    log = write_csv(tmp_path / "log.csv", make_store())
    flags = [text for key, value in options.items() if key != "hyena" for text in (f"--{key}", str(value))]
    if "hyena" in options:
        flags += [f"--hyena.{key}={getattr(options['hyena'], key)}" for key in ("local", "gate", "order")]
    main(["train", str(log), "--out", str(tmp_path / "run"), *flags, *TRAIN])
    model = load_trained(tmp_path / "run").model
    assert {key: getattr(model.config, key) for key in options} == options


def test_a_ligr_block_is_its_equations() -> None:
    model, batch = make({"mixer": "gru", "block": "ligr"}), make_batch([7])
    block = model.blocks[0]
    assert isinstance(block, LiGRBlock)
    x = torch.randn(7, 8).double()

    def gate(layer: Any, x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-(x @ layer.weight.T + layer.bias)))

    want = x + gate(block.mixer_gate, x) * block.mixer(block.mixer_norm(x), batch.packing)
    normed, (up, _, down) = block.ffn_norm(want), block.ffn
    one, other = (normed @ half.T for half in up.weight.split(32))
    want = want + gate(block.ffn_gate, want) * ((silu(one) * other) @ down.weight.T)
    torch.testing.assert_close(block(x, batch, False), want)


def test_local_attention_is_summed_to_the_convolution() -> None:
    """The mixer adds attention over the last five events, with a learned number for each lag and head."""
    model, x = make({"mixer": "hyena", "hyena": HyenaConfig(local=5)}), torch.randn(13, 8).double()
    mixer: Any = model.blocks[0].mixer
    q, k, v = (y.view(13, 2, 4) for y in mixer.local.qkv(x).chunk(3, -1))
    rows = []
    for t in range(13):
        near = range(max(0, t - 4), t + 1)
        heads = []
        for head in range(2):
            scores = [q[t, head] @ k[s, head] / 2 + mixer.local.lags[head, t - s] for s in near]
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * v[s, head] for weight, s in zip(weights, near, strict=True)))
        rows.append(mixer.local.out(torch.cat(heads)))
    got = mixer(x, Packing.from_lengths(torch.tensor([13])))
    torch.testing.assert_close(got, mixer.operator(x[None])[0] + torch.stack(rows))


def test_local_attention_costs_linearly() -> None:
    attention = RecentAttention(ModelConfig(dim=16), 32, lags=True)

    def operations(length: int) -> int:
        x = torch.randn(length, 16, requires_grad=True)
        with Operations() as counted:
            attention(x, Packing.from_lengths(torch.tensor([length]))).sum().backward()
        return counted.count

    assert operations(4096) < 4.1 * operations(1024)


def test_heads_of_local_attention_are_checked() -> None:
    with pytest.raises(UserError, match=r"^option attention\.heads: 2 does not divide dim 9"):
        ModelConfig(dim=9, hyena=HyenaConfig(local=4))
    with pytest.raises(UserError, match=r"^option hyena\.local: 1 is below 2"):
        HyenaConfig(local=1)
    heads = ModelConfig(dim=9, attention=AttentionConfig(heads=3), hyena=HyenaConfig(local=4))
    refuse_unused(heads, TrainingConfig(), ("hyena",))
    with pytest.raises(UserError, match=r"^option attention\.heads: not used by hyena; .* hyena with hyena.local$"):
        refuse_unused(replace(heads, hyena=HyenaConfig()), TrainingConfig(), ("hyena",))


def test_decoupled_attention_looks_by_the_small_embedding_alone() -> None:
    model, batch = make({"mixer": "attention", "embedding": "decoupled"}), make_batch([7])
    mixer: Any = model.blocks[0].mixer
    x, small = torch.randn(7, 8).double(), torch.randn(7, 2).double()
    q, k = (y.view(7, 2, 4).transpose(0, 1) for y in mixer.query_key(small).chunk(2, -1))
    v = mixer.qkv(x).view(7, 2, 4).transpose(0, 1)
    scores = (q @ k.mT / 2).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    want = mixer.out((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    torch.testing.assert_close(mixer(torch.cat((x, small), -1), batch.packing), want)
    assert model.small is not None
    assert model.small.items.weight.shape == (ITEMS, 2) and model.items.weight.shape == (ITEMS, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "gru"}, "decoupled is for attention and hyena, not for gru"),
        ({"hyena": HyenaConfig(gate="none")}, "decoupled makes gates, and hyena.gate none leaves them out"),
    ],
)
def test_decoupled_where_nothing_reads_it_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^option embedding: {message}$"):
        ModelConfig(embedding="decoupled", **options)
