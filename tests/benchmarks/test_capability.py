"""The suite ``capability``: its questions, its baselines, and results of separate runs that join."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.recording import read
from benchmarks.report import rankings
from benchmarks.suites import capability
from hyenarec.data.seasons import Seasons

PROCESS = Seasons(season_lengths=(20, 40), concentration=10.0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    small = {"PROCESS": PROCESS, "USERS": 6, "EVENTS": 200, "TESTED": 60, "QUESTIONS": 2, "STEP_EVENTS": 100}
    for name, value in small.items():
        monkeypatch.setattr(capability, name, value)
    monkeypatch.setattr(capability, "TRAINING", replace(capability.TRAINING, epochs=1, evaluate_every=1))

    def call(*options: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["python -m benchmarks capability", *options])
        capability.main()
        return read(tmp_path / "benchmarks/results/capability.json")

    return call


def test_parts_join_and_limits_bound_them(run: Any, tmp_path: Path) -> None:
    run("--mixers", "gru", "--lengths", "10")
    result = run("--mixers", "hyena", "--lengths", "10", "200", "--seeds", "1")
    assert {(r["mixer"], r["length"], r["seed"]) for r in result["runs"]} == {
        ("gru", 10, 0),
        ("hyena", 10, 1),
        ("hyena", 200, 1),
    }
    rows = {(row["read"], row["system"]): row for row in capability.table(result)}
    assert rows[10, capability.POPULAR]["share"] == 0 and rows[10, capability.WHOLE]["share"] == 1
    assert rows[200, capability.BEST]["share"] == pytest.approx(1)  # a reader of 200 events reads all that there is
    assert 0 < rows[10, capability.BEST]["share"] < 1
    assert all(row["share"] <= 1 + 1e-9 for row in rows.values())
    assert (tmp_path / "benchmarks/results/capability.png").exists()
    page = "\n".join(rankings.accuracy(result))
    assert "best possible from whole histories" in page and "HyenaRec" in page


def test_runs_of_other_settings_do_not_stay(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--mixers", "gru", "--lengths", "10")
    monkeypatch.setattr(capability, "QUESTIONS", 3)
    result = run("--mixers", "hyena", "--lengths", "10")
    assert [row["mixer"] for row in result["runs"]] == ["hyena"]


def test_questions_are_asked_after_a_burst_and_never_in_training() -> None:
    task = capability.Task(PROCESS, users=5, events=200, tested=60, questions=4)
    _, chance = PROCESS.follower
    assert len(task.targets) == 20
    for target, history, user in zip(task.targets, task.histories, task.store.users_of(task.targets), strict=True):
        assert chance[history[-1]] == 0
        assert target >= task.split.train_ends[user] and len(history) == target - task.store.offsets[user]
        start = task.store.offsets[user]
        assert np.array_equal(task.places[history], task.store.items[start:target])
        names = task.store.item_ids.decode(task.store.items[start:target])
        assert names == [PROCESS.names()[item] for item in history]


def test_a_model_that_knows_the_truth_would_get_all_of_it() -> None:
    task = capability.Task(PROCESS, users=5, events=200, tested=60, questions=4)
    assert task.best_from(200) == pytest.approx(task.metrics(task.truth))
    assert task.popular()["NDCG@10"] < task.best_from(20)["NDCG@10"] < task.metrics(task.truth)["NDCG@10"]
