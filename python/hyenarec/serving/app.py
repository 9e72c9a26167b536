"""The routes of the service; what they need of the model and the events is the engine's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from hyenarec.answers import Answer, Recommendation
from hyenarec.data.times import caller_seconds
from hyenarec.errors import UserError
from hyenarec.recommendation import Recommender
from hyenarec.serving.catalogue import Catalogue
from hyenarec.serving.engine import Engine, Wanted
from hyenarec.serving.events import Event, Unavailable
from hyenarec.serving.limits import Limits
from hyenarec.serving.metrics import Metrics

LONGEST_TEXT, MOST_ITEMS, MOST_EVENTS = 256, 1000, 100_000

Text = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_TEXT)]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Id = Number | Text
History = Annotated[list[Id], Field(max_length=MOST_EVENTS)]
K = Annotated[int, Field(ge=1, le=MOST_ITEMS)]
Filter = Annotated[list[str], Field(max_length=MOST_ITEMS)]


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


class WantedIn(Strict):
    user: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
    k: K = 10
    exclude: Filter = Field([], description="Items that are not wanted; as many times as needed.")
    allow: Filter | None = Field(None, description="The only items that are wanted; as many times as needed.")
    exclude_seen: bool | None = Field(None, description="Whether items of the user's events are left out.")


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


class SearchIn(Strict):
    search: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    k: K = 20


class ItemsOut(BaseModel):
    items: list[int | str]


class Refused(BaseModel):
    """Why there is no answer."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    411: {"model": Refused, "description": "A body of unknown length."},
    413: {"model": Refused, "description": "A body that is too large."},
    422: {"model": Refused, "description": "Something in the request is wrong."},
    429: {"model": Refused, "description": "Too many requests from this address; see Retry-After."},
    503: {"model": Refused, "description": "Not now: the events cannot be stored, or the service is stopping."},
}
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Refused, "description": "The id names another event."}}


def make_app(engine: Engine, *, body_bytes: int, rate: float) -> FastAPI:
    """The service over an engine, which it closes at its end.

    What routes return is made here, field by field, as their models say: FastAPI would check and copy it again.
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

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _what_is_wrong(error.errors())}, 422)

    @app.exception_handler(UserError)
    async def bad(request: Request, error: UserError) -> JSONResponse:
        if isinstance(error, Unavailable):
            return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/events", status_code=201, response_model=EventOut, responses={200: {"model": EventOut}} | CONFLICT)
    async def add(event: EventIn) -> Response:
        """Add an event. It is on disk when this answers."""
        seconds = int(time.time()) if event.time is None else _seconds(engine, event.time)
        added = await asyncio.wrap_future(engine.add(Event(event.user, event.item, seconds, event.id)))
        if added.conflict:
            return JSONResponse({"detail": f"id {event.id!r} names another event"}, 409)
        if added.new:
            metrics.events.inc()
        known = bool(engine.recommender.item_ids.find([event.item])[0] >= 0)
        return JSONResponse({"new": added.new, "number": added.number, "known": known}, 201 if added.new else 200)

    @app.get("/recommend", response_model=Recommended)
    async def recommend(asked: Annotated[WantedIn, Query()]) -> Response:
        """The best next items of a user whose events are here."""
        wanted = Wanted(asked.user, asked.k, asked.exclude_seen, asked.exclude, asked.allow)
        found = await asyncio.wrap_future(engine.recommend(wanted))
        return JSONResponse({"recommendations": _scored(found.recommendations), "events": found.events})

    @app.post("/recommend", response_model=HistoriesOut)
    async def recommend_histories(asked: HistoriesIn) -> Response:
        """The best next items after histories, of users whom the service need not know."""

        def answers(recommender: Recommender) -> list[Answer]:
            return list(recommender.answers(asked.histories, asked.k, exclude_seen=asked.exclude_seen))

        found = await asyncio.wrap_future(engine.call(answers))
        return JSONResponse(
            {
                "answers": [
                    {"recommendations": _scored(one.recommendations), "unknown": one.unknown, "error": one.error}
                    for one in found
                ]
            }
        )

    catalogue = lru_cache(maxsize=1)(Catalogue)  # of the present model

    @app.get("/items", response_model=ItemsOut)
    async def items(asked: Annotated[SearchIn, Query()]) -> Response:
        """Items whose ids contain a text."""
        ids = engine.recommender.item_ids
        found = await asyncio.to_thread(lambda: catalogue(ids).search(asked.search, asked.k))
        return JSONResponse({"items": found})

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


ROUTES = frozenset({"/events", "/recommend", "/items", "/healthz", "/metrics", "/"})
KINDS = ("constrained-int", "constrained-str")  # what pydantic calls the two kinds of ids
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


def _scored(found: Sequence[Recommendation]) -> list[dict[str, Any]]:
    return [{"item": one.item, "score": one.score} for one in found]


def _seconds(engine: Engine, given: int) -> int:
    return int(caller_seconds([given], engine.recommender.time_unit, "time")[0])


def _what_is_wrong(errors: Sequence[Any]) -> str:
    """Errors of the first wrong field in one line. It repeats no value, which may be of any size and hold what JSON
    cannot."""
    places = [".".join(str(part) for part in error["loc"][1:] if part not in KINDS) for error in errors]
    reasons = "; ".join(error["msg"] for place, error in zip(places, errors, strict=True) if place == places[0])
    return f"{places[0]}: {reasons}" if places[0] else reasons
