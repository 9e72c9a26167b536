"""The HTTP routes of the service. They leave the model and the events to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from hyenarec.answers import Answer, Recommendation
from hyenarec.data.times import caller_seconds
from hyenarec.errors import UserError
from hyenarec.recommendation import Recommender
from hyenarec.serving.engine import Engine, Wanted
from hyenarec.serving.events import Event, Item, Unavailable
from hyenarec.serving.limits import Limits
from hyenarec.serving.messages import (
    CONFLICT,
    REFUSALS,
    EventIn,
    EventOut,
    HistoriesIn,
    HistoriesOut,
    ItemsOut,
    Recommended,
    SearchIn,
    WantedIn,
)
from hyenarec.serving.metrics import Metrics


def make_app(engine: Engine, *, body_bytes: int, rate: float) -> FastAPI:
    """The service over an engine, which it closes when it shuts down.

    Routes return finished responses. Their response models serve only FastAPI's description: with them FastAPI would
    also check and copy every answer.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="HyenaRec",
        description="Events in, recommendations out.",
        version=version("hyenarec"),
        lifespan=lifespan,
        responses=REFUSALS,
    )
    metrics = Metrics(engine)
    app.add_middleware(Limits, body_bytes=body_bytes, rate=rate, routes=ROUTES, observe=metrics.observe)

    def scored(found: Sequence[Recommendation]) -> list[dict[str, Any]]:
        return [engine.catalogue.cells(one.item) | {"score": one.score} for one in found]

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx's number for a client that left

    @app.exception_handler(UserError)
    async def bad(request: Request, error: UserError) -> JSONResponse:
        if isinstance(error, Unavailable):
            return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
        return JSONResponse({"detail": str(error)}, 422)

    @app.post(
        "/events",
        status_code=201,
        response_model=EventOut,
        responses={200: {"model": EventOut}, **CONFLICT},
        openapi_extra=EventIn.as_body(),
    )
    async def add(request: Request) -> Response:
        """Add an event. It is on disk before this answers."""
        event = await EventIn.of_body(request)
        seconds = int(time.time()) if event.time is None else _seconds(engine, event.time)
        added = await asyncio.wrap_future(engine.add(Event(event.user, event.item, seconds, event.id)))
        if added.conflict:
            return JSONResponse({"detail": f"id {event.id!r} names another event"}, 409)
        if added.new:
            metrics.events.inc()
        known = bool(engine.recommender.item_ids.find([event.item])[0] >= 0)
        return JSONResponse({"new": added.new, "number": added.number, "known": known}, 201 if added.new else 200)

    @app.get("/recommend", response_model=Recommended, openapi_extra=WantedIn.as_query())
    async def recommend(request: Request) -> Response:
        """The best next items for a user whose events the service has."""
        asked = WantedIn.of_query(request)
        wanted = Wanted(asked.user, asked.k, asked.exclude_seen, asked.exclude, asked.allow)
        found = await asyncio.wrap_future(engine.recommend(wanted))
        return JSONResponse({"recommendations": scored(found.recommendations), "events": found.events})

    @app.post("/recommend", response_model=HistoriesOut, openapi_extra=HistoriesIn.as_body())
    async def recommend_histories(request: Request) -> Response:
        """The best next items after given histories. The service need not know their users."""
        asked = await HistoriesIn.of_body(request)
        recommender = engine.recommender  # one model answers all of a request
        found: list[Answer] = []
        for first in range(0, len(asked.histories), TOGETHER):  # requests of others are answered in between
            some = asked.histories[first : first + TOGETHER]

            def answers(_: Recommender, some: list[list[Item]] = some) -> list[Answer]:
                return list(recommender.answers(some, asked.k, exclude_seen=asked.exclude_seen))

            found += await asyncio.wrap_future(engine.call(answers))
        return JSONResponse(
            {
                "answers": [
                    {"recommendations": scored(one.recommendations), "unknown": one.unknown, "error": one.error}
                    for one in found
                ]
            }
        )

    @app.get("/items", response_model=ItemsOut, openapi_extra=SearchIn.as_query())
    async def items(request: Request) -> Response:
        """Items whose ids or names contain a text."""
        asked, catalogue = SearchIn.of_query(request), engine.catalogue
        return JSONResponse({"items": [catalogue.cells(item) for item in catalogue.search(asked.search, asked.k)]})

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether the service answers."""
        alive = engine.alive()
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        text = files("hyenarec.serving").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    return app


TOGETHER = 64  # histories of one request that the model reads at a time
ROUTES = frozenset({"/events", "/recommend", "/items", "/healthz", "/metrics", "/"})
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


def _seconds(engine: Engine, given: int) -> int:
    return int(caller_seconds([given], engine.recommender.time_unit, "time")[0])
