"""HyenaUnit in place of HSTU's units, on packed sequences that are given by offsets."""

from __future__ import annotations

import pytest
import torch

from hyenarec_kernels.integrations.jagged import HyenaUnit

LENGTHS = (5, 0, 1, 9)
OFFSETS = torch.tensor([0, 5, 5, 6, 15])


def test_each_sequence_is_mixed_by_itself() -> None:
    unit = HyenaUnit(8, horizon=6, dropout_ratio=0.5).eval()
    x = torch.randn(15, 8)
    y, states = unit(x=x, x_offsets=OFFSETS, all_timestamps=None, invalid_attn_mask=torch.ones(9, 9).tril())
    alone = [unit(part, torch.tensor([0, len(part)]))[0] for part in x.split(LENGTHS)]
    torch.testing.assert_close(y, torch.cat(alone))
    assert states is None


def test_nothing_reads_the_future() -> None:
    unit = HyenaUnit(8, horizon=6).eval()
    x = torch.randn(15, 8)
    changed = x.index_put((torch.tensor([3, 4, 10]),), torch.randn(3, 8))
    before = [0, 1, 2, 5, *range(6, 10)]
    y, other = unit(x, OFFSETS)[0], unit(changed, OFFSETS)[0]
    torch.testing.assert_close(other[before], y[before], rtol=0, atol=0)
    assert not torch.equal(other[11:], y[11:])


def test_sequences_lie_in_int32_offsets_too() -> None:
    unit, x = HyenaUnit(8, horizon=6).eval(), torch.randn(15, 8)
    torch.testing.assert_close(unit(x, OFFSETS.int())[0], unit(x, OFFSETS)[0], rtol=0, atol=0)


@pytest.mark.parametrize("asked", [{"return_cache_states": True}, {"delta_x_offsets": (OFFSETS, OFFSETS)}])
def test_the_cache_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(NotImplementedError, match="HyenaMixer has a state of its own"):
        HyenaUnit(8, horizon=6)(torch.randn(15, 8), OFFSETS, **asked)


def test_it_takes_size_and_dropout_of_the_unit_that_it_replaces() -> None:
    class Unit:
        _embedding_dim, _dropout_ratio = 8, 0.3

    unit = HyenaUnit.like(Unit(), 6, terms=4)
    assert (unit.mixer.dim, unit.mixer.horizon, unit.dropout.p) == (8, 6, 0.3)


def test_the_example_trains_and_evaluates() -> None:
    pytest.importorskip("pandas")
    from examples.hosts.common import Task, generated_log
    from examples.hosts.jagged.train import run

    value, _ = run("hyena", Task(generated_log(users=60, items=40), 16, epochs=8, seed=0))
    assert value > 0.15  # guessing ten of forty items would give .11
