"""The scripts of examples/ run as a user runs them, and their output shows what they claim."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_LINES = 59


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a script and returns what it prints."""
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_every_script_has_a_test_and_is_short() -> None:
    scripts = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert scripts.keys() == {"one_layer", "replace_attention", "recommend"}
    assert max(scripts.values()) <= MOST_LINES


def test_one_layer_gives_the_same_values_in_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    differences = [float(number) for number in re.findall(r"at most (\S+)", run("one_layer", capsys))]
    assert len(differences) == 2
    assert max(differences) < 1e-4  # the scores are about 30 in size, in float32


def test_replace_attention_trains_the_new_mixer(capsys: pytest.CaptureFixture[str]) -> None:
    losses = dict(re.findall(r"(\w+): +loss (\S+)", run("replace_attention", capsys)))
    assert losses.keys() == {"attention", "HyenaMixer"}
    assert float(losses["HyenaMixer"]) < 2.5  # guessing would give 3.9


def test_recommend_recommends_items_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^(.+) -> (.+)$", run("recommend", capsys), re.MULTILINE)
    assert [history for history, _ in lines] == ["jazz-001 jazz-002 jazz-003", "soul-002"]
    assert all(len(re.findall(r"[a-z]+-(?:\d{3}|live-\d) \(", answer)) == 3 for _, answer in lines)
