"""Recommendations for all users of a log equal those for each user alone, whatever interrupts the command."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE

from hyenarec import all_users
from hyenarec.all_users import Job, recommend_to_all
from hyenarec.cli import main
from hyenarec.data.ids import Ids
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import Run
from tests.interpreter import python

Fails = Callable[..., str]
COMMAND = [sys.executable, "-c", "from hyenarec.cli import main; main()"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_users, "USERS_A_PART", 7)  # 40 users in 6 parts


def recommend(run: Path, out: Path, *options: object) -> Path:
    main(["recommend", str(run), "--all-users", "--out", str(out), "-k", "4", *map(str, options)])
    return out


@pytest.fixture
def one_by_one(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """The answers of ``recommend --users --json`` for every user of the log."""

    def ask(*options: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        users = [f"user-{number:03}" for number in range(40)]
        main(["recommend", str(run), "--json", "--k", "4", *map(str, options), "--users", *users])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return ask


def test_everyone_gets_what_they_would_get_alone(
    run: Path, tmp_path: Path, one_by_one: Callable[..., list[dict[str, Any]]]
) -> None:
    """Every kind of output file gives the same answers, with names and filters. Names that hold separators, quotes and
    line feeds stay whole."""
    deny = tmp_path / "deny.txt"
    deny.write_text("105\n106\n")
    names = [f'"{n}", [b]\n<i>' if n % 2 else None for n in range(30)]
    pl.DataFrame({"id": range(100, 130), "name": names}).write_parquet(tmp_path / "items.parquet")
    options = ["--deny", deny, "--names", tmp_path / "items.parquet"]
    alone = one_by_one(*options)
    rows = [
        (answer["for"], rank, entry["item"], entry["name"], entry["score"])
        for answer in alone
        for rank, entry in enumerate(answer["recommendations"], 1)
    ]
    assert len(rows) == 160
    lines = recommend(run, tmp_path / "all.jsonl", *options).read_text().splitlines()
    assert_alike([json.loads(line) for line in lines], alone)
    frame = pl.read_parquet(recommend(run, tmp_path / "all.parquet", *options))
    assert frame.columns == ["user", "rank", "item", "name", "score"]
    assert frame.dtypes == [pl.String, pl.Int32, pl.Int64, pl.String, pl.Float32]
    assert frame.drop("score").rows() == [row[:4] for row in rows]
    assert frame["score"].to_list() == pytest.approx([row[4] for row in rows], abs=2e-4)
    with recommend(run, tmp_path / "all.csv", *options).open(newline="") as file:
        found = list(csv.reader(file))
    assert found[0] == frame.columns
    assert [row[:4] for row in found[1:]] == [[row[0], str(row[1]), str(row[2]), row[3] or ""] for row in rows]
    plain = pl.read_parquet(recommend(run, tmp_path / "all.parquet", "--deny", deny))  # replaces the command's own file
    assert plain.equals(frame.drop("name"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "all.csv", "all.jsonl", "all.parquet", "deny.txt", "items.parquet",
    ]  # fmt: skip


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Asserts that answers are the same, and scores equal up to the rounding that depends on the size of a batch."""
    for one, other in zip(found, expected, strict=True):
        scores = [[entry.pop("score") for entry in answer.get("recommendations", [])] for answer in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-4)
        assert one == other


def test_users_without_an_answer(run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown = tmp_path / "grown.csv"
    everything = "".join(f"all,{item},{item}\n" for item in range(100, 130))
    grown.write_text(log.read_text() + everything + "new,NEW,1\nnew,NEW,2\nuser-000,NEW,99999999\n")
    out = recommend(run, tmp_path / "all.jsonl", "--data", grown, "--exclude-seen")
    assert "2 of 42 users have nothing that could be recommended to them" in capsys.readouterr().out
    answers = {answer["for"]: answer for answer in map(json.loads, out.read_text().splitlines())}
    assert len(answers) == 42
    assert answers["all"] == {"for": "all", "unknown": [], "error": "it has every item that may be recommended"}
    assert answers["new"]["error"] == "the model knows none of its items; the first is 'NEW'"
    assert answers["user-000"]["unknown"] == ["NEW"] and len(answers["user-000"]["recommendations"]) == 4
    table = pl.read_parquet(recommend(run, tmp_path / "all.parquet", "--data", grown, "--exclude-seen"))
    assert table["user"].n_unique() == 40 and {"all", "new"}.isdisjoint(table["user"])
    (tmp_path / "one.txt").write_text("100\n")  # nearly everyone has had it: a part may be empty
    few = pl.read_parquet(recommend(run, tmp_path / "few.parquet", "--allow", tmp_path / "one.txt"))
    assert set(few["item"]) <= {100} and 0 < len(few) < 40


def test_times_reach_a_model_that_knows_them(tmp_path: Path) -> None:
    store = make_store()
    assert store.timestamps is not None
    model = replace(MODEL, mixer="hytrec")
    Run(tmp_path / "run", store, leave_one_out(store), model, replace(CONFIG, epochs=1), SOURCE).train()
    recommender = Recommender.load(tmp_path / "run")
    histories = [store.item_ids.decode(store.history(user)) for user in range(store.n_users)]
    times = [store.timestamps[store.offsets[user] : store.offsets[user + 1]] for user in range(store.n_users)]
    expected = recommender.recommend(histories, 3, timestamps=times, exclude_seen=False)  # type: ignore[arg-type]
    recommend_to_all(Job(recommender, store, 3, exclude_seen=False), tmp_path / "all.parquet")
    frame = pl.read_parquet(tmp_path / "all.parquet")
    assert frame["item"].to_list() == [one.item for answer in expected for one in answer]
    timeless = replace(store, timestamps=None)
    recommend_to_all(Job(recommender, timeless, 3, exclude_seen=False), tmp_path / "other.parquet")
    assert not frame.equals(pl.read_parquet(tmp_path / "other.parquet"))


# Interruptions ------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from hyenarec import all_users
from hyenarec.cli import main
all_users.USERS_A_PART = 7
fsync, calls = os.fsync, 0
def die(descriptor):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.{signal})
    fsync(descriptor)
os.fsync = die
main({arguments!r})
"""


def killed(run: Path, out: Path, call: int, number: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    """Runs the command, which a signal hits at its ``call``-th fsync.

    A file is synced before it gets its name, and then its folder: two fsyncs for the job's description, two for each of
    the six parts, and two for the joined file.
    """
    arguments = ["recommend", str(run), "--all-users", "--out", str(out), "--k", "4"]
    program = KILLED.format(call=call, signal=number, arguments=arguments)
    if number == "SIGKILL":
        return python("-c", program)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


MOMENTS = {1: 0, 5: 1, 6: 2, 15: 6, 16: 6}  # call: how many parts there are then
SLOW = [pytest.param(call, marks=pytest.mark.slow) for call in (*range(2, 5), *range(7, 15))]


@pytest.mark.parametrize("call", [*MOMENTS, *SLOW])
def test_a_kill_at_any_moment_only_delays(
    call: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = recommend(run, tmp_path / "whole.csv").read_bytes()
    out = tmp_path / "all.csv"
    assert killed(run, out, call).returncode == -signal.SIGKILL
    if out.exists():
        assert call == 16 and out.read_bytes() == whole
    capsys.readouterr()
    recommend(run, out)
    assert out.read_bytes() == whole
    done = re.search(r"(\d+) of 40 users were done before", capsys.readouterr().out)
    assert (int(done[1]) if done else 0) == min(40, 7 * MOMENTS.get(call, (call - 2) // 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "whole.csv"]


def test_a_signal_says_what_is_kept(run: Path, tmp_path: Path) -> None:
    done = killed(run, tmp_path / "all.csv", 5, "SIGINT")
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr == "interrupted; 1 of 6 parts are kept: the same command goes on from there\n"


def test_parts_of_another_job_are_made_anew(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all.csv"
    whole = recommend(run, tmp_path / "whole.csv", "--no-exclude-seen").read_bytes()
    assert killed(run, out, 9).returncode == -signal.SIGKILL
    capsys.readouterr()
    recommend(run, out, "--no-exclude-seen")
    printed = capsys.readouterr().out
    assert "are of a job with another model, log or options, and are made anew" in " ".join(printed.split())
    assert "were done before" not in printed and out.read_bytes() == whole


@pytest.mark.parametrize("description", [None, b"", b"[" * 100_000, b"[]"])
def test_parts_without_a_description_are_of_no_job(description: bytes | None, run: Path, tmp_path: Path) -> None:
    """A kill while parts are being removed leaves parts like these."""
    folder = tmp_path / "all.csv.parts"
    folder.mkdir()
    (folder / "000001-0.part").write_text("half")
    if description is not None:
        (folder / "job.json").write_bytes(description)
    assert "half" not in recommend(run, tmp_path / "all.csv").read_text()


def test_what_tells_jobs_apart(run: Path) -> None:
    recommender, store = Recommender.load(run), make_store()
    other = Recommender.load(run)
    other.model.bias.data[0] += 1
    job = Job(recommender, store)
    jobs = [
        job,
        replace(job, recommender=other),
        replace(job, store=make_store(seed=1)),
        replace(job, k=11),
        replace(job, exclude_seen=False),
        replace(job, allowed=recommender.allowed(deny=[100])),
        replace(job, allowed=recommender.allowed(deny=[101])),
        replace(job, names={}),
        replace(job, names={100: "tea"}),
    ]
    described = [json.dumps(one.describe(".csv")) for one in jobs]
    assert len({*described, json.dumps(job.describe(".parquet"))}) == len(jobs) + 1
    assert Job(Recommender.load(run), make_store()).describe(".csv") == job.describe(".csv")


def test_one_process_at_a_time(run: Path, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "all.csv"
    (tmp_path / "all.csv.parts").mkdir()
    hold = f"import fcntl, os, sys; fcntl.flock(os.open({str(out) + '.parts'!r}, os.O_RDONLY), fcntl.LOCK_EX); "
    program = [sys.executable, "-c", hold + "print('held', flush=True); sys.stdin.read()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        line = fails("recommend", run, "--all-users", "--out", out)
        assert line == f"{out}.parts: another process is at work in it; wait for its end"
        holder.kill()
    assert recommend(run, out).exists()


# Places and options -------------------------------------------------------------------------------


def test_only_its_own_files_are_replaced(run: Path, tmp_path: Path, fails: Fails) -> None:
    command = ["recommend", run, "--all-users", "--out"]
    for name, content in (
        ("x.csv", b"user,item\n1,2\n"),
        ("x.csv", b""),
        ("x.jsonl", b'{"for": 3}\n'),
        ("x.parquet", b"PAR1"),
    ):
        own = tmp_path / name
        own.write_bytes(content)
        line = f"{own}: there already, and no recommendations; choose another name or remove it"
        assert fails(*command, own) == line
        assert own.read_bytes() == content
    pl.DataFrame({"user": [1]}).write_parquet(tmp_path / "x.parquet")
    assert "there already" in fails(*command, tmp_path / "x.parquet")
    (tmp_path / "y.csv.parts").mkdir()
    (tmp_path / "y.csv.parts" / "thesis").write_text("mine")
    assert "holds 'thesis', which is no part of recommendations" in fails(*command, tmp_path / "y.csv")
    assert (tmp_path / "y.csv.parts" / "thesis").read_text() == "mine"
    assert "must end in .parquet, .csv, .jsonl" in fails(*command, tmp_path / "x.txt")
    assert "is no folder" in fails(*command, tmp_path / "nowhere" / "x.csv")


def test_a_link_stays_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "all.csv").symlink_to(tmp_path / "elsewhere" / "real.csv")
    for _ in range(2):
        recommend(run, tmp_path / "all.csv")
        assert (tmp_path / "all.csv").is_symlink()
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real.csv"]


def test_options_that_do_not_go_together(run: Path, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "x.csv"
    assert fails("recommend", run, "--all-users") == "options all-users and out: each needs the other"
    assert fails("recommend", run, "--users", "user-001", "--out", out).startswith("options all-users and out")
    assert "name exactly one of" in fails("recommend", run, "--users", "user-001", "--all-users", "--out", out)
    for option in (["--json"], ["--unknown", "error"], ["--approximate"]):
        line = fails("recommend", run, "--all-users", "--out", out, *option)
        assert line.startswith(f"option {option[0][2:]}: not used with --all-users")
    assert fails("recommend", run, "--all-users", "--out", out, "--k", 31).startswith("option k: 31 items asked for")
    assert not list(tmp_path.iterdir())


# Memory -------------------------------------------------------------------------------------------

PEAK = """
import re, sys
from hyenarec import all_users
from hyenarec.cli import main
all_users.USERS_A_PART = 1024
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_kib(run: Path, folder: Path, users: int, kind: str) -> int:
    """The peak memory of a process that recommends 28 items to each of ``users``."""
    lengths = np.full(users, 2)
    ids = Ids.from_values(list(range(users))), Ids.from_values(list(range(100, 130)))
    events = np.arange(2 * users, dtype=np.int32) % 30
    SequenceStore(np.concatenate(([0], lengths.cumsum())), events, None, *ids).save(folder / f"{users}.store")
    command = ["recommend", run, "--data", folder / f"{users}.store", "--all-users", "--out", folder / f"x{kind}"]
    arguments = [str(part) for part in [*command, "--k", 28]]
    environment = os.environ | {"POLARS_MAX_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("kind", [".parquet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (".csv",))])
def test_memory_does_not_grow_with_users(kind: str, run: Path, tmp_path: Path) -> None:
    """27,000 more users, with 750,000 recommendations, need 2 MiB more. Keeping these would need 9 MiB as arrays or 150
    as objects."""
    few, many = (peak_kib(run, tmp_path, users, kind) for users in (3072, 30_000))
    assert many - few < 8 << 10
