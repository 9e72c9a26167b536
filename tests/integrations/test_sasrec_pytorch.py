"""A model built like SASRec.pytorch's, with HyenaMixer in place of its nn.MultiheadAttention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")

from examples.hosts.common import Task, generated_log
from examples.hosts.sasrec_pytorch.train import SASRec, build, run
from hyenarec_kernels.integrations import check_swap, replace_attention

ITEMS, LENGTH = 60, 16
HISTORIES = torch.randint(1, ITEMS, (6, LENGTH), generator=torch.Generator().manual_seed(0))
LEFT = torch.arange(LENGTH) < 3 * torch.arange(6)[:, None]


def test_the_example_trains_and_evaluates() -> None:
    value, _ = run("hyena", Task(generated_log(users=40, items=ITEMS), LENGTH, epochs=1, seed=0))
    assert 0 < value <= 1


def test_check_swap_says_that_it_hands_on_no_padding_mask() -> None:
    """``check_swap`` reports that the model passes no padding mask. The mixer then reads left padding, as the attention
    that it replaces did; padding on the right cannot reach an event."""
    model = build("hyena", ITEMS, LENGTH)
    assert check_swap(model, HISTORIES.masked_fill(LEFT, 0)) == [
        f"padding: attention_layers.{i}.mixer reads padding; hand it a mask or lengths" for i in range(2)
    ]
    assert check_swap(model, HISTORIES.masked_fill(LEFT.flip(1), 0)) == []


def test_queries_that_are_normalised_keys_need_query_only() -> None:
    model = SASRec(ITEMS, LENGTH)
    replace_attention(model, LENGTH)
    with pytest.raises(ValueError, match="as in SASRec, construct it with query_only=True"):
        model(HISTORIES)


def test_the_start_survives_that_every_matrix_is_drawn_anew() -> None:
    torch.manual_seed(0)
    drawn, x = build("hyena", ITEMS, LENGTH).attention_layers[0].mixer, torch.randn(5, LENGTH, 64)
    filtered = drawn.filters[0].convolve(x, drawn.skip[0])
    assert torch.cosine_similarity(drawn(x), filtered, dim=-1).mean() > 0.7


def test_dropout_is_for_training_and_shapes_stay() -> None:
    model = build("hyena", ITEMS, LENGTH)
    assert not torch.equal(model(HISTORIES), model(HISTORIES))
    model.eval()
    outputs = model(HISTORIES)
    assert outputs.shape == (6, LENGTH, 64)
    assert torch.equal(outputs, model(HISTORIES))


def test_later_events_reach_no_output() -> None:
    model, changed = build("hyena", ITEMS, LENGTH).eval(), HISTORIES.clone()
    changed[:, 9] = 1 + changed[:, 9] % ITEMS
    before, after = model(HISTORIES), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_training_moves_every_parameter_of_the_mixers() -> None:
    model = build("hyena", ITEMS, LENGTH)
    model(HISTORIES).square().sum(-1).sin().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.attention_layers.parameters())


def test_weights_that_its_main_saves_are_loaded(tmp_path: Path) -> None:
    """A state dict that was saved with ``torch.save`` loads strictly and gives the same outputs."""
    saved, loaded = build("hyena", ITEMS, LENGTH).eval(), build("hyena", ITEMS, LENGTH).eval()
    torch.save(saved.state_dict(), tmp_path / "SASRec.pth")
    assert not torch.equal(loaded(HISTORIES), saved(HISTORIES))
    loaded.load_state_dict(torch.load(tmp_path / "SASRec.pth"))
    assert torch.equal(loaded(HISTORIES), saved(HISTORIES))
