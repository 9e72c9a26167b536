"""Where HyenaRec wins and loses, from the results: against SASRec, and against the best of all other systems.

Two times count as level where their quartiles overlap, two memory figures where they differ by at most 1%. Accuracies
are compared seed by seed: two systems are level where the differences between runs of the same seed have a mean of at
most their standard deviation, and a single pair decides nothing. Where HyenaRec was trained in several variants, the
one that is best in validation stands for it, chosen among those with two seeds or more if there are any.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.recording import Result
from benchmarks.harness.registry import OURS, RIVAL, SYSTEMS
from benchmarks.report.tables import mean, number, table, title_of

METRIC = "NDCG@10"
WINS, LEVEL, LOSES, ONE_SEED = VERDICTS = ("wins", "level", "loses", "one seed")


@dataclass(frozen=True)
class Figure:
    """A system's figure, with the range in which another figure is level with it, or with the values of its seeds."""

    system: str
    value: float
    low: float
    high: float
    text: str
    seeds: dict[int, float] = field(default_factory=dict)
    validation: float = 0.0


def verdicts(results: Iterable[Result]) -> list[str]:
    """How often ours wins and loses against the best of the others, by what is compared; and a table of all
    comparisons."""
    rows = []
    tally: dict[str, Counter[str]] = {}
    mine = {name for name, system in SYSTEMS.items() if system.mixer == OURS}
    for what, where, figures, higher in comparisons(results):
        variants = [figure for figure in figures if figure.system in mine]
        others = [figure for figure in figures if figure.system not in mine]
        if not variants or not others:
            continue
        ours = max(variants, key=lambda figure: (len(figure.seeds) > 1, figure.validation, figure.system == OURS))
        decided = [figure for figure in others if judge(ours, figure, higher) != ONE_SEED]
        best = max(decided or others, key=lambda figure: figure.value if higher else -figure.value)
        rival = next((figure for figure in others if figure.system == RIVAL), None)
        against = rival.text if rival else ""
        if rival in decided:
            against += f" ({judge(ours, rival, higher)})"
        verdict = judge(ours, best, higher)
        tally.setdefault(what, Counter())[verdict] += 1
        rows.append(
            [
                f"{what}, {where}",
                ours.text if ours.system == OURS else f"{ours.text}, {title_of(ours.system)}",
                against,
                f"{best.text}, {title_of(best.system)}",
                f"**{verdict}**" if verdict == WINS else verdict,
            ]
        )
    if not rows:
        return ["Nothing that compares HyenaRec with another system was measured.", ""]
    lines = [
        f"{title_of(OURS)} against the best of the other systems. Of times and memory, less is better; accuracies are "
        "compared seed by seed, with systems of two seeds or more where there are any, and one seed decides nothing; "
        "where HyenaRec was trained in several variants, the one best in validation counts:",
        "",
    ]
    lines += [*(f"- {what}: {_counts(found)}" for what, found in tally.items()), ""]
    head = ["", title_of(OURS), f"{title_of(RIVAL)} (against it)", "best of the others", "against the best"]
    return [*lines, *table(head, rows), ""]


def _counts(found: Counter[str]) -> str:
    counts = ", ".join(f"{verdict} {found[verdict]}" for verdict in VERDICTS if verdict != ONE_SEED or found[verdict])
    return f"{counts} of {found.total()}"


def judge(ours: Figure, other: Figure, higher: bool) -> str:
    difference = ours.value - other.value
    if ours.seeds:
        differences = [ours.seeds[seed] - other.seeds[seed] for seed in ours.seeds.keys() & other.seeds.keys()]
        if len(differences) < 2:
            return ONE_SEED
        difference = statistics.mean(differences)
        level = abs(difference) <= statistics.stdev(differences)
    else:
        level = ours.low <= other.high and other.low <= ours.high
    return LEVEL if level else WINS if (difference > 0) == higher else LOSES


def comparisons(results: Iterable[Result]) -> Iterable[tuple[str, str, list[Figure], bool]]:
    """What is compared, where, everyone's figures, and whether higher is better."""
    for result in results:
        cases = [case for case in result.get("cases", []) if "ms" in case]
        machine = "GPU" if result["environment"]["kind"] == "cuda" else "CPU"
        note = f"{machine}, {result['settings'].get('precision', 'float32')}"
        match result["suite"]:
            case "accuracy":
                runs = result.get("runs", [])
                for log, length in dict.fromkeys((run["log"], run["length"]) for run in runs):
                    here = [run for run in runs if (run["log"], run["length"]) == (log, length)]
                    yield METRIC, f"{log}, {length:,} events", of_runs(here), True
            case "scaling":
                for length in dict.fromkeys(case["length"] for case in cases):
                    here = [case for case in cases if case["length"] == length]
                    yield "training step (ms)", f"{length:,} events, {note}", of_times(here), False
                    memory = [exact(case["mixer"], case["peak_mib"], f"{case['peak_mib']:,.0f}") for case in here]
                    yield "training memory (MiB)", f"{length:,} events, {note}", memory, False
            case "step":
                for log, length in dict.fromkeys((case["log"], case["length"]) for case in cases):
                    here = [
                        case
                        for case in cases
                        if (case["log"], case["length"], case["layout"]) == (log, length, "packed")
                    ]
                    yield "training step (ms)", f"{log}, packed, {length:,} events, {note}", of_times(here), False
            case "serving":
                for length, batch in dict.fromkeys((case["length"], case["batch"]) for case in cases):
                    here = [case for case in cases if (case["length"], case["batch"]) == (length, batch)]
                    figures = of_times([case for case in here if case["mixer"]])
                    yield "serving (ms)", f"{length:,} events, batch {batch}, {note}", figures, False


def of_times(cases: Sequence[dict[str, Any]]) -> list[Figure]:
    """The fastest time of each system."""
    best: dict[str, dict[str, float]] = {}
    for case in cases:
        if case["mixer"] not in best or case["ms"]["median"] < best[case["mixer"]]["median"]:
            best[case["mixer"]] = case["ms"]
    return [Figure(mixer, ms["median"], ms["q1"], ms["q3"], number(ms["median"])) for mixer, ms in best.items()]


def of_runs(runs: Sequence[dict[str, Any]]) -> list[Figure]:
    """The mean of each system over its seeds."""
    figures = []
    for mixer in dict.fromkeys(run["mixer"] for run in runs):
        mine = [run for run in runs if run["mixer"] == mixer]
        seeds = {run["seed"]: run["test"][METRIC] for run in mine}
        values = list(seeds.values())
        middle, text = statistics.mean(values), mean(values) + (" (one seed)" if len(values) == 1 else "")
        validation = statistics.mean(run["validation"][METRIC] for run in mine)
        figures.append(Figure(mixer, middle, middle, middle, text, seeds, validation))
    return figures


def exact(system: str, value: float, text: str) -> Figure:
    """A figure without quartiles; those within 1% are level with it."""
    return Figure(system, value, 0.995 * value, 1.005 * value, text)
