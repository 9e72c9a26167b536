"""Names of items from a catalogue, lists of items for filters, and how commands use both."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch.nn.functional import cosine_similarity

from hyenarec.cli import main
from hyenarec.data.ids import Ids
from hyenarec.data.names import read_item_list, read_names
from hyenarec.errors import UserError
from hyenarec.recommendation import Recommender

Fails = Callable[..., str]
NUMBERS, WORDS = Ids.from_values([1, 2, 30]), Ids.from_values(["1", "007", "tea"])
# Markup for rich and for HTML, control characters, and characters that end a line.
HOSTILE = ["[bold]x[/bold]", "[/b]", "<script>alert(1)</script>", "\x1b[31mred", "a\u2028b", "a\nb", ":smile:", "é"]


def catalogue(path: Path, names: list[str | None]) -> Path:
    """Writes names for the items 100, 101, ..., which the run's log has."""
    pl.DataFrame({"item_id": range(100, 100 + len(names)), "title": names}).write_parquet(path)
    return path


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["item_id", "id", "sku"])
@pytest.mark.parametrize("name", ["name", "title"])
def test_a_catalogue_names_items_by_the_logs_own_ids(ids: str, name: str, tmp_path: Path) -> None:
    text = f'{ids},{name},price\n2,"two, or more",1\n1,one,2\n99,not an item,3\n2,again,4\n30,,5\n'
    (tmp_path / "items.csv").write_text(text)
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = pl.DataFrame({ids: [2, 1, 99, 2, 30], name: ["two, or more", "one", "not an item", "again", None]})
    table.write_parquet(tmp_path / "items.parquet")
    table.write_ndjson(tmp_path / "items.jsonl")
    for file in ("items.csv", "items.csv.gz", "items.parquet", "items.jsonl"):
        found = read_names(tmp_path / file, NUMBERS, "sku")
        assert {item: found[item] for item in (1, 2)} == {1: "one", 2: "two, or more"}
        assert found.keys() <= {1, 2, 30} and not found.get(30)


def test_ids_of_a_catalogue_are_read_as_a_logs_are(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,name\n 007 ,seven\n1,one\n")
    assert read_names(tmp_path / "items.csv", WORDS) == {"007": "seven", "1": "one"}
    pl.DataFrame({"id": [1, 2], "name": [10, 20]}).write_parquet(tmp_path / "items.parquet")
    assert read_names(tmp_path / "items.parquet", WORDS) == {"1": "10"}  # a log of strings has 1 as "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sku,name\n1,a\n", "items must be in a column item_id or id or item; it has sku, name"),
        ("id,label\n1,a\n", "names must be in a column name or title; it has id, label"),
        ("id,name\n8,a\n9,b\n", "names none of the model's 3 items"),
        ("id,name\n1,a\n,b\n", r"column 'id', row 2 \(header not counted\): the id is missing"),
        ("id,name\n", "names none of the model's 3 items"),
    ],
)
def test_catalogues_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_names(tmp_path / "items.csv", NUMBERS)
    assert "\n" not in str(caught.value) and "items.csv" in str(caught.value)


# Lists --------------------------------------------------------------------------------------------


def test_a_list_has_one_id_a_line_or_a_column_of_ids(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeff2\r\n\n  30 \n2\n".encode())
    (tmp_path / "list").write_text("2\n30")
    (tmp_path / "list.csv").write_text("price,item_id\n5,2\n6,30\n7,2\n")
    (tmp_path / "one.csv").write_text("anything\n2\n30.0\n")
    pl.DataFrame({"item_id": [30, 2]}).write_parquet(tmp_path / "list.parquet")
    for file in ("list.txt", "list", "list.csv", "one.csv", "list.parquet"):
        found = read_item_list(tmp_path / file, NUMBERS)
        assert (sorted(found.items, key=str), found.unknown) == ([2, 30], None), file
    (tmp_path / "words.txt").write_text("007\ntea\n")
    assert read_item_list(tmp_path / "words.txt", WORDS).items == ["007", "tea"]


def test_unknown_ids_are_named_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x\n2\n\n" + "".join(f"{n}\n" for n in range(40, 47)))
    found = read_item_list(tmp_path / "list.txt", NUMBERS)
    assert found.items == [2]
    line = "8 of its 9 items are unknown to the model and left out: 'x' (row 1), '40' (row 4), '41' (row 5), "
    assert found.unknown == f"{tmp_path / 'list.txt'}: {line}'42' (row 6), '43' (row 7) and 3 more"
    (tmp_path / "list.csv").write_text("item_id\n1\n7\n")
    unknown = read_item_list(tmp_path / "list.csv", NUMBERS).unknown
    assert unknown is not None and unknown.endswith("left out: 7 (row 2 (header not counted))")


def test_lists_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "wide.csv").write_text("a,b\n1,2\n")
    for name, message in (
        ("bytes.txt", "not UTF-8 text"),
        ("none.txt", "No such file"),
        ("none.csv", "no such file"),
        ("wide.csv", "items must be in a column item_id or id or item; it has a, b"),
    ):
        with pytest.raises(UserError, match=message):
            read_item_list(tmp_path / name, NUMBERS)
    (tmp_path / "empty.csv").write_text("item_id\n")
    assert read_item_list(tmp_path / "empty.csv", NUMBERS).items == []


# Commands -----------------------------------------------------------------------------------------


@pytest.fixture
def answer(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The answer of ``recommend --json`` to one history, with options."""

    def ask(*options: object) -> dict[str, Any]:
        capsys.readouterr()
        main(["recommend", str(run), "--history", "100", "101", "--json", *map(str, options)])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ask


def items(found: dict[str, Any]) -> list[int]:
    return [entry["item"] for entry in found["recommendations"]]


def test_filters_leave_the_best_of_what_they_allow(
    answer: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = items(answer("--k", 28))
    assert len(everything) == 28
    allow, deny = tmp_path / "allow.txt", tmp_path / "deny.csv"
    chosen = everything[::3]
    allow.write_text("".join(f"{item}\n" for item in sorted(chosen)))
    deny.write_text("item_id\n" + "".join(f"{item}\n" for item in everything[:4]))
    assert items(answer("--allow", allow, "--k", 28)) == chosen
    assert items(answer("--deny", deny, "--k", 5)) == everything[4:9]
    assert items(answer("--allow", allow, "--deny", deny, "--k", 28)) == chosen[2:]
    allow.write_text("100\n110\n")  # 100 is in the history
    assert items(answer("--allow", allow)) == [110]
    assert sorted(items(answer("--allow", allow, "--no-exclude-seen"))) == [100, 110]


def test_filters_that_leave_nothing_are_one_line(
    run: Path, fails: Fails, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, nobody, all_of_them = tmp_path / "seen.txt", tmp_path / "nobody.txt", tmp_path / "all.txt"
    seen.write_text("100\n101\n")
    nobody.write_text("")
    all_of_them.write_text("".join(f"{item}\n" for item in range(100, 130)))
    command = ["recommend", run, "--history", "100", "101"]
    line = "the given history: the filters leave no item but those of the history itself"
    assert fails(*command, "--allow", seen) == line
    nothing = "filters: they leave none of the catalogue's 30 items to recommend"
    assert fails(*command, "--allow", nobody) == nothing
    assert fails(*command, "--deny", all_of_them) == nothing
    nobody.write_text("tea\n")
    with pytest.raises(SystemExit):
        main([str(part) for part in [*command, "--allow", nobody]])
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {nobody}: 1 of its 1 items are unknown to the model and left out: 'tea' (row 1)"
    assert error == f"error: {nothing}"


def test_names_stand_in_every_list_and_are_never_markup(
    run: Path, answer: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*HOSTILE, *("x" * n for n in range(1, 22)), None]  # for 30 items
    path = catalogue(tmp_path / "items.parquet", names)
    found = answer("--names", path, "--k", 30, "--no-exclude-seen")["recommendations"]
    assert [entry["name"] for entry in found] == [names[entry["item"] - 100] for entry in found]
    assert list(found[0]) == ["item", "name", "score"]
    capsys.readouterr()
    for command in (["recommend", run, "--history", "102", "--no-exclude-seen", "--k", 30], ["similar", run, 129]):
        k = [] if command[0] == "recommend" else ["-k", 29]
        main([str(part) for part in [*command, *k, "--names", path]])
        out = capsys.readouterr().out
        for text in ("[bold]x[/bold]", "[/b]", "<script>alert(1)</script>", r"\x1b[31mred", r"a\u2028b", r"a\nb"):
            assert text in out
        assert ":smile:" in out and "\x1b" not in out and "\u2028" not in out


def test_similar_items_are_those_of_the_highest_cosine(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recommender = Recommender.load(run)
    weight = recommender.model.items.weight.detach()
    expected = cosine_similarity(weight, weight[7:8]).double()
    found = recommender.similar(107, 29)
    assert {entry.item for entry in found} == {*range(100, 130)} - {107}
    assert [entry.cosine for entry in found] == pytest.approx([float(expected[entry.item - 100]) for entry in found])
    assert [entry.cosine for entry in found] == sorted((entry.cosine for entry in found), reverse=True)
    main(["similar", str(run), "107", "-k", "3", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [entry["item"] for entry in printed["similar"]] == [entry.item for entry in found[:3]]
    main(["similar", str(run), "107"])
    assert "cosine" in capsys.readouterr().out
    with torch.no_grad():
        recommender.model.items.weight[3] = 0  # it has no direction: its cosines are 0, not NaN
    assert [entry.cosine for entry in recommender.similar(103, 2)] == [0, 0]


def test_what_similar_refuses(run: Path, fails: Fails) -> None:
    assert fails("similar", run, "tea").startswith("unknown item 'tea'")
    assert fails("similar", run, "--", "-3").startswith("unknown item '-3'")
    assert fails("similar", run, "100", "-k", 0) == "option k: 0 is below 1"
    assert fails("similar", run, "100", "-k", 30) == "option k: 30 items asked for, but the catalogue has 29 others"
    assert fails("similar", run, "100", "-k", 31).startswith("option k: 31 items asked for, but the catalogue has 30")


def test_examples_of_an_evaluation_list_items_with_their_names(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    names = [f"{HOSTILE[n % len(HOSTILE)]} {n}" for n in range(30)]
    path = catalogue(tmp_path / "items.parquet", list(names))
    command = ["evaluate", str(run), "--json-out", str(tmp_path / "x.json")]
    main(command)
    before, plain = json.loads((tmp_path / "x.json").read_text()), capsys.readouterr().out
    main([*command, "--examples", "2", "--names", str(path)])
    assert json.loads((tmp_path / "x.json").read_text()) == before
    out = capsys.readouterr().out
    assert (
        out.endswith(plain[plain.index("test, ") :])
        and out.count("target, ranked") == 2
        and out.count("user user-") == 2
    )
    (user, *_) = re.findall(r"user (user-\d+)\n", out)
    *_, target = (line.split(",")[1] for line in log.read_text().splitlines() if line.startswith(f"{user},"))
    shown = next(line for line in out.splitlines() if "target, ranked" in line)
    assert f" {target} " in shown and shown.rstrip("│ ").endswith(f" {int(target) - 100}")
    assert "[/b]" in out or "[bold]x[/bold]" in out
    assert "\x1b" not in out and "\u2028" not in out
    for wrong in (["--names", path], ["--examples", "-1"]):
        assert fails("evaluate", run, *wrong).startswith("options examples and names")
