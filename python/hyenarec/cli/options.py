"""Options that several commands share."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hyenarec.data.places import STANDARD_INPUT, LogFormat
from hyenarec.data.store import is_store
from hyenarec.data.times import TimeUnit
from hyenarec.errors import UserError
from hyenarec.source import Source

if TYPE_CHECKING:
    from hyenarec.recommendation import Recommender

DataPath = Annotated[Path, tyro.conf.Positional]
RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Columns:
    """Which columns of a log to read; a prepared store has them already."""

    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    timestamp: str | None = "timestamp"
    """Column of times, or None where the rows are in order of time already."""

    time_unit: TimeUnit = "auto"
    """Unit of times that are numbers. By default the largest tells it: from 10^11 on they are milliseconds, from 10^14
    microseconds, from 10^17 nanoseconds."""
    format: LogFormat | None = None
    """What the log holds, where its suffix does not tell, as for pipes and for - (standard input)."""
    drop_duplicates: bool = False
    """Keep one of the events that share user, item and time."""


def refuse_options_of_logs(data: Path, columns: Columns) -> None:
    """Raises :class:`UserError` for an option of ``columns`` that was given although ``data`` is a store."""
    if not is_store(data):
        return
    for option in fields(columns):
        if getattr(columns, option.name) != option.default:
            raise UserError(f"option {option.name}: not used by {data}, which is a store; only by logs")


def source_of(recommender: Recommender, data: Path | None) -> Source:
    """Where the data of a command lie: ``data``, or else the log that the model was trained on."""
    source = Source(**recommender.config["source"])
    if data is not None:
        return replace(source, data=str(data))
    if source.data == STANDARD_INPUT:
        raise UserError("the model was trained on standard input, which is gone; --data must name the log")
    if not os.path.exists(source.data):
        raise UserError(f"{source.data}: no such file, but the model was trained on it; --data names another log")
    return source
