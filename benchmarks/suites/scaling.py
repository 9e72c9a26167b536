"""Training steps of every mixer against history length, at a constant number of tokens per batch.

    python -m benchmarks scaling    # writes benchmarks/results/scaling-cpu.json, .png
    python -m benchmarks scaling --device cuda --precision bfloat16 --lengths 50 200 1024 4096 16384 65536

Every slice of the generated log is full, so nothing is padding. Mixers that are not causal fill in masked events
instead: their loss covers a fifth of the events. A mixer whose step takes longer than the limit is left out at that
length and every greater one. Lengths may be measured in several calls: an earlier result of the same settings, machine,
versions and revision keeps its other lengths; the recorded command is that of the last call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.harness import plots
from benchmarks.harness import training_steps as steps
from benchmarks.harness.recording import RESULTS, earlier_cases, left_out_before, write
from benchmarks.harness.registry import ITEMS, LENGTHS, MAIN, RIVAL, TOKENS, check_names
from benchmarks.report.tables import over_rival
from hyenarec.data.ids import Ids
from hyenarec.data.store import SequenceStore
from hyenarec.display import console, show_table
from hyenarec.errors import UserError
from hyenarec.training import Trainer

BATCHES = 4  # per epoch
HELD_OUT = 3  # events of a history that are not input: two evaluation targets, and the last training target
FIT_FROM = 200  # events; below that, the fixed cost of a step shows

Case = dict[str, Any]


@dataclass(frozen=True)
class ScalingSettings(steps.StepSettings):
    """What all measurements of a result share."""

    tokens: int = TOKENS
    """Events per batch, rounded down to whole slices; at least one slice."""

    def slices(self, length: int) -> int:
        """Slices per batch."""
        return max(1, self.tokens // length)


@dataclass(frozen=True)
class Scaling:
    """Time training steps of mixers against history length."""

    mixers: tuple[str, ...] = MAIN
    """Systems to measure."""
    lengths: tuple[int, ...] = LENGTHS
    """History lengths."""
    out: Path | None = None
    """Result without its suffix; default: benchmarks/results/scaling-DEVICE, or scaling-DEVICE-bfloat16."""
    settings: tyro.conf.OmitArgPrefixes[ScalingSettings] = field(default_factory=ScalingSettings)

    def run(self) -> None:
        check_names(self.mixers)
        if not self.lengths or min(self.lengths) < 1:
            raise UserError("option lengths: name at least one, each 1 or more")
        settings, device = asdict(self.settings), self.settings.training().torch_device()
        out = self.out or RESULTS / self.settings.name("scaling")
        earlier = earlier_cases(out.with_suffix(".json"), settings, device)
        cases = [case for case in earlier if case["length"] not in self.lengths]
        for length in sorted(self.lengths):
            cases += measure(self.mixers, length, self.settings, cases)
            show_length(length, cases)
        cases.sort(key=lambda case: case["length"])
        found = exponents(cases)
        show_summary(cases, found)
        title = (
            f"training steps, {self.settings.tokens:,} tokens, d={self.settings.dim}, {self.settings.blocks} blocks, "
            f"{self.settings.precision}"
        )
        content = {"settings": settings, "cases": cases, "exponents": found}
        write(out.with_suffix(".json"), "scaling", title, content, device)
        plot(title, cases, out.with_suffix(".png"))


def measure(mixers: Sequence[str], length: int, settings: ScalingSettings, earlier: Sequence[Case]) -> list[Case]:
    """A case for each mixer; those left out at a shorter length are not tried."""
    cases: dict[str, Case] = {mixer: {"mixer": mixer, "length": length} for mixer in mixers}
    builds: dict[str, steps.Build] = {}
    for mixer, case in cases.items():
        reason = left_out_before(case, earlier)
        if reason is None:
            builds[mixer] = partial(full_trainer, mixer, length, settings)
        else:
            case["left_out"] = reason
    tokens = settings.slices(length) * length
    for mixer, found in steps.measure(builds, settings).items():
        cases[mixer] |= found
        if "ms" in found:
            cases[mixer] |= {"tokens": tokens, "tokens_per_second": 1e3 * tokens / found["ms"]["median"]}
    return list(cases.values())


def full_trainer(mixer: str, length: int, settings: ScalingSettings) -> Trainer:
    slices = settings.slices(length)
    return settings.trainer(mixer, length, slices, full_slices(length, BATCHES * slices))


def full_slices(length: int, users: int) -> SequenceStore:
    """Histories that make one training slice of ``length`` events each: Zipf-like items, about one event per day."""
    rng = np.random.default_rng(0)
    events = length + HELD_OUT
    return SequenceStore(
        offsets=np.arange(users + 1) * events,
        items=(ITEMS * rng.random(users * events) ** 3).astype(np.int32),
        timestamps=rng.exponential(86_400, (users, events)).cumsum(1).astype(np.int64).ravel(),
        user_ids=Ids.from_values(range(users)),
        item_ids=Ids.from_values(range(ITEMS)),
    )


def exponents(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """For each mixer the least-squares slope of log time per token against log length, from ``FIT_FROM`` on.

    A step of constant tokens grows with this power of the length. A sequence's time grows with one power more: 1 for a
    linear mixer, 2 for a quadratic one.
    """
    found = {}
    for mixer in dict.fromkeys(case["mixer"] for case in cases):
        fitted = [c for c in cases if c["mixer"] == mixer and "ms" in c and c["length"] >= FIT_FROM]
        if len(fitted) > 1:
            lengths = [case["length"] for case in fitted]
            times = [np.log(case["ms"]["median"] / case["tokens"]) for case in fitted]
            slope = float(np.polyfit(np.log(lengths), times, 1)[0])
            found[mixer] = {"step": slope, "sequence": 1 + slope, "lengths": lengths}
    return found


def show_length(length: int, cases: Sequence[Case]) -> None:
    rows = [
        {
            "mixer": case["mixer"],
            "ms": f"{case['ms']['median']:.0f}",
            "quartiles": f"{case['ms']['q1']:.0f} to {case['ms']['q3']:.0f}",
            "tokens/s": f"{case['tokens_per_second']:,.0f}",
            "peak MiB": f"{case['peak_mib']:,.0f}",
            "error": f"{case['check']['error']:.0e}",
        }
        if "ms" in case
        else {"mixer": case["mixer"], "ms": case["left_out"]}
        for case in cases
        if case["length"] == length
    ]
    show_table(f"length {length}", ("mixer", "ms", "quartiles", "tokens/s", "peak MiB", "error"), rows)


def show_summary(cases: Sequence[Case], found: dict[str, dict[str, Any]]) -> None:
    rows: dict[str, dict[str, str]] = {}
    for case in cases:
        row = rows.setdefault(case["mixer"], {"mixer": case["mixer"]})
        speed = over_rival(case, cases)
        if "left_out" in case:
            row[str(case["length"])] = "left out"
            console.print(f"{case['mixer']}, {case['length']}: {case['left_out']}", highlight=False)
        elif speed is not None:
            row[str(case["length"])] = f"{speed:.2f}x"
    for mixer, fit in found.items():
        rows[mixer]["exponent"] = f"{fit['sequence']:.2f}"
    lengths = dict.fromkeys(str(case["length"]) for case in cases)
    show_table(f"times as fast as {RIVAL}", ("mixer", *lengths, "exponent"), list(rows.values()))


def plot(title: str, cases: Sequence[Case], path: Path) -> None:
    """Plots time per token and peak memory against length, a line for each mixer."""
    figure, (times, memory) = plots.new_figure(2)
    for mixer in dict.fromkeys(case["mixer"] for case in cases):
        timed = [case for case in cases if case["mixer"] == mixer and "ms" in case]
        if timed:
            at = [case["length"] for case in timed]
            micros = [
                {name: 1e3 * case["ms"][name] / case["tokens"] for name in ("q1", "median", "q3")} for case in timed
            ]
            plots.times(times, mixer, at, micros)
            plots.values(memory, mixer, at, [case["peak_mib"] for case in timed])
    lengths = list(dict.fromkeys(case["length"] for case in cases))
    plots.against_length(times, lengths, "time a token (µs)")
    plots.against_length(memory, lengths, "peak memory (MiB)")
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Scaling, description=__doc__).run()
