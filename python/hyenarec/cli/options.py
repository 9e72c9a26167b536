"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hyenarec.data.reading import open_data
from hyenarec.data.splits import Split, global_temporal, leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.training import Source

DataPath = Annotated[Path, tyro.conf.Positional]


def load_source(source: Source) -> tuple[SequenceStore, Split]:
    """The store and the split that ``source`` describes."""
    store = open_data(Path(source.data), user=source.user, item=source.item, timestamp=source.timestamp)
    return store, (leave_one_out if source.split == "leave-one-out" else global_temporal)(store)


@dataclass(frozen=True)
class Columns:
    """Which columns of a log to read; a prepared store has them already."""

    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    timestamp: str | None = "timestamp"
    """Column of times, or None where the rows are in order of time already."""
