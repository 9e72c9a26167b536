"""``hyenarec evaluate``, ``recommend`` and ``inspect``: what to do with a checkpoint."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from hyenarec.cli.options import load_source
from hyenarec.data.reading import open_data
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, show_table
from hyenarec.errors import UserError
from hyenarec.evaluation import rank_targets
from hyenarec.files import write_text
from hyenarec.plots import learned_filters
from hyenarec.recommendation import Item, Recommendation, Recommender
from hyenarec.training import Source

RunPath = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Evaluate:
    """Rank every target of a split among all items and print the metrics, whole and by history length."""

    run_path: Annotated[RunPath, tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    data: Path | None = None
    """Log or store; default: the one that the model was trained on."""
    part: Literal["test", "validation"] = "test"
    """Which targets to rank."""
    json_out: Path | None = None
    """Also write the metrics here."""

    def run(self) -> None:
        recommender = Recommender.load(self.run_path)
        source = _source(recommender, self.data)
        store, split = load_source(source)
        _same_items(recommender, store, source.data)
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


@dataclass(frozen=True)
class Recommend:
    """Recommend next items for users of the log, or for any history.

    Name one source: --users, --history, or --histories. Answers are tables, or with --json one JSON line a history.
    """

    run_path: Annotated[RunPath, tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    users: tuple[str, ...] = ()
    """User ids of the log; their whole history is read from the data."""
    history: tuple[str, ...] = ()
    """Item ids of one history, oldest first."""
    histories: Path | None = None
    """File with one history a line, or - for standard input: item ids separated by white space, or a JSON list."""
    data: Path | None = None
    """Log or store for --users; default: the one that the model was trained on."""
    k: int = 10
    """Items to recommend."""
    exclude_seen: bool = True
    """Leave out items of the history."""
    json: bool = False
    """Print one JSON line a history instead of tables."""

    def run(self) -> None:
        if sum(map(bool, (self.users, self.history, self.histories))) != 1:
            raise UserError("name exactly one of --users, --history and --histories")
        recommender = Recommender.load(self.run_path)
        names, histories, timestamps = self._histories(recommender)
        answers = recommender.recommend(histories, self.k, timestamps=timestamps, exclude_seen=self.exclude_seen)
        for name, answer in zip(names, answers, strict=True):
            if self.json:
                items = [{"item": entry.item, "score": round(entry.score, 4)} for entry in answer]
                print(json.dumps({"for": name, "recommendations": items}))
            else:
                show_recommendations(f"for {name}", answer)

    def _histories(self, recommender: Recommender) -> tuple[list[str], list[list[Item]], list[list[int]] | None]:
        """Names, items and, of users of a log that has them, times."""
        if self.history:
            return ["the given history"], [list(self.history)], None
        if self.histories:
            lines = _read_lines(self.histories)
            return [f"line {number}" for number, _ in lines], [history for _, history in lines], None
        source = _source(recommender, self.data)
        store = open_data(Path(source.data), user=source.user, item=source.item, timestamp=source.timestamp)
        chosen = store.user_ids.encode(self.users, "user")
        histories = [store.item_ids.decode(store.history(int(user))) for user in chosen]
        times = store.timestamps
        if times is None:
            return list(self.users), histories, None
        return list(self.users), histories, [times[store.offsets[u] : store.offsets[u + 1]].tolist() for u in chosen]


@dataclass(frozen=True)
class Inspect:
    """Draw the learned long filters of a hyena checkpoint."""

    run_path: Annotated[RunPath, tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    out: Path
    """PNG file to write."""

    def run(self) -> None:
        learned_filters(Recommender.load(self.run_path).model, self.out)
        console.print(f"{self.out}: learned filters", highlight=False)


def show_recommendations(title: str, answer: list[Recommendation]) -> None:
    rows = [{"rank": rank, "item": entry.item, "score": entry.score} for rank, entry in enumerate(answer, 1)]
    show_table(title, ("rank", "item", "score"), rows)


def _source(recommender: Recommender, data: Path | None) -> Source:
    source = Source(**recommender.config["source"])
    return source if data is None else replace(source, data=str(data))


def _same_items(recommender: Recommender, store: SequenceStore, name: str) -> None:
    mine, theirs = recommender.item_ids.to_arrays(), store.item_ids.to_arrays()
    if mine.keys() != theirs.keys() or not all(np.array_equal(mine[key], theirs[key]) for key in mine):
        raise UserError(f"{name}: its items are not those that the model was trained on")


def _read_lines(path: Path) -> list[tuple[int, list[Item]]]:
    """Numbered histories of a file or standard input; blank lines are skipped."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read histories ({error})") from error
    found: list[tuple[int, list[Item]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            try:
                history = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number}: not a JSON list ({error})") from error
            if not all(isinstance(item, int | str) for item in history):
                raise UserError(f"{path}: line {number}: items must be integers or strings")
            found.append((number, history))
        elif line.strip():
            found.append((number, list(line.split())))
    if not found:
        raise UserError(f"{path}: no history in it")
    return found
