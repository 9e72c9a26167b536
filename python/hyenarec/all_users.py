"""Recommendations for every user of a log, in one file: batch scoring that can be killed and resumed.

Users are scored in order, some thousands at a time. Each such part is written to a folder beside the output file before
the next begins; when the same job is started again, it finds the finished parts there and does the rest. At the end the
parts are joined one after another, so that memory never holds more than one part.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.answers import Item, Request, item_cells
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, counting
from hyenarec.errors import UserError
from hyenarec.evaluation import scored_at_a_time
from hyenarec.files import alone_in, as_path, remove_unfinished, sync_folder, write_atomically, write_text
from hyenarec.ranking import NOT_FINITE, best_items
from hyenarec.recommendation import Recommender
from hyenarec.tensor_file import digest
from hyenarec.trained import Trained

KINDS = (".parquet", ".csv", ".jsonl")
USERS_A_PART, ROWS_A_PART = 4096, 1 << 18
JOB, JOINED = "job.json", "joined"
PART = re.compile(r"([0-9]{6})-([0-9]+)\.part")  # a part's number, and how many of its users have no recommendations
JSON_LINE = re.compile(rb'\{"for": .*"(?:recommendations|error)": ')
EVERY_ITEM = "it has every item that may be recommended"


@dataclass(frozen=True)
class Job:
    """What to recommend to the users of ``store``: ``k`` items each, of those that are ``allowed``, (V,) bool, or of
    all where that is None. ``names`` are the items' names."""

    recommender: Recommender
    store: SequenceStore
    k: int = 10
    exclude_seen: bool = True
    allowed: Tensor | None = None
    names: Mapping[Item, str] | None = None

    @cached_property
    def known(self) -> NDArray[np.int32]:
        """The model's index of each item of the store, (V,) int32, -1 where it does not know the item."""
        return self.recommender.item_ids.find(self.store.item_ids.decode(np.arange(self.store.n_items)))

    @property
    def users_a_part(self) -> int:
        return max(1, min(USERS_A_PART, ROWS_A_PART // self.k))

    def describe(self, kind: str) -> dict[str, Any]:
        """What tells this job from others, as JSON."""
        recommender = self.recommender
        model = Trained(recommender.model, recommender.user_ids, recommender.item_ids, recommender.config)
        names = json.dumps(sorted(self.names.items(), key=str)) if self.names is not None else ""
        return {
            "model": model.digest(),
            "data": self.store.fingerprint(),
            "k": self.k,
            "exclude_seen": self.exclude_seen,
            "allowed": None if self.allowed is None else digest({"": self.allowed.cpu().numpy()}),
            "names": None if self.names is None else digest({"": np.frombuffer(names.encode(), np.uint8)}),
            "kind": kind,
            "users_a_part": self.users_a_part,
        }


def check_place(out: Path) -> None:
    """Raises :class:`UserError` where recommendations cannot be written to ``out``, or would replace anything else."""
    if as_path(out, "option out").suffix.lower() not in KINDS:
        raise UserError(f"option out: {out}: must end in {', '.join(KINDS)}, which says what is written")
    if not out.parent.is_dir():
        raise UserError(f"option out: {out.parent} is no folder")
    try:
        if out.exists() and not (out.is_file() and _is_ours(out)):
            raise UserError(f"{out}: there already, and no recommendations; choose another name or remove it")
    except OSError as error:
        raise UserError(f"option out: {out}: {error.strerror or error}") from error


def recommend_to_all(job: Job, out: Path) -> int:
    """Write the recommendations for all users of ``job`` to ``out``, completely or not at all, and return how many
    users have none.

    A .parquet or .csv file has one row per recommendation: user, rank from 1, item, its name where there are names,
    score. A .jsonl file has one line per user, as ``recommend --json`` prints it, with the reason where there are none.
    Raises :class:`UserError` where ``out`` cannot be written, is in use, or holds anything but recommendations.
    """
    check_place(out)
    kind, out = out.suffix.lower(), Path(os.path.realpath(out))  # so that a symbolic link stays one
    with _parts_folder(out, job.describe(kind)) as folder:
        parts = filter(None, (PART.fullmatch(path.name) for path in folder.iterdir()))
        done = {int(part[1]): int(part[2]) for part in parts}
        users, size = job.store.n_users, job.users_a_part
        starts = range(0, users, size)
        finished = sum(min(size, users - starts[number]) for number in done)
        if done:
            console.print(f"{finished:,} of {users:,} users were done before; going on with the rest")
        try:
            with counting("users", users, finished) as advance:
                for number, start in enumerate(starts):
                    if number in done:
                        continue
                    chosen = range(start, min(start + size, users))
                    found = _score(job, chosen, advance)
                    without = sum(one is None for one in found)
                    write = partial(_write_part, kind=kind, job=job, users=chosen, found=found)
                    write_atomically(_part(folder, number, without), write)
                    done[number] = without
        except KeyboardInterrupt:
            message = f"interrupted; {len(done)} of {len(starts)} parts are kept: the same command goes on from there"
            raise KeyboardInterrupt(message) from None
        whole = [_part(folder, number, done[number]) for number in range(len(starts))]
        write_atomically(folder / JOINED, lambda path: _join(whole, path, kind, job.names is not None))
        (folder / JOINED).replace(out)  # joined in the folder, so that a kill leaves no half-written file beside it
        sync_folder(out.parent)
    return sum(done.values())


def _part(folder: Path, number: int, unanswered: int) -> Path:
    return folder / f"{number:06}-{unanswered}.part"


Found = tuple[NDArray[np.int64], NDArray[np.float32]]  # places in the catalogue and scores, both (n,), best first
NONE_FOUND: Found = np.empty(0, np.int64), np.empty(0, np.float32)


@torch.inference_mode()
def _score(job: Job, users: range, advance: Callable[[int], None]) -> list[Found | None]:
    """The recommendations for each of ``users``; None for those without any."""
    found: list[Found | None] = []
    at_a_time = scored_at_a_time(len(job.recommender.item_ids))
    for first in range(users.start, users.stop, at_a_time):
        block = range(first, min(first + at_a_time, users.stop))
        with job.store.unchanged():
            requests = [_request(job, user) for user in block]
        answerable = [request for request in requests if len(request.items)]
        tops = iter(_tops(job, answerable) if answerable else ())
        found += [next(tops) if len(request.items) else None for request in requests]
        advance(len(block))
    return found


def _request(job: Job, user: int) -> Request:
    store, items, times = job.store, job.known[job.store.history(user)], None
    if job.recommender.knows_time and store.timestamps is not None:
        times = np.asarray(store.timestamps[store.offsets[user] : store.offsets[user + 1]])[items >= 0]
    return Request(items[items >= 0], times, [], None)


def _tops(job: Job, requests: list[Request]) -> Iterator[Found | None]:
    scores = job.recommender.scores(job.recommender.batch(requests))  # (S, V)
    top = best_items(scores, [request.items for request in requests] if job.exclude_seen else None, job.k, job.allowed)
    if not top.finite.all():
        raise UserError(NOT_FINITE)
    for places, values, left in zip(top.places, top.scores, top.left, strict=True):
        yield (places[:left], values[:left]) if left else None


def _write_part(path: Path, kind: str, job: Job, users: range, found: Sequence[Found | None]) -> None:
    user_ids = job.store.user_ids.decode(np.arange(users.start, users.stop))
    if kind == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for user, name, one in zip(users, user_ids, found, strict=True):
                file.write(json.dumps({"for": str(name), **_line(job, user, one)}) + "\n")
        return
    answers = [one or NONE_FOUND for one in found]
    counts = [len(places) for places, _ in answers]
    items = job.recommender.item_ids.decode(np.concatenate([places for places, _ in answers]))
    columns: dict[str, Any] = {
        "user": [name for name, count in zip(user_ids, counts, strict=True) for _ in range(count)],
        "rank": [rank for count in counts for rank in range(1, count + 1)],
        "item": items,
    }
    kinds: dict[str, Any] = {
        "user": pl.Int64 if job.store.user_ids.integers else pl.String,
        "rank": pl.Int32,
        "item": pl.Int64 if job.recommender.item_ids.integers else pl.String,
    }
    if job.names is not None:
        columns["name"], kinds["name"] = [job.names.get(item) for item in items], pl.String
    columns["score"], kinds["score"] = np.concatenate([scores for _, scores in answers]), pl.Float32
    frame = pl.DataFrame(columns, schema=kinds)
    if kind == ".csv":
        frame.write_csv(path, include_header=False, float_precision=4)
    else:
        frame.write_parquet(path)


def _line(job: Job, user: int, one: Found | None) -> dict[str, Any]:
    """What ``recommend --json`` prints for a user, without the name."""
    history = job.store.history(user)
    unknown = job.store.item_ids.decode(history[job.known[history] < 0])
    if one is None:
        nothing = f"the model knows none of its items; the first is {unknown[0]!r}" if unknown else "empty"
        return {"unknown": unknown, "error": EVERY_ITEM if len(unknown) < len(history) else nothing}
    pairs = zip(job.recommender.item_ids.decode(one[0]), one[1].tolist(), strict=True)
    found = [{**item_cells(item, job.names), "score": round(score, 4)} for item, score in pairs]
    return {"unknown": unknown, "recommendations": found}


def _join(parts: Sequence[Path], out: Path, kind: str, named: bool) -> None:
    if kind == ".parquet":
        pl.scan_parquet(list(parts), glob=False).sink_parquet(out)
        return
    with out.open("wb") as joined:
        if kind == ".csv":
            joined.write(f"{','.join(_header(named))}\n".encode())
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)


def _header(named: bool) -> list[str]:
    return ["user", "rank", "item", *(["name"] if named else []), "score"]


def _is_ours(path: Path) -> bool:
    """Whether :func:`recommend_to_all` wrote a file, judged by how it begins."""
    if path.suffix.lower() == ".parquet":
        try:
            return list(pl.read_parquet_schema(path)) in (_header(False), _header(True))
        except pl.exceptions.PolarsError:
            return False
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    if path.suffix.lower() == ".csv":
        return first in [f"{','.join(_header(named))}\n".encode() for named in (False, True)]
    return JSON_LINE.match(first) is not None


@contextmanager
def _parts_folder(out: Path, description: dict[str, Any]) -> Iterator[Path]:
    """The folder for the parts of the described job, which no other process can use meanwhile. Parts of other jobs are
    removed from it; without an error the folder itself is removed at the end."""
    folder = out.with_name(f"{out.name}.parts")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"option out: cannot keep parts in {folder}: {error.strerror or error}") from error
    with alone_in(folder):
        remove_unfinished(folder)
        _keep_parts_of(folder, description)
        yield folder
        shutil.rmtree(folder)


def _keep_parts_of(folder: Path, description: dict[str, Any]) -> None:
    """Removes the parts of any other job from ``folder``, and writes this job's description there."""
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name not in (JOB, JOINED) and not PART.fullmatch(name)]
    if others:
        raise UserError(f"{folder}: holds {others[0]!r}, which is no part of recommendations; move it away")
    job, before = folder / JOB, None
    with suppress(OSError, ValueError, RecursionError):
        before = json.loads(job.read_text(encoding="utf-8"))
    if found and before != description:
        console.print(f"{folder}: its parts are of a job with another model, log or options, and are made anew")
        job.unlink(missing_ok=True)  # first, because parts without it belong to no job
        for name in found:
            (folder / name).unlink(missing_ok=True)
    write_text(job, json.dumps(description) + "\n")
