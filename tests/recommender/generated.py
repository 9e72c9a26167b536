"""Data that tests of the recommender generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hyenarec.data.batches import Batch
from hyenarec.data.ids import Ids
from hyenarec.data.store import SequenceStore
from hyenarec.packing import Packing

TRAIN = ["--dim", "8", "--blocks", "1", "--max-length", "8", "--epochs", "2", "--batch-size", "16", "--device", "cpu"]
TUNE = ["--dim", "8", "--blocks", "1", "--batch-size", "16", "--device", "cpu", "--epochs", "2", "--trial-epochs", "1"]


def make_store(n_users: int = 40, n_items: int = 30, longest: int = 25, seed: int = 0) -> SequenceStore:
    """Random histories of 1 to ``longest`` events, in which each item tends to be followed by the next one."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n_users)
    lengths[:2] = (1, longest)
    histories = [(rng.integers(n_items) + np.arange(n).cumsum() % 7) % n_items for n in lengths]
    times = [np.sort(rng.integers(0, 10_000_000, n)) for n in lengths]
    return SequenceStore(
        offsets=np.concatenate(([0], lengths.cumsum())).astype(np.int64),
        items=np.concatenate(histories).astype(np.int32),
        timestamps=np.concatenate(times).astype(np.int64),
        user_ids=Ids.from_values([f"user-{index:03}" for index in range(n_users)]),
        item_ids=Ids.from_values(list(range(100, 100 + n_items))),
    )


def make_batch(lengths: list[int], n_items: int = 30, seed: int = 0) -> Batch:
    """A packed batch of random items and targets, with times of which some are equal."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    return Batch(
        torch.randint(n_items, (total,), generator=generator),
        Packing.from_lengths(torch.tensor(lengths)),
        timestamps=torch.randint(3, (total,), generator=generator).cumsum(0) * 1000,
        targets=torch.randint(n_items, (total,), generator=generator),
    )


def write_csv(path: Path, store: SequenceStore) -> Path:
    assert store.timestamps is not None
    lines = ["user_id,item_id,timestamp"]
    for user in range(store.n_users):
        name = store.user_ids.decode([user])[0]
        events = range(store.offsets[user], store.offsets[user + 1])
        lines += [f"{name},{100 + store.items[event]},{store.timestamps[event]}" for event in events]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_items(path: Path, first: int = 100, last: int = 135) -> Path:
    """Writes features of items ``first`` to ``last - 1``, without 105. The log of ``make_store`` has 100 to 129."""
    import polars as pl  # forked processes cannot use it

    items = np.array([item for item in range(first, last) if item != 105])
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, 3))[items - 100]
    table = {
        "item_id": items,
        "kind": [f"kind {item % 4}" for item in items],
        "tags": [[f"tag {n}" for n in range(item % 3)] for item in items],
        "year": [None if item % 7 == 0 else 1990 + item % 11 for item in items],
        "text": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float64)),
    }
    pl.DataFrame(table).write_parquet(path)
    return path
