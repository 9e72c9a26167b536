"""One thread that owns model and store, and takes whatever has come in since it last looked as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyenarec.answers import Item, Recommendation, Request
from hyenarec.errors import UserError
from hyenarec.recommendation import Recommender
from hyenarec.serving.events import Added, Event, EventStore
from hyenarec.serving.states import States

MOST = 256  # requests in a batch


@dataclass(frozen=True)
class Wanted:
    """Recommendations for a user. ``exclude`` are never among them, and where ``allow`` is given only those of it."""

    user: str
    k: int
    exclude_seen: bool | None = None
    exclude: Sequence[Item] = ()
    allow: Sequence[Item] | None = None


@dataclass(frozen=True)
class Found:
    """The best items, at most as many as asked for, after ``events`` events of the user that the model knows."""

    recommendations: list[Recommendation]
    events: int


class Engine:
    """Answers requests from any thread. What waits while a batch is computed is the next batch: the busier, the larger.

    Events are on disk before they are acknowledged, and recommendations asked for after that reflect them.
    """

    def __init__(self, recommender: Recommender, events: EventStore, most_users: int) -> None:
        self.events, self.most_users = events, most_users
        self.states = States(recommender, events, most_users)
        self.observe: Callable[[int, float], None] = lambda size, seconds: None
        self._queue: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def recommender(self) -> Recommender:
        return self.states.recommender

    def add(self, event: Event) -> Future[Added]:
        return self._submit(event)

    def recommend(self, wanted: Wanted) -> Future[Found]:
        return self._submit(wanted)

    def call(self, function: Callable[[Recommender], Any]) -> Future[Any]:
        """Anything else that needs the model, such as recommending for whole histories."""
        return self._submit(function)

    def use(self, recommender: Recommender) -> Future[None]:
        """Takes a new model for all batches from the next one on; states are made anew from the events."""
        return self._submit(recommender)

    def close(self) -> None:
        """Answers what waits, then stops."""
        self._queue.put(None)
        self._thread.join()
        self.events.close()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _submit(self, request: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._queue.put((request, future))
        return future

    def _run(self) -> None:
        while True:
            waiting = [self._queue.get()]
            while len(waiting) < MOST and not self._queue.empty():
                waiting.append(self._queue.get())
            jobs = [job for job in waiting if job is not None]
            began = time.perf_counter()
            self._serve([(request, future) for request, future in jobs if future.set_running_or_notify_cancel()])
            if jobs:
                self.observe(len(jobs), time.perf_counter() - began)
            if len(jobs) < len(waiting):
                return

    def _serve(self, jobs: Sequence[tuple[Any, Future[Any]]]) -> None:
        kinds: dict[type, list[tuple[Any, Future[Any]]]] = {Event: [], Wanted: [], Recommender: [], object: []}
        for request, future in jobs:
            kinds[type(request) if type(request) in kinds else object].append((request, future))
        for request, future in kinds[Recommender]:
            self.states = States(request, self.events, self.most_users)
            future.set_result(None)
        _answer(kinds[Event], lambda events: self.events.add(events))
        _answer(kinds[Wanted], self._recommend)
        for request, future in kinds[object]:
            _answer([(request, future)], lambda functions: [functions[0](self.recommender)])

    @torch.inference_mode()
    def _recommend(self, wanted: Sequence[Wanted]) -> list[Found | UserError]:
        names = list(dict.fromkeys(one.user for one in wanted))
        users = dict(zip(names, self.states.of(names), strict=True))
        found: list[Found | UserError] = [Found([], 0)] * len(wanted)
        rows = [place for place, one in enumerate(wanted) if users[one.user].hidden is not None]
        if not rows:
            return found
        recommender = self.recommender
        hidden = torch.cat([users[wanted[row].user].hidden for row in rows])  # type: ignore[misc]
        with recommender.autocast():
            scores = recommender.model.scores_of(hidden)  # (n, V)
        for place, row in enumerate(rows):
            own = scores[place : place + 1]
            one, user = wanted[row], users[wanted[row].user]
            history = Request(np.array(user.items, dtype=np.int32), None, [], None)
            exclude_seen = recommender.excludes(one.exclude_seen)
            (answer,) = recommender.ranked(own, [history], one.k, exclude_seen, _allowed(recommender, one))
            found[row] = UserError(answer.error) if answer.error else Found(answer.recommendations, len(user.items))
        return found


def _allowed(recommender: Recommender, wanted: Wanted) -> Tensor:
    """What the filters leave of the catalogue, (1, V) bool; items that the model does not know filter nothing."""
    ids = recommender.item_ids
    allowed = torch.full((1, len(ids)), wanted.allow is None)
    for items, value in ((wanted.allow or (), True), (wanted.exclude, False)):
        places = ids.find(list(items)) if items else np.empty(0, dtype=np.int32)
        allowed[0, torch.from_numpy(places[places >= 0].astype(np.int64))] = value
    return allowed.to(recommender.device)


def _answer(jobs: Sequence[tuple[Any, Future[Any]]], function: Callable[[list[Any]], Sequence[Any]]) -> None:
    """Results of one function for all jobs; an exception among them, or of the function, is the job's own."""
    if not jobs:
        return
    try:
        results = function([request for request, _ in jobs])
    except Exception as error:  # whatever it is, it is the clients' answer: the thread goes on
        results = [error] * len(jobs)
    for (_, future), result in zip(jobs, results, strict=True):
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
