"""The report's tables of suites that train models, one function each: from a result to lines of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness.recording import METRICS, Result
from benchmarks.harness.registry import OURS, RIVAL
from benchmarks.report.tables import Case, mean, table, title_of


def accuracy(result: Result) -> list[str]:
    """A table for each log: systems by length, best first, then the baselines."""
    lines = []
    runs, baselines = result.get("runs", []), result.get("baselines", [])
    for log in dict.fromkeys(run["log"] for run in [*runs, *baselines]):
        rows = []
        for length in sorted({entry["length"] for entry in [*runs, *baselines] if entry["log"] == log}):
            here = [run for run in runs if (run["log"], run["length"]) == (log, length)]
            rows += _ranked(here, "mixer", lambda run: title_of(run["mixer"]), length)
            rows += [
                [entry["name"], f"{length:,}", *(mean([entry[name]]) for name in METRICS), ""]
                for entry in baselines
                if (entry["log"], entry["length"]) == (log, length)
            ]
        lines += [f"`{log}`:", "", *table(["", "history", *METRICS, "seeds"], rows), ""]
        lines += _for_whom([run for run in runs if (run["log"], run["mixer"]) == (log, OURS)])
    return lines


def _for_whom(runs: Sequence[Case]) -> list[str]:
    """The first metric by how long a user's history is and how much of it is read; empty unless runs differ in the
    latter."""
    runs = [run for run in runs if "test_by_history_length" in run]
    lengths = sorted({run["length"] for run in runs})
    if len(lengths) < 2:
        return []
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    for run in runs:
        for bucket in run["test_by_history_length"]:
            users = found.setdefault((bucket["history"], bucket["targets"]), {})
            users.setdefault(run["length"], []).append(bucket[METRICS[0]])
    rows = [
        [history, f"{users:,}", *(mean(values[length]) for length in lengths)]
        for (history, users), values in found.items()
    ]
    head = ["events in a history", "users", *(f"{length:,} read" for length in lengths)]
    text = f"For whom does a longer history pay? {METRICS[0]} of {title_of(OURS)} by how long a user's history is:"
    return [text, "", *table(head, rows), ""]


def cache(result: Result) -> list[str]:
    def metrics(of: Mapping[str, float]) -> list[str]:
        return [mean([of[name]]) for name in METRICS]

    rows = []
    for mixer, whole in result["settings"]["at once"].items():
        rows.append([title_of(mixer), "history read at once", "", *metrics(whole), "", ""])
        for case in result["cases"]:
            if case["mixer"] == mixer:
                speed = f"{case['us a step']:.1f}" if "ms" in case else "refused"
                rows.append(["", case["state"], str(case["room"]), *metrics(case["test"]), f"{case['bytes']:,}", speed])
    return [*table(["", "state", "events", *METRICS, "bytes a user", "us a step"], rows), ""]


def ablation(result: Result) -> list[str]:
    rows = _ranked(result["runs"], "variant", lambda run: run["variant"], result["runs"][0]["length"])
    return [*table(["", "history", *METRICS, "seeds"], rows), ""]


def features(result: Result) -> list[str]:
    """NDCG@10 with and without features, by training events of the target item; then metrics of items never seen."""
    of = {name: [run for run in result["runs"] if run["variant"] == name] for name in ("plain", "features")}
    of = {name: runs for name, runs in of.items() if runs}
    head = ["training events of the item", "targets", *of]
    rows = [["all", "", *(mean([run["test"][METRICS[0]] for run in runs]) for runs in of.values())]]
    for place, bucket in enumerate(result["runs"][0]["test_by_popularity"]):
        means = [mean([run["test_by_popularity"][place][METRICS[0]] for run in runs]) for runs in of.values()]
        rows.append([bucket["popularity"], f"{bucket['targets']:,}", *means])
    lines = [f"{METRICS[0]} of items that were trained on:", "", *table(head, rows), ""]
    rows = []
    for name in sorted({name for run in result["runs"] for name in run["hidden"]}):
        found = [run["hidden"][name] for run in result["runs"] if name in run["hidden"]]
        metrics = [mean([one[metric] for one in found]) for metric in METRICS]
        rows.append([name, *metrics, f"{statistics.mean(one['median rank'] for one in found):,.0f}"])
    items, targets = result["runs"][0]["hidden_items"], next(iter(result["runs"][0]["hidden"].values()))["targets"]
    lines += [f"{targets:,} targets that are among {items:,} hidden items, by what rows of these begin as:", ""]
    return [*lines, *table(["", *METRICS, "median rank"], rows), ""]


def _ranked(runs: Sequence[Case], by: str, title: Callable[[Case], str], length: int) -> list[list[str]]:
    """A row for each group of runs, best NDCG@10 first."""
    groups: dict[str, list[Case]] = {}
    for run in runs:
        groups.setdefault(run[by], []).append(run)
    best_first = sorted(groups.values(), key=lambda group: -statistics.mean(run["test"][METRICS[0]] for run in group))
    return [
        [
            title(group[0]),
            f"{length:,}",
            *(mean([run["test"][name] for run in group]) for name in METRICS),
            str(len(group)),
        ]
        for group in best_first
    ]


def hosts(result: Result) -> list[str]:
    """A row for each library: the figures of attention and of HyenaMixer, over the seeds that both have."""
    rows = []
    for host in sorted({row["host"] for row in result["hosts"]}):
        by_mixer = [
            {row["seed"]: row for row in result["hosts"] if (row["host"], row["mixer"]) == (host, mixer)}
            for mixer in (RIVAL, OURS)
        ]
        seeds = by_mixer[0].keys() & by_mixer[1].keys()
        if not seeds:
            continue
        mine = [[of[seed] for seed in sorted(seeds)] for of in by_mixer]
        cells = [" → ".join(mean([row["NDCG@10"] for row in rows]) for rows in mine)]
        cells += [
            " → ".join(f"{statistics.mean(row[name] for row in rows):,.{digits}f}" for rows in mine)
            for name, digits in (("cpu_seconds_per_epoch", 2), ("peak_megabytes", 0))
        ]
        cells.append(" → ".join(_epochs(rows) for rows in mine))
        rows.append([host, *cells, str(len(seeds))])
    head = ["example", "NDCG@10", "CPU seconds per epoch", "peak MB", "best epoch", "seeds"]
    return [*table(head, rows), ""]


def _epochs(rows: Sequence[Case]) -> str:
    """The best epochs, each with a plus sign where training ended because it had reached its limit of epochs."""
    return ", ".join(f"{row['best_epoch']}{'+' if row['epochs'] == row['most_epochs'] else ''}" for row in rows)
