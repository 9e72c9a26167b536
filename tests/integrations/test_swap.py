"""replace_attention on models of many designs, and check_swap on sound and on faulty models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyenarec_kernels.integrations import HyenaAttention, check_swap, replace_attention
from hyenarec_kernels.nn import HyenaMixer, LegendreFilter

ITEMS, L, D, K = 20, 12, 16, 8
EVENTS = torch.tensor([[0] * 4 + [3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]])  # left-padded


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class NextItem(nn.Module):
    """A next-item model: item embeddings, a causal encoder, and scores of all items."""

    padding_mask = True

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, D, padding_idx=0)
        self.positions = nn.Embedding(L, D)
        layer = nn.TransformerEncoderLayer(D, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.register_buffer("causal", torch.ones(L, L).triu(1).bool(), persistent=False)
        self.register_buffer("position", torch.arange(L), persistent=False)

    def forward(self, events: Tensor) -> Tensor:
        length = events.shape[1]
        x = self.items(events) + self.positions(self.position[:length])
        padding = events == 0 if self.padding_mask else None
        x = self.encoder(x, self.causal[:length, :length], src_key_padding_mask=padding)
        return x @ self.items.weight.T


def swapped(kind: type[nn.Module] = NextItem) -> Any:
    model = kind()
    replace_attention(model, K)
    return model


def test_it_says_what_it_replaced() -> None:
    model = NextItem().eval()
    kept = model.items
    assert replace_attention(model, K, terms=5) == {
        f"encoder.layers.{i}.self_attn": "MultiheadAttention -> HyenaAttention" for i in range(2)
    }
    new = [layer.self_attn for layer in model.encoder.layers]
    assert new[0] is not new[1] and all(not each.training and each.batch_first for each in new)
    assert new[0].mixer.horizon == K and new[0].mixer.filters[0].terms == 5 and model.items is kept
    with pytest.raises(ValueError, match=r"found no MultiheadAttention inside the model$"):
        replace_attention(model.items, K)


def test_a_module_that_is_used_twice_is_replaced_by_one() -> None:
    attention = nn.MultiheadAttention(D, 2)
    block = nn.ModuleDict({"attention": attention})
    model = nn.ModuleList([block, block, nn.ModuleDict({"other": attention}), nn.MultiheadAttention(D, 2)])
    assert len(replace_attention(model, K)) == 4
    assert model[0].attention is model[1].attention is model[2].other
    assert isinstance(model[3], HyenaAttention) and model[3] is not model[0].attention


class OwnAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)


def test_makers_name_attention_of_a_librarys_own() -> None:
    model = nn.Sequential(OwnAttention(), nn.Sequential(nn.MultiheadAttention(D, 2)))
    with pytest.raises(ValueError, match="makers= can name a function for its OwnAttention"):
        replace_attention(model[:1], K)

    def make(attention: OwnAttention, horizon: int, **options: Any) -> HyenaMixer:
        return HyenaMixer(attention.inner.in_features, horizon, **options)

    replaced = replace_attention(model, K, {OwnAttention: make})
    assert replaced == {"0": "OwnAttention -> HyenaMixer", "1.0": "MultiheadAttention -> HyenaAttention"}


def test_attention_is_replaced_with_what_is_inside_it() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.spare = nn.MultiheadAttention(D, 2), nn.MultiheadAttention(D, 2)

    model = nn.ModuleDict({"block": Wrapper(), "blocks": nn.MultiheadAttention(D, 2)})
    replaced = replace_attention(model, K, {Wrapper: lambda old, horizon: HyenaMixer(D, horizon)})
    assert replaced == {"block": "Wrapper -> HyenaMixer", "blocks": "MultiheadAttention -> HyenaAttention"}
    assert dict(model.block.named_children()).keys() == dict(HyenaMixer(D, K).named_children()).keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_maker_makes_is_put_where_the_old_was(dtype: torch.dtype, device: str) -> None:
    def make(attention: OwnAttention, horizon: int, **options: Any) -> HyenaMixer:
        return HyenaMixer(D, horizon)

    model = nn.Sequential(OwnAttention(), nn.Sequential(OwnAttention().eval())).to(device, dtype)
    replace_attention(model, K, {OwnAttention: make})
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, dtype)}
    assert model[0].training and not model[1][0].training
    other = nn.Sequential(OwnAttention())
    replace_attention(other, K, {OwnAttention: make}, dtype=dtype)
    assert {p.dtype for p in other.parameters()} == {torch.float32}  # `make` was given the dtype, and ignored it
    plain = nn.Sequential(nn.MultiheadAttention(D, 2))
    replace_attention(plain, K, dtype=dtype)
    assert {p.dtype for p in plain.parameters()} == {dtype}


def test_a_decoder_keeps_its_cross_attention() -> None:
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, 2, 32, batch_first=True), 2)
    assert list(replace_attention(model, K)) == ["layers.0.self_attn", "layers.1.self_attn"]
    x, memory, causal = torch.randn(2, L, D), torch.randn(2, 5, D), torch.ones(L, L).triu(1).bool()
    assert model(x, memory, tgt_mask=causal).shape == x.shape


def test_a_subclass_with_a_forward_of_its_own_needs_a_maker() -> None:
    class OneInput(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x)[0]

    model = nn.Sequential(OneInput(D, 2), nn.MultiheadAttention(D, 2))
    with pytest.raises(ValueError, match=r"^replace_attention: 0 is a OneInput, which has a forward of its own"):
        replace_attention(model, K)
    assert type(model[1]) is nn.MultiheadAttention
    assert len(replace_attention(model, K, {OneInput: lambda old, horizon: HyenaMixer(old.embed_dim, horizon)})) == 2


def test_nothing_is_replaced_if_anything_cannot_be() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(6, 2)])
    with pytest.raises(ValueError, match="groups must be a divisor of dim 6, got 8"):
        replace_attention(model, K, groups=8)
    assert all(type(m) is nn.MultiheadAttention for m in model)


def test_what_wraps_for_several_devices_comes_afterwards() -> None:
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:  # works without a process group
            nn.Module.__init__(self)
            self.module = module

    model = NextItem()
    with pytest.raises(ValueError, match=r"^replace_attention: DistributedDataParallel wraps the model already"):
        replace_attention(Wrapped(model), K)
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention


def test_a_parametrized_module_is_replaced() -> None:
    model = NextItem()
    nn.utils.parametrizations.weight_norm(model.encoder.layers[0].self_attn, "in_proj_weight")
    nn.utils.parametrizations.weight_norm(model.encoder.layers[1].self_attn.out_proj)
    assert len(replace_attention(model, K)) == 2
    assert check_swap(model, EVENTS) == []


@pytest.mark.parametrize("right", [False, True])
def test_a_sound_model_is_left_as_it_was(right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = swapped().train()
    model.encoder.layers[0].eval()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    modes, generator = [m.training for m in model.modules()], torch.get_rng_state()
    assert check_swap(model, EVENTS.flip(1) if right else EVENTS) == []
    assert capsys.readouterr().out == "check_swap: nothing is wrong\n"
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


class LooksAhead(NextItem):
    def forward(self, events: Tensor) -> Tensor:
        scores = super().forward(events)
        return scores + 0.1 * scores.roll(-1, 1)


class LooksAheadInPairs(NextItem):
    """The first event of each pair reads the second."""

    def forward(self, events: Tensor) -> Tensor:
        scores = super().forward(events)
        first = torch.arange(events.shape[1]) % 2 == 0
        return 1e-3 * (scores + 0.1 * scores.roll(-1, 1) * first[:, None])


class NoPaddingMask(NextItem):
    padding_mask = False


class OppositeMask(NextItem):
    """Its mask marks events as padding."""

    def forward(self, events: Tensor) -> Tensor:
        hidden = events != 0
        return self.encoder(self.items(events), self.causal, src_key_padding_mask=hidden) @ self.items.weight.T


class Keeps(NextItem):
    """Keeps the last scores with their graph, which torch does not copy."""

    def forward(self, events: Tensor) -> Tensor:
        with torch.enable_grad():
            self.last = super().forward(events)
        return self.last.detach()


class Unsaved(LegendreFilter):
    """A filter with a random factor that is not saved in checkpoints."""

    def __init__(self, groups: int, horizon: int) -> None:
        super().__init__(groups, horizon)
        self.register_buffer("factor", torch.randn(groups, 1), persistent=False)

    def coefficients(self) -> Tensor:
        return super().coefficients() * self.factor


def unsaved() -> Any:
    model = NextItem()
    replace_attention(model, K, filter=Unsaved)
    return model


def drawn() -> Any:
    model = swapped()
    nn.init.normal_(model.encoder.layers[1].self_attn.mixer.in_proj.weight)
    return model


def drawn_vectors() -> Any:
    model = swapped()
    nn.init.ones_(model.encoder.layers[0].self_attn.mixer.short_bias)
    nn.init.normal_(model.encoder.layers[0].self_attn.mixer.filters[0].weight, std=2)
    return model


class Idle(NextItem):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.MultiheadAttention(D, 2)


@pytest.mark.parametrize(
    ("make", "faults"),
    [
        (lambda: swapped(LooksAhead), ["future: outputs before position 1 depend on events from there on"]),
        (lambda: swapped(LooksAheadInPairs), ["future: outputs before position 1 depend on events from there on"]),
        (
            lambda: swapped(OppositeMask),
            ["past: outputs do not depend on earlier events; does the mask mark padding as events?"],
        ),
        (lambda: swapped(Keeps), ["reload: not checked, copy.deepcopy(model) raises RuntimeError"]),
        (
            lambda: swapped(NoPaddingMask),
            [f"padding: encoder.layers.{i}.self_attn.mixer reads padding; hand it a mask or lengths" for i in range(2)],
        ),
        (unsaved, ["reload: a copy with the same weights gives other outputs; some of them are not in state_dict()"]),
        (drawn, ["start: encoder.layers.1.self_attn.mixer.in_proj.weight is 6 times as large as it starts"]),
        (
            drawn_vectors,
            [
                "start: encoder.layers.0.self_attn.mixer.short_bias starts at 0, and has a size of 1.0",
                "start: encoder.layers.0.self_attn.mixer.filters.0.weight is 20 times as large as it starts",
            ],
        ),
        (lambda: swapped(Idle), ["padding: spare.mixer is not checked, it is not called"]),
    ],
    ids=["future", "pairs", "past", "copy", "padding", "reload", "start", "vectors", "idle"],
)
def test_each_fault_is_found(make: Any, faults: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_swap(make(), EVENTS) == faults
    assert capsys.readouterr().out == "".join(f"check_swap: {fault}\n" for fault in faults)


def test_draws_that_are_too_large_are_found_and_put_right() -> None:
    """``check_swap`` names short convolutions whose draw is too large, and ``reset_parameters`` repairs them. Kaiming's
    rules take a short filter's few taps for the whole fan-in, and so draw too large weights."""
    model = swapped()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.kaiming_normal_(p)
    faults = check_swap(model, EVENTS)
    assert [fault.split(" is ")[0] for fault in faults] == [
        f"start: encoder.layers.{i}.self_attn.mixer.short_weight" for i in range(2)
    ]
    for layer in model.encoder.layers:
        layer.self_attn.reset_parameters()
    assert check_swap(model, EVENTS) == []


def test_what_cannot_be_checked_is_said() -> None:
    model = swapped()
    assert check_swap(model, EVENTS[1:]) == ["padding: not checked, no row of events is padded"]
    alike = check_swap(model, EVENTS[:1, 4:].where(EVENTS[:1, 4:] < 0, 3).flip(1))
    assert alike[0].startswith("past: not checked") and alike[1].startswith("future: not checked")
    fixed = model(EVENTS)
    assert "forward gives the same outputs for other weights" in check_swap(model, EVENTS, lambda *_: fixed)[-1]
    with pytest.raises(ValueError, match=r"outputs of every position, \(2, 12, ...\), got \(2, 20\)"):
        check_swap(model, EVENTS, lambda model, events: model(events)[:, -1])
    with pytest.raises(ValueError, match=r"forward must return a tensor, .*, got tuple$"):
        check_swap(model, EVENTS, lambda model, events: (model(events), None))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="no HyenaMixer"):
        check_swap(NextItem(), EVENTS)
    for wrong in (EVENTS[0], EVENTS.float(), EVENTS[:0]):
        with pytest.raises(ValueError, match=r"^check_swap: events must be \(B, L\) integers, got "):
            check_swap(model, wrong)
    with pytest.raises(ValueError, match=r"events must be a tensor, got builtins\.list$"):
        check_swap(model, EVENTS.tolist())


@pytest.mark.parametrize("masked", [False, True])
def test_faults_are_found_however_the_mixer_is_called(masked: bool) -> None:
    """Faults are found in a compiled model, in one that passes arguments by name, and in other dtypes."""

    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.mixer = nn.Embedding(ITEMS, D), HyenaMixer(D, K)

        def forward(self, events: Tensor) -> Tensor:
            return self.mixer(x=self.items(events), mask=events != 0 if masked else None)

    def faults(*names: str) -> list[str]:
        return [] if masked else [f"padding: {name} reads padding; hand it a mask or lengths" for name in names]

    assert check_swap(ByName(), EVENTS) == faults("mixer")
    model = swapped(NextItem if masked else NoPaddingMask)
    names = [f"encoder.layers.{i}.self_attn.mixer" for i in range(2)]
    compiled = torch.compile(model, backend="eager")
    compiled(EVENTS)
    assert check_swap(compiled, EVENTS) == faults(*(f"_orig_mod.{name}" for name in names))
    for dtype in (torch.float64, torch.bfloat16):
        assert check_swap(model.to(dtype), EVENTS) == faults(*names)


def test_both_ways_is_no_fault_where_it_is_meant() -> None:
    class Cloze(NextItem):
        def forward(self, events: Tensor) -> Tensor:
            return self.encoder(self.items(events), src_key_padding_mask=events == 0)

    model = Cloze()
    replace_attention(model, K, bidirectional=True)
    assert check_swap(model, EVENTS) == []
