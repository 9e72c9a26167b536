"""Seconds and peak memory of reading a log of ten million events, each case in a fresh process.

    python benchmarks/loading.py

Writes ``benchmarks/results/loading.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hyenarec import environment
from hyenarec.data.reading import read_log
from measuring import in_fresh_process
from recording import RESULTS

RESULT = RESULTS / "loading.json"
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
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # of all threads: what a busy machine does not stretch
        "peak_gib": round(peak / 2**30, 2),
        "file_mb": round(path.stat().st_size / 1e6),
        "users": store.n_users,
        "items": store.n_items,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    events = parser.parse_args().events
    cases, load = [], round(os.getloadavg()[0], 1)  # before this benchmark adds its own
    for suffix, ids in product((".parquet", ".csv"), ("integers", "strings")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"log{suffix}"
            print(f"{suffix}, {ids}: writing", end="", flush=True)
            in_fresh_process(write_log, path, events, ids)
            print(", reading", end="", flush=True)
            case = in_fresh_process(measure, path)
        print(f": {case['seconds']} s, peak {case['peak_gib']} GiB", flush=True)
        cases.append({"format": suffix, "ids": ids, **case})
    report = {
        "events": events,
        "cases": cases,
        "environment": {
            **environment.describe(torch.device("cpu")),
            "polars": version("polars"),
            "cores": os.cpu_count(),
            "load_average": load,
        },
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
