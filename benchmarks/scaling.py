"""Training steps of every mixer against history length, at a constant number of tokens a batch.

    python benchmarks/scaling.py                                            # writes benchmarks/results/scaling-cpu.json
    python benchmarks/scaling.py --device cuda --bf16 --lengths 50 200 1024 4096 16384 65536

A step is what training does: a batch from the loader, the model forward and backward under sampled softmax, clipping,
AdamW; nothing is evaluated or saved. Every window of the generated log is full, so that nothing is padding. Mixers that
are not causal fill in masked events instead: their loss covers a fifth of the events. The mixers of one length take
turns in one process. Peak memory is that of a process of its own: all of its resident set on a CPU, interpreter and
libraries included, and what tensors took on a GPU. A mixer whose step takes longer than the limit is left out at that
length and every greater one. Lengths may be measured in several calls: an earlier result of the same settings, machine,
versions and revision keeps its other lengths; the command that is recorded is the last call's.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from hyenarec import environment
from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.data.ids import Ids
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, show_table
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.plots import save_figure
from hyenarec.training import Run, Source, TrainingConfig
from matplotlib.figure import Figure
from measuring import in_fresh_process, keep_freed_memory, take_turns
from recording import RESULTS, write_report

ITEMS = 10_000
BATCHES = 4  # of an epoch
HELD_OUT = 3  # events of a history that are no input: two targets to evaluate, and the last target to train on
FIT_FROM = 200  # events: below, what a step costs whatever its length shows
RIVAL = "attention"
# Rounds until the kept memory has grown to what all mixers need: steps of the first took up to twice their time.
WARM_UP = 2

Case = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all measurements of a report share."""

    tokens: int = 32_768
    """Events a batch, less what does not fill a window; one window at least."""
    dim: int = 64
    """Channels."""
    blocks: int = 2
    """Blocks of the model."""
    negatives: int = 128
    """Negatives of the sampled softmax; the 1,024 that training takes by default are over half of hyena's step."""
    bf16: bool = False
    """Compute matrix products in bfloat16 (autocast): what flash attention on a GPU needs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU where there is one."""
    limit: float = 20.0
    """Seconds a step may take."""
    seconds: float = 15.0
    """Seconds of turns for each length."""
    rounds: int = 5
    """Fewest turns of each mixer, however long they take."""

    def training(self, length: int) -> TrainingConfig:
        return TrainingConfig(
            batch_size=max(1, self.tokens // length),
            loss="sampled",
            negatives=self.negatives,
            bf16=self.bf16,
            device=self.device,
        )


@dataclass(frozen=True)
class Scaling:
    """Time training steps of mixers against history length."""

    mixers: tuple[str, ...] = tuple(MIXERS)
    """Mixers to measure."""
    lengths: tuple[int, ...] = (50, 200, 1024, 4096, 16384)
    """History lengths."""
    out: Path | None = None
    """Result without its suffix; default: benchmarks/results/scaling-DEVICE."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        unknown = [name for name in self.mixers if name not in MIXERS]
        if unknown or not self.mixers or not self.lengths or min(self.lengths) < 1:
            raise UserError(
                f"options mixers and lengths: name lengths of 1 or more and mixers out of {', '.join(MIXERS)}"
            )
        device = self.settings.training(1).torch_device()
        out = self.out or RESULTS / f"scaling-{device.type}"
        out.parent.mkdir(parents=True, exist_ok=True)
        head = {"environment": environment.describe(device), "settings": asdict(self.settings)}
        cases = [case for case in earlier_cases(out.with_suffix(".json"), head) if case["length"] not in self.lengths]
        for length in sorted(self.lengths):
            cases += measure(self.mixers, length, self.settings, cases)
            show_length(length, cases)
        cases.sort(key=lambda case: case["length"])
        title = f"training steps, {self.settings.tokens} tokens, d={self.settings.dim}, {self.settings.blocks} blocks"
        found = exponents(cases)
        show_summary(f"times as fast as {RIVAL}", cases, found)
        plot(title, cases, out.with_suffix(".png"))
        content = {"settings": head["settings"], "cases": cases, "exponents": found}
        write_report(out.with_suffix(".json"), title, content, device)


def earlier_cases(path: Path, head: dict[str, Any]) -> list[Case]:
    """The cases of an earlier result under the same ``head``; none where there is no such result."""
    if not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    return list(report["cases"]) if head == {name: report.get(name) for name in head} else []


def measure(mixers: Sequence[str], length: int, settings: Settings, earlier: Sequence[Case]) -> list[Case]:
    """A case for each mixer: memory and the limit in processes of their own, then times by turns."""
    cases: dict[str, Case] = {}
    for mixer in mixers:
        cases[mixer] = {"mixer": mixer, "length": length}
        reason = left_out_before(mixer, length, earlier)
        if reason is None:
            trial = in_fresh_process(try_steps, mixer, length, settings)
            if trial["seconds"] <= settings.limit:
                cases[mixer] |= {name: trial[name] for name in ("peak_mib", "idle_mib")}
                continue
            reason = f"a step takes {trial['seconds']:.1f} s, over the limit of {settings.limit:g} s"
        cases[mixer]["left_out"] = reason
    running = [mixer for mixer, case in cases.items() if "left_out" not in case]
    times = in_fresh_process(time_steps, running, length, settings) if running else {}
    for mixer, milliseconds in times.items():
        tokens = settings.training(length).batch_size * length
        cases[mixer] |= {
            "tokens": tokens,
            "ms": milliseconds,
            "tokens_per_second": 1e3 * tokens / milliseconds["median"],
        }
        if RIVAL in times:
            cases[mixer]["speed_over_rival"] = times[RIVAL]["median"] / milliseconds["median"]
    return list(cases.values())


def left_out_before(mixer: str, length: int, cases: Sequence[Case]) -> str | None:
    """Why the mixer is left out at a shorter length already, if it is."""
    for case in cases:
        if case["mixer"] == mixer and case["length"] < length and "left_out" in case:
            return f"left out at {case['length']}: {case['left_out'].split(': ')[-1]}"
    return None


def try_steps(mixer: str, length: int, settings: Settings) -> dict[str, float]:
    """Two steps in this process: seconds of the second (of the first where that is over the limit), memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        step = training_step(mixer, length, settings, Path(folder))
        idle = peak_mib()
        for _ in range(2):
            began = time.perf_counter()
            step()
            seconds = time.perf_counter() - began
            if seconds > settings.limit:
                break
        return {"seconds": seconds, "peak_mib": peak_mib(), "idle_mib": idle}


def time_steps(mixers: Sequence[str], length: int, settings: Settings) -> dict[str, dict[str, float]]:
    """Milliseconds of the mixers' steps, by turns in this process.

    It keeps freed memory, or a turn would pay for the pages that the turn before gave back: attention at 200 events
    took 355 to 519 ms (quartiles) without and 345 to 353 with it, as it does where it follows itself (347).
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        steps = {mixer: training_step(mixer, length, settings, Path(folder) / mixer) for mixer in mixers}
        for _, step in product(range(WARM_UP), steps.values()):
            step()
        return take_turns(steps, settings.seconds, settings.rounds)


def training_step(mixer: str, length: int, settings: Settings, folder: Path) -> Callable[[], None]:
    """A function that does the next training step, and returns when the device has done it."""
    training = settings.training(length)
    model = ModelConfig(mixer=mixer, dim=settings.dim, blocks=settings.blocks, max_length=length)
    store = full_windows(length, BATCHES * training.batch_size)
    run = Run(folder, store, leave_one_out(store), model, training, Source("generated"))
    run.model.train()
    batches = endless(run)

    def step() -> None:
        run.step(next(batches).to(run.device), training.learning_rate)
        run.progress.step += 1
        if run.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def endless(run: Run) -> Iterator[Batch]:
    for epoch in count():
        yield from run.windows.epoch(run.config.seed, epoch)


def full_windows(length: int, users: int) -> SequenceStore:
    """Histories that make one training window of ``length`` events each: Zipf-like items, about an event a day."""
    rng = np.random.default_rng(0)
    events = length + HELD_OUT
    return SequenceStore(
        offsets=np.arange(users + 1) * events,
        items=(ITEMS * rng.random(users * events) ** 3).astype(np.int32),
        timestamps=rng.exponential(86_400, (users, events)).cumsum(1).astype(np.int64).ravel(),
        user_ids=Ids.from_values(range(users)),
        item_ids=Ids.from_values(range(ITEMS)),
    )


def peak_mib() -> float:
    """The most memory this process has held so far: tensors on the GPU where it uses one, else its resident set."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB


def exponents(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """For each mixer the least-squares slope of log time a token against log length, from ``FIT_FROM`` on.

    That is the power of the length with which a step of constant tokens grows; a sequence's time grows with one power
    more: 1 for a linear mixer, 2 for a quadratic one.
    """
    found = {}
    for mixer in dict.fromkeys(case["mixer"] for case in cases):
        fitted = [c for c in cases if c["mixer"] == mixer and "ms" in c and c["length"] >= FIT_FROM]
        if len(fitted) > 1:
            lengths = [case["length"] for case in fitted]
            slope = np.polyfit(np.log(lengths), [np.log(case["ms"]["median"] / case["tokens"]) for case in fitted], 1)[
                0
            ]
            found[mixer] = {"step": float(slope), "sequence": 1 + float(slope), "lengths": lengths}
    return found


def show_length(length: int, cases: Sequence[Case]) -> None:
    rows = [
        {
            "mixer": case["mixer"],
            "ms": f"{case['ms']['median']:.0f}",
            "quartiles": f"{case['ms']['q1']:.0f} to {case['ms']['q3']:.0f}",
            "tokens/s": f"{case['tokens_per_second']:,.0f}",
            "peak MiB": f"{case['peak_mib']:,.0f}",
        }
        if "ms" in case
        else {"mixer": case["mixer"], "ms": case["left_out"]}
        for case in cases
        if case["length"] == length
    ]
    show_table(f"length {length}", ("mixer", "ms", "quartiles", "tokens/s", "peak MiB"), rows)


def show_summary(title: str, cases: Sequence[Case], found: dict[str, dict[str, Any]]) -> None:
    rows: dict[str, dict[str, str]] = {}
    for case in cases:
        row = rows.setdefault(case["mixer"], {"mixer": case["mixer"]})
        if "left_out" in case:
            row[str(case["length"])] = "left out"
            console.print(f"{case['mixer']}, {case['length']}: {case['left_out']}", highlight=False)
        elif "speed_over_rival" in case:
            row[str(case["length"])] = f"{case['speed_over_rival']:.2f}x"
    for mixer, fit in found.items():
        rows[mixer]["exponent"] = f"{fit['sequence']:.2f}"
    lengths = dict.fromkeys(str(case["length"]) for case in cases)
    show_table(title, ("mixer", *lengths, "exponent"), list(rows.values()))


def plot(title: str, cases: Sequence[Case], path: Path) -> None:
    """Time a token against length, both logarithmic, a line for each mixer with its quartiles."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for mixer in dict.fromkeys(case["mixer"] for case in cases):
        timed = [case for case in cases if case["mixer"] == mixer and "ms" in case]
        if timed:
            low, middle, high = (
                np.array([1e3 * case["ms"][name] / case["tokens"] for case in timed]) for name in ("q1", "median", "q3")
            )
            style = {"linewidth": 2.5} if mixer == "hyena" else {}
            axes.errorbar(
                [case["length"] for case in timed],
                middle,
                (middle - low, high - middle),
                marker=".",
                label=mixer,
                **style,
            )
    lengths = list(dict.fromkeys(case["length"] for case in cases))
    axes.set(xscale="log", yscale="log", xlabel="history length (events)", ylabel="time a token (µs)", title=title)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    try:
        tyro.cli(Scaling, description=__doc__).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
