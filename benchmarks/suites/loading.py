"""Seconds and peak memory of reading a log of ten million events, each case in a fresh process.

    python -m benchmarks loading

Writes ``benchmarks/results/loading.json``.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measuring import in_fresh_process
from benchmarks.harness.recording import RESULTS, write
from hyenarec.data.reading import read_log
from hyenarec.data.store import SequenceStore

USERS, ITEMS = 200_000, 100_000


def write_log(path: Path, events: int, ids: str) -> None:
    """Uniform users, Zipf-like items and times over a year, rows in random order."""
    import polars as pl

    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(USERS, size=events),
            "item_id": (ITEMS * rng.random(events) ** 3).astype(np.int64),
            "timestamp": 1_700_000_000 + rng.integers(365 * 86_400, size=events),
        }
    )
    if ids == "strings":  # as long as the ids of the Amazon and Yelp logs
        frame = frame.with_columns(
            user_id=pl.format("A2{}GNN3BQX", pl.col("user_id")), item_id=pl.format("B00{}", pl.col("item_id"))
        )
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path)


def measure(path: Path) -> dict[str, Any]:
    """Read ``path`` in this process."""
    began, cpu_began = time.perf_counter(), time.process_time()
    store = read_log(path)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return {
        "ms": {"median": 1e3 * seconds, "min": 1e3 * seconds, "rounds": 1},
        "cpu_seconds": round(cpu_seconds, 2),  # of all threads: what a busy machine does not stretch
        "peak_gib": round(peak / 2**30, 2),
        "file_mb": round(path.stat().st_size / 1e6),
        "users": store.n_users,
        "items": store.n_items,
        "check": {"against": "events of each item in the file", "error": wrong_share(path, store), "tolerance": 0.0},
    }


def wrong_share(path: Path, store: SequenceStore) -> float:
    """By how many events the store's counts of items differ from the file's, over all events."""
    import polars as pl

    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    names, counts = frame["item_id"].value_counts(name="events")
    read = np.bincount(store.items, minlength=store.n_items)[store.item_ids.encode(names.to_list(), "item")]
    return float(np.abs(read - counts.to_numpy()).sum() / len(frame))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    arguments = parser.parse_args()
    cases = []
    for suffix, ids in product((".parquet", ".csv"), ("integers", "strings")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"log{suffix}"
            print(f"{suffix}, {ids}: writing", end="", flush=True)
            in_fresh_process(write_log, path, arguments.events, ids)
            print(", reading", end="", flush=True)
            case = in_fresh_process(measure, path)
        print(f": {case['ms']['median'] / 1e3:.2f} s, peak {case['peak_gib']} GiB", flush=True)
        cases.append({"format": suffix, "ids": ids, **case})
    title = f"reading a log of {arguments.events:,} events"
    settings = {"events": arguments.events, "polars": version("polars")}
    write(arguments.out, "loading", title, {"settings": settings, "cases": cases})
