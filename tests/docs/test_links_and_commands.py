"""Links in the documentation have a target, and the commands shown exist and have the options that they are given."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks.front_door import SUITES
from hyenarec.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
COMMAND = re.compile(
    r"^(?:HYENAREC_\w+=\S+ )?(hyenarec|python -m benchmarks|python|make|pytest) ?([^#\n]*)", re.MULTILINE
)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST write them in addresses."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for path, anchor in LINK.findall(text):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}" if anchor else path)
    return broken


@cache
def options(command: str) -> set[str]:
    """The options named in the help of a ``hyenarec`` command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exited:
        main([command, "--help"])
    assert exited.value.code == 0
    return set(re.findall(r"--[\w.-]+", out.getvalue()))


def wrong_commands(text: str) -> list[str]:
    """The commands in console blocks that do not exist, or that have no such options."""
    wrong = []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for program, rest in COMMAND.findall(block):
            words = rest.split()
            if program == "hyenarec":
                good = {w.split("=")[0] for w in words if w.startswith("--")} <= options(words[0])
            elif program == "python -m benchmarks":
                good = not words or words[0] in SUITES
            elif program == "make":
                good = all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words)
            else:  # paths of the repository must exist; the reader's own files need not
                paths = [w for w in words if w.startswith(("examples/", "tests/", "setup.py"))]
                good = all((ROOT / path).exists() for path in paths)
            if not good:
                wrong.append(f"{program} {rest}".strip())
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


def test_every_file_that_a_page_names_exists() -> None:
    name = re.compile(r"`((?:hyenarec_kernels|csrc|python|benchmarks|tests|examples|docs)/[\w/.-]+\.\w+)`")
    named = {(page.name, path) for page in PAGES for path in name.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []


def test_the_readme_fits_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_faults_are_found() -> None:
    page = ROOT / "README.md"
    assert broken_links(page, "[a](docs/nowhere.md) [b](README.md#install) [c](README.md#nowhere)") == [
        "docs/nowhere.md",
        "README.md#nowhere",
    ]
    bad = "hyenarec train log.csv --oot x", "python -m benchmarks nothing", "make tea", "python examples/none.py"
    assert wrong_commands("\n".join(["```console", *bad, "hyenarec prepare a b", "```", ""])) == list(bad)


def test_every_environment_variable_is_in_the_table() -> None:
    sources = [ROOT / "setup.py", *(p for f in ("hyenarec_kernels", "python", "csrc") for p in (ROOT / f).rglob("*"))]
    text = "".join(p.read_text(encoding="utf-8") for p in sources if p.suffix in {".py", ".cpp", ".h"})
    read = set(re.findall(r'"(HYENAREC_[A-Z_]+)"', text)) - {"HYENAREC_ISA"}  # HYENAREC_ISA is a macro
    assert {"HYENAREC_BACKEND", "HYENAREC_BUILD", "HYENAREC_CPU_ISA", "HYENAREC_LOG"} <= read
    table = (ROOT / "docs/backends.md").read_text(encoding="utf-8")
    assert sorted(v for v in read if f"| `{v}=" not in table) == []
