"""``hyenarec evaluate``: metrics of a trained model on a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from hyenarec.answers import Item, item_cells
from hyenarec.cli.options import NewItems, RunPath, join, names_of, source_of
from hyenarec.cli.recommend import Switch, seen_choice
from hyenarec.display import show_table
from hyenarec.errors import UserError

if TYPE_CHECKING:  # --help needs no torch
    from hyenarec.data.store import SequenceStore
    from hyenarec.recommendation import Recommender

EXAMPLE_ITEMS = 5


@dataclass(frozen=True)
class Evaluate:
    """Rank every target of a split among all items, and print the metrics in total and by kind of target."""

    run_path: RunPath
    """Run folder or checkpoint file."""
    data: Path | None = None
    """Log or store; default: the one that the model was trained on."""
    part: Literal["test", "validation"] = "test"
    """Which targets to rank."""
    exclude_seen: Switch = False
    """Rank only items that the user has not seen; a target seen before then counts as missed. Default: as trained."""
    no_exclude_seen: Switch = False
    """Rank items that the user has seen too; default: as trained."""
    seen: Literal["history", "input"] | None = None
    """What counts as seen: the user's whole history before the target, as in recommending, or only the input, which is
    the last events that the model reads, as in published results; default: as trained."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: auto takes a GPU where there is one."""
    examples: int = 0
    """Number of targets to show, each with the end of the history before it and the items ranked best."""
    names: Path | None = None
    """Catalogue for --examples: a table with item ids (in the log's own column, or in item_id or id) and their name or
    title."""
    new_items: Annotated[NewItems, tyro.conf.arg(name="")] = field(default_factory=NewItems)
    shard_items: Switch = False
    """Divide the item table among the processes that torchrun starts, for tables that one of them cannot hold."""
    json_out: Path | None = None
    """Also write the metrics to this JSON file."""

    def run(self) -> None:
        from hyenarec import distributed
        from hyenarec.breakdown import KINDS, MEANING, TargetKinds, metrics_of
        from hyenarec.config import TrainingConfig
        from hyenarec.display import console
        from hyenarec.evaluation import known_part, rank_targets, repeats, repeats_line
        from hyenarec.files import JSON, refuse_foreign, write_report
        from hyenarec.mixers import MIXERS
        from hyenarec.recommendation import Recommender
        from hyenarec.source import load_source

        if self.examples < 0 or (self.names and not self.examples):
            raise UserError("options examples and names: examples must be at least 0, and names needs examples")
        chosen = seen_choice(self.exclude_seen, self.no_exclude_seen)
        if self.json_out:
            refuse_foreign(self.json_out, JSON)
        sharded = join(self.shard_items)
        device = TrainingConfig(device=self.device).torch_device()
        trained = Recommender.load(self.run_path, device, shard_items=sharded)
        recommender = self.new_items.join(trained)
        training = recommender.config["training"]
        exclude_seen = training["exclude_seen"] if chosen is None else chosen
        seen = self.seen or training["seen"]
        if self.seen and not exclude_seen:
            raise UserError("option seen: not used where seen items are ranked too; only with --exclude-seen")
        names = names_of(recommender, self.names)
        source = source_of(recommender, self.data)
        store, split = load_source(source)
        targets = getattr(split, self.part)
        if distributed.size() > 1:
            distributed.refuse_differing("option data", store.fingerprint())
            distributed.refuse_differing(
                "run and options", recommender.config, len(recommender.item_ids), self.part, exclude_seen, seen
            )
        absent = recommender.config.get("start", {}).get("absent_items", 0)
        absent += len(recommender.item_ids) - len(trained.item_ids)
        if self.data is None:
            say_if_changed(trained, store, source.data)
        known = known_part(store, recommender.item_ids, targets, absent)
        if known is None:
            raise UserError(f"{source.data}: its items are not those that the model was trained on")
        for line in (known.describe(), repeats_line(known.store, known.targets, exclude_seen)):
            if line:
                console.print(line)
        mixer = recommender.model.config.mixer
        if MIXERS[mixer].knows_time and store.timestamps is None:
            console.print(f"{mixer}: the log has no timestamps; positions take their place")
        found = rank_targets(
            recommender,
            known.store,
            known.targets,
            max_length=recommender.model.config.max_length,
            exclude_seen=exclude_seen,
            seen=seen,
            device=recommender.device,
            count_shown=True,
            shard=recommender.model.shard,
        )
        ranking = known.with_lost(found)
        shown = known.targets[: self.examples]
        for target, rank in zip(shown.tolist(), found.ranks[: self.examples].tolist(), strict=True):
            show_example(recommender, known.store, target, rank, exclude_seen, names)
        kinds = TargetKinds.of(store, split, targets)
        metrics, parts = metrics_of(ranking, known.counts(kinds.counts)), kinds.breakdown(ranking)
        everyone = {"targets": len(ranking.ranks), **metrics}
        for kind, what in KINDS.items():
            rows = [*parts[kind], {what: "all", **everyone}]
            title = f"{self.part}, {Path(source.data).name}, by {MEANING[kind]}"
            show_table(title, (what, "targets", "NDCG@10", "Recall@10", "HR@10", "MRR"), rows)
        coverage, novelty = metrics["coverage@10"], metrics["novelty@10"]
        console.print(f"the best ten for everyone: {coverage:.1%} of the catalogue, {novelty:.1f} bits of novelty")
        if self.json_out and distributed.is_main():
            report = {
                "part": self.part,
                "exclude_seen": exclude_seen,
                "seen": seen,
                "new_items": known.new_items,
                "targets_lost_to_new_items": int((~known.kept).sum()),
                "repeats": repeats(known.store, known.targets),
                "metrics": metrics,
                **parts,
            }
            write_report(self.json_out, "evaluate", report)
        distributed.stop()


def say_if_changed(trained: Recommender, store: SequenceStore, path: str) -> None:
    """Print a line if the log has changed since the model was trained on it."""
    from hyenarec.continuing import with_items_of
    from hyenarec.display import console

    config = trained.config
    as_trained = with_items_of(store, trained.item_ids) if "start" in config else store
    if as_trained.fingerprint() != config["data"]["fingerprint"]:
        console.print(
            f"{path} changed since the model was trained on it; it is evaluated as it is now", highlight=False
        )


def show_example(
    recommender: Recommender,
    store: SequenceStore,
    target: int,
    rank: int,
    exclude_seen: bool,
    names: Mapping[Item, str] | None,
) -> None:
    """Print one target, an event of ``store``, with the events before it and the items ranked best after those."""
    (user,) = store.users_of(np.array([target]))
    before = slice(store.offsets[user], target)
    times = None if store.timestamps is None else [store.timestamps[before].astype("datetime64[s]")]
    history = store.item_ids.decode(store.items[before])
    k = min(EXAMPLE_ITEMS, len(store.item_ids))
    (answer,) = recommender.answers([history], k, timestamps=times, exclude_seen=exclude_seen)  # type: ignore[arg-type]
    (item,) = store.item_ids.decode(store.items[target : target + 1])
    listed = [("before", one) for one in history[-EXAMPLE_ITEMS:]]
    listed += [(f"target, ranked {rank + 1:,}", item)]
    listed += [(f"best, {place}", one.item) for place, one in enumerate(answer.recommendations, 1)]
    rows = [{"what": what, **item_cells(one, names)} for what, one in listed]
    (name,) = store.user_ids.decode([user])
    show_table(f"user {name}", tuple(rows[0]), rows, text=tuple(rows[0]))
