from __future__ import annotations

import pytest
import torch

from hyenarec.packing import Packing


def test_positions_rows_and_last() -> None:
    packing = Packing.from_lengths(torch.tensor([2, 1, 3]))
    assert packing.cu_seqlens.tolist() == [0, 2, 3, 6]
    assert packing.max_length == 3
    assert packing.rows.tolist() == [0, 0, 1, 2, 2, 2]
    assert packing.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert packing.last.tolist() == [1, 2, 5]


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [4, 2, 7, 1]])
def test_pad_then_unpad_is_identity_with_zero_padding(lengths: list[int]) -> None:
    packing = Packing.from_lengths(torch.tensor(lengths))
    x = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(packing.pad(x[:, :, None].expand(-1, -1, 2))[..., 1], packing.pad(x))
    padded = packing.pad(x)
    assert padded.shape == (len(lengths), max(lengths), 3)
    for row, length in enumerate(lengths):
        assert padded[row, length:].eq(0).all()
    assert torch.equal(packing.unpad(padded), x)
    assert torch.autograd.gradcheck(lambda v: packing.unpad(packing.pad(v) ** 2), x)


def test_elapsed_begins_anew_with_every_sequence() -> None:
    packing = Packing.from_lengths(torch.tensor([3, 1, 2]))
    assert packing.elapsed(torch.tensor([5, 5, 9, 2, 100, 107])).tolist() == [0, 0, 4, 0, 0, 7]
