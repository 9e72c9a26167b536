"""Latency of scoring one more event of a user, by length of the history.

    python -m benchmarks serving                        # writes benchmarks/results/serving-DEVICE.json and .png
    python -m benchmarks serving --mixers hyena attention gru --lengths 1024 --batches 1

`forward` runs the model over the whole history with the new event; where the mixer can, it computes the last position
only. `step` adds the event to the state that a causal model keeps for the user, without looking back at items
(attention's state is its keys and values). Both end in the hidden state. `top-k` is what it costs on top to score the
catalogue and take the best 10, the same for all. `compact step` uses hyena's small state, where the history is long
enough for one; such a state forgets whole chunks, so its check passes at histories of whole chunks, such as powers of
2. Each step also reports the bytes of a user's state.

With --compile every forward and step, the best 10 included, is one program without Python, made by AOTInductor in the
same way for all models; with --alone as well, it ends before the scores.

Weights are random. Contestants take turns, and what is timed is the last call of a turn, as in a service that has been
answering other users: code and weights are in the caches, the user's state is not, since every call reads another
user's. One whose call takes longer than the limit is left out. In the same run each is checked: the forward against a
float64 copy, the step against the forward, a program against the model. Results of several lengths join as in
`scaling`.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.harness import plots
from benchmarks.harness.checks import TOLERANCE, Check, compare, first_sequences
from benchmarks.harness.measuring import in_fresh_process, take_turns, wall_clock
from benchmarks.harness.recording import RESULTS, earlier_cases, left_out_before, write
from benchmarks.harness.registry import BLOCKS, DIM, ITEMS, LENGTHS, MAIN, SYSTEMS, check_names
from hyenarec.allocator import keep_freed_memory
from hyenarec.cloze import hide_next
from hyenarec.config import TrainingConfig
from hyenarec.data.batches import Batch
from hyenarec.display import show_table
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.model_state import ModelState
from hyenarec.packing import Packing
from hyenarec.programs import HistoryProgram, Package, StepProgram, export, inference_copy, package
from hyenarec_kernels import backends

TOP = 10
CHECKED_STEPS = 4
BEFORE = 5e-3  # seconds of calls before one that is timed
USERS = 64  # whose states calls of fewer users read in turn: at 4,096 events 7 MB (compact) to 270 MB (SASRec)

Case = dict[str, Any]


@dataclass(frozen=True)
class ServingSettings:
    """What all measurements of a result share."""

    dim: int = DIM
    """Channels."""
    blocks: int = BLOCKS
    """Blocks of the model."""
    items: int = ITEMS
    """Items of the catalogue."""
    compile: bool = False
    """Compile every model's forward and step alike, top-k included (on a CPU)."""
    alone: bool = False
    """Compile the models alone, without top-k: programs end in the hidden state."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to score: auto takes a GPU where there is one."""
    limit: float = 1.0
    """Seconds a call may take."""
    seconds: float = 10.0
    """Seconds of turns for each length and batch."""
    rounds: int = 20
    """Fewest calls of each contestant, however long they take."""

    def torch_device(self) -> torch.device:
        return TrainingConfig(device=self.device).torch_device()


@dataclass(frozen=True)
class Serving:
    """Time the scoring of one more event."""

    mixers: tuple[str, ...] = MAIN
    """Systems to measure."""
    lengths: tuple[int, ...] = LENGTHS
    """History lengths, the new event included."""
    batches: tuple[int, ...] = (1, 32, 256)
    """Users per call."""
    out: Path | None = None
    """Result without its suffix; default: benchmarks/results/serving-DEVICE."""
    settings: tyro.conf.OmitArgPrefixes[ServingSettings] = field(default_factory=ServingSettings)

    def run(self) -> None:
        check_names(self.mixers)
        if self.settings.alone and not self.settings.compile:
            raise UserError("option alone: it is for --compile; without, top-k is timed by itself")
        if not self.lengths or not self.batches or min(self.batches) < 1 or min(self.lengths) <= CHECKED_STEPS:
            raise UserError(f"options lengths and batches: lengths over {CHECKED_STEPS} and batches of 1 or more")
        settings, device = asdict(self.settings), self.settings.torch_device()
        out = self.out or RESULTS / f"serving-{device.type}"
        earlier = earlier_cases(out.with_suffix(".json"), settings, device)
        cases = [c for c in earlier if c["length"] not in self.lengths or c["batch"] not in self.batches]
        with tempfile.TemporaryDirectory() as folder:
            for length in sorted(self.lengths):
                for batch in self.batches:
                    cases += in_fresh_process(measure, self.mixers, length, batch, self.settings, cases, Path(folder))
                    show(length, batch, cases)
        cases.sort(key=lambda case: (case["length"], case["batch"]))
        title = (
            f"scoring one more event, {self.settings.items:,} items, d={self.settings.dim}, "
            f"{self.settings.blocks} blocks, float32"
        )
        write(out.with_suffix(".json"), "serving", title, {"settings": settings, "cases": cases}, device)
        plot(title, cases, out.with_suffix(".png"))


@torch.inference_mode()
def measure(
    mixers: Sequence[str],
    length: int,
    batch_size: int,
    settings: ServingSettings,
    earlier: Sequence[Case],
    folder: Path,
) -> list[Case]:
    """The cases of a length and batch, timed in turns in this process. Those left out at a shorter length are not
    tried. ``folder`` keeps compiled packages, which serve every batch."""
    keep_freed_memory()
    torch.manual_seed(0)
    device = settings.torch_device()
    cases: list[Case] = []
    calls: dict[int, Callable[[], None]] = {}  # of the cases within the limit, by their place in ``cases``

    def enter(mixer: str, what: str, prepare: Callable[[], Served]) -> None:
        case: Case = {"mixer": mixer, "what": what, "length": length, "batch": batch_size}
        reason = left_out_before(case, earlier)
        if reason is None:
            try:
                contestant = prepare()
            except UserError as error:  # torch cannot export every forward
                cases.append(case | {"left_out": str(error)})
                return
            call = partial(finished, contestant.call, device)
            if contestant.state_bytes is not None:
                case["state_bytes"] = contestant.state_bytes
            call()
            if wall_clock(call) <= 1e3 * settings.limit:
                calls[len(cases)] = call
                case["check"] = contestant.check
            else:
                reason = f"a call takes over {settings.limit:g} s"
        if reason is not None:
            case["left_out"] = reason
        cases.append(case)

    batch = histories(length, batch_size, settings).to(device)
    few = first_sequences(batch)
    best_of = 0 if settings.alone else TOP
    for name in mixers:
        torch.manual_seed(0)  # the same weights for every batch, as the package has them
        model = SequenceModel(SYSTEMS[name].model(length, settings.dim, settings.blocks), settings.items)
        model.to(device).eval()
        causal = MIXERS[model.config.mixer].causal
        packages = folder / f"{name}-{length}" if settings.compile else None
        if causal or packages is None:
            enter(name, "forward", partial(checked_forward, model, batch, few, packages, best_of))
        if causal:
            enter(name, "step", partial(checked_step, model, few, batch_size, False, packages, best_of))
        if causal and list(model.init_state(0).tensors()) != list(model.init_state(0, compact=True).tensors()):
            enter(name, "compact step", partial(checked_step, model, few, batch_size, True, packages, best_of))
    if not settings.compile:
        enter("", "top-k", lambda: top(batch_size, settings))
    for place, milliseconds in take_turns(calls, settings.seconds, settings.rounds, last_of_turn).items():
        cases[place]["ms"] = milliseconds
    return cases


def last_of_turn(call: Callable[[], Any]) -> float:
    """Milliseconds of a call after others that took ``BEFORE`` seconds, and at least one.

    After a single call, steps of .14 ms still took .25 where SASRec's keys and values of 4,096 events went before.
    """
    end = time.perf_counter() + BEFORE
    call()
    while time.perf_counter() < end:
        call()
    return wall_clock(call)


@dataclass(frozen=True)
class Served:
    """What is timed, its check, and, for a step, the bytes of a user's state."""

    call: Callable[[], Any]
    check: Check
    state_bytes: int | None = None


def checked_forward(model: SequenceModel, batch: Batch, few: Batch, packages: Path | None, best_of: int) -> Served:
    """Reads the whole histories of the batch; the check takes only a few of them."""
    check = forward_check(model, few)
    if packages is None:
        return Served(partial(forward, model, batch), check)
    run = compiled(HistoryProgram(inference_copy(model), best_of), packages.with_suffix(".forward.pt2"))
    packing, knows_time = batch.packing, MIXERS[model.config.mixer].knows_time
    times = [packing.pad(batch.timestamps)] if knows_time and batch.timestamps is not None else []
    call = partial(run, packing.pad(batch.items), packing.lengths, *times)
    return Served(call, worse(check, best_check(model, forward(model, batch), call())))


def checked_step(
    model: SequenceModel, few: Batch, batch_size: int, compact: bool, packages: Path | None, best_of: int
) -> Served:
    """Reads the last event of every history from the state before it; the histories are those of ``few``, repeated.

    Some states are written to in place. They read the same event again and again, which takes the same time.
    """
    pool = max(1, USERS // batch_size)
    users = torch.arange(batch_size, device=few.items.device) % few.packing.sequences
    last, times = few.packing.last[users], few.timestamps
    assert times is not None
    before, check = before_last(model, few, 1, compact), step_check(model, few, compact)
    items, timestamps = few.items[last], times[last]
    hidden = step(model, items, before.index(users), timestamps)
    states = [before.index(users) for _ in range(pool)]
    size = sum(values.numel() * values.element_size() for values in states[0].tensors().values()) // batch_size
    if packages is None:
        turns = cycle(states)
        return Served(lambda: step(model, items, next(turns), timestamps), check, size)
    kind = "compact" if compact else "step"
    run = compiled(StepProgram(inference_copy(model), best_of, compact=compact), packages.with_suffix(f".{kind}.pt2"))
    knows_time = MIXERS[model.config.mixer].knows_time
    given = [{name: values.contiguous() for name, values in state.tensors().items()} for state in states]
    # A model with a position for each event can read no further, so every call starts from the same count of events.
    counted = model.most_events is not None
    counts = [[own[name] for name in own if counted and name.endswith("events")] for own in given]
    pairs, events = cycle(zip(given, counts, strict=True)), before.events[users]

    def call() -> list[Tensor]:
        own, counts_of_own = next(pairs)
        for count in counts_of_own:
            count.copy_(events)
        return run(items, *([timestamps] if knows_time else []), *own.values())

    return Served(call, worse(check, best_check(model, hidden, call())), size)


def compiled(program: HistoryProgram | StepProgram, path: Path) -> Package:
    if not path.exists():
        package(export(program), path)
    return Package.load(path)


def worse(*checks: Check) -> Check:
    return max(checks, key=lambda check: check["error"])


def best_check(model: SequenceModel, hidden: Tensor, found: Sequence[Tensor]) -> Check:
    """Checks a program's best scores, or those of the hidden states that it ends in, against the model's own."""
    want = model.scores_of(hidden).topk(TOP).values
    got = found[0] if len(found) > 1 else model.scores_of(found[0]).topk(TOP).values
    return compare("the model itself", {"scores": got}, {"scores": want}, TOLERANCE["float32"])


def before_last(model: SequenceModel, batch: Batch, events: int, compact: bool = False) -> ModelState:
    """The state after all but the last ``events`` of every history."""
    packing, times = batch.packing, batch.timestamps
    assert times is not None
    early = packing.positions < packing.lengths[packing.rows] - events
    start = Packing.from_lengths(packing.lengths.cpu() - events).to(batch.items.device)
    return model.prefill(Batch(batch.items[early], start, times[early]), compact=compact)[1]


def step(model: SequenceModel, items: Tensor, state: ModelState, timestamps: Tensor) -> Tensor:
    """The hidden states after one more event, (S, D)."""
    return model.step(items, state, timestamps)[0]


def top(users: int, settings: ServingSettings) -> Served:
    """A contestant that finds the best of the catalogue for random hidden states."""
    device = settings.torch_device()
    hidden, weight = (torch.randn(rows, settings.dim, device=device) for rows in (users, settings.items))
    bias = torch.randn(settings.items, device=device)
    exact = best(hidden.double(), weight.double(), bias.double())
    check = compare("float64", {"best": best(hidden, weight, bias)}, {"best": exact}, TOLERANCE["float32"])
    return Served(partial(best, hidden, weight, bias), check)


def histories(length: int, users: int, settings: ServingSettings) -> Batch:
    """Histories of random items, about one per day."""
    items = torch.randint(settings.items, (users * length,))
    times = (torch.rand(users, length) * 172_800).long().cumsum(1).flatten()
    return Batch(items, Packing.from_lengths(torch.full((users,), length)), times)


def forward(model: SequenceModel, batch: Batch) -> Tensor:
    """The hidden states from which the next items are scored, (S, D)."""
    return model(batch if model.mask is None else hide_next(batch), last_only=True)  # type: ignore[no-any-return]


def best(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The scores of the best items, (S, TOP)."""
    return torch.addmm(bias, hidden, weight.T).topk(TOP).values


def finished(call: Callable[[], Any], device: torch.device) -> None:
    """Calls, and waits until the device has finished."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()


def forward_check(model: SequenceModel, batch: Batch) -> Check:
    """Checks scores of the catalogue after the forward against those of a float64 copy that computes every position."""
    exact = copy.deepcopy(model).double()
    asked = batch if model.mask is None else hide_next(batch)
    with backends.use("reference"):
        want = exact(asked)[asked.packing.last]
    return compare("float64 reference", scores(model, forward(model, batch)), scores(exact, want), TOLERANCE["float32"])


def step_check(model: SequenceModel, batch: Batch, compact: bool = False) -> Check:
    """Checks scores after the last events were read step by step against those of the forward over whole histories."""
    state, times = before_last(model, batch, CHECKED_STEPS, compact), batch.timestamps
    assert times is not None
    for back in range(CHECKED_STEPS)[::-1]:
        row = batch.packing.last - back
        hidden, state = model.step(batch.items[row], state, times[row])
    return compare("full forward", scores(model, hidden), scores(model, forward(model, batch)), TOLERANCE["float32"])


def scores(model: SequenceModel, hidden: Tensor) -> dict[str, Tensor]:
    return {"scores": torch.addmm(model.bias, hidden, model.items.weight.T)}


def show(length: int, batch: int, cases: Sequence[Case]) -> None:
    rows = [
        {"mixer": case["mixer"], "what": case["what"]}
        | (
            {
                "p50 ms": f"{case['ms']['median']:.3f}",
                "p99 ms": f"{case['ms']['p99']:.3f}",
                "calls": case["ms"]["rounds"],
                "kB a user": f"{case['state_bytes'] / 1e3:,.1f}" if "state_bytes" in case else "",
                "error": f"{case['check']['error']:.0e}",
            }
            if "ms" in case
            else {"p50 ms": case["left_out"]}
        )
        for case in cases
        if (case["length"], case["batch"]) == (length, batch)
    ]
    columns = ("mixer", "what", "p50 ms", "p99 ms", "calls", "kB a user", "error")
    show_table(f"history {length}, batch {batch}", columns, rows)


def plot(title: str, cases: Sequence[Case], path: Path) -> None:
    """Plots median latency against length, a panel for each batch: forwards as solid lines, steps dashed."""
    timed = [case for case in cases if "ms" in case]
    batches = sorted({case["batch"] for case in timed})
    figure, axes = plots.new_figure(len(batches))
    for batch, panel in zip(batches, axes, strict=True):
        for name, what in dict.fromkeys((case["mixer"], case["what"]) for case in timed):
            points = [c for c in timed if (c["mixer"], c["what"], c["batch"]) == (name, what, batch)]
            x, y = [c["length"] for c in points], [c["ms"]["median"] for c in points]
            if what == "top-k":
                panel.plot(x, y, color="black", linestyle=":", label="top-k, on top of each")
            elif what.endswith("step"):
                style = "--" if what == "step" else "-."
                plots.values(panel, name, x, y, linestyle=style, label=f"{SYSTEMS[name].title}, {what}")
            else:
                plots.values(panel, name, x, y)
        lengths = sorted({case["length"] for case in timed})
        plots.against_length(panel, lengths, "latency, median (ms)")
        panel.set(title=f"batch {batch}")
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Serving, description=__doc__).run()
