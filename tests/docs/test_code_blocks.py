"""Every Python block of the documentation runs: the blocks of one page in order, in one namespace.

A block that cannot run here has ``<!-- not run: reason -->`` in the line above it. A page that needs another page's
files has ``<!-- after: page.md -->``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<mark><!-- not run: [^\n]+ -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
AFTER = re.compile(r"^<!-- after: (\S+) -->$", re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The blocks to run: each with the number of lines above it, and its code."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in BLOCK.finditer(text) if not m["mark"]]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = [page.parent / name for name in AFTER.findall(page.read_text(encoding="utf-8"))]
    for each in (*before, page):
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for line, code in blocks(each):
            # put as many empty lines before the code as the page has, so that a traceback gives the page's line number
            exec(compile("\n" * line + code, str(each), "exec"), namespace)


def test_pages_that_teach_have_blocks_that_run() -> None:
    with_blocks = {str(p.relative_to(ROOT)) for p in PAGES if blocks(p)}
    assert with_blocks >= {"README.md", "docs/algorithm.md", "docs/guide/drop-in.md", "docs/guide/serving.md"}


def test_marks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n<!-- not run: needs a GPU -->\n```python\nb = 2\n```\n")
    assert blocks(page) == [(1, "a = 1\n")]
