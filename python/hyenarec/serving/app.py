"""The routes of the service; what they need of the model and the events is the engine's."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from hyenarec.data.times import caller_seconds
from hyenarec.errors import UserError
from hyenarec.serving.engine import Engine, Wanted
from hyenarec.serving.events import Event

LONGEST_TEXT, MOST_ITEMS, MOST_EVENTS = 256, 1000, 100_000
CLIENTS = 10_000  # whose rates are counted at a time

Text = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_TEXT)]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Id = Number | Text
History = Annotated[list[Id], Field(max_length=MOST_EVENTS)]
K = Annotated[int, Field(ge=1, le=MOST_ITEMS)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EventIn(Strict):
    """Something that a user did."""

    user: Text
    item: Id
    time: Number | None = Field(None, description="In the unit of the log that the model was trained on; default: now.")
    id: Text | None = Field(None, description="Your name for this event. Sent again, the event counts once.")


class EventOut(BaseModel):
    new: bool = Field(description="False where an event of this id was there already.")
    number: int = Field(description="The event's number among the user's, from 0.")
    known: bool = Field(description="Whether the model knows the item; if not, a later model may.")


class Scored(BaseModel):
    item: int | str
    score: float


class Recommended(BaseModel):
    recommendations: list[Scored]
    events: int = Field(description="Events of the user that the model knows; 0 for someone new, who gets nothing.")


class HistoriesIn(Strict):
    """Histories of users whom the service need not know, oldest event first."""

    histories: Annotated[list[History], Field(min_length=1, max_length=MOST_ITEMS)]
    k: K = 10
    exclude_seen: bool | None = None


class AnswerOut(BaseModel):
    recommendations: list[Scored]
    unknown: list[int | str]
    error: str | None


class HistoriesOut(BaseModel):
    answers: list[AnswerOut]


class Rates:
    """A bucket of tokens for each client, refilled at ``rate`` a second; 0 for no limit."""

    def __init__(self, rate: float) -> None:
        self.rate, self._buckets = rate, OrderedDict[str, tuple[float, float]]()

    def wait(self, client: str) -> float:
        """0, and a token less, or the seconds until there is one."""
        if not self.rate:
            return 0.0
        now, most = time.monotonic(), max(self.rate, 1.0)
        left, at = self._buckets.pop(client, (most, now))
        left = min(most, left + (now - at) * self.rate)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


class Metrics:
    """What Prometheus reads."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("hyenarec_requests", "Requests", ("route", "status"), registry=self.registry)
        times = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
        self.seconds = Histogram("hyenarec_seconds", "Of requests", ("route",), buckets=times, registry=self.registry)
        sizes = tuple(2**i for i in range(9))
        self.batch = Histogram("hyenarec_batch", "Requests in a batch", buckets=sizes, registry=self.registry)
        self.events = Counter("hyenarec_events", "New events", registry=self.registry)
        users = Gauge("hyenarec_users", "Users whose states are in memory", registry=self.registry)
        users.set_function(lambda: len(engine.states))
        engine.observe = lambda size, seconds: self.batch.observe(size)


def make_app(engine: Engine, *, body_bytes: int, rate: float) -> FastAPI:
    """The service over an engine, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="HyenaRec", description="Events in, recommendations out.", version=_version(), lifespan=lifespan
    )
    metrics, rates = Metrics(engine), Rates(rate)

    @app.middleware("http")
    async def limits(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began, route = time.perf_counter(), request.url.path if request.url.path in ROUTES else "other"
        response = await refused(request) or await call_next(request)
        metrics.requests.labels(route, response.status_code).inc()
        metrics.seconds.labels(route).observe(time.perf_counter() - began)
        return response

    async def refused(request: Request) -> Response | None:
        wait = rates.wait(request.client.host if request.client else "")
        if wait:
            detail = {"detail": f"more than {rate:g} requests a second"}
            return JSONResponse(detail, 429, {"Retry-After": str(math.ceil(wait))})
        size = request.headers.get("content-length")
        if request.method == "POST" and (size is None or not size.isdigit()):
            return JSONResponse({"detail": "a request needs its Content-Length"}, 411)
        if size is not None and size.isdigit() and int(size) > body_bytes:
            return JSONResponse({"detail": f"more than {body_bytes} bytes"}, 413)
        return None

    @app.exception_handler(UserError)
    async def bad(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/events", status_code=201, responses={409: {"description": "The id names another event."}})
    async def add(event: EventIn, response: Response) -> EventOut:
        """Add an event. It is on disk when this answers."""
        seconds = int(time.time()) if event.time is None else _seconds(engine, event.time)
        added = await asyncio.wrap_future(engine.add(Event(event.user, event.item, seconds, event.id)))
        if added.conflict:
            raise HTTPException(409, f"id {event.id!r} names another event")
        if added.new:
            metrics.events.inc()
        else:
            response.status_code = 200
        known = bool(engine.recommender.item_ids.find([event.item])[0] >= 0)
        return EventOut(new=added.new, number=added.number, known=known)

    @app.get("/recommend")
    async def recommend(
        user: Annotated[str, Query(min_length=1, max_length=LONGEST_TEXT)],
        k: K = 10,
        exclude: Annotated[list[str], Query(max_length=MOST_ITEMS)] = [],  # noqa: B006 (FastAPI copies it)
        allow: Annotated[list[str] | None, Query(max_length=MOST_ITEMS)] = None,
        exclude_seen: bool | None = None,
    ) -> Recommended:
        """The best next items of a user whose events are here. ``exclude`` and ``allow`` may be given many times."""
        found = await asyncio.wrap_future(engine.recommend(Wanted(user, k, exclude_seen, exclude, allow)))
        return Recommended(recommendations=_scored(found.recommendations), events=found.events)

    @app.post("/recommend")
    async def recommend_histories(asked: HistoriesIn) -> HistoriesOut:
        """The best next items after histories, of users whom the service need not know."""

        def answers(recommender: Any) -> list[Any]:
            return list(recommender.answers(asked.histories, asked.k, exclude_seen=asked.exclude_seen))

        found = await asyncio.wrap_future(engine.call(answers))
        return HistoriesOut(
            answers=[
                AnswerOut(recommendations=_scored(a.recommendations), unknown=a.unknown, error=a.error) for a in found
            ]
        )

    @app.get("/items")
    async def items(
        search: Annotated[str, Query(max_length=LONGEST_TEXT)] = "", k: K = 20
    ) -> dict[str, list[int | str]]:
        """Items whose ids contain a text."""
        return {"items": await asyncio.to_thread(_search, engine, search, k)}

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether the service answers."""
        alive = engine.alive()
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        text = files("hyenarec.serving").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    return app


ROUTES = frozenset({"/events", "/recommend", "/items", "/healthz", "/metrics", "/"})
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


def _scored(found: Any) -> list[Scored]:
    return [Scored(item=one.item, score=one.score) for one in found]


def _seconds(engine: Engine, given: int) -> int:
    return int(caller_seconds([given], engine.recommender.time_unit, "time")[0])


def _search(engine: Engine, text: str, k: int) -> list[int | str]:
    ids, found = engine.recommender.item_ids, []
    for place in range(len(ids)):
        (item,) = ids.decode([place])
        if text.casefold() in str(item).casefold():
            found.append(item)
            if len(found) == k:
                break
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("hyenarec")
