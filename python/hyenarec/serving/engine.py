"""Two threads: one writes events, the other owns the model. Each serves the requests that are waiting as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyenarec.answers import Item, Recommendation, Request
from hyenarec.errors import UserError
from hyenarec.evaluation import scored_at_a_time
from hyenarec.recommendation import Recommender
from hyenarec.serving.catalogue import Catalogue
from hyenarec.serving.events import Added, Event, Events, Unavailable
from hyenarec.serving.states import States

MOST = 256  # requests in a batch, at most
# Requests of a batch that are ranked together. With 10,000 items this takes 93 us each (113 if malloc returns freed
# memory to the system); one by one it takes 232.
RANKED = 64

Job = tuple[Any, "Future[Any]"]


@dataclass(frozen=True)
class Wanted:
    """A request for recommendations to a user: none of ``exclude``, and only items of ``allow`` if that is given."""

    user: str
    k: int
    exclude_seen: bool | None = None
    exclude: Sequence[Item] = ()
    allow: Sequence[Item] | None = None


@dataclass(frozen=True)
class BestItems:
    """The best items, at most as many as asked for. ``events`` is how many of the user's events the model knows."""

    recommendations: list[Recommendation]
    events: int


@dataclass(frozen=True)
class ServedModel:
    """A request to switch to another model; ``catalogue`` has its items."""

    recommender: Recommender
    catalogue: Catalogue


class BatchWorker:
    """A thread that serves requests in batches. Those that arrive during one batch are the next, so batches grow with
    the load."""

    def __init__(self, name: str, serve: Callable[[list[Job]], None]) -> None:
        self._serve, self._queue = serve, queue.SimpleQueue[Job | None]()
        self._closing, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, request: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._closing:  # nothing may be queued after the None that ends the thread
            if self._closed:
                raise Unavailable("the service is stopping")
            self._queue.put((request, future))
        return future

    def close(self) -> None:
        """Answers the requests that are waiting, then stops."""
        with self._closing:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while True:
            waiting = [self._queue.get()]
            while len(waiting) < MOST and not self._queue.empty():
                waiting.append(self._queue.get())
            jobs = [job for job in waiting if job is not None]
            self._serve([(request, future) for request, future in jobs if future.set_running_or_notify_cancel()])
            if len(jobs) < len(waiting):
                return


class Engine:
    """Answers requests from any thread.

    Events are stored before they are acknowledged, and recommendations asked for after that reflect them.
    """

    def __init__(
        self, recommender: Recommender, events: Events, most_users: int, names: Mapping[Item, str] | None = None
    ) -> None:
        self.events, self.most_users = events, most_users
        self.catalogue = Catalogue(recommender.item_ids, names)
        self.states = States(recommender, events, most_users)
        self.observe: Callable[[str, int, float], None] = lambda work, size, seconds: None
        self._writer = BatchWorker("events", self._write)
        self._reader = BatchWorker("model", self._compute)

    @property
    def recommender(self) -> Recommender:
        return self.states.recommender

    def add(self, event: Event) -> Future[Added]:
        return self._writer.submit(event)

    def recommend(self, wanted: Wanted) -> Future[BestItems]:
        return self._reader.submit(wanted)

    def call(self, function: Callable[[Recommender], Any]) -> Future[Any]:
        """Runs any other function that needs the model, such as recommending for whole histories."""
        return self._reader.submit(function)

    def use(self, recommender: Recommender, names: Mapping[Item, str] | None = None) -> Future[None]:
        """Switches to a new model, from the next batch on. Users' states are computed again from their events."""
        return self._reader.submit(ServedModel(recommender, Catalogue(recommender.item_ids, names)))

    def close(self) -> None:
        """Answers the requests that are waiting, then stops."""
        for worker in (self._writer, self._reader):
            worker.close()
        self.events.close()

    def alive(self) -> bool:
        return self._writer.alive() and self._reader.alive()

    def _write(self, jobs: list[Job]) -> None:
        self._timed("events", jobs, self.events.add)

    def _compute(self, jobs: list[Job]) -> None:
        wanted = [(request, future) for request, future in jobs if isinstance(request, Wanted)]
        for request, future in jobs:
            if isinstance(request, ServedModel):
                self._timed("takeover", [(request, future)], self._use)
        self._timed("recommend", wanted, self._recommend)
        for request, future in jobs:
            if not isinstance(request, Wanted | ServedModel):
                _answer([(request, future)], lambda functions: [functions[0](self.recommender)])

    def _timed(self, work: str, jobs: Sequence[Job], function: Callable[[list[Any]], Sequence[Any]]) -> None:
        if jobs:
            began = time.perf_counter()
            _answer(jobs, function)
            self.observe(work, len(jobs), time.perf_counter() - began)

    def _use(self, models: Sequence[ServedModel]) -> list[None]:
        self.states, self.catalogue = States(models[0].recommender, self.events, self.most_users), models[0].catalogue
        return [None]

    @torch.inference_mode()
    def _recommend(self, wanted: Sequence[Wanted]) -> list[BestItems | UserError]:
        names = list(dict.fromkeys(one.user for one in wanted))
        users = dict(zip(names, self.states.of(names), strict=True))
        found: list[BestItems | UserError] = [BestItems([], 0)] * len(wanted)
        alike: dict[tuple[int, bool], list[int]] = {}  # rows of wanted that are ranked together
        for row, one in enumerate(wanted):
            if users[one.user].done:
                alike.setdefault((one.k, self.recommender.excludes(one.exclude_seen)), []).append(row)
        size = scored_at_a_time(len(self.recommender.item_ids), RANKED)
        parts = [(how, rows[i : i + size]) for how, rows in alike.items() for i in range(0, len(rows), size)]
        for (k, exclude_seen), rows in parts:
            theirs = [users[wanted[row].user] for row in rows]
            with self.recommender.autocast():
                scores = self.recommender.model.scores_of(*self.states.reached(theirs))  # (n, V)
            histories = [Request(user.history(), None, [], None) for user in theirs]
            allowed = self._allowed([wanted[row] for row in rows])
            answers = self.recommender.ranked(scores, histories, k, exclude_seen, allowed)
            for row, user, answer in zip(rows, theirs, answers, strict=True):
                error = answer.error
                found[row] = UserError(error) if error else BestItems(answer.recommendations, len(user.items))
        return found

    def _allowed(self, wanted: Sequence[Wanted]) -> Tensor:
        """Which items each request's filters allow, (n, V) bool; items that the model does not know are ignored. If no
        request has filters it is (1, 1), which is cheaper to apply to every score."""
        ids, device = self.recommender.item_ids, self.recommender.device
        filtered = [row for row, one in enumerate(wanted) if one.exclude or one.allow is not None]
        if not filtered:
            return torch.ones(1, 1, dtype=torch.bool, device=device)
        allowed = torch.ones(len(wanted), len(ids), dtype=torch.bool)
        for row in filtered:
            one = wanted[row]
            allowed[row] = one.allow is None
            for items, value in ((one.allow or (), True), (one.exclude, False)):
                places = ids.find(list(items)) if items else np.empty(0, dtype=np.int32)
                allowed[row, torch.from_numpy(places[places >= 0].astype(np.int64))] = value
        return allowed.to(device)


def _answer(jobs: Sequence[Job], function: Callable[[list[Any]], Sequence[Any]]) -> None:
    """Answers all jobs with one call of ``function``. If that fails, each job is tried alone, so that one request does
    not cost another its answer, and gets its own exception. :class:`Unavailable` goes to all jobs at once."""
    try:
        results = function([request for request, _ in jobs])
    except Exception as error:  # of any kind: it is the client's answer, and the thread goes on
        if len(jobs) > 1 and not isinstance(error, Unavailable):
            for job in jobs:
                _answer([job], function)
            return
        results = [error] * len(jobs)
    for (_, future), result in zip(jobs, results, strict=True):
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
