"""Every figure in a table of the README or the benchmark guide is also in the report, made from the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORT = (ROOT / "benchmarks/results/report.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"[\d,]*\.?\d+( ± \.\d+)?x?")


def figures(text: str) -> list[str]:
    """The cells of tables' bodies that hold nothing but a number, such as "1.96x" or ".0988 ± .0089"."""
    cells = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for row in table.splitlines()[2:]:
            cells += [cell.strip().strip("*") for cell in row.split("|")[2:-1]]
    return [cell for cell in cells if FIGURE.fullmatch(cell)]


@pytest.mark.parametrize("page", ["README.md", "docs/guide/benchmarks.md"])
def test_the_figures_of_a_page_are_those_of_the_report(page: str) -> None:
    found = figures((ROOT / page).read_text(encoding="utf-8"))
    assert found
    missing = [figure for figure in found if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)", REPORT)]
    assert not missing


def test_figures_are_found() -> None:
    table = "| a | b | c |\n|---|---|---|\n| x 7 | **.1996 ± .0004** | 12.4x |\n| y | not measured | 114,878 |\n"
    assert figures(table) == [".1996 ± .0004", "12.4x", "114,878"]
