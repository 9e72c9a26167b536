"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

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


def source_of(recommender: Recommender, data: Path | None) -> Source:
    """Where the log of the model is, or ``data`` in its place."""
    source = Source(**recommender.config["source"])
    if data is None and not Path(source.data).exists():
        raise UserError(f"{source.data}: the log that the model was trained on is not there; name it with --data")
    return source if data is None else replace(source, data=str(data))
