"""Latency of scoring one more event of a user, by length of the history.

    python -m benchmarks serving                        # writes benchmarks/results/serving-DEVICE.json and .png
    python -m benchmarks serving --mixers hyena attention gru --lengths 1024 --batches 1

`forward` runs the model over the whole history with the new event, last position only where the mixer can; `step` adds
the event to the state that a causal model keeps for the user, which never looks back at items (attention's is its keys
and values). Both end in the hidden state; what scoring the catalogue and taking the best 10 costs on top, the same for
all, is `top-k`. Weights are random. Contestants take turns call by call, so none finds its own data in the caches. One
whose call takes longer than the limit is left out. In the same run each is checked: the forward against a float64 copy,
the step against the forward. Lengths join as in `scaling`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
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
from hyenarec.model import ModelState, SequenceModel
from hyenarec.packing import Packing
from hyenarec_kernels import backends

TOP = 10
CHECKED_STEPS = 4

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
    """Compile every model's forward alike (torch.compile)."""
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
    batches: tuple[int, ...] = (1, 32)
    """Users a call."""
    out: Path | None = None
    """Result without its suffix; default: benchmarks/results/serving-DEVICE."""
    settings: tyro.conf.OmitArgPrefixes[ServingSettings] = field(default_factory=ServingSettings)

    def run(self) -> None:
        check_names(self.mixers)
        if not self.lengths or not self.batches or min(self.batches) < 1 or min(self.lengths) <= CHECKED_STEPS:
            raise UserError(f"options lengths and batches: lengths over {CHECKED_STEPS} and batches of 1 or more")
        settings, device = asdict(self.settings), self.settings.torch_device()
        out = self.out or RESULTS / f"serving-{device.type}"
        earlier = earlier_cases(out.with_suffix(".json"), settings, device)
        cases = [c for c in earlier if c["length"] not in self.lengths or c["batch"] not in self.batches]
        for length in sorted(self.lengths):
            for batch in self.batches:
                cases += in_fresh_process(measure, self.mixers, length, batch, self.settings, cases)
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
    mixers: Sequence[str], length: int, batch_size: int, settings: ServingSettings, earlier: Sequence[Case]
) -> list[Case]:
    """The cases of a length and batch, by turns in this process; those left out at a shorter length are not tried."""
    keep_freed_memory()
    torch.manual_seed(0)
    device = settings.torch_device()
    cases: list[Case] = []
    calls: dict[int, Callable[[], None]] = {}  # of the cases that keep the limit, by their place

    def enter(mixer: str, what: str, prepare: Callable[[], tuple[Callable[[], Tensor], Check]]) -> None:
        case: Case = {"mixer": mixer, "what": what, "length": length, "batch": batch_size}
        reason = left_out_before(case, earlier)
        if reason is None:
            contestant, check = prepare()
            call = partial(finished, contestant, device)
            call()
            if wall_clock(call) <= 1e3 * settings.limit:
                calls[len(cases)] = call
                case["check"] = check
            else:
                reason = f"a call takes over {settings.limit:g} s"
        if reason is not None:
            case["left_out"] = reason
        cases.append(case)

    batch = histories(length, batch_size, settings).to(device)
    few = first_sequences(batch)
    for name in mixers:
        model = SequenceModel(SYSTEMS[name].model(length, settings.dim, settings.blocks), settings.items)
        model.to(device).eval()
        if settings.compile:
            model.compile()
        enter(name, "forward", partial(checked_forward, model, batch, few))
        if MIXERS[model.config.mixer].causal:
            enter(name, "step", partial(checked_step, model, batch, few))
    enter("", "top-k", lambda: top(batch_size, settings))
    for place, milliseconds in take_turns(calls, settings.seconds, settings.rounds).items():
        cases[place]["ms"] = milliseconds
    return cases


def checked_forward(model: SequenceModel, batch: Batch, few: Batch) -> tuple[Callable[[], Tensor], Check]:
    """A function that reads the whole histories of the batch, and its check on a few of them."""
    return partial(forward, model, batch), forward_check(model, few)


def checked_step(model: SequenceModel, batch: Batch, few: Batch) -> tuple[Callable[[], Tensor], Check]:
    """A function that reads the last event of every history from the state before it, and its check on a few of them.

    States that are written to move on by that event again and again, which takes the same time.
    """
    state, last, times = before_last(model, batch, 1), batch.packing.last, batch.timestamps
    assert times is not None
    return partial(step, model, batch.items[last], state, times[last]), step_check(model, few)


def before_last(model: SequenceModel, batch: Batch, events: int) -> ModelState:
    """The state after all but the last ``events`` of every history."""
    packing, times = batch.packing, batch.timestamps
    assert times is not None
    early = packing.positions < packing.lengths[packing.rows] - events
    start = Packing.from_lengths(packing.lengths.cpu() - events).to(batch.items.device)
    return model.prefill(Batch(batch.items[early], start, times[early]))[1]


def step(model: SequenceModel, items: Tensor, state: ModelState, timestamps: Tensor) -> Tensor:
    """The hidden states after one more event, (S, D)."""
    return model.step(items, state, timestamps)[0]


def top(users: int, settings: ServingSettings) -> tuple[Callable[[], Tensor], Check]:
    """A function that finds the best of the catalogue for random hidden states, and its check."""
    device = settings.torch_device()
    hidden, weight = (torch.randn(rows, settings.dim, device=device) for rows in (users, settings.items))
    bias = torch.randn(settings.items, device=device)
    exact = best(hidden.double(), weight.double(), bias.double())
    check = compare("float64", {"best": best(hidden, weight, bias)}, {"best": exact}, TOLERANCE["float32"])
    return partial(best, hidden, weight, bias), check


def histories(length: int, users: int, settings: ServingSettings) -> Batch:
    """Random items, about one a day."""
    items = torch.randint(settings.items, (users * length,))
    times = (torch.rand(users, length) * 172_800).long().cumsum(1).flatten()
    return Batch(items, Packing.from_lengths(torch.full((users,), length)), times)


def forward(model: SequenceModel, batch: Batch) -> Tensor:
    """The hidden states from which the next items are scored, (S, D)."""
    return model(batch if model.mask is None else hide_next(batch), last_only=True)  # type: ignore[no-any-return]


def best(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The scores of the best items, (S, TOP)."""
    return torch.addmm(bias, hidden, weight.T).topk(TOP).values


def finished(call: Callable[[], Tensor], device: torch.device) -> None:
    """Call, and wait until the device has done it."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()


def forward_check(model: SequenceModel, batch: Batch) -> Check:
    """Scores of the catalogue after the forward against those of a float64 copy that computes every position."""
    exact = copy.deepcopy(model).double()
    asked = batch if model.mask is None else hide_next(batch)
    with backends.use("reference"):
        want = exact(asked)[asked.packing.last]
    return compare("float64 reference", scores(model, forward(model, batch)), scores(exact, want), TOLERANCE["float32"])


def step_check(model: SequenceModel, batch: Batch) -> Check:
    """Scores after the last events came step by step against those of the forward over whole histories."""
    state, times = before_last(model, batch, CHECKED_STEPS), batch.timestamps
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
                "error": f"{case['check']['error']:.0e}",
            }
            if "ms" in case
            else {"p50 ms": case["left_out"]}
        )
        for case in cases
        if (case["length"], case["batch"]) == (length, batch)
    ]
    show_table(f"history {length}, batch {batch}", ("mixer", "what", "p50 ms", "p99 ms", "calls", "error"), rows)


def plot(title: str, cases: Sequence[Case], path: Path) -> None:
    """Median latency against length, a panel for each batch: forwards drawn through, steps dashed."""
    timed = [case for case in cases if "ms" in case]
    batches = sorted({case["batch"] for case in timed})
    figure, axes = plots.new_figure(len(batches))
    for batch, panel in zip(batches, axes, strict=True):
        for name, what in dict.fromkeys((case["mixer"], case["what"]) for case in timed):
            points = [c for c in timed if (c["mixer"], c["what"], c["batch"]) == (name, what, batch)]
            x, y = [c["length"] for c in points], [c["ms"]["median"] for c in points]
            if what == "top-k":
                panel.plot(x, y, color="black", linestyle=":", label="top-k, on top of each")
            elif what == "step":
                plots.values(panel, name, x, y, linestyle="--", label=f"{SYSTEMS[name].title}, step")
            else:
                plots.values(panel, name, x, y)
        lengths = sorted({case["length"] for case in timed})
        plots.against_length(panel, lengths, "latency, median (ms)")
        panel.set(title=f"batch {batch}")
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Serving, description=__doc__).run()
