"""Splits equal a naive loop over users, and nothing leaks from the future."""

import numpy as np
import pytest

from hyenarec.data.ids import Ids
from hyenarec.data.splits import Split, global_temporal, leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError


def random_store(seed: int, *, users: int = 60, spread: int = 1000, timestamps: bool = True) -> SequenceStore:
    """Users with 1 to 12 events at random times below ``spread``; a small ``spread`` makes many equal times."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], rng.integers(1, 13, users).cumsum()))
    events = int(offsets[-1])
    times = np.concatenate([np.sort(rng.integers(spread, size=n)) for n in np.diff(offsets)])
    return SequenceStore(
        offsets,
        rng.integers(9, size=events).astype(np.int32),
        times if timestamps else None,
        Ids.from_values(range(users)),
        Ids.from_values(range(9)),
    )


def assert_split(split: Split, train_ends: list[int], validation: list[int], test: list[int]) -> None:
    assert split.train_ends.tolist() == train_ends
    assert split.validation.tolist() == validation
    assert split.test.tolist() == test
    assert {array.dtype for array in (split.train_ends, split.validation, split.test)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("seed", range(5))
def test_leave_one_out_against_a_loop(seed: int) -> None:
    store = random_store(seed)
    train_ends, validation, test = [], [], []
    for user in range(store.n_users):
        events = list(range(store.offsets[user], store.offsets[user + 1]))
        if len(events) >= 3:
            test.append(events.pop())
            validation.append(events.pop())
        train_ends.append(events[-1] + 1)
    assert_split(leave_one_out(store), train_ends, validation, test)


def times_of(store: SequenceStore) -> np.ndarray:
    assert store.timestamps is not None
    return store.timestamps


def cuts(store: SequenceStore, validation: float, test: float) -> tuple[int, int]:
    ordered = sorted(times_of(store).tolist())
    n_validation, n_test = round(len(ordered) * validation), round(len(ordered) * test)
    return ordered[-n_test - n_validation], ordered[-n_test]


@pytest.mark.parametrize("spread", [15, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_global_temporal_against_a_loop(seed: int, spread: int) -> None:
    store = random_store(seed, spread=spread)
    times = times_of(store).tolist()
    first_cut, second_cut = cuts(store, 0.2, 0.15)
    train_ends, validation, test = [], [], []
    for user in range(store.n_users):
        begin, end = store.offsets[user : user + 2].tolist()
        train_ends.append(begin + sum(time < first_cut for time in times[begin:end]))
        for cut, until, targets in ((first_cut, second_cut, validation), (second_cut, np.inf, test)):
            inside = [event for event in range(begin, end) if cut <= times[event] < until]
            if inside and inside[0] > begin:
                targets.append(inside[0])
    assert_split(global_temporal(store, validation=0.2, test=0.15), train_ends, validation, test)


def leak(store: SequenceStore, split: Split) -> bool:
    """Whether anything that is learned from or used as history is as late as, or later than, what it is to predict."""
    times = times_of(store)
    event = np.arange(store.n_events)
    trained = times[event < split.train_ends[store.users_of(event)]]
    return bool(
        trained.max() >= times[split.validation].min() or times[split.validation].max() >= times[split.test].min()
    )


@pytest.mark.parametrize("seed", range(5))
def test_global_temporal_does_not_leak(seed: int) -> None:
    store = random_store(seed, spread=40)
    assert not leak(store, global_temporal(store))


@pytest.mark.parametrize("seed", range(5))
def test_the_leak_check_sees_leaks(seed: int) -> None:
    store = random_store(seed, spread=40)
    assert leak(store, leave_one_out(store))
    split = global_temporal(store)
    later = split.train_ends.copy()
    later[store.users_of(split.validation[:1])] += 1  # one more event of one user
    assert leak(store, Split(later, split.validation, split.test))


def test_ties_at_a_cut_stay_together() -> None:
    # Half of all events have the same time, and both the 40% and the 20% cut fall on it.
    store = SequenceStore(
        np.array([0, 5, 10]),
        np.zeros(10, np.int32),
        np.array([1, 2, 5, 5, 6, 1, 5, 5, 5, 7]),
        Ids.from_values([1, 2]),
        Ids.from_values([1]),
    )
    split = global_temporal(store, validation=0.5, test=0.2)
    assert split.train_ends.tolist() == [2, 6]
    assert times_of(store)[split.validation].tolist() == [5, 5]
    assert times_of(store)[split.test].tolist() == [6, 7]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([5, 5, 5, 5, 5, 5], "no training events with cuts at timestamps 5 and 5"),
        ([1, 1, 1, 1, 9, 9], "no validation targets with cuts at timestamps 9 and 9"),
    ],
)
def test_periods_that_ties_empty_are_refused(times: list[int], message: str) -> None:
    store = SequenceStore(
        np.array([0, 6]), np.zeros(6, np.int32), np.array(times), Ids.from_values([1]), Ids.from_values([1])
    )
    with pytest.raises(UserError, match=message):
        global_temporal(store)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.1), (0.1, float("nan"))])
def test_fractions_must_leave_training_events(validation: float, test: float) -> None:
    with pytest.raises(UserError, match=f"validation {validation} and test {test} must be positive"):
        global_temporal(random_store(0), validation=validation, test=test)


def test_global_temporal_needs_timestamps() -> None:
    with pytest.raises(UserError, match="temporal split: the data have no timestamps; use leave-one-out"):
        global_temporal(random_store(0, timestamps=False))


def test_leave_one_out_needs_three_events() -> None:
    store = SequenceStore(
        np.array([0, 2, 4]), np.zeros(4, np.int32), None, Ids.from_values([1, 2]), Ids.from_values([1])
    )
    with pytest.raises(UserError, match="no user has the three events"):
        leave_one_out(store)
