"""HyenaAttention in place of nn.MultiheadAttention: by itself, and in torch's own encoder layers."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyenarec_kernels.integrations import HyenaAttention, replace_attention

B, L, D, K = 3, 9, 8, 6
LENGTHS = [9, 4, 1]
PADDED = torch.arange(L) >= torch.tensor(LENGTHS)[:, None]  # (B, L), True at padding
CAUSAL = torch.ones(L, L).triu(1).bool()


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, float("-inf"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def encoder(layers: int = 0, *, bidirectional: bool = False, **options: Any) -> Any:
    """An nn.TransformerEncoderLayer, or an nn.TransformerEncoder of ``layers``, whose attention is replaced."""
    nested = options.get("batch_first", True) and not options.get("norm_first", False)  # otherwise torch warns
    layer = nn.TransformerEncoderLayer(D, 2, 16, **{"batch_first": True, "dropout": 0.0} | options)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested) if layers else layer
    replace_attention(model, K, bidirectional=bidirectional)
    return model


def by_hand(layer: nn.TransformerEncoderLayer, x: Tensor, norm_first: bool) -> Tensor:
    """An encoder layer's output computed from its parts; ``x`` is (1, L, D) without padding."""

    def feed(x: Tensor) -> Tensor:
        return layer.linear2(torch.relu(layer.linear1(x)))

    mix = layer.self_attn.mixer
    if norm_first:
        x = x + mix(layer.norm1(x))
        return x + feed(layer.norm2(x))
    x = layer.norm1(x + mix(x))
    return layer.norm2(x + feed(x))


def test_arguments_stand_where_torch_has_them() -> None:
    ours, theirs = (list(inspect.signature(c.forward).parameters) for c in (HyenaAttention, nn.MultiheadAttention))
    assert ours == theirs


@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts_and_positional_arguments(batch_first: bool) -> None:
    attention = HyenaAttention(D, K, batch_first=batch_first)
    x = torch.randn(B, L, D)
    q = x if batch_first else x.transpose(0, 1)
    y, weights = attention(q, q, q, PADDED, False, CAUSAL, True, True)
    assert weights is None
    y = y if batch_first else y.transpose(0, 1)
    torch.testing.assert_close(y, attention.mixer(x, lengths=LENGTHS))
    row = x[1]  # (L, D)
    alone, _ = attention(row, row, row, PADDED[1], attn_mask=CAUSAL)
    torch.testing.assert_close(alone, y[1])


@pytest.mark.parametrize("mask", [CAUSAL, additive(CAUSAL), CAUSAL * -1e4, CAUSAL.expand(6, L, L)], ids=range(4))
def test_the_causal_mask_in_its_forms(mask: Tensor) -> None:
    attention, x = HyenaAttention(D, K, batch_first=True), torch.randn(B, L, D)
    assert torch.equal(attention(x, x, x, attn_mask=mask)[0], attention(x, x, x, is_causal=True)[0])


@pytest.mark.parametrize("mask", [torch.zeros(L, L), torch.zeros(L, L).bool(), None])
def test_both_ways_nothing_is_hidden(mask: Tensor | None) -> None:
    attention, x = HyenaAttention(D, K, batch_first=True, bidirectional=True), torch.randn(B, L, D)
    assert torch.equal(attention(x, x, x, attn_mask=mask)[0], attention.mixer(x))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_encoders(
    train: bool, layers: int, batch_first: bool, norm_first: bool, dtype: torch.dtype, bidirectional: bool
) -> None:
    """Encoders give what their parts give, with boolean and additive padding masks. In evaluation torch's fast path
    would compute attention by itself, on nested tensors if a bidirectional call has padding; it must not be taken."""
    model = encoder(layers, bidirectional=bidirectional, batch_first=batch_first, norm_first=norm_first).train(train)
    x = torch.randn(B, L, D)
    padding, causal = (PADDED, CAUSAL) if dtype is torch.bool else (additive(PADDED), additive(CAUSAL))
    with torch.inference_mode(not train):
        y = model(
            x if batch_first else x.transpose(0, 1), None if bidirectional else causal, src_key_padding_mask=padding
        )
        y = y if batch_first else y.transpose(0, 1)
        for row, length in enumerate(LENGTHS):
            want = x[row : row + 1, :length]
            for layer in model.layers if layers else [model]:
                want = by_hand(layer, want, norm_first)
            torch.testing.assert_close(y[row, :length], want[0])


def test_an_encoder_of_a_layer_that_was_changed_before() -> None:
    layer = encoder(bidirectional=True).eval()
    with pytest.warns(UserWarning, match="use_nested_tensor is False"):
        model = nn.TransformerEncoder(layer, 3).eval()
    parts = [each.self_attn.mixer.short_weight for each in model.layers]
    assert len({p.data_ptr() for p in parts}) == 3 and all(torch.equal(p, parts[0]) for p in parts)
    with torch.no_grad():
        x = torch.randn(B, L, D)
        y = model(x, src_key_padding_mask=PADDED)
        torch.testing.assert_close(y[1:2, :4], model(x[1:2, :4]))


def test_changing_an_event_changes_nothing_before_it() -> None:
    model, x = encoder(2).eval(), torch.randn(B, L, D)
    changed = x.clone()
    changed[:, 5] += 1
    y, z = model(x, CAUSAL), model(changed, CAUSAL)
    assert torch.equal(y[:, :5], z[:, :5]) and not torch.allclose(y[:, 5:], z[:, 5:])


def test_training_moves_every_parameter() -> None:
    model = encoder(2).train()
    model(torch.randn(B, L, D), CAUSAL, src_key_padding_mask=PADDED).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_copies_and_state() -> None:
    model, x = encoder(2).eval(), torch.randn(B, L, D)
    other = encoder(2).eval()
    assert not torch.allclose(other(x, CAUSAL), model(x, CAUSAL))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, CAUSAL), model(x, CAUSAL))
    assert torch.equal(copy.deepcopy(model)(x, CAUSAL), model(x, CAUSAL))


def test_like_takes_over_what_attention_had() -> None:
    old = nn.MultiheadAttention(D, 2, dropout=0.3, batch_first=True, dtype=torch.bfloat16).eval()
    new = HyenaAttention.like(old, K, terms=5)
    assert (new.embed_dim, new.batch_first, new.dropout.p, new.training) == (D, True, 0.3, False)
    assert new.mixer.short_weight.dtype == torch.bfloat16 and new.mixer.filters[0].terms == 5
    with pytest.raises(ValueError, match=r"of one size, got 8, 4 and 5: it cannot stand for cross-attention"):
        HyenaAttention.like(nn.MultiheadAttention(D, 2, kdim=4, vdim=5), K)
    with torch.device("meta"):
        assert HyenaAttention.like(nn.MultiheadAttention(D, 2), K).mixer.short_weight.is_meta


def test_meta_device_and_reset() -> None:
    with torch.device("meta"):
        attention = HyenaAttention(D, K, batch_first=True)
    attention.to_empty(device="cpu").reset_parameters()
    assert attention(X, X, X, is_causal=True)[0].isfinite().all()


def test_dropout_is_of_the_output_in_training() -> None:
    attention, x = HyenaAttention(64, K, batch_first=True, dropout=0.5), torch.randn(2, 50, 64)
    dropped = attention(x, x, x, is_causal=True)[0] == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(attention.eval()(x, x, x, is_causal=True)[0], attention.mixer(x))


X = torch.randn(B, L, D)


@pytest.mark.parametrize(
    ("made", "call", "message"),
    [
        ({}, {"need_weights": True, "attn_mask": CAUSAL}, "no attention weights; pass need_weights=False"),
        ({}, {"key": X.clone(), "attn_mask": CAUSAL}, "must be one tensor.*query_only=True"),
        ({"query_only": True}, {"key": X[:, :5], "attn_mask": CAUSAL}, "must have one shape.*cross-attention"),
        ({}, {}, "attention to the future.*is_causal=True.*bidirectional=True"),
        ({}, {"attn_mask": CAUSAL.T}, "must be the causal mask"),
        ({}, {"attn_mask": torch.zeros(L, L)}, "must be the causal mask"),
        ({}, {"attn_mask": CAUSAL | torch.eye(L).bool()}, "must be the causal mask"),
        ({}, {"attn_mask": additive(CAUSAL) - torch.ones(L, L).tril(-1)}, "must be the causal mask"),  # like ALiBi
        ({}, {"attn_mask": CAUSAL * -0.5}, "must be the causal mask"),
        ({}, {"attn_mask": CAUSAL[:5, :5]}, r"attn_mask must be \(9, 9\), got \(5, 5\)"),
        ({"bidirectional": True}, {"attn_mask": CAUSAL}, "its mixer is bidirectional"),
        ({"bidirectional": True}, {"is_causal": True}, "its mixer is bidirectional"),
        ({}, {"query": X[0, 0], "is_causal": True}, r"query must be \(B, L, D\) or \(L, D\), got \(8,\)"),
        ({}, {"query": X[None], "is_causal": True}, r"query must be \(B, L, D\) or \(L, D\), got \(1, 3, 9, 8\)"),
        ({}, {"query": X.numpy()}, "query must be a tensor, got numpy.ndarray"),
        ({}, {"attn_mask": CAUSAL.numpy()}, "attn_mask must be a tensor, got numpy.ndarray"),
        (
            {},
            {"query": torch.nested.nested_tensor([X[0], X[1, :4]], layout=torch.jagged)},
            "nested tensors are not taken",
        ),
    ],
)
def test_what_it_cannot_honour_is_refused(made: dict[str, Any], call: dict[str, Any], message: str) -> None:
    attention = HyenaAttention(D, K, batch_first=True, **made)
    with pytest.raises(ValueError, match=rf"^HyenaAttention: .*{message}"):
        attention(**{"query": X, "key": X, "value": X} | call)


@pytest.mark.parametrize("layers", [pytest.param(0, marks=pytest.mark.slow), 2])  # 5 s each
def test_compiled(layers: int) -> None:
    model = encoder(layers).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (9, 7):  # the second compiles with a dynamic length
        x, causal = X[:, :length], CAUSAL[:length, :length]
        y = compiled(x, causal, src_key_padding_mask=PADDED[:, :length])
        torch.testing.assert_close(y, model(x, causal, src_key_padding_mask=PADDED[:, :length]))


def test_compiled_refusals() -> None:
    """A compiled program refuses a wrong mask's values when it runs; all other refusals come when it is compiled."""
    compiled = torch.compile(HyenaAttention(D, K, batch_first=True), fullgraph=True, backend="aot_eager")
    compiled(X, X, X, attn_mask=CAUSAL)
    with pytest.raises(RuntimeError, match="must be the causal mask"):
        compiled(X, X, X, attn_mask=CAUSAL.T)
    with pytest.raises(RuntimeError, match="pass need_weights=False"):
        compiled(X, X, X, need_weights=True, attn_mask=CAUSAL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_traced(bidirectional: bool) -> None:
    attention = HyenaAttention(D, K, batch_first=True, bidirectional=bidirectional).requires_grad_(False)

    def mixed(x: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
        return attention(x, x, x, key_padding_mask=padding, attn_mask=mask)[0]

    causal = CAUSAL & (not bidirectional)
    traced = torch.jit.trace(mixed, (X, causal, PADDED), check_trace=False)
    shorter = (X[:2, :5], causal[:5, :5], torch.arange(5) >= torch.tensor([[3], [5]]))
    torch.testing.assert_close(traced(*shorter), mixed(*shorter))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_trace_it_is_refused_in_one_line() -> None:
    attention = HyenaAttention(D, K)
    with pytest.raises(ValueError, match=r"^HyenaAttention: query must be a tensor, got torch\.fx\.proxy\.Proxy$"):
        torch.fx.symbolic_trace(attention)
    with pytest.raises(NotImplementedError, match=r"^HyenaMixer: torch\.jit\.script cannot read it; .*$"):
        torch.jit.script(attention)


@pytest.mark.parametrize("layers", [0, 2])
def test_exported(layers: int) -> None:
    """An exported encoder serves other sizes and refuses a mask that is not causal. ``is_causal`` has to be given,
    because torch's own encoder cannot be exported if it has to inspect the mask."""
    model, any_size = encoder(layers).eval(), {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    shapes = {"src": any_size, "src_key_padding_mask": any_size, "is_causal": None}
    shapes["src_mask" if layers == 0 else "mask"] = any_size
    program = torch.export.export(model, (X, CAUSAL, PADDED, True), dynamic_shapes=shapes).module()
    x, causal, padded = X[:2, :5], CAUSAL[:5, :5], PADDED[:2, :5]
    torch.testing.assert_close(program(x, causal, padded, True), model(x, causal, padded))
    with pytest.raises(RuntimeError, match="must be the causal mask"):
        program(x, causal.T, padded, True)
