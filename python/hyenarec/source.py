"""Where the data of a run come from, and how they are split: a checkpoint keeps this to find them again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyenarec.config import check_fields
from hyenarec.data.places import STANDARD_INPUT, LogFormat
from hyenarec.data.reading import open_data
from hyenarec.data.splits import Split, global_temporal, leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.data.times import TimeUnit
from hyenarec.errors import UserError
from hyenarec.files import as_path


@dataclass(frozen=True)
class Source:
    """Where the data are, so that a checkpoint can find them again from any folder: ``data`` is made absolute.

    The other fields, but for ``split``, are the options of :func:`hyenarec.data.read_log`.
    """

    data: str
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = "timestamp"

    time_unit: TimeUnit = "auto"
    format: LogFormat | None = None
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        data = str(as_path(self.data, "data"))
        object.__setattr__(self, "data", data if data == STANDARD_INPUT else os.path.abspath(data))
        check_fields(self)

    def open(self) -> SequenceStore:
        """Open the store, or read the log."""
        return open_data(
            self.data,
            user=self.user,
            item=self.item,
            timestamp=self.timestamp,
            time_unit=self.time_unit,
            format=self.format,
            drop_duplicates=self.drop_duplicates,
        )


def load_source(source: Source) -> tuple[SequenceStore, Split]:
    """The store, all of it verified, and the split that ``source`` describes. Raises :class:`UserError` as opening it
    does, and where several processes would share a pipe, which gives each event to only one of them."""
    from hyenarec import distributed  # imports torch, which --help does without

    if distributed.size() > 1 and (source.data == STANDARD_INPUT or Path(source.data).is_fifo()):
        name = "standard input" if source.data == STANDARD_INPUT else source.data
        raise UserError(f"{name}: only one process can read a pipe; name a file, or a store that prepare made of it")
    store = source.open()
    store.verify()
    return store, (leave_one_out if source.split == "leave-one-out" else global_temporal)(store)
