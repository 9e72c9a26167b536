"""Training steps over very many items: by size of the catalogue, by loss, and in one process or several.

    python -m benchmarks catalogue
    python -m benchmarks catalogue --logs ml-1m.parquet email-eu-core.parquet   # also how evenly tokens are shared
    python -m benchmarks catalogue --index 200_000       # also how many of the best items an approximate index finds

A step has 6,400 events at 64 channels. Times are milliseconds of one core's processor time per process, those of the
slowest process; its shortest step counts, since other work on the machine makes steps longer. Several processes
communicate through gloo. Writes ``benchmarks/results/catalogue.json``; what is not asked for is not in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.harness.checks import first_sequences, training_check
from benchmarks.harness.measuring import in_fresh_process, summary
from benchmarks.harness.recording import RESULTS, write
from hyenarec import distributed
from hyenarec.allocator import keep_freed_memory
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.data.batches import TrainingSlices
from hyenarec.data.ids import Ids
from hyenarec.data.reading import read_log
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.display import show_table
from hyenarec.nearest import NearestItems
from hyenarec.training import Trainer

LENGTH, SLICES, DIM = 50, 128, 64
USERS = 1_024
WARM_UP = 3
TOLERANCE = 1e-5  # relative, of the first step's loss against one process's, which sums in another order
# Loss, items, processes, and whether the item table is sharded among them.
CASES: tuple[tuple[Literal["full", "sampled"], int, int, bool], ...] = (
    ("full", 20_000, 1, False),
    *(("sampled", items, 1, False) for items in (10_000, 20_000, 50_000, 100_000, 1_000_000)),
    *(("sampled", items, 2, shards) for items in (50_000, 1_000_000) for shards in (False, True)),
)
LONGEST = {"ml-1m": 200, "email-eu-core": 4_096}  # most events of a slice in these logs; 200 in others
PARTS = 8  # processes that share the tokens
QUESTIONS, GROUPS = 256, 1_000  # queries (hidden states) of an index, and clusters of its items


def generated(items: int) -> SequenceStore:
    """Histories that fill their slices; some items are much more popular than others."""
    rng = np.random.default_rng(0)
    events = USERS * (LENGTH + 3)
    return SequenceStore(
        np.arange(USERS + 1) * (LENGTH + 3),
        (items * rng.random(events) ** 3).astype(np.int32),
        None,
        Ids.from_values(range(USERS)),
        Ids.from_values(range(items)),
    )


def steps(
    rank: int, processes: int, port: int, loss: Literal["full", "sampled"], items: int, shards: bool, count: int
) -> dict[str, Any]:
    """Runs training steps. Returns this process's milliseconds for each, the first step's loss and the most memory in
    GiB; for one process alone, the check too."""
    if processes > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "benchmark"}
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in (where | numbers).items()})
        distributed.start()
    keep_freed_memory()
    torch.set_num_threads(1)
    store = generated(items)
    model = ModelConfig(dim=DIM, blocks=2, max_length=LENGTH, dropout=0.0)
    config = TrainingConfig(batch_size=SLICES, loss=loss, shard_items=shards, device="cpu")
    trainer = Trainer(store, leave_one_out(store), model, config)
    trainer.model.train()
    times, losses = [], []
    for number in range(WARM_UP + count):
        batches = trainer.slices.epoch(0, number)  # a new order, of which the step takes the first batch
        began = time.process_time()
        losses.append(float(trainer.step(next(batches), config.learning_rate)))
        trainer.progress.step += 1
        times.append(1e3 * (time.process_time() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    found = {"times": times[WARM_UP:], "loss": losses[0], "gib": round(peak, 2)}
    if processes == 1:
        batch = first_sequences(next(trainer.slices.epoch(0, 0)))
        found["check"] = training_check(trainer.model, batch, "float32")
    distributed.stop()
    return found


def together(loss: Literal["full", "sampled"], items: int, processes: int, shards: bool, count: int) -> dict[str, Any]:
    """Runs :func:`steps` in fresh processes. Returns the times of the slowest, and the most memory of any."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(steps, r, processes, port, loss, items, shards, count) for r in range(processes)]
        found = [rank.result() for rank in ranks]
    slowest = max(found, key=lambda rank: min(rank["times"]))
    case = {"ms": summary(slowest["times"]), "peak_gib": max(r["gib"] for r in found), "first loss": found[0]["loss"]}
    return case | {key: found[0][key] for key in found[0] if key == "check"}


def sharing(path: Path) -> dict[str, Any]:
    """By how much the process with the most tokens of a batch is over the mean, if processes share the tokens evenly
    and if they share the slices evenly: the mean over an epoch's whole batches."""
    store = read_log(path, timestamp=None)  # only lengths matter
    slices = TrainingSlices(store, leave_one_out(store), LONGEST.get(path.stem, 200), SLICES)
    excess: dict[str, list[float]] = {"tokens": [], "slices": []}
    for batch in slices.epoch(0, 0):
        lengths = batch.packing.lengths.numpy()
        if len(lengths) < SLICES:
            continue
        shares = {"tokens": distributed.shares(lengths, PARTS), "slices": np.array_split(np.arange(SLICES), PARTS)}
        for by, parts in shares.items():
            tokens = [int(lengths[part].sum()) for part in parts]
            excess[by].append(float(max(tokens) / np.mean(tokens)) - 1)
    return {"log": path.stem, "processes": PARTS} | {f"by {by}": float(np.mean(e)) for by, e in excess.items()}


class Drawn:
    """A catalogue in clusters, as trained items lie, with the attributes of a model that an index reads."""

    def __init__(self, items: int) -> None:
        torch.manual_seed(0)
        self.centres = torch.randn(GROUPS, DIM)
        rows = self.centres[torch.randint(GROUPS, (items,))] + 0.5 * torch.randn(items, DIM)
        self.items = torch.nn.Embedding(items, DIM, _weight=rows)
        self.bias = 0.1 * torch.randn(items)
        self.repeats = None


def index(items: int) -> dict[str, Any]:
    """How many of the best ten items an approximate index finds, and its milliseconds per history, beside scoring
    everything."""
    torch.set_num_threads(1)
    model = Drawn(items)
    hidden = model.centres[torch.randint(GROUPS, (QUESTIONS,))] + 0.5 * torch.randn(QUESTIONS, DIM)
    began = time.process_time()
    nearest = NearestItems(model)  # type: ignore[arg-type]
    made, began = time.process_time() - began, time.process_time()
    found = nearest.search(hidden, 10)[1]
    looked, began = time.process_time() - began, time.process_time()
    best = torch.cat([(h @ model.items.weight.T + model.bias).topk(10).indices for h in hidden.detach().split(32)])
    scored = time.process_time() - began
    hits = (found[:, :, None] == best[:, None]).any(2).float().mean()
    return {
        "items": items,
        "found of the best ten": float(hits),
        "seconds to make": made,
        "ms a history": 1e3 * looked / QUESTIONS,
        "ms a history, everything scored": 1e3 * scored / QUESTIONS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each case")
    parser.add_argument("--logs", type=Path, nargs="*", default=[], help="logs to measure token sharing on")
    parser.add_argument("--index", type=int, nargs="*", default=[], metavar="ITEMS", help="index sizes to measure")
    arguments = parser.parse_args()
    shared = [sharing(path) for path in arguments.logs]
    cases: list[dict[str, Any]] = []
    for loss, items, processes, shards in CASES:
        case = together(loss, items, processes, shards, arguments.steps)
        if processes > 1:
            alone = next(c for c in cases if (c["loss"], c["items"], c["processes"]) == (loss, items, 1))
            case["efficiency"] = round(alone["ms"]["min"] / processes / case["ms"]["min"], 3)
            error = abs(case["first loss"] / alone["first loss"] - 1)
            case["check"] = {"against": "loss of one process", "error": error, "tolerance": TOLERANCE}
        case = {"loss": loss, "items": items, "processes": processes, "shards": shards, **case}
        cases.append(case)
        print(f"{loss}, {items:,} items, {processes} processes{', shards' * shards}: {case['ms']['min']:.0f} ms")
    figures: dict[str, Any] = {"cases": cases}
    if shared:
        figures["sharing"] = shared
    if arguments.index:
        figures["index"] = [in_fresh_process(index, items) for items in arguments.index]
    for title, rows in figures.items():
        if title != "cases":
            show_table(title, list(rows[0]), rows)
    settings = {"events": SLICES * LENGTH, "dim": DIM, "negatives": TrainingConfig.negatives, "steps": arguments.steps}
    write(RESULTS / "catalogue.json", "catalogue", "training steps over many items", {"settings": settings, **figures})
