"""Where the data of a run come from, and how they are split: what a checkpoint keeps to find them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyenarec.data.reading import open_data
from hyenarec.data.splits import Split, global_temporal, leave_one_out
from hyenarec.data.store import SequenceStore


@dataclass(frozen=True)
class Source:
    """Where the data came from, so that a checkpoint can find them again."""

    data: str
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = "timestamp"


def load_source(source: Source) -> tuple[SequenceStore, Split]:
    """The store and the split that ``source`` describes."""
    store = open_data(Path(source.data), user=source.user, item=source.item, timestamp=source.timestamp)
    return store, (leave_one_out if source.split == "leave-one-out" else global_temporal)(store)
