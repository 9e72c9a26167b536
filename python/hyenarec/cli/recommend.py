"""``hyenarec recommend``: next items for users of a log, or for any history."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from hyenarec.cli.options import RunPath, source_of
from hyenarec.display import show_table
from hyenarec.errors import UserError
from hyenarec.recommendation import Item, Recommendation, Recommender


@dataclass(frozen=True)
class Recommend:
    """Recommend next items for users of the log, or for any history.

    Name one source: --users, --history, or --histories. Answers are tables, or with --json one JSON line a history.
    """

    run_path: RunPath
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
        source = source_of(recommender, self.data)
        store = source.open()
        chosen = store.user_ids.encode(self.users, "user")
        histories = [store.item_ids.decode(store.history(int(user))) for user in chosen]
        times = store.timestamps
        if times is None:
            return list(self.users), histories, None
        return list(self.users), histories, [times[store.offsets[u] : store.offsets[u + 1]].tolist() for u in chosen]


def show_recommendations(title: str, answer: list[Recommendation]) -> None:
    rows = [{"rank": rank, "item": entry.item, "score": entry.score} for rank, entry in enumerate(answer, 1)]
    show_table(title, ("rank", "item", "score"), rows)


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
