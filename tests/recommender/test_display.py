from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import pytest

from hyenarec.display import console, show_table, shown, training_display

COLUMNS = ("model", "NDCG@10", "Recall@10", "MRR", "s/epoch")
ROWS: list[dict[str, object]] = [
    {"model": "popularity, 7 days", "NDCG@10": 0.0153, "Recall@10": 0.0285, "MRR": 0.0167},
    {
        "model": "hyena",
        "NDCG@10": "0.0246 ±.0005",
        "Recall@10": "0.0471 ±.0005",
        "MRR": "0.0237 ±.0006",
        "s/epoch": "117.4 ±42.4",
    },
]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Runs a function on a terminal of ``columns`` and ``encoding``, and returns what it printed."""

    def run(act: Callable[[], None], columns: int | None = None, encoding: str = "utf-8") -> str:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(console, "_file", file)  # `file` is a property: undoing would store its present value
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setattr(console, "_width", columns)
        act()
        file.flush()
        content: bytes = file.buffer.getvalue()
        return content.decode(encoding)

    yield run
    monkeypatch.undo()


@pytest.mark.parametrize("columns", [40, 60, 80, None])
def test_no_width_costs_a_figure(printed: Callable[..., str], columns: int | None) -> None:
    text = printed(lambda: show_table("test", COLUMNS, ROWS), columns)
    for figure in (".0153", ".0285", ".0167", "0.0246 ±.0005", "0.0471 ±.0005", "0.0237 ±.0006", "117.4 ±42.4"):
        assert figure in text
    assert "…" not in text and "Recall@10" in text
    assert columns is None or max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("columns", [40, 80])
def test_a_long_id_folds_and_its_score_stays(printed: Callable[..., str], columns: int) -> None:
    item = "https://shop.example.com/" + "x" * 100
    rows = [{"rank": 1, "item": item, "score": 1.25}]
    text = printed(lambda: show_table("for u", ("rank", "item", "score"), rows, text=("item",)), columns)
    assert "1.2500" in text and max(map(len, text.splitlines())) <= columns
    assert item in re.sub(r"[^\w:/.]|1.2500", "", text).replace("11", "1")


def test_what_is_no_terminal_gets_ids_whole(printed: Callable[..., str]) -> None:
    item = "https://shop.example.com/" + "x" * 100
    rows = [{"rank": 1, "item": item, "score": 1.25}]
    assert item in printed(lambda: show_table("for u", ("rank", "item", "score"), rows, text=("item",)))


def test_nothing_that_is_printed_is_markup(printed: Callable[..., str]) -> None:
    names = ("[/b]", "LP [deluxe]", "[red]x[/red]", ":smile:", "[link=file:///etc]y[/link]")

    def act() -> None:
        for name in names:
            show_table(f"for {name}", (name, "score"), [{name: name, "score": 1.0}])
            console.print(f"written to {name}")
            console.rule(name)
            with console.status(f"reading {name}"):
                pass
            with training_display() as display:
                display.line(f"epoch {name}")

    text = printed(act)
    for name in names:
        for line in (f"for {name}", f"written to {name}", f"epoch {name}", f" {name} "):
            assert line in text


def test_control_characters_are_escaped_and_letters_are_not(printed: Callable[..., str]) -> None:
    hostile = "a\x1b[2Jb\r\nc\u202ed\u2028e\x85f\x00g\x9bh\udcffi"
    for text in (
        printed(lambda: show_table(hostile, (hostile, "score"), [{hostile: hostile, "score": 1.0}])),
        printed(lambda: console.print(hostile)),
        printed(lambda: console.rule(hostile)),
    ):
        assert r"a\x1b[2Jb\r\nc\u202ed\u2028e\x85f\x00g\x9bh\udcffi" in text
        assert not set(text) & set("\x1b\r\u202e\u2028\x85\x00\x9b")
    fine = "Ærøskøbing 東京 می‌خواهم 👨‍👩‍👧"
    assert shown(fine) == fine


def test_a_terminal_that_knows_only_ascii(printed: Callable[..., str]) -> None:
    def act() -> None:
        show_table("mean ± s.d.", COLUMNS, [*ROWS, {"model": "東京 é", "MRR": 0.5}])
        console.rule("hyena…")
        with console.status("reading ±"):
            pass

    text = printed(act, encoding="ascii")
    assert "mean +- s.d." in text and "0.0246 +-.0005" in text and r"\u6771\u4eac \xe9" in text and "hyena..." in text
    lengths = {len(line) for line in text.splitlines() if line.startswith(("|", "+"))}
    assert len(lengths) == 1  # all lines are aligned
    assert "é" in printed(lambda: console.print("é 東"), encoding="latin-1")
