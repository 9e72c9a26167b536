"""Timing: contestants that take turns in one process, and functions that run in a fresh process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

MOST_ROUNDS = 400

P = ParamSpec("P")
T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)


def wall_clock(run: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


def take_turns(
    contestants: Mapping[Name, Callable[[], Any]],
    seconds: float,
    rounds: int = 9,
    clock: Callable[[Callable[[], Any]], float] = wall_clock,
) -> dict[Name, dict[str, float]]:
    """Times every contestant once per round, and returns the :func:`summary` of each one's milliseconds.

    There are at least ``rounds`` rounds, and more while ``seconds`` have not passed. Each contestant runs once before
    the first round to warm up; every round goes through them in the reverse order of the round before. ``clock`` times
    one call. The default, the wall clock, sees a GPU's work only if the contestant waits for it.
    """
    times: dict[Name, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    names, done, end = list(contestants), 0, time.perf_counter() + seconds
    while done < rounds or (done < MOST_ROUNDS and time.perf_counter() < end):
        for name in names:
            times[name].append(clock(contestants[name]))
        names.reverse()
        done += 1
    return {name: summary(values) for name, values in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    """The median, quartiles, 99% quantile, minimum and number of at least two values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    late = statistics.quantiles(values, n=100, method="inclusive")[98]
    return {"median": middle, "q1": low, "q3": high, "p99": late, "min": min(values), "rounds": len(values)}


def fresh_process() -> ProcessPoolExecutor:
    """An executor with one freshly started process."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def in_fresh_process(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """``function(*arguments)`` in a freshly started process, so that its peak memory is its own."""
    with fresh_process() as process:
        return process.submit(function, *arguments, **options).result()
