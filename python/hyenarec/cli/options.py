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
from hyenarec.display import complain, console
from hyenarec.errors import UserError
from hyenarec.source import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hyenarec.answers import Item
    from hyenarec.data.item_features import Features
    from hyenarec.data.store import SequenceStore
    from hyenarec.recommendation import Recommender
    from hyenarec.trained import Trained

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
    """Column of times, or None if the rows are already in order of time."""

    time_unit: TimeUnit = "auto"
    """Unit of times that are numbers. By default the largest time decides: from 10^11 on they are milliseconds, from
    10^14 microseconds, from 10^17 nanoseconds."""
    format: LogFormat | None = None
    """Format of the log, if its suffix does not tell, as for pipes and for - (standard input)."""
    drop_duplicates: bool = False
    """Keep only one of the events that share user, item and time."""


def refuse_options_of_logs(data: Path, columns: Columns) -> None:
    """Raises :class:`UserError` for an option of ``columns`` that was given although ``data`` is a store."""
    if not is_store(data):
        return
    for option in fields(columns):
        if getattr(columns, option.name) != option.default:
            raise UserError(f"option {option.name}: not used by {data}, which is a store; only by logs")


@dataclass(frozen=True)
class ItemFeatures:
    """What is known of items besides their events."""

    item_features: Path | None = None
    """Table with one row per item (Parquet, CSV, ...): its id, and columns of categories, numbers, text or vectors,
    which become a part of the item's embedding. For rare items, and for new ones when recommending."""
    feature_columns: tuple[str, ...] = ()
    """Columns of that table to use; default: all."""

    def of(self, store: SequenceStore, columns: Columns, start: Trained | None = None) -> Features | None:
        """The features of the store's items, or None without a table. The encodings are those of ``start``, or if it
        has none, learned from the table."""
        from hyenarec.data.item_features import describe, encode, learn, read_item_table

        if self.item_features is None:
            return None
        table = read_item_table(self.item_features, store.item_ids, columns.item, self.feature_columns)
        known = start.features.encodings if start and start.features else None
        encodings = learn(table, store.item_ids) if known is None else known
        features = encode(table, encodings, store.item_ids)
        for line in describe(table, encodings, store.item_ids):
            console.print(f"{self.item_features}: {line}", highlight=False)
        return features

    def refuse_unused(self, shard_items: bool) -> None:
        """Raises :class:`UserError` for options that would do nothing."""
        if self.feature_columns and not self.item_features:
            raise UserError("option feature_columns: not used without --item-features")
        if self.item_features and shard_items:
            raise UserError("option item_features: not used with --shard-items; every process needs the whole table")


def source_of(recommender: Recommender, data: Path | None) -> Source:
    """Where the data of a command are: at ``data``, or else in the log that the model was trained on.

    Raises :class:`UserError` if that log is gone.
    """
    source = Source(**recommender.config["source"])
    if data is not None:
        return replace(source, data=str(data))
    if source.data == STANDARD_INPUT:
        raise UserError("the model was trained on standard input, which is gone; --data must name the log")
    if not os.path.exists(source.data):
        raise UserError(f"{source.data}: no such file, but the model was trained on it; --data names another log")
    return source


@dataclass(frozen=True)
class ItemFilters:
    """Which items may be recommended. Files have one id per line, or are tables with a column of ids."""

    allow: Path | None = None
    """File of items: only these are recommended."""
    deny: Path | None = None
    """File of items: these are never recommended."""

    def of(self, recommender: Recommender) -> Tensor | None:
        """The items that the filters leave, (V,) bool, or None for all. Ids unknown to the model give a warning."""
        from hyenarec.data.names import read_item_list

        if self.allow is None and self.deny is None:
            return None
        lists = {}
        for option, path in (("allow", self.allow), ("deny", self.deny)):
            if path is not None:
                found = read_item_list(path, recommender.item_ids, recommender.config["source"]["item"])
                if found.unknown:
                    complain(f"warning: {found.unknown}")
                lists[option] = found.items
        return recommender.allowed(**lists)


@dataclass(frozen=True)
class NewItems:
    """Items that the model has not seen."""

    item_features: Path | None = None
    """Table of features, as for train --item-features. Its items that are new to the model join the catalogue, with
    embeddings made from their features alone."""

    def join(self, recommender: Recommender) -> Recommender:
        """``recommender`` with the table's new items, or as it is without a table."""
        from hyenarec import distributed

        if self.item_features is None:
            return recommender
        found = recommender.with_items(self.item_features)
        new, known = len(found.item_ids) - len(recommender.item_ids), len(recommender.item_ids)
        if distributed.is_main():
            complain(f"{self.item_features}: {new:,} items are new, beside {known:,} that the model knows")
        return found


def names_of(recommender: Recommender, path: Path | None) -> Mapping[Item, str] | None:
    """The items' names in the catalogue at ``path``; None without one."""
    from hyenarec.data.names import read_names

    return None if path is None else read_names(path, recommender.item_ids, recommender.config["source"]["item"])


def join(shard_items: bool) -> bool:
    """Join the other processes, if there are any; only process 0 prints. Returns whether the item table is to be
    divided among them."""
    from hyenarec import distributed

    distributed.start()
    console.quiet = not distributed.is_main()
    return shard_items and distributed.size() > 1
