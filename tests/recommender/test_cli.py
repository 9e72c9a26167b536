from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from generated import TRAIN, make_store, write_csv

from hyenarec.cli import main
from hyenarec.mixers import MIXERS
from hyenarec.source import Source, load_source


def test_train_prints_the_table_and_fills_the_folder(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", str(log), "--out", str(tmp_path / "run"), "--mixer", "gru", *TRAIN])
    out = capsys.readouterr().out
    for word in ("40 users, 30 items", "epoch   2/2", "NDCG@10", "gru", "popularity", "repeat-last"):
        assert word in out
    assert (tmp_path / "run" / "curve.png").stat().st_size > 5_000


def test_a_store_trains_to_the_same_weights_as_its_log(log: Path, run: Path, tmp_path: Path) -> None:
    main(["prepare", str(log), str(tmp_path / "store")])
    main(["train", str(tmp_path / "store"), "--out", str(tmp_path / "run"), *TRAIN])
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "run")]
    assert results[0]["test"] == results[1]["test"]


def test_evaluate_repeats_the_runs_own_test(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run), "--json-out", str(tmp_path / "metrics.json")])
    assert "by events in the user's history" in capsys.readouterr().out
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["metrics"] == json.loads((run / "result.json").read_text())["test"]


@pytest.mark.slow  # test_serving_commands.py tests the same on this command's tables
def test_a_reader_that_leaves_early_is_no_error(run: Path) -> None:
    command = [sys.executable, "-c", "from hyenarec.cli import main; main()", "recommend", str(run)]
    command += ["--users", "user-004", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head` does once it has its lines
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_recommend_by_user_by_history_by_file_and_by_standard_input(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    history = [str(item) for item in store.item_ids.decode(store.history(4))]

    def answer(*arguments: str) -> list[list[dict[str, float]]]:
        main(["recommend", str(run), "--k", "3", "--json", *arguments])
        return [json.loads(line)["recommendations"] for line in capsys.readouterr().out.splitlines()]

    by_user = answer("--users", "user-004")
    assert len(by_user[0]) == 3 and all(100 <= entry["item"] < 130 for entry in by_user[0])
    assert answer("--history", *history) == by_user
    lines = tmp_path / "histories.txt"
    lines.write_text(" ".join(history) + "\n\n" + json.dumps([int(item) for item in history]) + "\n")
    assert answer("--histories", str(lines)) == by_user * 2
    monkeypatch.setattr("sys.stdin", io.StringIO(" ".join(history) + "\n"))
    assert answer("--histories", "-") == by_user
    main(["recommend", str(run), "--k", "3", "--users", "user-004"])
    table = capsys.readouterr().out
    assert "for user-004" in table and str(by_user[0][0]["item"]) in table


def test_compare_writes_mean_and_spread(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison"
    main(["compare", str(log), "--out", str(out), "--mixers", "hyena", "gru", "--seeds", "0", "1", *TRAIN])
    report = json.loads((out / "compare.json").read_text())
    values = [run["test"]["NDCG@10"] for run in report["results"]["hyena"]]
    assert report["summary"]["hyena"]["NDCG@10"]["mean"] == pytest.approx(sum(values) / 2)
    assert report["summary"]["hyena"]["NDCG@10"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    out_text = capsys.readouterr().out
    assert "±" in out_text
    for baseline in report["baselines"]:
        assert {"coverage@10", "novelty@10", "test_by_age", "test_by_popularity"} <= baseline.keys()
    assert {row["model"] for row in report["baselines"]} >= {"item-to-item", "popularity, 7 days"}
    (header,) = [line for line in out_text.splitlines() if "seen before" in line]
    assert "new to the user" in header and "coverage@10" in header
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_split_in_time_beside_the_baselines(
    command: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixers = ["--mixers", "gru", "--seeds", "0"] if command == "compare" else ["--mixer", "gru"]
    main([command, str(log), "--out", str(tmp_path), "--split", "temporal", *mixers, *TRAIN])
    text = capsys.readouterr().out
    assert "item-to-item" in text and "popularity, 7 days" in text and "repeat-last" in text
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert result["source"]["split"] == "temporal"
    _, split = load_source(Source(str(log), "temporal"))
    assert sum(row["targets"] for row in result["test_by_age"]) == len(split.test)
    assert 0 < result["test"]["coverage@10"] <= 1


def test_inspect_draws_the_filters(run: Path, tmp_path: Path) -> None:
    main(["inspect", str(run), "--out", str(tmp_path / "filters.png")])
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("prepare", "train", "evaluate", "recommend", "compare", "inspect", "demo"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"usage: hyenarec {command}" in capsys.readouterr().out


def test_bad_logs(fails: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    missing = tmp_path / "none.csv"
    assert str(missing) in fails("train", missing, "--out", out)
    log = tmp_path / "log.csv"
    for text, words in (
        ("user_id,item_id,timestamp\n", ("empty",)),
        ("user_id,film,timestamp\n1,2,3\n", ("item_id", "film", "option item")),
        ("user_id,item_id,timestamp\n1,2,noon\n", ("timestamp",)),
        ("user_id,item_id,timestamp\n1,2,3\n1,4,-5\n", ("timestamp", "row 2", "-5 is no time")),
        ("user_id,item_id,timestamp\n1,2,3.5\n1,4,nan\n", ("timestamp", "row 2", "NaN")),
        ("user_id,item_id,timestamp\n1,2,3\n2,4,5\n", ("single event",)),
    ):
        log.write_text(text)
        line = fails("train", log, "--out", out)
        assert str(log) in line
        for word in words:
            assert word.lower() in line.lower(), (word, line)
    assert not out.exists()


def test_bad_options_and_checkpoints(fails: Callable[..., str], log: Path, run: Path, tmp_path: Path) -> None:
    assert fails("evaluate", tmp_path) == f"{tmp_path}/best.safetensors: no such checkpoint"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((run / "best.safetensors").read_bytes()[:500])
    assert fails("recommend", broken, "--history", "100").startswith(f"{broken}: truncated or damaged checkpoint")
    strict = fails("recommend", run, "--history", "100", "999", "--unknown", "error")
    assert strict.startswith("the given history: unknown item '999': the 30 known ones")
    assert "'nobody'" in fails("recommend", run, "--users", "nobody")
    assert fails("recommend", run, "--history", "100", "--k", "31").startswith("option k: 31 items asked for")
    assert fails("recommend", run) == "name exactly one of --users, --all-users, --history and --histories"
    assert fails("inspect", run / "best.safetensors", "--out", tmp_path / "no" / "x.png").startswith("cannot save")
    text = tmp_path / "lines.txt"
    text.write_text('["a",\n')
    assert f"{text}: line 1: not a JSON list" in fails("recommend", run, "--histories", text)
    assert f"mixers out of {', '.join(MIXERS)}" in fails("compare", log, "--out", tmp_path / "c", "--mixers", "lstm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hyena.terms", "0"], "option hyena.terms: 0 is below 1"),
        (["--seed", "99999999999999999999"], "option seed: 99999999999999999999 is above 4294967295"),
        (["--learning-rate", "nan"], "option learning_rate: nan is not a number"),
        (["--mixer", "gru", "--hyena.order", "3"], "option hyena.order: not used by gru; only by hyena"),
        (["--mixer", "gru", "--attention.heads", "4"], "option attention.heads: not used by gru; only by attention, "),
        (["--negatives", "7"], "option negatives: not used by loss full; only by loss sampled"),
    ],
    ids=" ".join,
)
def test_options_out_of_range_or_without_use(
    options: list[str], message: str, fails: Callable[..., str], log: Path, tmp_path: Path
) -> None:
    assert fails("train", log, "--out", tmp_path / "run", *options).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_out_is_checked_before_the_log_is_read(
    command: str, fails: Callable[..., str], log: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert fails(command, log.with_name("none.csv"), "--out", out).startswith("option out: ")


def test_compare_takes_mixers_and_seeds_alone(
    fails: Callable[..., str], log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    own = [["compare", *option] for option in (["--mixer", "gru"], ["--mixer", "hyena"], ["--seed", "0"])]
    for command, *option in own:
        with pytest.raises(SystemExit) as stopped:
            main([command, str(log), "--out", str(out), *option])
        assert stopped.value.code == 2 and option[0] in capsys.readouterr().err
    for command in ("compare", "tune", "serve"):
        message = (
            f"option shard_items: not used by {command}, which is done by one process; only by train, evaluate and"
        )
        assert fails(command, log, "--out", out, "--shard-items").startswith(message)
    assert fails("compare", log, "--out", out, "--seeds", "0", "-1") == "option seed: -1 is below 0"
    assert fails("compare", log, "--out", out, "--seeds", "0", "0").startswith("option seeds: one is named twice")
    assert fails("compare", log, "--out", out, "--mixers", "gru", "--hyena.terms", "8").startswith("option hyena.terms")
    odd = ["--dim", "7", "--attention.heads", "1", "--mixers", "hyena", "grela"]
    assert fails("compare", log, "--out", out, *odd).startswith("option dim: 7 is odd")
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["train"], ["compare"], ["demo"], ["prepare"]], ids=" ".join)
def test_help_imports_nothing_large(arguments: list[str]) -> None:
    program = f"""
import sys
from hyenarec.cli import main
try:
    main({[*arguments, "--help"]!r})
except SystemExit:
    print([name for name in ("torch", "polars", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_command_says_one_line(number: int, code: int, log: Path, tmp_path: Path) -> None:
    arguments = ["train", str(log), "--out", str(tmp_path / "run"), *TRAIN, "--patience", "9999"]
    arguments[arguments.index("--epochs") + 1] = "100000"
    command = [sys.executable, "-m", "hyenarec", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "last.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.startswith("interrupted in epoch ") and error.count("\n") == 1
    assert not list((tmp_path / "run").glob(".*"))


def test_evaluating_on_foreign_items_is_refused(fails: Callable[..., str], run: Path, tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", make_store(n_items=20))
    assert fails("evaluate", run, "--data", other) == f"{other}: its items are not those that the model was trained on"
