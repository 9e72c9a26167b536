"""The scaling benchmark: its report holds what was measured, and what it derives follows from that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scaling
from hyenarec.data.batches import TrainingWindows
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from measuring import take_turns

TINY = scaling.Settings(tokens=800, dim=8, blocks=1, negatives=4, device="cpu", seconds=0, rounds=2)


def case(mixer: str, length: int, milliseconds: float) -> dict[str, Any]:
    return {"mixer": mixer, "length": length, "tokens": 800, "ms": {"median": milliseconds}}


def test_report(tmp_path: Path) -> None:
    out = tmp_path / "new" / "result"
    scaling.Scaling(("hyena", "attention"), (400, 200), out, TINY).run()
    scaling.Scaling(("hyena", "attention"), (50,), out, TINY).run()  # joins
    report = json.loads(out.with_suffix(".json").read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {"title", "command", "environment", "settings", "cases", "exponents"} == report.keys()
    assert {"revision", "torch", "device", "threads"} <= report["environment"].keys()
    cases = {(case["length"], case["mixer"]): case for case in report["cases"]}
    assert list(cases) == [(length, mixer) for length in (50, 200, 400) for mixer in ("hyena", "attention")]
    for (length, _), found in cases.items():
        middle = found["ms"]["median"]
        assert found["tokens"] == 800
        assert found["ms"]["rounds"] == 2
        assert found["tokens_per_second"] == pytest.approx(1000 * 800 / middle)
        assert found["speed_over_rival"] == pytest.approx(cases[length, "attention"]["ms"]["median"] / middle)
        assert 10 < found["idle_mib"] <= found["peak_mib"]
    for mixer, fit in report["exponents"].items():  # of two points the slope is the difference quotient
        short, long = (cases[length, mixer]["ms"]["median"] for length in (200, 400))
        assert fit["lengths"] == [200, 400]
        assert fit["step"] == pytest.approx(np.log2(long / short))


def test_other_settings_start_afresh(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    head = {"environment": {"revision": "a"}, "settings": {"tokens": 800}}
    assert scaling.earlier_cases(path, head) == []
    path.write_text(json.dumps(head | {"cases": [case("hyena", 50, 1.0)], "exponents": {}}))
    assert scaling.earlier_cases(path, head) == [case("hyena", 50, 1.0)]
    assert scaling.earlier_cases(path, head | {"environment": {"revision": "b"}}) == []


def test_left_out_from_the_length_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With measured processes replaced: attention takes as many seconds as the length, hyena always two."""
    tried = []

    def try_steps(mixer: str, length: int, settings: scaling.Settings) -> dict[str, float]:
        tried.append((mixer, length))
        return {"seconds": length if mixer == "attention" else 2.0, "peak_mib": 1.0, "idle_mib": 1.0}

    def time_steps(mixers: list[str], length: int, settings: scaling.Settings) -> dict[str, dict[str, float]]:
        return {mixer: {"median": 2000.0} for mixer in mixers}

    monkeypatch.setattr(scaling, "try_steps", try_steps)
    monkeypatch.setattr(scaling, "time_steps", time_steps)
    monkeypatch.setattr(scaling, "in_fresh_process", lambda function, *arguments: function(*arguments))
    cases: list[dict[str, Any]] = []
    for length in (10, 20, 30, 40):
        cases += scaling.measure(("hyena", "attention"), length, scaling.Settings(limit=20.0), cases)
    assert tried == [
        ("hyena", 10),
        ("attention", 10),
        ("hyena", 20),
        ("attention", 20),
        *[("hyena", 30), ("attention", 30)],
        ("hyena", 40),
    ]
    found = {(case["mixer"], case["length"]): case for case in cases}
    assert [length for mixer, length in found if "left_out" in found[mixer, length]] == [30, 40]
    assert found["attention", 30]["left_out"] == "a step takes 30.0 s, over the limit of 20 s"
    assert found["attention", 40]["left_out"] == "left out at 30: a step takes 30.0 s, over the limit of 20 s"
    assert found["hyena", 20]["speed_over_rival"] == 1
    assert "speed_over_rival" not in found["hyena", 30]


@pytest.mark.parametrize("power", [0.0, 0.05, 1.0])
def test_exponent_of_known_times(power: float) -> None:
    cases = [case("hyena", length, 3 * length**power) for length in (200, 1024, 4096)]
    cases.append(case("hyena", 50, 1e6))  # below the range of the fit
    cases.append({"mixer": "hyena", "length": 16384, "left_out": "too slow"})
    found = scaling.exponents([*cases, case("gru", 200, 1.0)])
    assert list(found) == ["hyena"]  # one point has no slope
    assert found["hyena"]["step"] == pytest.approx(power, abs=1e-9)
    assert found["hyena"]["sequence"] == pytest.approx(1 + power)
    assert found["hyena"]["lengths"] == [200, 1024, 4096]


def test_windows_of_the_generated_log_are_full() -> None:
    store = scaling.full_windows(7, 6)
    batches = list(TrainingWindows(store, leave_one_out(store), 7, 3).epoch(0, 0))
    assert [batch.packing.lengths.tolist() for batch in batches] == [[7, 7, 7], [7, 7, 7]]


def test_turns_alternate() -> None:
    called: list[str] = []
    times = take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 0, 3)
    assert "".join(called) == "ab" + "ab" + "ba" + "ab"
    assert {name: values["rounds"] for name, values in times.items()} == {"a": 3, "b": 3}


def test_unknown_mixer() -> None:
    with pytest.raises(UserError, match="mixers out of hyena, "):
        scaling.Scaling(("hyaena",)).run()
