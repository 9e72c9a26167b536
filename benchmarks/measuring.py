"""What the benchmarks share: contestants that take turns, a process of one's own, freed memory, the report on disk."""

from __future__ import annotations

import ctypes
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from hyenarec import environment
from hyenarec.display import console
from hyenarec.files import write_text

RESULTS = Path(__file__).parent / "results"
MOST_ROUNDS = 400

P = ParamSpec("P")
T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)


def take_turns(
    contestants: Mapping[Name, Callable[[], Any]], seconds: float, rounds: int = 9
) -> dict[Name, dict[str, float]]:
    """Milliseconds of each contestant: median, quartiles and best of at least ``rounds`` rounds, and of as many as fit
    into ``seconds``.

    Each runs once before the first round; the order of a round is the reverse of the round before. Work that a
    contestant hands to a GPU must have ended when it returns.
    """
    times: dict[Name, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    names, done, end = list(contestants), 0, time.perf_counter() + seconds
    while done < rounds or (done < MOST_ROUNDS and time.perf_counter() < end):
        for name in names:
            began = time.perf_counter()
            contestants[name]()
            times[name].append(1e3 * (time.perf_counter() - began))
        names.reverse()
        done += 1
    return {name: summary(values) for name, values in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Median, quartiles, best and count of two or more values."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "q1": low, "q3": high, "min": min(values), "rounds": len(values)}


def keep_freed_memory() -> bool:
    """Asks glibc's malloc to give nothing back to the system; False where that is not the allocator."""
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def in_fresh_process(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """``function(*arguments)`` in a process that has done nothing before: peak memory is a process's own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def write_report(path: Path, title: str, content: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Write ``content`` as JSON under its title, with what it takes to measure it again."""
    report = {
        "title": title,
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment.describe(device or torch.device("cpu")),
        **content,
    }
    write_text(path, json.dumps(report, indent=2) + "\n")
    console.print(f"written to {path.name}", highlight=False)
