"""What SASRec's key-value cache costs and keeps, by its policy and its room, event by event as a service reads them.

    python -m benchmarks cache ../shared/data/ml-100k.parquet runs/accuracy

Trains SASRec on the log as the suite `accuracy` does, or takes the run that is there, and reads every test user's
history one event at a time through each cache: `full` holds it all, `window` its last events, `citrus` those that the
last events attend to (`hyenarec.mixers.caches`). `NDCG@10` ranks the item that came next, all items but those seen;
`bytes a user` is the state that a store keeps; `us a step` is one of 32 users' steps at the end of the longest
histories, taken in turns. Each cache is checked on histories that it holds whole, against reading them at once. Writes
benchmarks/results/cache-LOG.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.harness.checks import TOLERANCE, Check, compare
from benchmarks.harness.measuring import take_turns
from benchmarks.harness.recording import METRICS, RESULTS, write
from benchmarks.harness.registry import RIVAL
from benchmarks.suites.accuracy import DEFAULT, PROTOCOLS
from hyenarec.config import AttentionConfig, TrainingConfig
from hyenarec.data.batches import Batch
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import show_table
from hyenarec.evaluation import Scorer, rank_targets
from hyenarec.experiments import train
from hyenarec.model import SequenceModel
from hyenarec.packing import Packing
from hyenarec.source import Source, load_source
from hyenarec.trained import load_trained

POLICIES: tuple[Literal["window", "citrus"], ...] = ("window", "citrus")
COLUMNS = ("policy", "room", *METRICS, "bytes a user", "us a step")
STRETCH = 32  # steps timed together

Case = dict[str, Any]


@dataclass(frozen=True)
class CacheSuite:
    """Measure the caches of a model of one log."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    runs: Annotated[Path, tyro.conf.Positional]
    """Folder for the run; that of the suite `accuracy`."""
    length: int | None = None
    """Events that the model reads; default: the first length of the log's protocol."""
    rooms: tuple[int, ...] = (16, 32, 64, 128)
    """Events that a cache holds."""
    users: int = 32
    """Users of the batch whose steps are timed."""
    seconds: float = 10.0
    """Seconds of turns."""
    epochs: int | None = None
    """Epochs to train; default: the protocol's."""

    def run(self) -> None:
        log = self.data.stem
        protocol = PROTOCOLS.get(log, DEFAULT)
        length = self.length or protocol.lengths[0]
        source = Source(str(self.data), timestamp=protocol.timestamp)
        store, split = load_source(source)
        config, training = protocol.cell(RIVAL, length, 0, protocol.windows(store, split, length))
        training = replace(training, device="cpu", epochs=self.epochs or training.epochs)
        folder = self.runs / log / f"{RIVAL}-{length}-0"
        train(store, split, config, training, source, folder)
        trained = load_trained(folder).model.eval()

        def model(options: AttentionConfig) -> SequenceModel:
            made = SequenceModel(replace(config, attention=options), store.n_items).eval()
            made.load_state_dict(trained.state_dict())
            return made

        whole = ranks(trained, store, split, training, length)
        cases: list[Case] = []
        calls: dict[int, Callable[[], None]] = {}
        options = [AttentionConfig()]
        options += [AttentionConfig(cache=p, cache_events=r) for r in self.rooms if r < length for p in POLICIES]
        for place, option in enumerate(options):
            made, room = model(option), option.cache_events or length
            calls[place], check = stretch(made, self.users, length), streamed_check(made, self.users, room)
            scored = ranks(Streamed(made), store, split, training, length)
            kept = sum(values.nbytes for values in made.init_state(1).tensors().values())
            cases.append({"policy": option.cache, "room": room, "bytes": kept, "check": check, "test": scored})
        for place, milliseconds in take_turns(calls, self.seconds, 20).items():
            cases[place] |= {"ms": milliseconds, "us a step": 1e3 * milliseconds["median"] / STRETCH / self.users}
        title = f"caches of SASRec on {log}, {length} events, read one at a time"
        settings = {
            "training": asdict(training),
            "length": length,
            "users": self.users,
            "at once": whole,
            "data": store.describe(),
        }
        rows = [case | case["test"] for case in cases]
        show_table(title, COLUMNS, [{"policy": "history read at once"} | whole, *rows])
        write(RESULTS / f"cache-{log}.json", "cache", title, {"settings": settings, "cases": cases})


class Streamed:
    """A model's scores after reading every history of a batch one event at a time."""

    def __init__(self, model: SequenceModel) -> None:
        self._model = model

    @torch.inference_mode()
    def scores(self, batch: Batch) -> Tensor:
        """As :meth:`hyenarec.evaluation.Scorer.scores`; a history that has ended is read on, and not looked at."""
        model, packing = self._model, batch.packing
        items = packing.pad(batch.items)  # (S, M)
        state = model.init_state(packing.sequences)
        hidden = torch.zeros(packing.sequences, model.config.dim)
        for event in range(packing.max_length):
            now, state = model.step(items[:, event], state)
            hidden = torch.where((packing.lengths - 1 == event)[:, None], now, hidden)
        return model.scores_of(hidden)


def ranks(
    scorer: Scorer, store: SequenceStore, split: Split, training: TrainingConfig, length: int
) -> dict[str, float]:
    """The metrics of the test targets."""
    ranking = rank_targets(
        scorer, store, split.test, max_length=length, exclude_seen=training.exclude_seen, seen=training.seen
    )
    metrics = ranking.metrics()
    return {name: metrics[name] for name in METRICS}


def stretch(model: SequenceModel, users: int, length: int) -> Callable[[], None]:
    """A function that reads the last events of histories as long as the model reads, time and again: as many as several
    chunks of a cache, so that what is dropped now and then is in it by its share."""
    items = some_items(model, users, length)
    with torch.inference_mode():
        before = model.init_state(users)
        for event in items[:-STRETCH]:
            before = model.step(event, before)[1]

    @torch.inference_mode()
    def read() -> None:
        state = before  # its tensors are written to again, in the same places
        for event in items[-STRETCH:]:
            state = model.step(event, state)[1]

    return read


@torch.inference_mode()
def streamed_check(model: SequenceModel, users: int, room: int) -> Check:
    """Of histories that just fit into the cache, read one event at a time, against reading them at once."""
    items = some_items(model, users, room).T.contiguous()
    batch = Batch(items.flatten(), Packing.from_lengths(torch.full((users,), room)))
    got, want = Streamed(model).scores(batch), model.scores(batch)
    return compare("forward", {"scores": got}, {"scores": want}, TOLERANCE["float32"])


def some_items(model: SequenceModel, users: int, length: int) -> Tensor:
    """Random ones, (length, users)."""
    return torch.randint(len(model.bias), (length, users), generator=torch.Generator().manual_seed(0))


def main() -> None:
    tyro.cli(CacheSuite, description=__doc__).run()


if __name__ == "__main__":
    main()
