"""One Markdown page from the folder of results: what was run, on which machine, and where HyenaRec wins and loses.

    python -m benchmarks report                         # benchmarks/results/*.json to benchmarks/results/report.md

Every figure, and every sentence with a figure, is computed from the JSON. A speed whose equivalence check is red or
missing is not reported: the page says so in its place and lists it, and the command exits with code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.harness.checks import refusal
from benchmarks.harness.recording import RESULTS, Result, is_result, read
from benchmarks.harness.registry import SYSTEMS
from benchmarks.report import rankings, tables
from benchmarks.report.verdicts import verdicts
from hyenarec.errors import UserError
from hyenarec.files import write_text

KINDS = {"cpu": "On a CPU", "cuda": "On a GPU"}


@dataclass(frozen=True)
class Section:
    """A suite's section of the page: the question that it answers, and the tables of one of its results."""

    title: str
    question: str
    tables: Callable[[Result], list[str]]
    kinds: Sequence[str] = tuple(KINDS)  # of machines, listed one after the other; empty: all results together


SECTIONS = {
    "accuracy": Section(
        "Accuracy",
        "Who ranks the item that came next highest? All items are ranked but those of the history; mean ± standard "
        "deviation over seeds. `popularity` and `repeat-last` need no training.",
        rankings.accuracy,
        (),
    ),
    "capability": Section(
        "What a long memory is worth",
        "How near does each system come to the best possible ranking, where that is known? Generated histories whose "
        "seasons come back after 500 to 2,000 events; few epochs for everyone. Metrics are means over everything that "
        "may come next.",
        rankings.accuracy,
        (),
    ),
    "scaling": Section(
        "Training steps against history length",
        "What does a training step cost as histories grow, the events of a batch kept the same? Milliseconds of a "
        "whole step (loader, model, sampled softmax, AdamW), and how many times as fast as SASRec's at that length.",
        tables.scaling,
    ),
    "step": Section(
        "Training steps on a log",
        "What do a log's own history lengths change? `packed` computes on events alone, `padded` pads every slice of a "
        "history to the longest of its batch. Events per second; padding does not count.",
        tables.step,
    ),
    "serving": Section(
        "Serving",
        "How long until one more event of a user is scored? `forward` reads the whole history again, `step` moves a "
        "stored state on by one event. Milliseconds, median and 99% quantile; `top-k`, the scores of all items and the "
        "best of them, comes on top of either.",
        tables.serving,
    ),
    "cache": Section(
        "States and caches",
        "What does a user's state cost, and what does a smaller one lose? Histories are read one event at a time. Of "
        "SASRec's caches, `window` keeps the last events, `citrus` those that the last events attend to. HyenaRec's "
        "`compact` state keeps moments of chunks of events instead of the events.",
        rankings.cache,
        (),
    ),
    "service": Section(
        "The service under load",
        "What does `hyenarec serve` stand, with the client beside it on the same cores? Requests a second, and "
        "milliseconds, median / 99% quantile, of adding an event (stored before it is acknowledged) and of asking for "
        "the best 10 items.",
        tables.service,
    ),
    "operator": Section(
        "The convolution alone",
        "How fast is the Legendre convolution itself? Milliseconds, and how many times as long other programs take on "
        "tensors of the same shape.",
        tables.operator,
        ("cpu",),
    ),
    "gpu": Section("The operators and the mixer on a GPU", "The same question on a GPU.", tables.operator, ("cuda",)),
    "compiled": Section(
        "What the Triton kernels compile to",
        "Do the kernels fit GPUs of compute capability 8.0 and 9.0? Compiled ahead of time, in every shipped "
        "configuration; the most of any variant.",
        tables.compiled,
        (),
    ),
    "model": Section(
        "What the GPU kernels would take",
        "How long would the Legendre convolution take on an H100? Estimates from what its compiled kernels execute; "
        "nothing was measured.",
        tables.model,
        (),
    ),
    "losses": Section("The losses over a catalogue", "Milliseconds of forward and backward.", tables.losses, ("cpu",)),
    "loading": Section("Reading a log", "Seconds and memory until a log is in memory.", tables.loading, ("cpu",)),
    "catalogue": Section(
        "Very many items",
        "What does a training step cost, by the size of the catalogue, in one process and in several? Milliseconds of "
        "one core's time in the shortest step, for 6,400 events of 64 channels, and in parentheses the efficiency of "
        "several processes. Then, where measured: by how much the process with the most tokens is over the mean, and "
        "what an approximate index finds.",
        tables.catalogue,
        ("cpu",),
    ),
    "hosts": Section(
        "In other libraries",
        "What changes if attention is replaced in a library that people already have? Each trains in its own way, on "
        "one thread, until validation no longer improves, and is tested with the weights of its best epoch (+: "
        "training reached its limit of epochs and might have improved further). NDCG@10, mean ± standard deviation "
        "over the same seeds; mean CPU seconds per epoch, which other work on the machine does not change, and mean "
        "peak memory of the process.",
        rankings.hosts,
        ("cpu",),
    ),
    "features": Section(
        "Item features",
        "What do features of items change for items with few training events, and for items that the model has never "
        "seen? Hidden items are left out of the training log and then ranked, among all items and among themselves, "
        "with embedding rows from their features alone, with random rows, and with the mean row, which is the same for "
        "all of them.",
        rankings.features,
        (),
    ),
    "ablation": Section("The hyena mixer's options", "What is each option worth?", rankings.ablation, ()),
}


@dataclass
class Page:
    """The results of a folder, without the speeds that must not be reported."""

    results: dict[str, Result] = field(default_factory=dict)  # by file name
    refused: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Page:
        page = cls()
        for path in sorted(folder.glob("*.json")):
            if not is_result(path):
                page.unread.append(path.name)
                continue
            result = read(path)
            for case in result.get("cases", []):
                reason = refusal(case) if "ms" in case else None
                if reason is not None:
                    page.refused.append(f"{path.name}: {tables.name_of(case)}: {reason}")
                    del case["ms"]
                    case["left_out"] = "refused"
            page.results[path.name] = result
        return page

    def lines(self, folder: Path) -> list[str]:
        lines = [
            "# How HyenaRec compares",
            "",
            "HyenaRec replaces a recommender's attention by a long convolution. This page sets it against the systems "
            "that one would name beside it: all share the embedding, feed-forward, loss, loader and optimiser, and "
            "differ in the mixer alone. `python -m benchmarks report` wrote it from the JSON files beside it. Every "
            "speed on it comes from a run that also checked, on the same inputs, that the right values are computed.",
            "",
        ]
        lines += [*self.systems(), *self.machines()]
        lines += ["## What wins where, what loses where", "", *verdicts(self.results.values())]
        for suite, section in SECTIONS.items():
            lines += self.section(suite, section, folder)
        if self.refused:
            lines += ["## Not reported", "", "Speeds whose equivalence check is red or missing:", ""]
            lines += [*(f"- {line}" for line in self.refused), ""]
        if self.unread:
            lines += ["## Not read", "", "JSON files here that are not in the format of the suites:", ""]
            lines += [*(f"- [{name}]({name})" for name in self.unread), ""]
        return lines

    def machines(self) -> list[str]:
        rows = []
        for name, result in self.results.items():
            machine = result["environment"]
            threads = f", threads: {machine['threads']}" if machine["kind"] == "cpu" else ""
            revision = (machine["revision"] or "installed copy")[:10]
            command = f"`{result['command']}`"
            rows.append(
                [
                    f"[{name}]({name})",
                    command,
                    machine["device"] + threads,
                    machine["backend"],
                    machine["torch"],
                    revision,
                ]
            )
        head = ["result", "command", "machine", "kernels", "torch", "revision"]
        return ["## What was run, and on what", "", *tables.table(head, rows, numbers=False), ""]

    def systems(self) -> list[str]:
        """The table of every system that a result names."""
        entries = (entry for r in self.results.values() for key in ("runs", "cases") for entry in r.get(key, []))
        named = {entry["mixer"] for entry in entries if "mixer" in entry}
        rows = [[system.title, f"`{name}`", system.line] for name, system in SYSTEMS.items() if name in named]
        return ["## Who is compared", "", *tables.table(["", "name", "mixes a history by"], rows, numbers=False), ""]

    def section(self, suite: str, section: Section, folder: Path) -> list[str]:
        lines = [f"## {section.title}", "", section.question, ""]
        mine = {name: result for name, result in self.results.items() if result["suite"] == suite}
        for kind in section.kinds or ("",):
            here = {name: r for name, r in mine.items() if kind in ("", r["environment"]["kind"])}
            if len(section.kinds) > 1:
                lines += [f"### {KINDS[kind]}", ""]
            if not here:
                lines += ["Not measured.", ""]
            for name, result in here.items():
                lines += [f"{result['title'][0].upper()}{result['title'][1:]} ([{name}]({name})):", ""]
                lines += section.tables(result)
                picture = Path(name).with_suffix(".png")
                if (folder / picture).exists():
                    lines += [f"![{result['title']}]({picture})", ""]
        return lines


@dataclass(frozen=True)
class Report:
    """Write the page."""

    folder: Annotated[Path, tyro.conf.Positional] = RESULTS
    """Folder of results."""

    def run(self) -> list[str]:
        """Write the page. Returns the speeds that were refused, one line each."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of results")
        page = Page.of(self.folder)
        write_text(self.folder / "report.md", "\n".join(page.lines(self.folder)).rstrip() + "\n")
        print(f"written to {self.folder / 'report.md'}")
        return page.refused


def main() -> None:
    refused = tyro.cli(Report, description=__doc__).run()
    for line in refused:
        print(f"refused: {line}", file=sys.stderr)
    if refused:
        sys.exit(1)
