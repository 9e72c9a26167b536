"""The messages that clients send and get: read here, checked by pydantic, and described for the OpenAPI page.

FastAPI could read them itself, but that would take twice the time of everything else that it does for a request.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from hyenarec.errors import UserError

LONGEST_TEXT, MOST_ITEMS, MOST_EVENTS = 256, 1000, 100_000
KINDS = ("constrained-int", "constrained-str")  # what pydantic calls the two kinds of ids

Text = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_TEXT)]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Id = Number | Text
History = Annotated[list[Id], Field(max_length=MOST_EVENTS)]
K = Annotated[int, Field(ge=1, le=MOST_ITEMS)]
Filter = Annotated[list[str], Field(max_length=MOST_ITEMS)]


class Asked(BaseModel):
    """A message from a client. Unknown fields are refused, because they are likely to be typing errors."""

    model_config = ConfigDict(extra="forbid")
    LISTS: ClassVar[frozenset[str]] = frozenset()  # fields that a query may repeat

    @classmethod
    async def of_body(cls, request: Request) -> Self:
        """The message in a request's body. Raises :class:`UserError` if the body is not JSON or not this message."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # any web page can make a browser send plain text
            raise UserError("the Content-Type of a body must be application/json")
        try:
            return cls.model_validate_json(await request.body())
        except ValidationError as error:
            raise UserError(_what_is_wrong(error)) from None

    @classmethod
    def of_query(cls, request: Request) -> Self:
        """The message in a request's query. Raises :class:`UserError` if the query is not this message."""
        given: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            given.setdefault(name, []).append(value)
        values = {name: found if name in cls.LISTS or len(found) > 1 else found[0] for name, found in given.items()}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_what_is_wrong(error)) from None

    @classmethod
    def as_body(cls) -> dict[str, Any]:
        """The message's description in OpenAPI, as a body."""
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": cls.model_json_schema()}}}}

    @classmethod
    def as_query(cls) -> dict[str, Any]:
        """The message's description in OpenAPI, as a query."""
        schema = cls.model_json_schema()
        required = schema.get("required", ())
        return {
            "parameters": [
                {"name": name, "in": "query", "required": name in required, "schema": field}
                for name, field in schema["properties"].items()
            ]
        }


def _what_is_wrong(error: ValidationError) -> str:
    """The errors of the first wrong field, in one line. It does not repeat the value, which may be of any size and hold
    what JSON cannot."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(str(part) for part in one["loc"] if part not in KINDS) for one in errors]
    reasons = "; ".join(one["msg"] for place, one in zip(places, errors, strict=True) if place == places[0])
    return f"{places[0][:LONGEST_TEXT]}: {reasons}" if places[0] else reasons


class EventIn(Asked):
    """Something that a user did."""

    user: Text
    item: Id
    time: Number | None = Field(None, description="In the unit of the log that the model was trained on; default: now.")
    id: Text | None = Field(None, description="Your id for this event. Events sent again with it count once.")


class EventOut(BaseModel):
    new: bool = Field(description="False where an event of this id was there already.")
    number: int = Field(description="The event's number among the user's, from 0.")
    known: bool = Field(description="Whether the model knows the item; if not, a later model may.")


class WantedIn(Asked):
    LISTS = frozenset({"exclude", "allow"})

    user: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
    k: K = 10
    exclude: Filter = Field([], description="Items to leave out; may be repeated.")
    allow: Filter | None = Field(None, description="The only items to recommend; may be repeated.")
    exclude_seen: bool | None = Field(None, description="Whether items of the user's events are left out.")


class Shown(BaseModel):
    item: int | str
    name: str | None = Field(None, description="Its name, where the service has a catalogue of names.")


class Scored(Shown):
    score: float


class Recommended(BaseModel):
    recommendations: list[Scored]
    events: int = Field(description="Events of the user that the model knows; 0 for someone new, who gets nothing.")


class HistoriesIn(Asked):
    """Histories, oldest event first. The service need not know their users."""

    histories: Annotated[list[History], Field(min_length=1, max_length=MOST_ITEMS)]
    k: K = 10
    exclude_seen: bool | None = None


class AnswerOut(BaseModel):
    recommendations: list[Scored]
    unknown: list[int | str]
    error: str | None


class HistoriesOut(BaseModel):
    answers: list[AnswerOut]


class SearchIn(Asked):
    search: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    k: K = 20


class ItemsOut(BaseModel):
    items: list[Shown]


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
