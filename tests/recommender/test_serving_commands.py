"""``evaluate`` and ``recommend`` on the kinds of logs, ids, histories and terminals that people have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hyenarec.cli import main
from hyenarec.cli.identifiers import MARK, mark_ids
from tests.interpreter import python

TRAIN = ["--dim", "8", "--blocks", "1", "--max-length", "8", "--epochs", "1", "--batch-size", "16", "--device", "cpu"]
ITEMS = ["-x1", "-3", "[/b]", "LP [deluxe]", "a\u2028b", "\x1b[31mred", "x" * 120, "i7", "i8", "i9", "i10", "i11"]
COMMAND = [sys.executable, "-c", "from hyenarec.cli import main; main()"]


def write_log(path: Path, *more: str) -> Path:
    """Writes a log with six users of four events each, and one user, ``-all``, who has had every item."""
    rows = [(f"-u{u}", ITEMS[(3 * u + i) % len(ITEMS)], i) for u in range(6) for i in range(4)]
    rows += [("-all", item, i) for i, item in enumerate(ITEMS)]
    lines = [f"{user},{item},{time}" for user, item, time in rows]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines, *more]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "log.csv")


@pytest.fixture(scope="module")
def run(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    main(["train", str(log), "--out", str(folder), *TRAIN])
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command, and returns its exit code, output and errors."""

    def act(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err

    return act


def answers(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_ids_that_begin_with_a_dash(run: Path, call: Call) -> None:
    for ids in (["--users", "-u1"], ["--users", "-u1", "-u2"], ["--history", "-x1", "-3"], ["--users=-u1"]):
        code, out, err = call("recommend", run, "--json", *ids, "--k", 2)
        assert code == 0, err
        assert answers(out)
    code, out, _ = call("recommend", run, "--users", "-u1", "-u2", "--json")
    assert [answer["for"] for answer in answers(out)] == ["-u1", "-u2"]
    assert mark_ids(["recommend", "--users", "-3", "--k", "-1", "--history", "-h"]) == [
        "recommend", "--k", "-1", "-h", "--users", f"{MARK}-3", "--history",
    ]  # fmt: skip


def test_ids_are_text_in_every_table(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    code, out, err = call("recommend", run, "--history", "i7", "--k", 12, "--no-exclude-seen")
    assert code == 0 and not err
    for item in ("[/b]", "LP [deluxe]", r"a\u2028b", r"\x1b[31mred", "x" * 120, "-x1"):
        assert item in out
    assert "\x1b" not in out and "\u2028" not in out


def test_one_bad_history_costs_no_other_its_answer(run: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "histories.txt"
    file.write_text('i7 i8\n\nNEW\ni7 NEW i8\n["i7",\n[]\n[true]\ni9\n')
    code, out, err = call("recommend", run, "--histories", file, "--json", "--k", 2)
    assert code == 1
    found = answers(out)
    assert [answer["for"] for answer in found] == [f"line {n}" for n in (1, 3, 4, 5, 6, 7, 8)]
    assert [len(answer.get("recommendations", [])) for answer in found] == [2, 0, 2, 0, 0, 0, 2]
    assert found[2]["unknown"] == ["NEW"] and found[0]["recommendations"] == found[2]["recommendations"]
    errors = {answer["for"]: answer["error"] for answer in found if "error" in answer}
    assert "'NEW'" in errors["line 3"] and "not a JSON list" in errors["line 5"] and "empty" in errors["line 6"]
    assert "integers or strings" in errors["line 7"]
    assert [line.split(": ")[2] for line in err.splitlines()] == list(errors)
    code, out, _ = call("recommend", run, "--histories", file, "--json", "--k", 2, "--unknown", "error")
    assert code == 1 and "unknown item 'NEW'" in answers(out)[2]["error"]
    code, out, err = call("recommend", run, "--history", "i7", "NEW", "--k", 2)
    assert code == 0 and "unknown to the model and left out: 'NEW'" in out
    code, out, err = call("recommend", run, "--users", "-u1", "-all", "nobody", "-u2", "--json", "--k", 2)
    assert code == 1 and [len(answer.get("recommendations", [])) for answer in answers(out)] == [2, 0, 0, 2]
    assert "user -all: it has every item" in err and "user nobody: unknown user" in err
    code, out, err = call("recommend", run, "--users", "nobody")
    assert code == 2 and not out and err.count("\n") == 1


def test_lines_end_at_line_feeds_alone(run: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "histories.txt"
    for start in (b"", b"\xef\xbb\xbf"):
        file.write_bytes(start + '["a\u2028b"]\r\na\u2028b\n["i7", "\x85\u2029"]\n'.encode())
        code, out, err = call("recommend", run, "--histories", file, "--json", "--k", 1)
        assert code == 0, err
        assert [answer["unknown"] for answer in answers(out)] == [[], [], ["\x85\u2029"]]
        with file.open("rb") as lines:
            piped = subprocess.run(
                [*COMMAND, "recommend", str(run), "--histories", "-", "--json", "--k", "1"],
                stdin=lines, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
            )  # fmt: skip
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, out, "")


def test_hostile_lines_are_one_line_each(run: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "histories.txt"
    file.write_bytes(b"[" * 200_000 + b"\n[" + b"1" * 5_000 + b"]\ni7 \xff\n")
    code, out, err = call("recommend", run, "--histories", file)
    assert code == 2 and not out
    assert [line.partition(" line ")[2][:1] for line in err.splitlines()] == ["1", "2", "3"]
    assert "too deep" in err and "4300 digits" in err and "not UTF-8" in err and max(map(len, err.splitlines())) < 400
    file.write_text("\n \n")
    assert call("recommend", run, "--histories", file)[2] == f"error: {file}: no history in it\n"
    assert "cannot read histories" in call("recommend", run, "--histories", tmp_path)[2]


@pytest.mark.parametrize(
    ("stream", "rest", "message"),
    [("<&-", "--histories -", "standard input is closed"), (">&-", "--history i7", "standard output is closed")],
)
def test_a_closed_stream_is_one_line(run: Path, stream: str, rest: str, message: str) -> None:
    command = f'"$0" -c "from hyenarec.cli import main; main()" recommend "$1" {rest} {stream}'
    done = subprocess.run(["sh", "-c", command, sys.executable, str(run)], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


OTHERS = [pytest.param(command, marks=pytest.mark.slow) for command in ("evaluate", "inspect", "prepare", "help")]


@pytest.mark.parametrize("command", ["train", "recommend", *OTHERS])  # a process each, 2 s
def test_a_reader_that_leaves_early_is_no_error_in_any_command(
    command: str, run: Path, log: Path, tmp_path: Path
) -> None:
    arguments = {
        "train": ["train", str(log), "--out", str(tmp_path / "run"), *TRAIN],
        "evaluate": ["evaluate", str(run)],
        "recommend": ["recommend", str(run), "--users", "-u1"],
        "inspect": ["inspect", str(run), "--out", str(tmp_path / "filters.png")],
        "prepare": ["prepare", str(log), str(tmp_path / "store")],
        "help": ["recommend", "--help"],
    }[command]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(run: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "recommend", str(run), "--history", "i7"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and "No space left" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_whose_log_is_elsewhere(log: Path, tmp_path: Path, call: Call) -> None:
    moved, folder = tmp_path / "moved.csv", tmp_path / "run"
    shutil.copy(log, tmp_path / "log.csv")
    main(["train", str(tmp_path / "log.csv"), "--out", str(folder), *TRAIN])
    (tmp_path / "log.csv").rename(moved)
    for rest in (["evaluate", folder], ["recommend", folder, "--users", "-u1"]):
        code, _, err = call(*rest)
        assert code == 2 and err.count("\n") == 1 and "log.csv: no such file" in err and "--data" in err
        assert call(*rest, "--data", moved)[0] == 0


def test_a_log_that_grew_is_evaluated_and_served(run: Path, tmp_path: Path, call: Call) -> None:
    grown = write_log(tmp_path / "grown.csv", "-u0,BRANDNEW,9", "-u1,i7,9")
    code, out, err = call("evaluate", run, "--data", grown, "--json-out", tmp_path / "metrics.json")
    assert code == 0, err
    assert "1 of the log's items are newer than the model" in out and "1 of 7 targets are new" in out
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert (report["new_items"], report["targets_lost_to_new_items"]) == (1, 1)
    assert sum(row["targets"] for row in report["by_history_length"]) == 7
    code, out, _ = call("recommend", run, "--data", grown, "--users", "-u0", "--json", "--k", 2)
    assert code == 0 and answers(out)[0]["unknown"] == ["BRANDNEW"]


def test_repeats_are_announced_with_the_option_that_ranks_them(tmp_path: Path, call: Call) -> None:
    log = tmp_path / "log.csv"
    rows = [f"u{u},i{2 * u + t % 2},{t}" for u in range(8) for t in range(6)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    line = "8 of 8 targets are in their own history"
    assert line in call("train", log, "--out", tmp_path / "run", *TRAIN)[1]
    _, out, _ = call("evaluate", tmp_path / "run", "--json-out", tmp_path / "metrics.json")
    assert line in out and "--no-exclude-seen" in out
    missed = json.loads((tmp_path / "metrics.json").read_text())
    assert missed["repeats"] == 8 and missed["exclude_seen"] is True and missed["metrics"]["HR@10"] == 0
    _, out, _ = call("evaluate", tmp_path / "run", "--no-exclude-seen", "--json-out", tmp_path / "metrics.json")
    assert line not in out
    ranked = json.loads((tmp_path / "metrics.json").read_text())
    assert ranked["exclude_seen"] is False and ranked["metrics"]["MRR"] > missed["metrics"]["MRR"]
    assert (missed["seen"], ranked["seen"]) == ("history", "history")
    call("evaluate", tmp_path / "run", "--seen", "input", "--json-out", tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["seen"] == "input"
    code, _, err = call("evaluate", tmp_path / "run", "--no-exclude-seen", "--exclude-seen")
    assert code == 2 and "at most one" in err


def test_weights_that_are_no_numbers(run: Path, tmp_path: Path, call: Call) -> None:
    broken = tmp_path / "broken.safetensors"
    with safe_open(run / "best.safetensors", framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["model.bias"] = torch.full_like(tensors["model.bias"], float("nan"))
    save_file(tensors, broken, metadata)
    for rest in (["evaluate", broken], ["recommend", broken, "--history", "i7"]):
        code, out, err = call(*rest)
        assert code == 2 and "NaN" not in out and err.count("\n") == 1, err


@pytest.mark.parametrize("columns", [40, *(pytest.param(wider, marks=pytest.mark.slow) for wider in (60, 80))])
def test_every_figure_at_every_width(run: Path, tmp_path: Path, columns: int) -> None:
    arguments = ("evaluate", run, "--json-out", tmp_path / "metrics.json")
    done = python("-m", "hyenarec", *arguments, env=os.environ | {"COLUMNS": str(columns)})
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    for name in ("NDCG@10", "Recall@10", "HR@10", "MRR"):
        assert f"{metrics[name]:.4f}" in done.stdout and name in done.stdout
    assert "…" not in done.stdout


def test_compare_on_a_terminal_that_knows_only_ascii(log: Path, tmp_path: Path) -> None:
    arguments = ["compare", str(log), "--out", str(tmp_path), "--mixers", "gru", "--seeds", "0", "1", *TRAIN]
    done = python("-m", "hyenarec", *arguments, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "+-" in done.stdout and done.stdout.isascii()


def test_an_endless_input_is_answered_as_it_comes(run: Path) -> None:
    endless = subprocess.Popen(["yes", "i7 i8"], stdout=subprocess.PIPE)
    command = [*COMMAND, "recommend", str(run), "--histories", "-", "--json", "--k", "1"]
    process = subprocess.Popen(command, stdin=endless.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert endless.stdout is not None and process.stdout is not None and process.stderr is not None
    try:
        assert json.loads(process.stdout.readline())["for"] == "line 1"
        process.stdout.close()
        assert process.wait(timeout=60) == 1 and process.stderr.read() == ""
    finally:
        endless.kill()
        process.kill()
        endless.stdout.close()
        process.stderr.close()
        endless.wait()
