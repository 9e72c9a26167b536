"""``hyenarec evaluate``: metrics of a trained model on a split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hyenarec.cli.options import RunPath, source_of
from hyenarec.data.store import SequenceStore
from hyenarec.display import show_table
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.files import write_text
from hyenarec.recommendation import Recommender
from hyenarec.source import load_source


@dataclass(frozen=True)
class Evaluate:
    """Rank every target of a split among all items and print the metrics, whole and by history length."""

    run_path: RunPath
    """Run folder or checkpoint file."""
    data: Path | None = None
    """Log or store; default: the one that the model was trained on."""
    part: Literal["test", "validation"] = "test"
    """Which targets to rank."""
    json_out: Path | None = None
    """Also write the metrics here."""

    def run(self) -> None:
        recommender = Recommender.load(self.run_path)
        source = source_of(recommender, self.data)
        store, split = load_source(source)
        _check_same_items(recommender, store, source.data)
        ranking = rank_targets(
            recommender,
            store,
            getattr(split, self.part),
            max_length=recommender.model.config.max_length,
            exclude_seen=recommender.config["training"]["exclude_seen"],
        )
        metrics, rows = ranking.metrics(), ranking.by_history_length()
        columns = ("history", "targets", "NDCG@10", "Recall@10", "HR@10", "MRR")
        everyone = {"history": "all", "targets": len(ranking.ranks), **metrics}
        show_table(f"{self.part}, {Path(source.data).name}, by history length", columns, [*rows, everyone])
        if self.json_out:
            report = {"part": self.part, "metrics": metrics, "by_history_length": rows}
            write_text(self.json_out, json.dumps(report, indent=2) + "\n")


def _check_same_items(recommender: Recommender, store: SequenceStore, name: str) -> None:
    mine, theirs = recommender.item_ids.to_arrays(), store.item_ids.to_arrays()
    if mine.keys() != theirs.keys() or not all(np.array_equal(mine[key], theirs[key]) for key in mine):
        raise UserError(f"{name}: its items are not those that the model was trained on")
