"""The synthetic log is reproducible, well formed, and has both of its time scales."""

from pathlib import Path

import numpy as np
import pytest

from hyenarec.data import SequenceStore, read_log
from hyenarec.data.synthetic import BURST_SECONDS, TOPICS, write_synthetic_log


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SequenceStore:
    path = tmp_path_factory.mktemp("synthetic") / "log.csv"
    write_synthetic_log(path, users=300)
    return read_log(path)


@pytest.fixture(scope="module")
def pairs(store: SequenceStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The items of consecutive events of a user, and the seconds between them, (n,) each."""
    assert store.timestamps is not None
    event = np.arange(store.n_events - 1)
    inside = event[store.users_of(event) == store.users_of(event + 1)]
    return store.items[inside], store.items[inside + 1], store.timestamps[inside + 1] - store.timestamps[inside]


@pytest.fixture(scope="module")
def topics(store: SequenceStore) -> np.ndarray:
    """The topic of every item, (n_items,)."""
    return np.array([TOPICS.index(str(name).split("-")[0]) for name in store.item_ids.decode(range(store.n_items))])


def test_seed_and_arguments_decide_all(tmp_path: Path) -> None:
    small = {"users": 5, "items": 100, "mean_history": 20.0}
    write_synthetic_log(tmp_path / "a.csv", **small, seed=3)  # type: ignore[arg-type]
    write_synthetic_log(tmp_path / "b.csv", **small, seed=3)  # type: ignore[arg-type]
    write_synthetic_log(tmp_path / "c.csv", **small, seed=4)  # type: ignore[arg-type]
    texts = [(tmp_path / f"{name}.csv").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_sizes(store: SequenceStore) -> None:
    lengths = np.diff(store.offsets)
    assert store.n_users == 300
    assert 450 <= store.n_items <= 500
    assert lengths.min() >= 5
    assert 100 < lengths.mean() < 140
    assert lengths.max() > 1.5 * lengths.mean()


def test_file_is_in_order_of_time_and_readable(tmp_path: Path) -> None:
    write_synthetic_log(tmp_path / "log.csv", users=20)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "user_id,item_id,timestamp"
    times = [int(line.split(",")[2]) for line in lines[1:]]
    assert times == sorted(times)
    assert lines[1].startswith("user-00")


def test_no_item_twice_in_a_row(pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    first, second, _ = pairs
    assert (first != second).all()


def test_bursts_follow_the_topics_order(
    store: SequenceStore, topics: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    first, second, seconds = pairs
    burst = seconds <= BURST_SECONDS[1]
    assert 0.4 < burst.mean() < 0.7
    assert (topics[first] == topics[second])[burst].mean() > 0.99
    number = np.array([int(str(name).split("-")[1]) for name in store.item_ids.decode(range(store.n_items))])
    follows = number[second] - number[first] == 1
    assert follows[burst].mean() > 0.6
    assert follows[~burst].mean() < 0.2


def test_interests_last_for_weeks_and_drift_over_months(store: SequenceStore, topics: np.ndarray) -> None:
    assert store.timestamps is not None
    visits = np.flatnonzero(np.diff(store.timestamps, prepend=-(10**9)) > 3600)
    users, times, topic = store.users_of(visits), store.timestamps[visits], topics[store.items[visits]]
    agreement = {}
    for name, low, high in (("weeks", 0, 20), ("months", 120, 200)):
        same = []
        for user in range(store.n_users):
            mine = users == user
            days = np.subtract.outer(times[mine], times[mine]) / 86_400
            apart = (days > low) & (days < high)
            same.append(np.equal.outer(topic[mine], topic[mine])[apart])
        agreement[name] = np.concatenate(same).mean()
    assert agreement["weeks"] > 1.5 * agreement["months"]
    assert agreement["weeks"] > 4 / len(TOPICS)


def test_too_few_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items: 79 given, 80 or more needed"):
        write_synthetic_log(tmp_path / "log.csv", items=79)
    assert not (tmp_path / "log.csv").exists()
