"""Seconds and peak memory of reading a log of ten million events, each case in a fresh process.

    python -m benchmarks loading
    python -m benchmarks loading --prepare 100_000_000    # also `hyenarec prepare` on so many events in Parquet parts

Writes ``benchmarks/results/loading.json``.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measuring import in_fresh_process
from benchmarks.harness.recording import RESULTS, write
from hyenarec.cli.prepare import Prepare
from hyenarec.data.reading import read_log
from hyenarec.data.store import SequenceStore

USERS, ITEMS = 200_000, 100_000
EVENTS_A_USER, EVENTS_AN_ITEM = 50, 200  # means of a log in parts
EVENTS_A_PART = 5_000_000

Writer = Callable[[Path, int, str], None]
Reader = Callable[[Path], dict[str, Any]]


def write_log(path: Path, events: int, ids: str, users: int = USERS, items: int = ITEMS, seed: int = 0) -> None:
    """Writes a log with uniform users, Zipf-like items and times over a year, rows in random order."""
    import polars as pl

    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(users, size=events),
            "item_id": (items * rng.random(events) ** 3).astype(np.int64),
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


def write_parts(folder: Path, events: int, ids: str) -> None:
    """Writes such a log in Parquet parts, each of which has all users."""
    folder.mkdir()
    for number, first in enumerate(range(0, events, EVENTS_A_PART)):
        size = min(EVENTS_A_PART, events - first)
        part = folder / f"part-{number:04}.parquet"
        write_log(part, size, ids, max(1, events // EVENTS_A_USER), max(1, events // EVENTS_AN_ITEM), number)


def measure(path: Path) -> dict[str, Any]:
    """Measure reading ``path`` in this process."""
    return measured(path, lambda: read_log(path))


def measure_prepare(path: Path) -> dict[str, Any]:
    """Measure ``hyenarec prepare`` of ``path`` in this process."""
    place = path.with_name("store")

    def prepare() -> SequenceStore:
        Prepare(path, place).run()
        return SequenceStore.load(place)

    return measured(path, prepare)


def measured(path: Path, read: Callable[[], SequenceStore]) -> dict[str, Any]:
    began, cpu_began = time.perf_counter(), time.process_time()
    store = read()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return {
        "ms": {"median": 1e3 * seconds, "min": 1e3 * seconds, "rounds": 1},
        "cpu_seconds": round(cpu_seconds, 2),  # of all threads; other work on the machine does not add to it
        "peak_gib": round(peak / 2**30, 2),
        "file_mb": round(sum(part.stat().st_size for part in files(path)) / 1e6),
        "users": store.n_users,
        "items": store.n_items,
        "check": {"against": "events of each item in the file", "error": wrong_share(path, store), "tolerance": 0.0},
    }


def wrong_share(path: Path, store: SequenceStore) -> float:
    """By how many events the store's counts per item differ from the file's, as a share of all events."""
    import polars as pl

    scan = pl.scan_csv(path) if path.suffix == ".csv" else pl.scan_parquet(files(path))
    names, counts = scan.group_by("item_id").len("events").collect(engine="streaming")
    read = np.bincount(store.items, minlength=store.n_items)[store.item_ids.encode(names.to_list(), "item")]
    return float(np.abs(read - counts.to_numpy()).sum() / counts.sum())


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--prepare", type=int, default=0, metavar="EVENTS", help="also prepare so many events; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    arguments = parser.parse_args()
    kinds: list[tuple[str, str, int, Writer, Reader]] = [
        (suffix, ids, arguments.events, write_log, measure)
        for suffix, ids in product((".parquet", ".csv"), ("integers", "strings"))
    ]
    if arguments.prepare:
        what = f"hyenarec prepare of {arguments.prepare:,} events in Parquet parts"
        kinds.append((what, "integers", arguments.prepare, write_parts, measure_prepare))
    cases = []
    for what, ids, events, write_it, read_it in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"log{what if what.startswith('.') else ''}"
            print(f"{what}, {ids}: writing", end="", flush=True)
            in_fresh_process(write_it, path, events, ids)
            print(", reading", end="", flush=True)
            case = in_fresh_process(read_it, path)
        print(f": {case['ms']['median'] / 1e3:.2f} s, peak {case['peak_gib']} GiB", flush=True)
        cases.append({"format": what, "ids": ids, "events": events, **case})
    title = f"reading a log of {arguments.events:,} events"
    settings = {"events": arguments.events, "polars": version("polars")}
    write(arguments.out, "loading", title, {"settings": settings, "cases": cases})
