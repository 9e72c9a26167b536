"""The suite that trains other libraries' models, run with the one example that needs no library."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.recording import read
from benchmarks.report import rankings
from benchmarks.suites import hosts
from hyenarec.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    polars = pytest.importorskip("polars")
    path = tmp_path / "toy.parquet"
    rows = {"user_id": [u for u in range(20) for _ in range(6)], "item_id": [n % 9 for n in range(120)]}
    polars.DataFrame(rows | {"timestamp": list(range(120))}).write_parquet(path)
    return path


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of environments in which one library's environment is this interpreter."""
    bin = tmp_path / "build/hosts/jagged/bin"
    bin.mkdir(parents=True)
    (bin / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin / "python").chmod(0o755)
    monkeypatch.setattr(hosts, "RESULTS", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "python"))))
    return tmp_path / "build/hosts"


def test_both_mixers_of_every_seed_are_rows(log: Path, environments: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    hosts.Hosts(log, seeds=(0, 1), length=5, epochs=1, environments=environments).run()
    result = read(tmp_path / "hosts-toy.json")
    rows = [(row["host"], row["seed"], row["mixer"], row["epochs"]) for row in result["hosts"]]
    assert rows == [("jagged", seed, mixer, 1) for seed in (0, 1) for mixer in ("attention", "hyena")]
    assert all(0 <= row["NDCG@10"] <= 1 and row["cpu_seconds_per_epoch"] > 0 for row in result["hosts"])
    assert (tmp_path / "hosts-toy.png").stat().st_size > 10_000


def test_what_an_interrupted_run_had_is_kept(
    log: Path, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is interrupted in its third training and then started again trains the first two only once."""
    figures = {"NDCG@10": 0.5, "epochs": 1, "best_epoch": 1, "cpu_seconds_per_epoch": 1.0, "peak_megabytes": 9}
    trained: list[tuple[int, str]] = []

    def train(python: Path, host: str, options: dict[str, Any]) -> dict[str, Any]:
        if len(trained) == 2 and not (tmp_path / "interrupted").exists():
            (tmp_path / "interrupted").touch()
            raise KeyboardInterrupt
        trained.append((options["seed"], options["mixers"]))
        return figures

    monkeypatch.setattr(hosts, "trained", train)
    suite = hosts.Hosts(log, seeds=(0, 1), environments=environments)
    with pytest.raises(KeyboardInterrupt):
        suite.run()
    assert len(read(tmp_path / "hosts-toy.json")["hosts"]) == 2
    suite.run()
    assert trained == [(0, "attention"), (0, "hyena"), (1, "attention"), (1, "hyena")]
    assert len(read(tmp_path / "hosts-toy.json")["hosts"]) == 4
    replace(suite, length=7).run()
    assert len(trained) == 8


def test_what_is_wrong_is_one_line(log: Path, environments: Path) -> None:
    with pytest.raises(UserError, match="option hosts: no example for lightfm"):
        hosts.Hosts(log, hosts=("lightfm",)).run()
    with pytest.raises(UserError, match="no environment of rectools; `make hosts` makes them"):
        hosts.Hosts(log, hosts=("rectools",), environments=environments).run()
    pytest.importorskip("pandas")  # the example itself needs it
    with pytest.raises(UserError, match=r"jagged/train\.py exited with 2: .*--epochs"):
        hosts.trained(environments / "jagged/bin/python", "jagged", {"epochs": "many"})


def test_the_report_has_a_row_for_each_library() -> None:
    """Only seeds that both mixers have count. A + marks the best epoch of a run that stopped at its limit of epochs."""
    figures = {"most_epochs": 9, "best_epoch": 3, "cpu_seconds_per_epoch": 2.0, "peak_megabytes": 500}
    rows = [
        {"host": "a", "mixer": mixer, "seed": seed, "NDCG@10": value + seed / 100, "epochs": 8 + (seed > 0)} | figures
        for mixer, value in (("attention", 0.1), ("hyena", 0.2))
        for seed in (0, 2)
    ]
    rows.append(rows[0] | {"seed": 7, "NDCG@10": 0.9})
    text = json.dumps(rankings.hosts({"hosts": rows}), ensure_ascii=False)
    assert "| a | .1100 ± .0141 → .2100 ± .0141 | 2.00 → 2.00 | 500 → 500 | 3, 3+ → 3, 3+ | 2 |" in text


def test_the_guide_has_the_table_of_the_results() -> None:
    guide = (ROOT / "docs/guide/replace-attention.md").read_text(encoding="utf-8")
    rows = rankings.hosts(read(ROOT / "benchmarks/results/hosts-ml-100k.json"))
    assert "\n".join(rows).strip() in guide
