"""Which events train, validate and test: arrays of event indices into a store, nothing copied or expanded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError, expect


@dataclass(frozen=True, eq=False)
class Split:
    """Training events and targets of a store with U users; all arrays int64, all indices absolute (0 to E).

    ``train_ends`` (U,): user ``u`` trains on events ``offsets[u]:train_ends[u]``. ``validation`` (n,), ``test`` (m,):
    events to predict, at most one per user, ascending. A target's history is all events of its user before it.
    """

    train_ends: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def training_events(store: SequenceStore, split: Split) -> NDArray[np.bool_]:
    """Which of a store's events train, (E,)."""
    return np.arange(store.n_events) < np.repeat(split.train_ends, np.diff(store.offsets))


def training_counts(store: SequenceStore, split: Split) -> NDArray[np.int64]:
    """Training events of each item, (V,)."""
    return np.bincount(store.items[training_events(store, split)], minlength=store.n_items)


def leave_one_out(store: SequenceStore) -> Split:
    """Each user's last event tests and the one before validates; users with fewer than three events only train.

    Raises :class:`UserError` where no user has three events.
    """
    expect(store, SequenceStore, "store", "a SequenceStore")
    ends = store.offsets[1:]
    enough = np.diff(store.offsets) >= 3
    if not enough.any():
        raise UserError("leave-one-out split: no user has the three events that it needs (train, validation, test)")
    test = ends[enough] - 1
    return Split(train_ends=ends - 2 * enough, validation=test - 1, test=test)


def global_temporal(store: SequenceStore, validation: float = 0.1, test: float = 0.1) -> Split:
    """Cut all users' events at the same two times, so that training sees nothing later than what is to be predicted.

    The fraction ``test`` of all events that come last is the test period, and the fraction ``validation`` before it the
    validation period; events at the time of a cut all fall after it. Training takes the events strictly before the
    first cut. A user's target in a period is their first event in it, if they have any event before it; the history of
    a test target therefore includes the validation period. Items that first appear after the first cut stay in the
    catalogue and among the targets: no model has seen them, and this affects every model alike.

    Raises :class:`UserError` without timestamps, for fractions that are not positive or leave nothing for training, and
    where a period has no targets because of ties in time or because all its users are new.
    """
    expect(store, SequenceStore, "store", "a SequenceStore")
    for name, fraction in (("validation", validation), ("test", test)):
        expect(fraction, (int, float), name, "a fraction of all events")
    if store.timestamps is None:
        raise UserError("temporal split: the data have no timestamps; use leave-one-out")
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise UserError(
            f"temporal split: validation {validation} and test {test} must be positive and add up to less than 1"
        )
    time, begins, ends = store.timestamps, store.offsets[:-1], store.offsets[1:]
    n_validation, n_test = (max(1, round(fraction * store.n_events)) for fraction in (validation, test))
    places = [store.n_events - n_test - n_validation, store.n_events - n_test]
    first_cut, second_cut = np.partition(time, places)[places]
    # The index of each user's first event in the two periods, or of the user's end, (U,).
    validation_start = begins + _count_before(store, first_cut)
    test_start = begins + _count_before(store, second_cut)
    known = validation_start > begins
    split = Split(
        train_ends=validation_start,
        validation=validation_start[known & (validation_start < test_start)],
        test=test_start[(test_start > begins) & (test_start < ends)],
    )
    for name, count in (
        ("training events", known.sum()),
        ("validation targets", len(split.validation)),
        ("test targets", len(split.test)),
    ):
        if not count:
            cuts = f"{first_cut} and {second_cut}"
            raise UserError(f"temporal split: no {name} with cuts at timestamps {cuts}; try other fractions")
    return split


def _count_before(store: SequenceStore, cut: np.int64) -> NDArray[np.int64]:
    """How many events each user has strictly before time ``cut``, (U,)."""
    assert store.timestamps is not None
    total = np.zeros(store.n_events + 1, dtype=np.int64)
    np.cumsum(store.timestamps < cut, out=total[1:])
    return total[store.offsets[1:]] - total[store.offsets[:-1]]
