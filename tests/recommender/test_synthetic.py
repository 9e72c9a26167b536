"""The synthetic log is reproducible, well formed, and has both of its time scales."""

from pathlib import Path

import numpy as np
import pytest

from hyenarec.data import SequenceStore, read_log
from hyenarec.data.seasons import TOPICS
from hyenarec.data.synthetic import BURST_SECONDS, write_synthetic_log


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


def test_live_recordings_follow_at_once_and_in_order(
    store: SequenceStore, topics: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    first, second, seconds = pairs
    live = np.array(["live" in str(name) for name in store.item_ids.decode(range(store.n_items))])
    number = np.array([int(str(name).split("-")[-1]) for name in store.item_ids.decode(range(store.n_items))])
    burst = live[second]
    assert 0.1 < burst.mean() < 0.25
    assert seconds[burst].max() < BURST_SECONDS[1] < np.median(seconds[~burst])
    assert (topics[first] == topics[second])[burst].all()
    assert (number[second] == np.where(live[first], number[first] + 1, 1))[burst].all()


def test_a_season_s_songs_last(store: SequenceStore) -> None:
    """A user's songs of thirty events are more like those of the thirty before than like those of another user."""
    shares = {"own": [], "another's": []}
    for user in range(1, 300):
        own, other = store.history(user), store.history(user - 1)
        if min(len(own), len(other)) >= 60:
            shares["own"].append(np.isin(own[-30:], own[-60:-30]).mean())
            shares["another's"].append(np.isin(own[-30:], other[-60:-30]).mean())
    assert np.mean(shares["own"]) > 1.5 * np.mean(shares["another's"])


@pytest.mark.parametrize("items", [60, 79, 90])
def test_items_must_suit_the_topics(tmp_path: Path, items: int) -> None:
    with pytest.raises(ValueError, match=f"items: {items} given, a multiple of 20 from 80 on needed"):
        write_synthetic_log(tmp_path / "log.csv", items=items)
    assert not (tmp_path / "log.csv").exists()
