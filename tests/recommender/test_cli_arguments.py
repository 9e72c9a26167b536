"""What a command line may contain, and which files a command may replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from generated import TRAIN

from hyenarec.cli import main
from hyenarec.config import MIXERS_WITH_HEADS, AttentionConfig, ModelConfig
from hyenarec.data.synthetic import write_synthetic_log
from hyenarec.errors import UserError
from hyenarec.files import write_atomically, write_report

Fails = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "x", "--out", "y", "--epochs", "1", "--epochs", "2"], "--epochs: is given twice; give it once"),
        (["train", "x", "--out", "y", "--epochs=1", "--epochs=2"], "--epochs: is given twice; give it once"),
        (["train", "x", "--out", "y", "--bf16", "--no-bf16"], "--bf16 and --no-bf16: name at most one of"),
        (
            ["train", "x", "--out", "y", "--hyena.window", "--hyena.no-window"],
            "--hyena.window and --hyena.no-window: name at most one of them",
        ),
        (
            ["train", "x", "--out", "y", "--max_length", "3", "--max-length", "4"],
            "--max_length and --max-length: name at most one of them",
        ),
        (["train", "x", "--out", "y", "--hyena.terms", "3", "--hyena.terms", "3"], "--hyena.terms: is given twice"),
        (["compare", "x", "--out", "y", "--mixers", "gru", "--mixers", "lru"], "--mixers: is given twice"),
        (["evaluate", "x", "--part", "test", "--part", "validation"], "--part: is given twice"),
        (["recommend", "x", "--json", "--json"], "--json: is given twice"),
        (["prepare", "x", "y", "--user", "a", "--user", "b"], "--user: is given twice"),
        (["inspect", "x", "--out", "y", "--out", "z"], "--out: is given twice"),
        (["demo", "--out", "y", "--out", "z"], "--out: is given twice"),
        (["train", "x", "--out", ""], "--out: is empty"),
        (["train", "x", "--out="], "--out: is empty"),
        (["train", "", "--out", "y"], "argument 2: is empty"),
        (["prepare", "x", ""], "argument 3: is empty"),
        (["evaluate", "x", "--data", ""], "--data: is empty"),
        (["evaluate", "x", "--json-out="], "--json-out: is empty"),
        (["recommend", "x", "--histories", ""], "--histories: is empty"),
        (["inspect", "x", "--out", ""], "--out: is empty"),
        (["demo", "--out", ""], "--out: is empty"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_options_twice_and_empty_arguments(
    arguments: list[str],
    line: str,
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fails(*arguments).startswith(line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "users",
    [
        ["--users", "user-004", "--users", "user-005"],
        ["--users=user-004", "--users=user-005"],
        ["--users=user-004", "--k", "3", "--users", "user-005"],
    ],
    ids=" ".join,
)
def test_ids_given_in_several_options_are_all_answered(
    users: list[str],
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["recommend", str(run), *users, "--json"])
    out = capsys.readouterr().out
    assert out.index('"for": "user-004"') < out.index('"for": "user-005"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hyena.order", "1", "--hyena.terms", "4"], "option hyena.terms: not used by hyena.order 1, which has no"),
        (["--hyena.filter", "explicit", "--hyena.terms", "4"], "option hyena.terms: not used by filter explicit; only"),
        (["--hyena.filter", "implicit", "--hyena.terms", "4"], "option hyena.terms: not used by filter implicit; only"),
        (["--hyena.filter", "explicit", "--hyena.no-window"], "option hyena.window: not used by filter explicit; only"),
        (["--no-exclude-seen", "--seen", "input"], "option seen: not used with --no-exclude-seen"),
        (["--mixer", "gru", "--dim", "9", "--attention.heads", "3"], "option attention.heads: not used by gru"),
        (["--mixer", "grela", "--attention.cache", "window"], "option attention.cache: not used by grela; only by"),
        (["--mixer", "attention", "--attention.cache-events", "9"], "option attention.cache_events: not used by cache"),
        (["--timestamp", "None", "--time-unit", "ms"], "option time-unit: not used without a column of times"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_options_that_nothing_reads(
    options: list[str],
    message: str,
    fails: Fails,
    log: Path,
    tmp_path: Path,
) -> None:
    assert fails("train", log, "--out", tmp_path / "run", *options).startswith(message)
    assert not (tmp_path / "run").exists()


def test_options_that_other_commands_do_not_read(
    fails: Fails,
    log: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails("recommend", run, "--history", "100", "--data", log).startswith("option data: not used with --history")
    assert fails("evaluate", run, "--no-exclude-seen", "--seen", "input").startswith("option seen: not used where")
    main(["prepare", str(log), str(tmp_path / "store")])
    capsys.readouterr()
    for command in ("train", "compare"):
        line = fails(command, tmp_path / "store", "--out", tmp_path / "run", "--user", "customer")
        assert line == f"option user: not used by {tmp_path / 'store'}, which is a store; only by logs"


def test_heads_are_checked_where_there_are_heads(log: Path, tmp_path: Path, fails: Fails) -> None:
    for mixer in MIXERS_WITH_HEADS:
        with pytest.raises(UserError, match=r"option attention\.heads: 2 does not divide dim 9"):
            ModelConfig(mixer=mixer, dim=9)
    assert ModelConfig(mixer="attention", dim=9, attention=AttentionConfig(heads=3)).dim == 9
    main(["train", str(log), "--out", str(tmp_path / "gru"), "--mixer", "gru", "--dim", "9", *TRAIN[2:]])
    assert (tmp_path / "gru" / "result.json").exists()


# Files that exist already -------------------------------------------------------------------------


def test_only_our_own_files_are_replaced(
    run: Path,
    log: Path,
    tmp_path: Path,
    fails: Fails,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands: dict[str, list[Any]] = {
        "x.png": ["inspect", run, "--out", tmp_path / "x.png"],
        "x.json": ["evaluate", run, "--json-out", tmp_path / "x.json"],
        "curve.png": ["train", log, "--out", tmp_path, *TRAIN],
        "compare.json": ["compare", log, "--out", tmp_path, "--mixers", "gru", "--seeds", "0", *TRAIN],
        "compare.png": ["compare", log, "--out", tmp_path, "--mixers", "gru", "--seeds", "0", *TRAIN],
    }
    for name, command in commands.items():
        own = tmp_path / name
        for content in ("thesis", "user_id,item_id\nhyenarec,1\n", '{"metrics": {}}', ""):
            own.write_text(content)
            if command[0] != "train":
                line = fails(*command)
            else:
                with pytest.raises(SystemExit):
                    main([str(part) for part in command])
                line = capsys.readouterr().err.removeprefix("error: ").strip()
            assert line == f"{own}: there already, and not written by hyenarec; choose another name or remove it"
            assert own.read_text() == content
        own.unlink()
    (tmp_path / "x.txt").write_text('{"written_by": "hyenarec evaluate"}')  # written by hyenarec, but no picture
    line = fails("inspect", run, "--out", tmp_path / "x.txt")
    assert line.endswith("x.txt: there already, and not written by hyenarec; choose another name or remove it")
    for command, name in (("inspect", "y.JSON"), ("evaluate", "y.png")):
        wanted = {"inspect": ("--out", "PNG"), "evaluate": ("--json-out", "JSON")}[command]
        assert f"{name}: what is written here is {wanted[1]}" in fails(command, run, wanted[0], tmp_path / name)
        assert not (tmp_path / name).exists()
    for _ in range(2):  # may replace its own files
        for name in ("x.png", "x.json"):
            main([str(part) for part in commands[name]])
            assert (tmp_path / name).stat().st_size > 100


def test_what_is_no_file_is_no_place_for_a_report(tmp_path: Path) -> None:
    for place in (Path("/dev/null"), tmp_path):
        with pytest.raises(UserError, match="there already, and not written by hyenarec"):
            write_report(place, "evaluate", {})
    assert Path("/dev/null").is_char_device()


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "report.json")
    for number in range(2):
        write_report(link, "evaluate", {"number": number})
        assert link.is_symlink() and f'"number": {number}' in (tmp_path / "elsewhere" / "report.json").read_text()
    write_atomically(link, lambda temporary: temporary.write_text("whole"))
    assert link.is_symlink() and (tmp_path / "elsewhere" / "report.json").read_text() == "whole"


def test_a_synthetic_log_replaces_itself_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for _ in range(2):
        write_synthetic_log(log, users=3, items=100, mean_history=5)
    own = log.read_bytes()
    with pytest.raises(UserError, match=r"log\.csv: there already, and another log"):
        write_synthetic_log(log, users=4, items=100, mean_history=5)
    assert log.read_bytes() == own
