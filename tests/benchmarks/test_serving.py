"""The suite on serving: streamed scores equal those of the whole history, and the check finds it where they do not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.checks import refusal
from benchmarks.harness.recording import read
from benchmarks.harness.registry import MAIN, SYSTEMS
from benchmarks.suites import serving
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec_kernels.backends import cpu

TINY = serving.ServingSettings(dim=8, blocks=2, items=20, device="cpu", seconds=0, rounds=3)


def model(name: str) -> SequenceModel:
    torch.manual_seed(1)
    return SequenceModel(SYSTEMS[name].model(12, dim=8), 20).eval()


@pytest.mark.usefixtures("in_this_process")
def test_result_of_every_mixer(tmp_path: Path) -> None:
    out = tmp_path / "serving"
    serving.Serving(lengths=(12,), batches=(1, 3), out=out, settings=TINY).run()
    result = read(out.with_suffix(".json"))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for batch in (1, 3):
        here = [case for case in result["cases"] if case["batch"] == batch]
        timed = {(case["mixer"], case["what"]) for case in here}
        steps = {(name, "step") for name in MAIN if MIXERS[SYSTEMS[name].model(12).mixer].causal}
        assert timed == {(name, "forward") for name in MAIN} | steps | {("", "top-k")}
        for case in here:
            assert refusal(case) is None
            assert case["ms"]["min"] <= case["ms"]["median"] <= case["ms"]["p99"]


@pytest.mark.usefixtures("in_this_process")
def test_slow_calls_are_left_out(tmp_path: Path) -> None:
    settings = serving.ServingSettings(dim=8, items=20, device="cpu", limit=0.0)
    cases = serving.measure(("hyena",), 12, 1, settings, [], tmp_path)
    assert [case["left_out"] for case in cases] == ["a call takes over 0 s"] * 3
    longer = serving.measure(("hyena",), 24, 1, TINY, cases, tmp_path)
    assert [case["left_out"] for case in longer] == ["left out at 12: a call takes over 0 s"] * 3
    assert all("ms" in case for case in serving.measure(("hyena",), 24, 2, TINY, cases, tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(cpu.probe() is not None or shutil.which("g++") is None, reason="takes the compiled library and g++")
@pytest.mark.parametrize("alone", [False, True])
def test_compiled_alike(alone: bool, tmp_path: Path) -> None:
    settings = replace(TINY, compile=True, alone=alone)
    cases = serving.measure(("hyena", "gru", "bert4rec"), 512, 2, settings, [], tmp_path)
    both = [(name, what) for name in ("hyena", "gru") for what in ("forward", "step")]
    assert {(case["mixer"], case["what"]) for case in cases} == {*both, ("hyena", "compact step")}
    (left_out,) = [case for case in cases if "left_out" in case]
    assert (left_out["mixer"], left_out["what"]) == ("gru", "forward")
    assert all(refusal(case) is None for case in cases if case is not left_out)
    sizes = {(case["mixer"], case["what"]): case.get("state_bytes") for case in cases}
    assert sizes["hyena", "forward"] is None and sizes["gru", "step"] == 2 * 8 * 4 + 8
    assert sizes["hyena", "compact step"] < sizes["hyena", "step"] / 2
    more = serving.measure(("hyena", "gru"), 512, 3, settings, cases, tmp_path)  # uses the same compiled packages
    more += serving.measure(("attention",), 12, 2, settings, [], tmp_path)  # one call fills every position
    assert [refusal(case) for case in more if "left_out" not in case] == [None] * 6


@pytest.mark.parametrize("name", ["hyena", "gru", "attention"])
def test_check_is_red_for_a_state_that_forgets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = model(name), serving.histories(12, 2, TINY)
    with torch.inference_mode():
        assert refusal({"check": serving.step_check(net, batch)}) is None
    right = SequenceModel.step

    def forgetful(*arguments: Any) -> tuple[Tensor, Any]:
        hidden, state = right(*arguments)
        return hidden * 0.9, state

    monkeypatch.setattr(SequenceModel, "step", forgetful)
    with torch.inference_mode():
        assert "equivalence check red" in str(refusal({"check": serving.step_check(net, batch)}))


def test_check_is_red_for_a_wrong_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = model("attention"), serving.histories(12, 2, TINY)
    with torch.inference_mode():
        assert refusal({"check": serving.forward_check(net, batch)}) is None
        right = serving.forward

        def wrong(*arguments: Any) -> Tensor:
            return right(*arguments).flip(0)  # every user gets another user's answer

        monkeypatch.setattr(serving, "forward", wrong)
        assert refusal({"check": serving.forward_check(net, batch)}) is not None


def test_bad_options() -> None:
    with pytest.raises(UserError, match="lengths over 4"):
        serving.Serving(lengths=(4,)).run()
    with pytest.raises(UserError, match="option alone: it is for --compile"):
        serving.Serving(settings=serving.ServingSettings(alone=True)).run()
