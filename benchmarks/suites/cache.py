"""What a user's state costs, and what it keeps of the ranking: SASRec's key-value cache by policy and room, and both
states of HyenaRec. Histories are read event by event, as a service reads them.

    python -m benchmarks cache ../shared/data/ml-100k.parquet runs/accuracy

Trains both systems on the log as the suite `accuracy` does, or takes the runs that are already there. Then it reads
every test user's history one event at a time.

- SASRec has positions, so it reads only the last events of a history. Of its caches, `full` holds all of them, `window`
  the last ones, and `citrus` those that the last ones attend to (`hyenarec.mixers.caches`).
- HyenaRec reads whole histories, as in a session, also where they are longer than its filters' horizon. Its `exact`
  state holds the events that the filters reach, its `compact` one moments of chunks of events
  (`hyenarec_kernels.nn.CompactState`), whose oldest chunk it drops as a whole.

`NDCG@10` ranks the next item among all items but those seen. `bytes a user` is the size of the state that a store
keeps. `us a step` is the time per user of a step of 32 users at the end of the longest histories that SASRec reads,
measured in turns. Each state is checked on histories that it holds whole, against reading them at once. Writes
benchmarks/results/cache-LOG.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.harness.checks import TOLERANCE, Check, compare
from benchmarks.harness.measuring import take_turns
from benchmarks.harness.recording import METRICS, RESULTS, write
from benchmarks.harness.registry import OURS, RIVAL
from benchmarks.suites.accuracy import DEFAULT, PROTOCOLS
from hyenarec.config import AttentionConfig, TrainingConfig
from hyenarec.data.batches import Batch
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import show_table
from hyenarec.evaluation import Scorer, rank_targets
from hyenarec.experiments import train
from hyenarec.model import SequenceModel
from hyenarec.model_state import ModelState
from hyenarec.packing import Packing
from hyenarec.source import Source, load_source
from hyenarec.trained import load_trained
from hyenarec_kernels.nn import CompactState

POLICIES: tuple[Literal["window", "citrus"], ...] = ("window", "citrus")
COLUMNS = ("mixer", "state", "room", *METRICS, "bytes", "us a step")
STRETCH = 32  # steps timed together

Case = dict[str, Any]


@dataclass(frozen=True)
class CacheSuite:
    """Measure the states of SASRec and HyenaRec on one log."""

    data: Annotated[Path, tyro.conf.Positional]
    """Log or store."""
    runs: Annotated[Path, tyro.conf.Positional]
    """Folder for the runs, the same as for the suite `accuracy`."""
    length: int | None = None
    """Events that the models read; default: the first length of the log's protocol."""
    rooms: tuple[int, ...] = (16, 32, 64, 128)
    """Events that a cache of SASRec holds."""
    users: int = 32
    """Users of a timed step."""
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
        slices = protocol.slices(store, split, length)

        def trained(mixer: str) -> tuple[SequenceModel, TrainingConfig]:
            config, training = protocol.cell(mixer, length, 0, slices)
            training = replace(training, device="cpu", epochs=self.epochs or training.epochs)
            folder = self.runs / log / f"{mixer}-{length}-0"
            train(store, split, config, training, source, folder)
            return load_trained(folder).model.eval(), training

        at_once: dict[str, dict[str, float]] = {}
        cases: list[Case] = []
        calls: dict[int, Callable[[], None]] = {}
        for mixer in (RIVAL, OURS):
            model, training = trained(mixer)
            at_once[mixer] = ranks(model, store, split, training, length)
            for form in caches(model, self.rooms, length) if mixer == RIVAL else states(model):
                calls[len(cases)] = stretch(form, self.users, length)
                reads = length if mixer == RIVAL else int(np.diff(store.offsets).max())
                scored = ranks(StreamedScores(form), store, split, training, reads)
                kept = sum(values.nbytes for values in form.start(1).tensors().values())
                room = min(form.room, length)
                case = {"mixer": mixer, "state": form.name, "room": room, "bytes": kept, "test": scored}
                cases.append(case | {"check": streamed_check(form, self.users, room)})
        for place, milliseconds in take_turns(calls, self.seconds, 20).items():
            cases[place] |= {"ms": milliseconds, "us a step": 1e3 * milliseconds["median"] / STRETCH / self.users}
        title = f"states of SASRec and HyenaRec on {log}, {length} events, read one at a time"
        settings = {
            "training": asdict(training),
            "length": length,
            "users": self.users,
            "at once": at_once,
            "data": store.describe(),
        }
        whole = [{"mixer": mixer, "state": "history read at once"} | metrics for mixer, metrics in at_once.items()]
        show_table(title, COLUMNS, [*whole, *(case | case["test"] for case in cases)])
        write(RESULTS / f"cache-{log}.json", "cache", title, {"settings": settings, "cases": cases})


@dataclass(frozen=True)
class Form:
    """A model with one of the states that it can keep: ``start`` makes the state of some new users, and ``room`` is the
    longest history, in events, that it holds whole."""

    name: str
    model: SequenceModel
    start: Callable[[int], ModelState]
    room: int


def caches(model: SequenceModel, rooms: Sequence[int], length: int) -> Iterator[Form]:
    """SASRec with every cache."""
    yield Form("full", model, model.init_state, length)
    for room, policy in product((room for room in rooms if room < length), POLICIES):
        options = AttentionConfig(cache=policy, cache_events=room)
        made = SequenceModel(replace(model.config, attention=options), len(model.bias)).eval()
        made.load_state_dict(model.state_dict())
        yield Form(policy, made, made.init_state, room)


def states(model: SequenceModel) -> Iterator[Form]:
    """HyenaRec with either state; with short horizons a compact state would be larger, and there is none."""
    yield Form("exact", model, model.init_state, model.config.max_length)
    compact = partial(model.init_state, compact=True)
    rooms = [block.horizon for block in compact(0).blocks if isinstance(block, CompactState)]
    if rooms:
        yield Form("compact", model, compact, min(rooms))


class StreamedScores:
    """A model's scores after reading every history of a batch one event at a time."""

    def __init__(self, form: Form) -> None:
        self._form = form

    @torch.inference_mode()
    def scores(self, batch: Batch) -> Tensor:
        """As :meth:`hyenarec.evaluation.Scorer.scores`. A history that has ended goes on with padding, whose hidden
        states are ignored."""
        model, packing = self._form.model, batch.packing
        items = packing.pad(batch.items)  # (S, M)
        state = self._form.start(packing.sequences)
        hidden = torch.zeros(packing.sequences, model.config.dim)
        for event in range(packing.max_length):
            now, state = model.step(items[:, event], state)
            hidden = torch.where((packing.lengths - 1 == event)[:, None], now, hidden)
        return model.scores_of(hidden, model.recent(batch))


def ranks(
    scorer: Scorer, store: SequenceStore, split: Split, training: TrainingConfig, length: int
) -> dict[str, float]:
    """The metrics of ranking the test targets."""
    ranking = rank_targets(
        scorer, store, split.test, max_length=length, exclude_seen=training.exclude_seen, seen=training.seen
    )
    metrics = ranking.metrics()
    return {name: metrics[name] for name in METRICS}


def stretch(form: Form, users: int, length: int) -> Callable[[], None]:
    """A function that reads the last STRETCH events of histories that are as long as the model reads; it may be called
    again and again. STRETCH spans several chunks of a cache, so the time includes its share of the steps that drop
    events."""
    model, items = form.model, some_items(form.model, users, length)
    with torch.inference_mode():
        before = form.start(users)
        for event in items[:-STRETCH]:
            before = model.step(event, before)[1]

    @torch.inference_mode()
    def read() -> None:
        state = before  # every call writes to its tensors again, in the same places
        for event in items[-STRETCH:]:
            state = model.step(event, state)[1]

    return read


@torch.inference_mode()
def streamed_check(form: Form, users: int, room: int) -> Check:
    """Checks histories that just fit into the state: read one event at a time, against read at once."""
    items = some_items(form.model, users, room).T.contiguous()
    batch = Batch(items.flatten(), Packing.from_lengths(torch.full((users,), room)))
    got, want = StreamedScores(form).scores(batch), form.model.scores(batch)
    return compare("forward", {"scores": got}, {"scores": want}, TOLERANCE["float32"])


def some_items(model: SequenceModel, users: int, length: int) -> Tensor:
    """Random items, (length, users)."""
    return torch.randint(len(model.bias), (length, users), generator=torch.Generator().manual_seed(0))


def main() -> None:
    tyro.cli(CacheSuite, description=__doc__).run()


if __name__ == "__main__":
    main()
