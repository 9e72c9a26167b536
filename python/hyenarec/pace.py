"""How long a training takes, estimated from the steps that it has done."""

from __future__ import annotations

import time

MEASURED_STEPS = 4  # measured for an estimate, after a first one that also pays for fresh memory
MEASURED_SECONDS = 10.0  # or fewer steps, where they take this long together
TOLD_FROM = 30.0  # seconds per epoch: a shorter epoch ends before its estimate is read


class Pace:
    """The mean time of the steps of an epoch, without the first, updated as steps are done."""

    def __init__(self, steps: int) -> None:
        """``steps`` is how many a whole epoch has."""
        self.steps, self._done, self._began, self._last = steps, 0, 0.0, 0.0

    def step(self) -> None:
        """A step has ended."""
        self._last = time.perf_counter()
        if not self._done:
            self._began = self._last
        self._done += 1

    @property
    def seconds(self) -> float | None:
        """The seconds of a step; None until enough of them are measured."""
        measured, passed = self._done - 1, self._last - self._began
        if measured < 1 or (measured < MEASURED_STEPS and passed < MEASURED_SECONDS):
            return None
        return passed / measured

    def describe(self) -> str:
        """``about 3 h 10 min an epoch, 1.1 s a step``; empty until it is known."""
        seconds = self.seconds
        return "" if seconds is None else f"about {duration(seconds * self.steps)} an epoch, {duration(seconds)} a step"


def duration(seconds: float) -> str:
    """Seconds as people say them, in two digits or so: 25 ms, 1.1 s, 45 s, 12 min, 3 h 10 min, 2 days 4 h."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24:,} days {hours % 24} h"
