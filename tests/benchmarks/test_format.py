"""The registry, the table of suites, the format of results and the checks that all suites share."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from benchmarks import front_door
from benchmarks.harness import checks, recording
from benchmarks.harness.registry import MAIN, SYSTEMS, check_names
from benchmarks.suites import serving
from hyenarec.config import HyenaConfig
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel

CPU = torch.device("cpu")
CASE = {
    "mixer": "hyena",
    "ms": {"median": 2.0, "min": 1.0, "rounds": 3},
    "check": {"against": "float64", "error": 0.0, "tolerance": 0.1},
}
RUN = {
    "log": "a",
    "mixer": "hyena",
    "length": 2,
    "seed": 0,
    "test": {"NDCG@10": 0.5, "Recall@10": 1, "MRR": 0.25},
}


def write(path: Path, **content: Any) -> None:
    recording.write(path, "scaling", "a title", {"settings": {"dim": 8}, **content})


def test_every_mixer_and_every_filter_is_a_system() -> None:
    assert {system.mixer for system in SYSTEMS.values()} == MIXERS.keys()
    assert all(SYSTEMS[name].mixer == name for name in MAIN) and set(MAIN) == MIXERS.keys()
    filters = get_args(get_type_hints(HyenaConfig)["filter"])
    assert {system.hyena.filter for system in SYSTEMS.values() if system.mixer == "hyena"} == set(filters)
    assert len({system.title for system in SYSTEMS.values()}) == len(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_can_be_built_and_checked(name: str) -> None:
    settings = serving.ServingSettings(dim=8, items=20)
    net = SequenceModel(SYSTEMS[name].model(9, dim=8, blocks=1), 20)
    check = checks.training_check(net, serving.histories(9, 2, settings), "float32")
    assert 0 < check["error"] < check["tolerance"]


def test_names_are_checked() -> None:
    check_names(["gru", "hyena"])
    for names in ([], ["gru", "lstm"]):
        with pytest.raises(UserError, match="option mixers: name at least one out of hyena, attention"):
            check_names(names)


@pytest.mark.parametrize("broken", ["mixer", "gradient"])
def test_training_check_is_red_for_wrong_values(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds a fault in the timed model alone; the float64 copy that it compares with stays right."""
    net = SequenceModel(SYSTEMS["hyena"].model(9, dim=8, blocks=1), 20)
    batch = serving.histories(9, 2, serving.ServingSettings(dim=8, items=20))
    mixer = type(net.blocks[0].mixer)
    right = mixer.forward

    def wrong(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        out = right(self, x, *arguments, **options)
        if out.dtype == torch.float64:
            return out
        return out.roll(1, 0) if broken == "mixer" else out.detach() + 0.9 * (out - out.detach())

    monkeypatch.setattr(mixer, "forward", wrong)
    assert "equivalence check red" in str(checks.refusal({"check": checks.training_check(net, batch, "float32")}))


def test_error_is_norm_wise() -> None:
    want = torch.tensor([3.0, 4.0])
    assert checks.norm_wise_error(want + torch.tensor([0.0, 0.5]), want) == pytest.approx(0.1)
    assert checks.norm_wise_error(torch.zeros(2), torch.zeros(2)) == 0
    assert checks.norm_wise_error(torch.ones(2), torch.zeros(2)) == float("inf")
    nan = checks.compare("it", {"a": torch.tensor([float("nan")]), "b": want}, {"a": want[:1], "b": want}, 0.1)
    assert checks.refusal({"check": nan}) is not None


def test_written_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks scaling", "--out", "a b"])
    path = tmp_path / "new" / "result.json"
    write(path, cases=[CASE])
    result = recording.read(path)
    assert result["cases"] == [CASE]
    assert result["command"] == "python -m benchmarks scaling --out 'a b'"
    assert {"revision", "torch", "device", "threads", "backend"} <= result["environment"].keys()
    assert recording.earlier_cases(path, {"dim": 8}, CPU) == [CASE]
    assert recording.earlier_cases(path, {"dim": 16}, CPU) == []
    assert recording.earlier_cases(tmp_path / "none.json", {"dim": 8}, CPU) == []
    path.write_text(json.dumps(result | {"environment": result["environment"] | {"revision": "another"}}))
    assert recording.earlier_cases(path, {"dim": 8}, CPU) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "none of cases, runs, baselines"),
        ({"cases": {}}, "cases: a list is needed"),
        ({"cases": [CASE, {"mixer": "gru"}]}, r"cases\[1\]: either ms or left_out"),
        ({"cases": [CASE | {"left_out": "slow"}]}, r"cases\[0\]: either ms or left_out"),
        ({"cases": [CASE | {"check": {"error": 0.0}}]}, r"cases\[0\]: check: against missing"),
        ({"cases": [CASE | {"ms": {"median": 1.0, "min": 1.0}}]}, r"cases\[0\]: ms: rounds missing"),
        ({"cases": [CASE | {"ms": {"median": float("nan"), "min": 1.0, "rounds": 1}}]}, "ms: median is nan"),
        ({"cases": [CASE | {"rivals": {"FFT": {"median": 0.0, "min": 1.0, "rounds": 1}}}]}, "FFT: median is 0.0"),
        ({"runs": [RUN | {"seed": "0"}]}, r"runs\[0\]: seed: int needed, '0' found"),
        ({"runs": [RUN | {"test": {"MRR": 0.1}}]}, r"runs\[0\]: NDCG@10 missing"),
        ({"runs": [RUN], "baselines": [{"log": "a", "name": "b", "length": 2}]}, r"baselines\[0\]: NDCG@10 missing"),
        ({"settings": None, "runs": [RUN]}, "settings: dict needed"),
    ],
)
def test_nothing_that_breaks_the_format_is_written(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(UserError, match=words):
        write(path, **content)
    assert not path.exists()


def test_every_suite_is_a_module_with_a_main() -> None:
    for name, suite in front_door.SUITES.items():
        assert callable(import_module(f"benchmarks.{suite.module}").main), name
        assert suite.line


def test_results_in_the_repository_are_in_the_format() -> None:
    for path in (Path(__file__).parents[2] / "benchmarks/results").glob("*.json"):
        if recording.is_result(path):
            assert recording.read(path)["suite"] in front_door.SUITES
