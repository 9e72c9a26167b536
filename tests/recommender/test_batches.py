from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from generated import make_store

from hyenarec.data.batches import TrainingSlices, evaluation_batches, pack_histories
from hyenarec.data.splits import leave_one_out


@pytest.mark.parametrize("max_length", [1, 4, 7, 100])
def test_an_epoch_predicts_every_training_event_but_the_first_once(max_length: int) -> None:
    store = make_store()
    split = leave_one_out(store)
    expected: list[tuple[int, int]] = []
    for user in range(store.n_users):
        history = store.items[store.offsets[user] : split.train_ends[user]].tolist()
        expected += list(pairwise(history))
    slices = TrainingSlices(store, split, max_length, batch_size=3)
    assert slices.tokens == len(expected)
    pairs = []
    batches = list(slices.epoch(seed=1, epoch=0))
    assert len(batches) == len(slices)
    for batch in batches:
        assert batch.packing.max_length <= max_length
        assert batch.targets is not None
        pairs += list(zip(batch.items.tolist(), batch.targets.tolist(), strict=True))
    assert sorted(pairs) == sorted(expected)


def test_epoch_order_is_fixed_by_seed_and_epoch_and_can_be_skipped_into() -> None:
    store = make_store()
    slices = TrainingSlices(store, leave_one_out(store), 5, batch_size=4)

    def items(seed: int, epoch: int, skip: int = 0) -> list[list[int]]:
        return [batch.items.tolist() for batch in slices.epoch(seed, epoch, skip)]

    assert items(0, 0) == items(0, 0)
    assert items(0, 0) != items(0, 1)
    assert items(0, 0) != items(1, 0)
    assert items(0, 3, skip=2) == items(0, 3)[2:]


def test_evaluation_histories_end_just_before_their_target() -> None:
    store = make_store()
    targets = leave_one_out(store).test
    seen = []
    for places, batch in evaluation_batches(store, targets, max_length=6, batch_size=5):
        assert batch.targets is not None
        for row, place in enumerate(places):
            event = int(targets[place])
            user = int(np.searchsorted(store.offsets, event, side="right")) - 1
            begin, end = batch.packing.cu_seqlens[row : row + 2].tolist()
            history = store.items[store.offsets[user] : event][-6:]
            assert batch.items[begin:end].tolist() == history.tolist()
            assert batch.targets[row] == store.items[event]
            seen.append(int(place))
    assert sorted(seen) == list(range(len(targets)))


def test_pack_histories_keeps_the_last_events() -> None:
    batch = pack_histories([np.array([1, 2, 3], np.int32), np.array([4], np.int32)], max_length=2)
    assert batch.items.tolist() == [2, 3, 4]
    assert batch.packing.cu_seqlens.tolist() == [0, 2, 3]
