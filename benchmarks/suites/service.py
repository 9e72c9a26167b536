"""Requests per second and latency of `hyenarec serve` under load, by how many people use it at once.

    python -m benchmarks service                          # writes benchmarks/results/service-DEVICE.json and .png
    python -m benchmarks service --mixers hyena gru --concurrent 16 --mixes both

The service runs in a process of its own, as `hyenarec serve` starts it, on models with random weights; the client, a
process beside it, takes its share of the same cores. The store begins with a history for each of 100,000 users.

Each of the people who use the service at once waits for an answer before asking again. A person acts as one user after
another, drawn at random, each for a visit of ten turns. A turn of the mix `events` adds an event, one of `recommend`
asks for the best 10 items, and one of `both` does first the one, then the other. So one turn in ten meets a user whose
state has to be read from the stored history, unless that user came before. Every model is checked: the service's
answers for users whose events it was sent, against the same model given their whole histories.

Results are written after each run of the client. Those that are already there under the same settings, versions and
revision are not measured again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.harness import plots
from benchmarks.harness.checks import TOLERANCE, Check, compare
from benchmarks.harness.measuring import summary
from benchmarks.harness.recording import RESULTS, earlier_cases, write
from benchmarks.harness.registry import BLOCKS, DIM, ITEMS, OURS, RIVAL, SYSTEMS, check_names
from hyenarec.config import TrainingConfig
from hyenarec.data.ids import Ids
from hyenarec.display import show_table
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.recommendation import Recommender
from hyenarec.serving.events import Event
from hyenarec.serving.sqlite_events import SqliteEvents
from hyenarec.trained import BEST, Trained, save_trained

TOP = 10
CHECKED_USERS = 8
MIXES = {"events": ("event",), "recommend": ("recommend",), "both": ("event", "recommend")}
EVENTS_AT_A_TIME = 10_000

Case = dict[str, Any]


@dataclass(frozen=True)
class ServiceSettings:
    """What all measurements of a result share."""

    dim: int = DIM
    """Channels."""
    blocks: int = BLOCKS
    """Blocks of the model."""
    items: int = ITEMS
    """Items of the catalogue."""
    users: int = 100_000
    """Users in the store."""
    length: int = 50
    """Events of each user; also the most that a model with positions reads."""
    visit: int = 10
    """Turns of a user's visit."""
    seconds: float = 10.0
    """Seconds of each run that count, after a warm-up of a tenth of them."""
    threads: int = 1
    """Threads of torch in the service."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to score: auto takes a GPU where there is one."""


@dataclass(frozen=True)
class Service:
    """Put the service under load."""

    mixers: tuple[str, ...] = (OURS, RIVAL, "gru")
    """Systems to measure, which have to be causal."""
    concurrent: tuple[int, ...] = (1, 16, 256)
    """People who use the service at once."""
    mixes: tuple[str, ...] = tuple(MIXES)
    """What these people do."""
    out: Path | None = None
    """Result without its suffix; default: benchmarks/results/service-DEVICE."""
    settings: tyro.conf.OmitArgPrefixes[ServiceSettings] = field(default_factory=ServiceSettings)

    def run(self) -> None:
        check_names(self.mixers)
        bidirectional = [name for name in self.mixers if not MIXERS[SYSTEMS[name].mixer].causal]
        if bidirectional:
            raise UserError(f"option mixers: {', '.join(bidirectional)} keeps no state that could be served")
        if not set(self.mixes) <= MIXES.keys() or min(self.concurrent, default=0) < 1:
            raise UserError(f"options mixes and concurrent: some of {', '.join(MIXES)}, and 1 or more")
        settings, device = asdict(self.settings), TrainingConfig(device=self.settings.device).torch_device()
        path = (self.out or RESULTS / f"service-{device.type}").with_suffix(".json")
        cases = earlier_cases(path, settings, device)
        done = {(case["mixer"], case["mix"], case["concurrent"]) for case in cases}
        runs = [(mix, people) for mix in self.mixes for people in self.concurrent]
        title = (
            f"the service under load, {self.settings.users:,} users of {self.settings.length} events, "
            f"{self.settings.items:,} items, d={self.settings.dim}, {self.settings.blocks} blocks, float32"
        )
        with TemporaryDirectory() as folder:
            for mixer in self.mixers:
                missing = [run for run in runs if (mixer, *run) not in done]
                if not missing:
                    continue
                with running(mixer, Path(folder), self.settings) as (port, recommender):
                    check = asyncio.run(checked(port, recommender, self.settings))
                    for mix, people in missing:
                        measured = asyncio.run(load(port, mix, people, self.settings))
                        key = {"mixer": mixer, "mix": mix, "concurrent": people}
                        cases += [key | case | {"check": check} for case in measured]
                        write(path, "service", title, {"settings": settings, "cases": cases}, device)
                show(mixer, cases)
        plot(title, cases, path.with_suffix(".png"))


@contextmanager
def running(mixer: str, folder: Path, settings: ServiceSettings) -> Iterator[tuple[int, Recommender]]:
    """Runs a service on a model with random weights and a copy of the store. Yields its port and the model."""
    run = folder / mixer
    run.mkdir()
    recommender = untrained(mixer, run / BEST, settings)
    store = folder / "events.sqlite"
    if not store.exists():
        fill(store, settings)
    shutil.copy(store, run)
    command = [sys.executable, "-m", "hyenarec", "serve", str(run), "--port", "0", "--device", settings.device]
    few_threads = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=few_threads) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            if not line:
                raise UserError("the service did not start")
            yield int(line.split()[2].rpartition(":")[2]), recommender
        finally:
            process.send_signal(signal.SIGTERM)
    shutil.rmtree(run)


def untrained(mixer: str, path: Path, settings: ServiceSettings) -> Recommender:
    """A system with random weights, also saved as a checkpoint at ``path``."""
    torch.manual_seed(0)
    config = SYSTEMS[mixer].model(settings.length, settings.dim, settings.blocks)
    model, ids = SequenceModel(config, settings.items), Ids.from_values(list(range(settings.items)))
    described = {
        "model": asdict(config),
        "training": asdict(TrainingConfig()),
        "source": {"data": "nothing"},
        "data": {"time_unit": "s"},
    }
    save_trained(path, Trained(model, ids, ids, described), 0)
    return Recommender(model, ids, ids, described, torch.device("cpu"))


def fill(path: Path, settings: ServiceSettings) -> None:
    """Makes a store of random histories, one event per day."""
    items = np.random.default_rng(0).integers(settings.items, size=(settings.users, settings.length)).tolist()
    events = (
        Event(str(user), item, 86_400 * day) for user, history in enumerate(items) for day, item in enumerate(history)
    )
    store = SqliteEvents(path)
    while batch := [event for event, _ in zip(events, range(EVENTS_AT_A_TIME), strict=False)]:
        store.add(batch)
    store.close()


class Connection:
    """One HTTP connection, kept alive, with one request at a time. It understands only as much of HTTP as the service's
    answers need, so that the client takes little of the machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        """The answer's JSON. Raises ConnectionError for any status but 200 and 201."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        size = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await self._reader.readexactly(size)
        if answer.split(maxsplit=2)[1] not in (b"200", b"201"):
            raise ConnectionError(f"{method} {path}: {content.decode()}")
        return json.loads(content)

    async def event(self, user: str, item: int, name: str) -> Any:
        body = {"user": user, "item": item, "id": name}
        return await self.ask("POST", "/events", json.dumps(body).encode())

    async def recommend(self, user: str) -> Any:
        return await self.ask("GET", f"/recommend?user={user}&k={TOP}")

    def close(self) -> None:
        self._writer.close()


async def load(port: int, mix: str, people: int, settings: ServiceSettings) -> list[Case]:
    """Puts the service under load. Returns a case for each kind of request in the mix."""
    rng, names = np.random.default_rng(1), count()
    run = time.time_ns()  # part of every event's name, so that no other run has used it
    times: dict[str, list[float]] = {kind: [] for kind in MIXES[mix]}
    begin = time.perf_counter() + settings.seconds / 10
    end = begin + settings.seconds

    async def person() -> None:
        connection, turns = await Connection.to(port), visits(rng, settings)
        while time.perf_counter() < end:
            user, item = next(turns)
            for kind in MIXES[mix]:
                began = time.perf_counter()
                if kind == "event":
                    await connection.event(user, item, f"{run}-{next(names)}")
                else:
                    await connection.recommend(user)
                finished = time.perf_counter()
                if began >= begin and finished <= end:
                    times[kind].append(1e3 * (finished - began))
        connection.close()

    await asyncio.gather(*(person() for _ in range(people)))
    few = [kind for kind, found in times.items() if len(found) < 2]
    if few:
        raise UserError(f"option seconds: fewer than two requests ({few[0]}) were answered in {settings.seconds:g} s")
    return [
        {"request": kind, "per_second": round(len(found) / settings.seconds, 1), "ms": summary(found)}
        for kind, found in times.items()
    ]


def visits(rng: np.random.Generator, settings: ServiceSettings) -> Iterator[tuple[str, int]]:
    """The user and the item of each turn, visit after visit."""
    while True:
        user = str(rng.integers(settings.users))
        for item in rng.integers(settings.items, size=settings.visit).tolist():
            yield user, item


async def checked(port: int, recommender: Recommender, settings: ServiceSettings) -> Check:
    """Checks the scores of the best items for a few users of ``length`` events each, sent one by one with a request
    after each, against the same model's scores for the whole histories."""
    histories = np.random.default_rng(2).integers(settings.items, size=(CHECKED_USERS, settings.length)).tolist()
    connection, run, got = await Connection.to(port), time.time_ns(), []
    for number, history in enumerate(histories):
        user = f"checked-{run}-{number}"
        for place, item in enumerate(history):
            await connection.event(user, item, f"{user}-{place}")
            answer = await connection.recommend(user)
        got.append([one["score"] for one in answer["recommendations"]])
    connection.close()
    want = [[one.score for one in found] for found in recommender.recommend(histories, TOP)]
    stepped, whole = ({"scores": torch.tensor(scores)} for scores in (got, want))
    return compare("whole histories", stepped, whole, TOLERANCE["float32"])


def show(mixer: str, cases: Sequence[Case]) -> None:
    rows = [
        {
            "mix": case["mix"],
            "at once": case["concurrent"],
            "request": case["request"],
            "a second": f"{case['per_second']:.0f}",
            "p50 ms": f"{case['ms']['median']:.2f}",
            "p99 ms": f"{case['ms']['p99']:.2f}",
            "error": f"{case['check']['error']:.0e}",
        }
        for case in cases
        if case["mixer"] == mixer
    ]
    show_table(SYSTEMS[mixer].title, tuple(rows[0]), rows)


def plot(title: str, cases: Sequence[Case], path: Path) -> None:
    """Plots latency against the number of people, a panel for each kind of request in a mix: medians as solid lines,
    99% quantiles dashed."""
    panels = list(dict.fromkeys((case["mix"], case["request"]) for case in cases))
    figure, all_axes = plots.new_figure(len(panels))
    for (mix, request), axes in zip(panels, all_axes, strict=True):
        for mixer in dict.fromkeys(case["mixer"] for case in cases):
            points = [c for c in cases if (c["mixer"], c["mix"], c["request"]) == (mixer, mix, request)]
            points.sort(key=lambda case: case["concurrent"])
            people = [case["concurrent"] for case in points]
            plots.values(axes, mixer, people, [case["ms"]["median"] for case in points])
            late = [case["ms"]["p99"] for case in points]
            plots.values(axes, mixer, people, late, linestyle="--", label=f"{SYSTEMS[mixer].title}, 99%")
        axes.set(
            title=f"{request}, mix {mix}", xlabel="people at once", ylabel="latency (ms)", xscale="log", yscale="log"
        )
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Service, description=__doc__).run()
