"""``hyenarec recommend``: next items for users of a log, or for any history."""

from __future__ import annotations

import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hyenarec.answers import item_cells
from hyenarec.cli.identifiers import IdArgument
from hyenarec.cli.options import ItemFilters, NewItems, RunPath, join, names_of, source_of
from hyenarec.cli.processes import refuse_several
from hyenarec.display import complain, console, show_table
from hyenarec.errors import UserError

if TYPE_CHECKING:  # --help needs no torch
    from torch import Tensor

    from hyenarec.answers import Answer, Item, Recommendation
    from hyenarec.data.store import SequenceStore
    from hyenarec.recommendation import Recommender

# One of a pair of flags: if neither is given, the trained model decides, so tyro's "(default: False)" would mislead.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
QUESTIONS_AT_A_TIME = 1024
UNKNOWN_NAMED = 5


@dataclass(frozen=True)
class Question:
    """A history to answer, or in ``error`` the reason why there is none; ``name`` is for the answer, ``place`` for
    error messages."""

    name: str
    place: str
    items: Sequence[Item] = ()
    times: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Recommend:
    """Recommend next items for users of the log, or for any history.

    Name exactly one source: --users, --all-users, --history, or --histories. Answers are tables, or with --json one
    JSON line per history. If a history cannot be answered, the command says why and answers the others; the exit code
    is then 1, or 2 if none has an answer. After an interruption, the same command with --all-users goes on.
    """

    run_path: RunPath
    """Run folder or checkpoint file."""
    users: tuple[IdArgument, ...] = ()
    """User ids of the log, whose whole histories are read from the data. Write ids that begin with two dashes as
    --users=--ID."""
    history: tuple[IdArgument, ...] = ()
    """Item ids of one history, oldest first. Write ids that begin with two dashes as --history=--ID."""
    all_users: Switch = False
    """Recommend to all users of the data, and write the answers to the file --out."""
    out: Path | None = None
    """File of --all-users: .parquet or .csv with one row per item (user, rank, item, name, score), or .jsonl with one
    line per user. Users to whom nothing can be recommended have no row; in .jsonl their line gives the reason."""
    histories: Path | None = None
    """File with one history per line, or - for standard input: item ids separated by spaces or tabs, or a JSON list."""
    data: Path | None = None
    """Log or store for --users and --all-users; default: the one that the model was trained on."""
    k: Annotated[int, tyro.conf.arg(aliases=("-k",))] = 10
    """Items to recommend; fewer if a history leaves fewer items of the catalogue."""
    exclude_seen: Switch = False
    """Leave out items of the history; default: as the model was trained."""
    no_exclude_seen: Switch = False
    """Recommend items of the history too; default: as the model was trained."""
    unknown: Literal["skip", "error"] = "skip"
    """If the model does not know items of a history: skip leaves them out and says so, error refuses that history."""
    approximate: Switch = False
    """Find nearly the best items with an index of the catalogue, which is built first; needs hyenarec[ann]."""
    shard_items: Switch = False
    """Divide the item table among the processes that torchrun starts, for tables that one of them cannot hold."""
    filters: Annotated[ItemFilters, tyro.conf.arg(name="")] = field(default_factory=ItemFilters)
    new_items: Annotated[NewItems, tyro.conf.arg(name="")] = field(default_factory=NewItems)
    names: Path | None = None
    """Catalogue: a table with item ids (in the log's own column, or in item_id or id) and their name or title."""
    json: bool = False
    """Print one JSON line per history instead of tables."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def run(self) -> None:
        from hyenarec import distributed
        from hyenarec.answers import Answer
        from hyenarec.config import TrainingConfig
        from hyenarec.recommendation import Recommender

        if sum(map(bool, (self.users, self.all_users, self.history, self.histories))) != 1:
            raise UserError("name exactly one of --users, --all-users, --history and --histories")
        if self.data and not (self.users or self.all_users):
            raise UserError("option data: not used with --history and --histories; only with --users and --all-users")
        if bool(self.out) != self.all_users:
            raise UserError("options all-users and out: each needs the other")
        unused = {"json": self.json, "unknown": self.unknown != "skip", "approximate": self.approximate}
        unused["shard_items"] = self.shard_items
        for option, given in unused.items():
            if self.all_users and given:
                raise UserError(f"option {option}: not used with --all-users")
        exclude_seen = seen_choice(self.exclude_seen, self.no_exclude_seen)
        if self.out:
            from hyenarec.all_users import check_place

            check_place(self.out)
        if not self.shard_items:
            refuse_several("recommend without --shard-items")
        sharded = join(self.shard_items)
        if sharded and str(self.histories) == "-":
            raise UserError("option histories: standard input is read by one process; with --shard-items name a file")
        device = TrainingConfig(device=self.device).torch_device()
        recommender = self.new_items.join(Recommender.load(self.run_path, device, shard_items=sharded))
        if self.approximate:
            recommender.approximate()
        allowed, names = self.filters.of(recommender), names_of(recommender, self.names)
        if self.out:
            self._recommend_to_all(recommender, self.out, exclude_seen, allowed, names)
            return
        questions = self._questions(recommender)
        answered = failed = 0
        distributed.refuse_differing("run and options", recommender.config, self.k, exclude_seen, self.unknown)
        distributed.refuse_differing(
            "allowed items", None if allowed is None else zlib.crc32(allowed.cpu().numpy().tobytes())
        )
        while True:
            block = list(islice(questions, QUESTIONS_AT_A_TIME))
            distributed.refuse_differing("histories", block)
            if not block:
                break
            good = [question for question in block if question.error is None]
            times = [question.times for question in good if question.times is not None]
            found = recommender.answers(
                [question.items for question in good],
                self.k,
                timestamps=times or None,
                exclude_seen=exclude_seen,
                allowed=allowed,
                unknown=self.unknown,
            )
            for question in block:
                answer = next(found) if question.error is None else Answer([], [], question.error)
                if distributed.is_main():
                    self._show(question, answer, names)
                answered += answer.error is None
                failed += answer.error is not None
        distributed.stop()
        if not answered and not failed:
            raise UserError(f"{self.histories}: no history in it")
        if failed:
            sys.exit(1 if answered else 2)

    def _questions(self, recommender: Recommender) -> Iterator[Question]:
        if self.history:
            return iter((Question("the given history", "the given history", self.history),))
        if self.histories:
            return read_histories(self.histories)
        source = source_of(recommender, self.data)
        return histories_of(self.users, source.open())

    def _recommend_to_all(
        self,
        recommender: Recommender,
        out: Path,
        exclude_seen: bool | None,
        allowed: Tensor | None,
        names: Mapping[Item, str] | None,
    ) -> None:
        from hyenarec.all_users import Job, recommend_to_all

        recommender.check_k(self.k)
        store = source_of(recommender, self.data).open()
        store.verify()
        if recommender.knows_time and store.timestamps is None:
            console.print(
                f"{recommender.config['model']['mixer']}: the log has no timestamps; positions take their place"
            )
        job = Job(recommender, store, self.k, recommender.excludes(exclude_seen), allowed, names)
        without = recommend_to_all(job, out)
        if without:
            console.print(f"{without:,} of {store.n_users:,} users have nothing that could be recommended to them")
        console.print(f"written to {out}")

    def _show(self, question: Question, answer: Answer, names: Mapping[Item, str] | None) -> None:
        if self.json:
            shared = {"for": question.name, "unknown": answer.unknown}
            if answer.error is None:
                items = [
                    {**item_cells(entry.item, names), "score": round(entry.score, 4)}
                    for entry in answer.recommendations
                ]
                print(json.dumps(shared | {"recommendations": items}, allow_nan=False))
            else:
                print(json.dumps(shared | {"error": answer.error}, allow_nan=False))
        elif answer.error is None:
            show_recommendations(f"for {question.name}", answer.recommendations, names)
            if answer.unknown:
                named = ", ".join(map(repr, answer.unknown[:UNKNOWN_NAMED]))
                rest = len(answer.unknown) - UNKNOWN_NAMED
                console.print(f"unknown to the model and left out: {named}" + (f" and {rest} more" if rest > 0 else ""))
        if answer.error is not None:
            complain(f"error: {question.place}: {answer.error}")


def seen_choice(exclude: bool, keep: bool) -> bool | None:
    """Whether ``--exclude-seen`` or ``--no-exclude-seen`` was given; None for neither: as the model was trained. Raises
    :class:`UserError` for both."""
    if exclude and keep:
        raise UserError("--exclude-seen and --no-exclude-seen: name at most one of them")
    return exclude if exclude or keep else None


def show_recommendations(title: str, answer: Sequence[Recommendation], names: Mapping[Item, str] | None = None) -> None:
    show_items(title, [(entry.item, entry.score) for entry in answer], "score", names)


def show_items(title: str, ranked: Sequence[tuple[Item, float]], value: str, names: Mapping[Item, str] | None) -> None:
    """A table of items, the best first, each with its ``value`` and, where there are ``names``, its name."""
    rows = [{"rank": rank, **item_cells(item, names), value: found} for rank, (item, found) in enumerate(ranked, 1)]
    text = ("item",) if names is None else ("item", "name")
    show_table(title, ("rank", *text, value), rows, text=text)


def histories_of(users: Sequence[str], store: SequenceStore) -> Iterator[Question]:
    """The histories of users of a log, with their times where it has them."""
    for name in users:
        try:
            (user,) = store.user_ids.encode([name], "user")
        except UserError as error:
            yield Question(name, f"user {name}", error=str(error))
            continue
        with store.unchanged():
            items = store.item_ids.decode(store.history(user))
            rows = slice(store.offsets[user], store.offsets[user + 1])
            times = None if store.timestamps is None else store.timestamps[rows].astype("datetime64[s]")
        yield Question(name, f"user {name}", items, times)


def read_histories(path: Path) -> Iterator[Question]:
    """The histories of a file or standard input, line by line; blank lines are skipped."""
    try:
        with _open_lines(path) as lines:
            for number, line in enumerate(lines, 1):
                text = (line.removeprefix("\ufeff") if number == 1 else line).strip(" \t\r\n")
                if not text:
                    continue
                try:
                    items, error = _parse_line(text), None
                except UserError as problem:
                    items, error = [], str(problem)
                yield Question(f"line {number}", f"{path}: line {number}", items, error=error)
    except OSError as error:
        raise UserError(f"{path}: cannot read histories: {error.strerror or error}") from error


def _open_lines(path: Path) -> AbstractContextManager[Iterable[str]]:
    """The lines of the file. Only line feeds end a line: JSON may hold all other separators inside strings."""
    if str(path) != "-":
        return path.open(encoding="utf-8", errors="surrogateescape", newline="\n")
    if sys.stdin is None:
        raise UserError("-: standard input is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    return nullcontext(sys.stdin)


def _parse_line(text: str) -> list[Item]:
    if any("\udc80" <= character <= "\udcff" for character in text):
        raise UserError("not UTF-8")
    if not text.startswith("["):
        return list(re.split(r"[ \t]+", text))
    try:
        history = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "brackets too deep" if isinstance(error, RecursionError) else str(error).split(":")[0]
        raise UserError(
            f'not a JSON list ({reason}); a line that begins with [ must be one, such as ["item-3", 17]'
        ) from error
    if not isinstance(history, list) or not all(type(item) in (int, str) for item in history):
        raise UserError("items must be integers or strings")
    return history
