"""Training steps on a log through the real loader: its own history lengths, packed and padded.

    python -m benchmarks step                                              # a generated log, 120 events per history
    python -m benchmarks step ml-1m.parquet --timestamp position --lengths 200
    python -m benchmarks step email-eu-core.parquet --lengths 1024         # joins the result of the command before

Writes benchmarks/results/step-DEVICE.json and .png. `packed` is how HyenaRec trains: embedding, norms, feed-forward and
loss see events alone, and only mixers that need a padded batch make one. `padded` is how most libraries train: every
slice is padded to the longest of its batch, and everything is computed for the padding too. Tokens per second count
events alone. All contestants get the same batches, with a fixed number of slices. Results of several logs and lengths
join as in `scaling`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.harness import plots
from benchmarks.harness import training_steps as steps
from benchmarks.harness.recording import RESULTS, earlier_cases, write
from benchmarks.harness.registry import MAIN, SYSTEMS, check_names
from hyenarec.cli.options import Columns
from hyenarec.data.batches import Batch, TrainingSlices
from hyenarec.data.reading import open_data
from hyenarec.data.store import SequenceStore
from hyenarec.data.synthetic import write_synthetic_log
from hyenarec.display import show_table
from hyenarec.errors import UserError
from hyenarec.packing import Packing
from hyenarec.training import Trainer

LAYOUTS = ("packed", "padded")
GENERATED = "generated"

Case = dict[str, Any]


@dataclass(frozen=True)
class LogStepSettings(steps.StepSettings):
    """What all measurements of a result share."""

    batch_size: int = 128
    """Slices per batch."""


@dataclass(frozen=True)
class Step:
    """Time training steps of mixers on a log."""

    data: Annotated[Path | None, tyro.conf.Positional] = None
    """Log or store; default: a generated log."""
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)
    mixers: tuple[str, ...] = MAIN
    """Systems to measure."""
    lengths: tuple[int, ...] = (200,)
    """Greatest lengths of a slice."""
    out: Path | None = None
    """Result without its suffix; default: benchmarks/results/step-DEVICE, or step-DEVICE-bfloat16."""
    settings: tyro.conf.OmitArgPrefixes[LogStepSettings] = field(default_factory=LogStepSettings)

    def run(self) -> None:
        check_names(self.mixers)
        if not self.lengths or min(self.lengths) < 1:
            raise UserError("option lengths: name at least one, each 1 or more")
        settings, device = asdict(self.settings), self.settings.training().torch_device()
        out = self.out or RESULTS / self.settings.name("step")
        log = self.data.stem if self.data else GENERATED
        earlier = earlier_cases(out.with_suffix(".json"), settings, device)
        cases = [case for case in earlier if case["log"] != log or case["length"] not in self.lengths]
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"  # every process opens it; none reads the log again
            open_log(self.data, self.columns).save(store)
            for length in self.lengths:
                cases += measure(log, store, self.mixers, length, self.settings)
                show(log, length, cases)
        cases.sort(key=lambda case: (case["log"], case["length"]))
        title = (
            f"training steps, {self.settings.batch_size} slices, d={self.settings.dim}, "
            f"{self.settings.blocks} blocks, {self.settings.precision}"
        )
        write(out.with_suffix(".json"), "step", title, {"settings": settings, "cases": cases}, device)
        plot(title, cases, out.with_suffix(".png"))


def open_log(data: Path | None, columns: Columns) -> SequenceStore:
    """The log at ``data``, or a generated one."""
    if data is not None:
        return open_data(data, **asdict(columns))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        write_synthetic_log(path)
        return open_data(path, **asdict(Columns()))


def measure(log: str, store: Path, mixers: tuple[str, ...], length: int, settings: LogStepSettings) -> list[Case]:
    """A case for each mixer and layout."""
    builds: dict[tuple[str, str], steps.Build] = {
        (mixer, layout): partial(log_trainer, mixer, layout, length, settings, store)
        for mixer, layout in product(mixers, LAYOUTS)
    }
    slices = log_trainer(mixers[0], "padded", length, settings, store).slices
    batches = len(slices)
    tokens = slices.tokens / batches
    rows = sum(len(batch.items) for batch in slices.epoch(0, 0)) / batches
    cases = []
    for (mixer, layout), found in steps.measure(builds, settings).items():
        case: Case = {"log": log, "mixer": mixer, "layout": layout, "length": length, "tokens": tokens} | found
        if "ms" in found:
            middle = found["ms"]["median"]
            case |= {
                "padding": 1 - tokens / rows if layout == "padded" else 0.0,
                "tokens_per_second": 1e3 * tokens / middle,
                "seconds_per_epoch": 1e-3 * middle * batches,
            }
        cases.append(case)
    return cases


def log_trainer(mixer: str, layout: str, length: int, settings: LogStepSettings, store: Path) -> Trainer:
    trainer = settings.trainer(mixer, length, settings.batch_size, SequenceStore.load(store))
    if layout == "padded":
        trainer.slices = PaddedSlices(trainer.store, trainer.split, length, settings.batch_size)
    return trainer


class PaddedSlices(TrainingSlices):
    """The same slices, each batch padded to its longest."""

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(seed, epoch, skip):
            yield padded(batch)


def padded(batch: Batch) -> Batch:
    """Every sequence right-padded to the longest, with item 0 and time 0; padding is predicted like any event."""
    packing = batch.packing

    def fill(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else packing.pad(values).flatten()

    return replace(
        batch,
        items=packing.pad(batch.items).flatten(),
        packing=Packing.from_lengths(torch.full_like(packing.lengths, packing.max_length)),
        timestamps=fill(batch.timestamps),
        targets=fill(batch.targets),
    )


def show(log: str, length: int, cases: list[Case]) -> None:
    rows = [
        {"mixer": case["mixer"], "layout": case["layout"]}
        | (
            {
                "ms": f"{case['ms']['median']:.0f}",
                "tokens/s": f"{case['tokens_per_second']:,.0f}",
                "s/epoch": f"{case['seconds_per_epoch']:.1f}",
                "peak MiB": f"{case['peak_mib']:,.0f}",
                "error": f"{case['check']['error']:.0e}",
            }
            if "ms" in case
            else {"ms": case["left_out"]}
        )
        for case in cases
        if (case["log"], case["length"]) == (log, length)
    ]
    columns = ("mixer", "layout", "ms", "tokens/s", "s/epoch", "peak MiB", "error")
    show_table(f"{log}, slices of at most {length} events", columns, rows)


def plot(title: str, cases: list[Case], path: Path) -> None:
    """Plots events per second of each mixer by log and length, packed as filled bars and padded as outlines."""
    timed = [case for case in cases if "ms" in case]
    groups = list(dict.fromkeys((case["log"], case["length"]) for case in timed))
    figure, axes = plots.new_figure(max(1, len(groups)))
    for group, panel in zip(groups, axes, strict=False):
        here = [case for case in timed if (case["log"], case["length"]) == group]
        mixers = list(dict.fromkeys(case["mixer"] for case in here))
        for case in here:
            filled = case["layout"] == "packed"
            plots.bar(panel, case["mixer"], mixers.index(case["mixer"]), case["tokens_per_second"], filled)
        panel.set_yticks(range(len(mixers)), [SYSTEMS[mixer].title for mixer in mixers])
        panel.invert_yaxis()
        panel.set(xlabel="events a second (outlined: padded)", title=f"{group[0]}, {group[1]:,} events")
    plots.finish(figure, title, path)


def main() -> None:
    tyro.cli(Step, description=__doc__).run()
