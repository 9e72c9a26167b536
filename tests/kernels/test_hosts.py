"""The mixer inside other libraries' models: what they do to their layers, and what they expect of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from operator_cases import LAYOUTS, Layout
from torch import nn

from hyenarec_kernels import short_conv
from hyenarec_kernels.nn import (
    ChebyshevFilter,
    CosineFilter,
    ExplicitFilter,
    Filter,
    HyenaMixer,
    LegendreFilter,
    key_mask,
)


def xavier(model: nn.Module) -> None:  # SASRec.pytorch, RecTools, RePlay: all parameters but vectors
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.xavier_normal_(p)


def normal(model: nn.Module) -> None:
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)


def by_module(model: nn.Module) -> None:  # RecBole, transformers, torch-rechub: apply(_init_weights)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def decay(model: nn.Module) -> None:  # long training with weight decay and zero gradients
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(200):  # down to 0.13 of the initial values
        optimizer.step()


@pytest.mark.parametrize("host", [xavier, normal, by_module, decay])
@pytest.mark.parametrize(("order", "gate"), [(1, "identity"), (2, "identity"), (2, "none")])
@torch.no_grad()
def test_the_start_survives(host: Callable[[nn.Module], None], order: int, gate: str) -> None:
    """After a library's initialisation, outputs are still close to the filtered input, in direction and in size."""
    mixer, x = HyenaMixer(64, 200, order=order, gate=gate), torch.randn(3, 150, 64)
    with torch.enable_grad():
        host(mixer)
    expected = mixer.filters[0].convolve(x, mixer.skip[0]) if order > 1 else x
    mixed = mixer(x)
    assert torch.cosine_similarity(mixed, expected, dim=-1).mean() > 0.7
    assert 0.5 < mixed.std() / expected.std() < 2


@pytest.mark.parametrize("host", [xavier, normal, by_module, decay])
@pytest.mark.parametrize("kind", [LegendreFilter, ChebyshevFilter, CosineFilter])
def test_filters_stay_near_their_windows(host: Callable[[nn.Module], None], kind: type[Filter]) -> None:
    filter = kind(64, 200)
    windows = filter.windowed(torch.ones(64, 200)).detach()
    host(filter)
    assert torch.cosine_similarity(filter().detach(), windows).mean() > 0.65


@pytest.mark.parametrize("kind", [LegendreFilter, ChebyshevFilter, CosineFilter, ExplicitFilter])
def test_filters_are_no_matrices_to_draw_again(kind: type[Filter]) -> None:
    filter = kind(6, 20)
    taps = filter().detach()
    for host in (xavier, normal, by_module):
        host(filter)
        assert filter().equal(taps)


def test_a_checkpoint_of_other_options_is_refused() -> None:
    """Every loader refuses it, because all compare shapes: with and without ``strict``, and with ``assign``."""
    state = HyenaMixer(6, 21).state_dict()
    for assign in (False, True):
        for strict in (False, True):
            with pytest.raises(RuntimeError, match=r"filters.0.legendre_horizon.*\[0, 21\].*\[0, 20\]"):
                HyenaMixer(6, 20).load_state_dict(state, strict=strict, assign=assign)
        others = ({"filter": "cosine"}, {"gate": "silu"}, {"terms": 5}, {"window": False}, {"order": 3})
        for other in (*others, {"groups": 3, "terms": 32}):  # the same number of coefficients
            with pytest.raises(RuntimeError, match="state_dict for HyenaMixer"):
                HyenaMixer(6, 21, **other).load_state_dict(state, assign=assign)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("filter", ["legendre", "chebyshev", "cosine", "implicit", "explicit", "logsparse"])
def test_lazy_loading_gives_the_same_outputs(filter: str) -> None:
    """A mixer made on the meta device gives the same outputs after only the checkpoint's tensors are assigned: no table
    is left unfilled."""
    real = HyenaMixer(6, 21, filter=filter).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    with torch.device("meta"):
        lazy = HyenaMixer(6, 21, filter=filter)
        assert lazy(torch.randn(2, 9, 6)).is_meta
    assert set(lazy.state_dict()) == {name for name, _ in (*lazy.named_parameters(), *lazy.named_buffers())}
    lazy.load_state_dict(real.state_dict(), assign=True)
    torch.testing.assert_close(lazy(x), real(x), rtol=0, atol=0)
    state = lazy.prefill(x[:, :5])[1]
    torch.testing.assert_close(lazy.step(x[:, 5], state)[0], real(x)[:, 5])


MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
REAL = MASK.bool()
ADDITIVE = torch.zeros(3, 5).masked_fill(~REAL, torch.finfo(torch.float32).min)
FOUR = torch.ones(5, 5).tril().bool() & REAL[:, None, None]  # (B, 1, L, L), as in transformers and RecBole


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        REAL,
        MASK.to(torch.uint8),
        MASK[..., None],
        ADDITIVE,
        ADDITIVE[:, None, None],
        REAL[:, None, None].expand(3, 2, 1, 5),
        FOUR,
        FOUR.expand(3, 2, 5, 5),
    ]
    + [torch.zeros(FOUR.shape).masked_fill(~FOUR, value) for value in (-1e4, float("-inf"))],
)
def test_a_mask_in_any_form(mask: torch.Tensor) -> None:
    assert key_mask(mask).equal(REAL)
    mixer, x = HyenaMixer(6, 9), torch.randn(3, 5, 6)
    torch.testing.assert_close(mixer(x, mask=key_mask(mask)), mixer(x, lengths=[4, 2, 3], starts=[0, 0, 2]))


CAUSAL = torch.ones(5, 5).tril().bool()
RIGHT = torch.arange(5) < torch.tensor([[4], [2], [5]])
LEFT = RIGHT.flip(1)


@pytest.mark.parametrize("real", [RIGHT, LEFT], ids=["right", "left"])
def test_a_mask_of_queries_by_keys(real: torch.Tensor) -> None:
    """The mask may be causal or not. Padding's queries may see every key, as where a softmax must see at least one."""
    keys = real[:, None, None].expand(3, 2, 5, 5)
    for mask in (keys, keys & CAUSAL):
        causal = mask is not keys
        assert key_mask(mask).equal(real) and key_mask(mask, causal=causal).equal(real)
        assert key_mask(mask | ~mask.any(-1, keepdim=True)).equal(real)
        with pytest.raises(ValueError, match="see all real keys, later ones too" if causal else "and no later ones"):
            key_mask(mask, causal=not causal)
    assert not key_mask(torch.zeros(2, 1, 5, 5, dtype=torch.bool)).any()


def test_queries_of_padding_on_the_left_may_see_nothing() -> None:
    assert key_mask(LEFT[:, None, :, None] & LEFT[:, None, None] & CAUSAL).equal(LEFT)


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL & ~CAUSAL.tril(-3),  # attention to the last three events only
        CAUSAL & (torch.arange(5)[:, None] // 3 == torch.arange(5) // 3),  # two sequences in one row
        CAUSAL.T,
        torch.stack([CAUSAL, torch.eye(5).bool() & CAUSAL]),  # heads with different masks
        RIGHT[:, None, :, None] & RIGHT[:, None, None] & CAUSAL,  # the last query is padding and sees no key
        (RIGHT[:, None, :, None] & RIGHT[:, None, None] & CAUSAL) | torch.eye(5).bool(),
        RIGHT[:, None, :, None] & RIGHT[:, None, None],
    ],
    ids=["window", "packed", "anti-causal", "heads", "hidden", "itself", "hidden both ways"],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_queries_by_keys_that_no_mixer_follows(mask: torch.Tensor, dtype: torch.dtype) -> None:
    if dtype is torch.float32:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    square = mask if mask.dim() == 4 else mask.expand(1, -1, 5, 5) if mask.dim() == 3 else mask.expand(2, 1, 5, 5)
    with pytest.raises(ValueError, match=r"^key_mask: a mask \(B, H, L, L\) must let every real query see"):
        key_mask(square)


def test_a_key_padding_mask_is_the_other_way_round() -> None:
    assert key_mask(key_padding_mask=~REAL).equal(REAL)
    assert key_mask(key_padding_mask=ADDITIVE).equal(REAL)  # torch's encoder converts masks to this form


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either mask or key_padding_mask"),
        ({"mask": REAL, "key_padding_mask": ~REAL}, "give either mask or key_padding_mask"),
        ({"mask": torch.ones(3, 5)}, "a floating-point mask must hold 0 and -1000 or less"),
        ({"key_padding_mask": 1.0 - MASK}, "a floating-point key_padding_mask must hold 0 and -1000 or less"),
        ({"mask": 2 * MASK}, "an integer mask must hold 0 and 1"),
        ({"mask": MASK.to(torch.complex64)}, "mask must be bool, integers or floating point, got torch.complex64"),
        ({"mask": MASK[None, None, None]}, r"mask must be \(B, L\), .*, got \(1, 1, 1, 3, 5\)"),
        ({"mask": torch.stack([REAL, ~REAL], 1)[:, :, None]}, r"a mask \(B, H, 1, L\) must be the same for every head"),
        ({"mask": FOUR[:, :, :3]}, r"mask must be \(B, L\), .*, got \(3, 1, 3, 5\)"),
        ({"key_padding_mask": FOUR}, r"key_padding_mask must be \(B, L\), got \(3, 1, 5, 5\)"),
    ],
)
def test_key_mask_refuses_what_is_no_mask(arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^key_mask: {message}"):
        key_mask(**arguments)


def test_packed_sequences_may_have_a_batch_of_one() -> None:
    mixer, x, cu_seqlens = HyenaMixer(6, 9), torch.randn(11, 6), torch.tensor([0, 4, 11])
    want, state = mixer.prefill(x, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(mixer(x[None], cu_seqlens=cu_seqlens), want[None])
    torch.testing.assert_close(mixer(x[None], cu_seqlens=cu_seqlens, last_only=True), want[[3, 10]])
    got, other = mixer.prefill(x[None], cu_seqlens=cu_seqlens)
    torch.testing.assert_close((got[0], other.gated), (want, state.gated))


@torch.no_grad()
def test_beams_are_picked_from_a_state() -> None:
    """In every step each beam continues a beam of the last step; one of them is continued twice."""
    mixer, x = HyenaMixer(6, 5), torch.randn(3, 9, 6)
    _, state = mixer.prefill(x[:, :4])
    beams, history = torch.tensor([2, 0, 2]), x
    for t in range(4, 9):
        state, history = state.index(beams), history[beams]
        history[:, t] = torch.randn(3, 6)
        torch.testing.assert_close(mixer.step(history[:, t], state)[0], mixer(history[:, : t + 1])[:, t])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("order", "gate"), [(1, "silu"), (2, "identity"), (2, "none"), (3, "sigmoid")])
def test_a_bidirectional_mixer_sees_both_sides_and_no_padding(layout: str, order: int, gate: str) -> None:
    mixer = HyenaMixer(4, 6, order=order, gate=gate, terms=3, bidirectional=True).double()  # type: ignore[arg-type]
    lengths = (8, 8) if layout == "full" else (7, 0, 1, 12, 2)
    rows = [torch.randn(n, 4, dtype=torch.float64) for n in lengths]
    where = Layout(layout, list(lengths))
    x = where.place([r.numpy() for r in rows], torch.float64, float("nan")).requires_grad_()
    alone = [mixer(r[None])[0] for r in rows]
    y = mixer(x, **where.arguments())
    for got, want in zip(where.take(y), alone, strict=True):
        torch.testing.assert_close(torch.as_tensor(got), want.detach())
    last = mixer(x, last_only=True, **where.arguments())
    for got, want in zip(last, alone, strict=True):
        torch.testing.assert_close(got, want[-1] if len(want) else torch.zeros_like(got))
    (gradient,) = torch.autograd.grad((y * y.sin()).sum(), x)
    assert gradient.isfinite().all()
    where.take(gradient)  # asserts zero in the padding


def test_both_directions_are_one_filter_each() -> None:
    """A mixer of order 2 without gates equals its equations: one filter over the past and one over the future."""
    mixer = HyenaMixer(4, 6, gate="none", short_width=1, bidirectional=True).double()
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    v = short_conv(mixer.project_in(x), mixer.short_taps(), mixer.short_offset())
    past, future = (f() for f in (mixer.filters[0], mixer.ahead_filters[0]))
    want = torch.zeros_like(v)
    for t in range(9):
        for s in range(9):
            if 0 <= t - s < 6:
                want[:, t] += past[:, t - s] * v[:, s]
            if 0 <= s - t < 6:
                want[:, t] += future[:, s - t] * v[:, s]
    torch.testing.assert_close(mixer(x), mixer.project_out(want))


def test_a_bidirectional_mixer_has_no_state() -> None:
    mixer = HyenaMixer(4, 6, bidirectional=True)
    for call in (lambda: mixer.init_state(2), lambda: mixer.prefill(torch.randn(2, 9, 4))):
        with pytest.raises(NotImplementedError, match=r"^HyenaMixer: a bidirectional mixer sees the future"):
            call()
    with pytest.raises(RuntimeError, match="ahead_filters"):
        HyenaMixer(4, 6).load_state_dict(mixer.state_dict())


def test_a_mixer_resets_itself() -> None:
    """``reset_parameters`` fills every parameter and buffer, also those of a bidirectional mixer's second filters."""
    mixer = HyenaMixer(6, 9, bidirectional=True)
    for tensor in (*mixer.parameters(), *mixer.buffers()):
        nn.init.constant_(tensor, torch.nan)
    mixer.reset_parameters()
    assert all(t.isfinite().all() for t in mixer.state_dict().values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_traces_it_works_or_is_refused_in_one_line() -> None:
    mixer, x = HyenaMixer(6, 9), torch.randn(2, 12, 6)
    with torch.no_grad():
        traced = torch.jit.trace(mixer, (x,))
    longer = torch.randn(3, 31, 6)
    torch.testing.assert_close(traced(longer), mixer(longer))
    for call, message in (
        (lambda: torch.jit.trace(mixer, (x,)), r"HyenaMixer: torch\.jit\.trace records no gradients; .*"),
        (lambda: torch.jit.script(mixer), r"HyenaMixer: torch\.jit\.script cannot read it; .*"),
        (lambda: torch.fx.symbolic_trace(mixer), "HyenaMixer: x must be a tensor, got torch.fx.proxy.Proxy"),
    ):
        with pytest.raises((NotImplementedError, ValueError), match=f"^{message}$"):
            call()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_last_positions_serves_other_histories() -> None:
    mixer = HyenaMixer(6, 9).requires_grad_(False)
    traced = torch.jit.trace(lambda x: mixer(x, last_only=True), (torch.randn(2, 4, 6),))
    for shape in ((2, 4, 6), (3, 31, 6), (1, 1, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), mixer(x, last_only=True))
    x = torch.randn(3, 30, 6)
    traced = torch.jit.trace(
        lambda x, lengths: mixer(x, lengths=lengths, last_only=True), (x, torch.tensor([2, 1, 3])), check_trace=False
    )
    for lengths in (torch.tensor([30, 0, 1]), torch.tensor([9, 17, 30])):
        torch.testing.assert_close(traced(x, lengths), mixer(x, lengths=lengths, last_only=True))


@pytest.mark.parametrize("name", ["mask", "key_padding_mask"])
@pytest.mark.parametrize("wrong", [[[True, False]], np.ones((1, 2), bool)], ids=["list", "numpy"])
def test_a_mask_that_is_no_tensor_is_refused(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=f"^key_mask: {name} must be a tensor, got .*{type(wrong).__name__}"):
        key_mask(**{name: wrong})  # type: ignore[arg-type]
