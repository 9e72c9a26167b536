"""Stopping a training between two of its steps, when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hyenarec import distributed
from hyenarec.data.batches import Batch
from hyenarec.model import SequenceModel

CheckStop = Callable[..., None]


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop, and training did so between two steps. ``exit_code`` is what a shell expects."""

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number


class Interruptible:
    """The model's scores, with a chance for training to stop before each batch."""

    def __init__(self, model: SequenceModel, check_stop: CheckStop) -> None:
        self._model, self._check_stop = model, check_stop

    def scores(self, batch: Batch) -> Tensor:
        self._check_stop()
        return self._model.scores(batch)


@contextmanager
def stop_requests() -> Iterator[CheckStop]:
    """Inside the context, SIGINT and SIGTERM are only noted. The function that this yields raises :class:`Interrupted`
    if one was: call it where the state is complete. If all of several processes call it with their device, a signal to
    one stops them all; called without a device, it asks for its own process alone. A second signal acts at once.

    Signals that the process ignores stay ignored; outside the main thread, which alone gets signals, nothing changes.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    def check(together: torch.device | None = None) -> None:
        if distributed.any_of(bool(received), together) if together else received:
            raise Interrupted(received[0] if received else signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield check
    finally:
        restore()
