"""The scaling suite: its result holds what was measured, and what it derives follows from the measured values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.harness import checks, measuring
from benchmarks.harness import training_steps as steps
from benchmarks.harness.measuring import take_turns
from benchmarks.harness.recording import read
from benchmarks.report.tables import over_rival
from benchmarks.suites import scaling
from hyenarec.data.batches import TrainingSlices
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from tests.interpreter import FORKED

TINY = scaling.ScalingSettings(tokens=800, dim=8, blocks=1, negatives=4, device="cpu", seconds=0, rounds=2)
SMALLEST = scaling.ScalingSettings(tokens=64, dim=8, blocks=1, negatives=4, device="cpu")
GREEN = {"against": "float64 reference", "error": 1e-7, "tolerance": 1e-3}


def case(mixer: str, length: int, milliseconds: float) -> dict[str, Any]:
    return {"mixer": mixer, "length": length, "tokens": 800, "ms": {"median": milliseconds}}


@pytest.mark.usefixtures("in_this_process")
def test_result(tmp_path: Path) -> None:
    out = tmp_path / "new" / "result"
    scaling.Scaling(("hyena", "attention"), (400, 200), out, TINY).run()
    scaling.Scaling(("hyena", "attention"), (50,), out, TINY).run()  # is added to the same result
    result = read(out.with_suffix(".json"))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    cases = {(case["length"], case["mixer"]): case for case in result["cases"]}
    assert list(cases) == [(length, mixer) for length in (50, 200, 400) for mixer in ("hyena", "attention")]
    for found in cases.values():
        middle = found["ms"]["median"]
        assert found["tokens"] == 800
        assert found["ms"]["rounds"] == 2
        assert found["tokens_per_second"] == pytest.approx(1000 * 800 / middle)
        assert 10 < found["idle_mib"] <= found["peak_mib"]
        assert 0 < found["check"]["error"] < 1e-5 < found["check"]["tolerance"]
    assert over_rival(cases[200, "hyena"], result["cases"]) == pytest.approx(
        cases[200, "attention"]["ms"]["median"] / cases[200, "hyena"]["ms"]["median"]
    )
    for mixer, fit in result["exponents"].items():  # with two points the slope is the difference quotient
        short, long = (cases[length, mixer]["ms"]["median"] for length in (200, 400))
        assert fit["lengths"] == [200, 400]
        assert fit["step"] == pytest.approx(np.log2(long / short))


def test_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement in its own process, here forked from one that has imported torch, returns every figure."""
    monkeypatch.setattr(measuring, "get_context", lambda method: FORKED)
    (found,) = scaling.measure(("hyena",), 50, TINY, [])
    assert {"ms", "check", "peak_mib", "idle_mib", "tokens", "tokens_per_second"} <= found.keys()


def checked(**options: Any) -> dict[str, Any]:
    settings = replace(SMALLEST, **options)
    check: dict[str, Any] = steps.try_steps(partial(scaling.full_trainer, "attention", 16, settings), settings)["check"]
    assert check["error"] <= check["tolerance"]
    return check


def test_a_lower_precision_is_applied_and_checked() -> None:
    assert checked(precision="bfloat16")["error"] > 100 * checked()["error"]  # bfloat16 rounds more


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])  # g++ takes 30 s
def test_compiled_models_are_checked(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    checked(compile=True)


@pytest.mark.parametrize("compile", [False, True])
def test_compile_is_applied(compile: bool) -> None:
    trainer = scaling.full_trainer("attention", 16, replace(SMALLEST, compile=compile))
    assert (trainer.model._compiled_call_impl is not None) == compile


def test_left_out_from_the_length_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up measurements: a step takes attention as many seconds as there are events, and hyena always two."""
    tried = []

    def try_steps(build: Any, settings: scaling.ScalingSettings) -> dict[str, Any]:
        mixer, length, _ = build.args
        tried.append((mixer, length))
        return {"seconds": length if mixer == "attention" else 2.0, "peak_mib": 1.0, "idle_mib": 1.0, "check": GREEN}

    def time_steps(builds: dict[str, Any], settings: scaling.ScalingSettings) -> dict[str, dict[str, float]]:
        return {mixer: {"median": 2000.0} for mixer in builds}

    monkeypatch.setattr(steps, "try_steps", try_steps)
    monkeypatch.setattr(steps, "time_steps", time_steps)
    monkeypatch.setattr(steps, "in_fresh_process", lambda function, *arguments: function(*arguments))
    cases: list[dict[str, Any]] = []
    for length in (10, 20, 30, 40):
        cases += scaling.measure(("hyena", "attention"), length, scaling.ScalingSettings(limit=20.0), cases)
    assert tried == [
        *[("hyena", 10), ("attention", 10)],
        *[("hyena", 20), ("attention", 20)],
        *[("hyena", 30), ("attention", 30)],
        ("hyena", 40),
    ]
    found = {(case["mixer"], case["length"]): case for case in cases}
    assert [length for mixer, length in found if "left_out" in found[mixer, length]] == [30, 40]
    assert found["attention", 30]["left_out"] == "a step takes over 20 s"
    assert found["attention", 40]["left_out"] == "left out at 30: a step takes over 20 s"
    assert over_rival(found["hyena", 20], cases) == 1
    assert over_rival(found["hyena", 30], cases) is None


@pytest.mark.parametrize("power", [0.0, 0.05, 1.0])
def test_exponent_of_known_times(power: float) -> None:
    cases = [case("hyena", length, 3 * length**power) for length in (200, 1024, 4096)]
    cases.append(case("hyena", 50, 1e6))  # too short to count for the fit
    cases.append({"mixer": "hyena", "length": 16384, "left_out": "too slow"})
    found = scaling.exponents([*cases, case("gru", 200, 1.0)])
    assert list(found) == ["hyena"]  # gru has one point, so no slope
    assert found["hyena"]["step"] == pytest.approx(power, abs=1e-9)
    assert found["hyena"]["sequence"] == pytest.approx(1 + power)
    assert found["hyena"]["lengths"] == [200, 1024, 4096]


def test_windows_of_the_generated_log_are_full() -> None:
    store = scaling.full_slices(7, 6)
    batches = list(TrainingSlices(store, leave_one_out(store), 7, 3).epoch(0, 0))
    assert [batch.packing.lengths.tolist() for batch in batches] == [[7, 7, 7], [7, 7, 7]]


def test_results_of_two_precisions_have_names_of_their_own() -> None:
    names = [
        scaling.ScalingSettings(device="cpu", precision=precision).name("scaling") for precision in checks.TOLERANCE
    ]
    assert names == ["scaling-cpu", "scaling-cpu-bfloat16"]


def test_turns_alternate() -> None:
    called: list[str] = []
    times = take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 0, 3)
    assert "".join(called) == "ab" + "ab" + "ba" + "ab"
    assert {name: values["rounds"] for name, values in times.items()} == {"a": 3, "b": 3}


def test_unknown_mixer_and_length() -> None:
    with pytest.raises(UserError, match="mixers: name at least one out of hyena, "):
        scaling.Scaling(("hyaena",)).run()
    with pytest.raises(UserError, match="lengths"):
        scaling.Scaling(lengths=(0,)).run()
