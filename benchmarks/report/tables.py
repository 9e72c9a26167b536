"""The report's tables of speed, one function a suite: from a result to lines of Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.harness.recording import Result
from benchmarks.harness.registry import OURS, RIVAL, SYSTEMS

Case = Mapping[str, Any]

SPEED_UP = 6.0  # over attention, in training, as the source paper's abstract reports it


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> list[str]:
    """A Markdown table; with ``numbers`` all columns but the first are right-aligned."""
    marks = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]


def title_of(mixer: str) -> str:
    return SYSTEMS[mixer].title if mixer in SYSTEMS else mixer


def name_of(case: Case) -> str:
    """A case in a few words."""
    left = ("ms", "check", "rivals")
    return ", ".join(f"{key} {case[key]}" for key in case if isinstance(case[key], str | int) and key not in left)


def grid(
    cases: Iterable[Case], row: Callable[[Case], str], column: Callable[[Case], Any], cell: Callable[[Case], str]
) -> list[str]:
    """A table with a row and a column for each value that occurs; a case without a time says why in a word or two."""
    rows: dict[str, dict[Any, str]] = {}
    columns: dict[Any, None] = {}
    for case in cases:
        columns[column(case)] = None
        text = cell(case) if "ms" in case else ("refused" if case["left_out"] == "refused" else "left out")
        rows.setdefault(row(case), {})[column(case)] = text
    head = ["", *(f"{name:,}" if isinstance(name, int) else str(name) for name in columns)]
    lines = [[name, *(cells.get(column, "") for column in columns)] for name, cells in rows.items()]
    return [*table(head, lines), ""]


def mean(values: Sequence[float], digits: int = 4) -> str:
    """Mean, and standard deviation where there are several, without leading zeros."""
    text = f"{statistics.mean(values):.{digits}f}".lstrip("0")
    return text + (f" ± {statistics.stdev(values):.{digits}f}".replace(" 0.", " .") if len(values) > 1 else "")


def number(milliseconds: float) -> str:
    """Three significant digits, but at most three decimals."""
    digits = max(0, 2 - math.floor(math.log10(milliseconds)))
    return f"{milliseconds:,.{min(digits, 3)}f}"


def scaling(result: Result) -> list[str]:
    cases = result["cases"]

    def cell(case: Case) -> str:
        speed = over_rival(case, cases)
        return number(case["ms"]["median"]) + (f" ({speed:.2f}x)" if speed and case["mixer"] != RIVAL else "")

    lines = grid(cases, _system, _length, cell)
    lines += ["Peak memory, MiB:", "", *grid(cases, _system, _length, lambda case: f"{case['peak_mib']:,.0f}")]
    timed = {case["mixer"] for case in cases if "ms" in case}
    fits = {mixer: fit for mixer, fit in result["exponents"].items() if mixer in timed}
    if fits:
        lengths = next(iter(fits.values()))["lengths"]
        text = ", ".join(f"{title_of(m)} {fit['sequence']:.2f}" for m, fit in sorted(fits.items(), key=_growth))
        lines += [
            f"A sequence's time grows with this power of its length from {min(lengths):,} events on (1 is linear, 2 "
            f"quadratic; each fitted over the lengths it was timed at): {text}.",
            "",
        ]
    return [*lines, *_speed_up(cases)]


def over_rival(case: Case, cases: Iterable[Case]) -> float | None:
    """How many times as fast as the rival the case is, at the same length; None where either has no time."""
    rival = next((c for c in cases if c["mixer"] == RIVAL and c["length"] == case["length"] and "ms" in c), None)
    return rival["ms"]["median"] / case["ms"]["median"] if rival and "ms" in case else None


def reached(points: Sequence[tuple[int, float]], speed: float) -> float | None:
    """The length at which the speed-ups ``points``, pairs of a length and a speed-up, first reach ``speed``,
    interpolated by a power law; None where they do not."""
    for index, (length, value) in enumerate(points):
        if value >= speed:
            if index == 0:
                return length
            before, low = points[index - 1]
            share = math.log(speed / low) / math.log(value / low)
            return float(before * (length / before) ** share)
    return None


def _speed_up(cases: Sequence[Case]) -> list[str]:
    ours = [case for case in cases if case["mixer"] == OURS]
    points = [(case["length"], speed) for case in ours if (speed := over_rival(case, cases)) is not None]
    if not points:
        return []
    at = reached(points, SPEED_UP)
    if at is None:
        length, best = max(points, key=lambda point: point[1])
        text = f"is not reached up to {points[-1][0]:,} events; the most is {best:.1f} times, at {length:,}."
    else:
        text = f"is reached at about {at:,.0f} events."
    return [
        f"The speed-up over attention that HyenaRec's paper reports, {SPEED_UP:g} times, {text}",
        "",
    ]


def step(result: Result) -> list[str]:
    lines = []
    for log, length in dict.fromkeys((case["log"], case["length"]) for case in result["cases"]):
        here = [case for case in result["cases"] if (case["log"], case["length"]) == (log, length)]
        padding = max((case["padding"] for case in here if "padding" in case), default=0.0)
        rows = []
        for mixer in dict.fromkeys(case["mixer"] for case in here):
            by_layout = {case["layout"]: case for case in here if case["mixer"] == mixer}
            timed = {layout: case for layout, case in by_layout.items() if "ms" in case}
            gain = (
                f"{timed['packed']['tokens_per_second'] / timed['padded']['tokens_per_second']:.2f}x"
                if len(timed) == 2
                else ""
            )
            rates = [_rate(by_layout.get(layout)) for layout in ("packed", "padded")]
            memory = [f"{timed[layout]['peak_mib']:,.0f}" if layout in timed else "" for layout in ("packed", "padded")]
            rows.append([title_of(mixer), rates[0], rates[1], gain, " / ".join(memory)])
        lines += [
            f"`{log}`, slices of at most {length:,} events; {padding:.0%} of a padded batch is padding:",
            "",
            *table(["", "packed", "padded", "packing gains", "peak MiB"], rows),
            "",
        ]
    return lines


def _rate(case: Case | None) -> str:
    if case is None:
        return ""
    return f"{case['tokens_per_second']:,.0f}" if "ms" in case else case["left_out"]


def serving(result: Result) -> list[str]:
    lines = []
    for batch in dict.fromkeys(case["batch"] for case in result["cases"]):
        here = [case for case in result["cases"] if case["batch"] == batch]

        def row(case: Case) -> str:
            return f"{title_of(case['mixer'])}, {case['what']}".removeprefix(", ")

        def cell(case: Case) -> str:
            return f"{number(case['ms']['median'])} / {number(case['ms']['p99'])}"

        lines += [f"{batch} user{'s' if batch > 1 else ''} a call:", "", *grid(here, row, _length, cell)]
    return lines


def service(result: Result) -> list[str]:
    """A table for each mix: requests per second, and median / 99% quantile of the latency, of each kind of request."""
    lines = []
    for mix in dict.fromkeys(case["mix"] for case in result["cases"]):
        here = [case for case in result["cases"] if case["mix"] == mix]

        def row(case: Case) -> str:
            return f"{title_of(case['mixer'])}, {case['request']}"

        def cell(case: Case) -> str:
            return f"{case['per_second']:,.0f}: {number(case['ms']['median'])} / {number(case['ms']['p99'])}"

        lines += [f"Mix `{mix}`, by people at once:", "", *grid(here, row, lambda case: case["concurrent"], cell)]
    return lines


def operator(result: Result) -> list[str]:
    """A table for each operation: our times by shape, and the rivals' times over ours."""
    lines = []
    for what in dict.fromkeys(case["what"] for case in result["cases"]):
        here = [case for case in result["cases"] if case["what"] == what]
        rivals = list(dict.fromkeys(name for case in here for name in case.get("rivals", {})))
        rows = [
            [
                case["shape"],
                number(case["ms"]["median"]) if "ms" in case else case["left_out"],
                *(_times(case, name) for name in rivals),
            ]
            for case in here
        ]
        lines += [f"{what}:", "", *table(["shape", "ms", *(f"{name} takes" for name in rivals)], rows), ""]
    return lines


def _times(case: Case, rival: str) -> str:
    if "ms" not in case or rival not in case.get("rivals", {}):
        return ""
    return f"{case['rivals'][rival]['median'] / case['ms']['median']:.1f}x"


def compiled(result: Result) -> list[str]:
    """One line per kernel; where architectures differ, the figures of all, in order of their names."""
    architectures = sorted({row["architecture"] for row in result["kernels"]})
    kernels: dict[str, dict[str, list[Case]]] = {}
    for row in result["kernels"]:
        kernels.setdefault(row["kernel"], {}).setdefault(row["architecture"], []).append(row)

    def most(variants: Mapping[str, Sequence[Case]], what: Callable[[Case], float]) -> str:
        found = [f"{max(map(what, variants[name])):.0f}" for name in architectures]
        return found[0] if len(set(found)) == 1 else " / ".join(found)

    rows = [
        [
            kernel,
            str(sum(map(len, variants.values()))),
            most(variants, lambda row: row["registers"]),
            most(variants, lambda row: row["spilled"]),
            most(variants, lambda row: row["shared"] / 1024),
            "yes" if any(row["tensor_core"] for rows in variants.values() for row in rows) else "",
        ]
        for kernel, variants in sorted(kernels.items())
    ]
    head = ["kernel", "variants", "registers", "bytes spilled", "shared KiB", "tensor cores"]
    return [f"{' / '.join(architectures)}:", "", *table(head, rows), ""]


def model(result: Result) -> list[str]:
    """One line per shape: predicted picoseconds per element, beside the goals."""
    settings = result["settings"]
    goals = settings["goals"]

    def span(row: Mapping[str, Any], what: str) -> str:
        return f"{row[what]['at least']:.1f} to {row[what]['likely']:.1f}"

    def share(row: Mapping[str, Any]) -> str:
        low, high = (settings["copy"] / row["forward"][name] for name in ("likely", "at least"))
        return f"{low:.0%} to {high:.0%}"

    def stack(row: Mapping[str, Any]) -> str:
        found = [kernel.get("stack") for kernel in row["forward and backward"]["kernels"].values()]
        return "not recorded" if None in found else str(max(found))

    rows = [
        [
            f"{row['backend']}, L = {row['length']:,}, N = {row['terms']}{', packed' if row['packed'] else ''}",
            span(row, "forward"),
            share(row),
            span(row, "forward and backward"),
            stack(row),
        ]
        for row in result["estimates"]
    ]
    line = (
        f"Picoseconds an element, estimates for {settings['gpu']}: at full rates, and at those that good kernels "
        f"reach. Goals: {goals['of a copy, forward']:.0%} of a copy forward, {goals['ps, forward and backward']:.0f} "
        "ps with the backward pass. The last column: bytes of a thread's stack, where spilled registers go."
    )
    return [line, "", *table(["shape", "forward", "of a copy", "with backward", "stack"], rows), ""]


def losses(result: Result) -> list[str]:
    lines = []
    for kind in dict.fromkeys(case["kind"] for case in result["cases"]):
        sizes = ", ".join(f"{count:,} {name}" for name, count in result["settings"][kind].items())
        lines += [f"{kind.capitalize()}, {sizes}:", ""]
        lines += grid(
            [case for case in result["cases"] if case["kind"] == kind],
            lambda case: str(case["loss"]),
            lambda case: case["precision"],
            lambda case: number(case["ms"]["median"]),
        )
    return lines


def loading(result: Result) -> list[str]:
    return grid(
        result["cases"],
        lambda case: f"{case['format']}, ids are {case['ids']}",
        lambda case: "s / GiB",
        lambda case: f"{case['ms']['median'] / 1e3:.1f} / {case['peak_gib']:.2f}",
    )


def catalogue(result: Result) -> list[str]:
    def cell(case: Case) -> str:
        efficiency = f" ({case['efficiency']:.0%})" if "efficiency" in case else ""
        return number(case["ms"]["min"]) + efficiency

    def row(case: Case) -> str:
        processes = "one process" if case["processes"] == 1 else f"each of {case['processes']} processes"
        return f"{case['loss']} loss, {processes}" + (", shards" if case["shards"] else "")

    lines = grid(result["cases"], row, lambda case: case["items"], cell)
    for key in ("sharing", "index"):
        rows = result.get(key, [])
        if rows:
            cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in found.values()] for found in rows]
            lines += [*table(list(rows[0]), cells), ""]
    return lines


def _system(case: Case) -> str:
    return title_of(case["mixer"])


def _length(case: Case) -> int:
    return int(case["length"])


def _growth(item: tuple[str, Mapping[str, float]]) -> float:
    return item[1]["sequence"]
