"""The GPU suite without a GPU: how it evaluates its rows, and the whole program on a pretended device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import clocks, extension, plan, predictions, pretence, suite, table, targets, training_step, worker
from benchmarks.gpu.contestants import only
from benchmarks.gpu.results import Results, write_whole
from benchmarks.harness.recording import ENVIRONMENT, read
from hyenarec_kernels import backends, long_conv
from hyenarec_kernels.backends import reference

ROOT = Path(__file__).parents[2]


def summary(median: float) -> dict[str, float]:
    return {"median": median, "min": median, "rounds": 5}


def timed(forward: float, training: float | None = None, wall: float = 1.0) -> worker.Row:
    """Made-up figures, in ms on the device; the wall clock shows ``wall`` times as much."""

    def clocked(ms: float) -> dict[str, Any]:
        return {"wall": summary(wall * ms), "device": summary(ms), "graph": summary(ms), "host": 0.1}

    return {"forward": clocked(forward)} | ({} if training is None else {"training": clocked(training)})


def rows_of(length: int, **changed: float) -> list[worker.Row]:
    """Made-up rows of one length: ours take 1 ms forward and 3 ms with backward on cuda, twice that on triton."""
    ms = {"copy": 0.75, "FlashAttention": 2.0, "torch.fft (B, L, D)": 9.0, "torch.fft (B, D, L)": 10.0} | changed
    found = []
    for row in plan.one_length(length):
        if row["what"] == "ours":
            figures = timed(1.0, 3.0) if row["backend"] == "cuda" else timed(2.0, 6.0, wall=2.0)
            found.append(row | figures | {"memory": {"forward": 1.0, "training": 1.25}, "error": {"out": 1e-3}})
        elif row["rival"] in ms:
            found.append(row | timed(ms[row["rival"]], None if row["rival"] == "copy" else 3 * ms[row["rival"]]))
    return found


def test_a_row_is_one_line() -> None:
    row = rows_of(200)[0] | {"predicted": {"forward": 0.5}, "took": {"seconds": 1.25, "processors": 1.0}}
    row["training"] = row["training"] | {"no_graph": "it waits for the device"}
    line = table.line(row)
    assert line.split()[:5] == ["ours", "cuda", "L=200", "D=64", "tokens=1048576"]
    assert "1.000     1.000     1.000     0.500" in line and "error 1.0e-03" in line
    assert "no graph: training it waits for the device" in line and line.endswith("(1.2 s)")
    assert "LEFT OUT: not done after 5 s" in table.line(
        {"what": "rival", "rival": "copy", "left_out": "not done after 5 s"}
    )


def test_the_table_compares_the_faster_backend_with_the_faster_layout() -> None:
    lines = table.table(rows_of(200))
    forward, training = "1.000 2.000 - 75% 2.0x 9.0x", "3.000 6.000 - 2.0x 9.0x"
    assert lines[1].split() == f"1,048,576 200 64 {forward} {training}".split()
    starved = [line for line in lines if line.startswith("starved by the host: ours triton L=200")]
    assert len(starved) == 4 and starved[0].endswith("4.000 ms, 2.000 as a graph")


def test_targets_name_their_worst_value() -> None:
    lines = targets.lines([*rows_of(200), *rows_of(1024, copy=0.5)])
    assert "MISSED     forward, of a copy from L=200 on, 70%: 50% (L=1024 D=64, cuda)" in lines
    assert "reached    FlashAttention's time, forward and backward, at L=200, 1.5x: 2.0x (L=200 D=64, cuda)" in lines
    assert "MISSED     FlashAttention's time, forward and backward, at L=1024, 3x: 2.0x (L=1024 D=64, cuda)" in lines
    assert "no figure  FlashAttention's time, forward and backward, at L=16384, 30x" in lines
    assert "reached    torch.fft's time, forward, 8x: 9.0x (L=200 D=64, cuda)" in lines
    assert any(line.startswith("MISSED     memory, forward and backward, 1.15x: 1.25x") for line in lines)
    broken = rows_of(200)
    broken[0]["error"] = {"out": 1e-3, "x": float("nan")}
    assert any(
        line.startswith("MISSED     error against float64, 2e-02: nan (ours cuda") for line in targets.lines(broken)
    )


def test_the_training_steps_stand_beside_each_other() -> None:
    step = {"what": "step", "tokens": 131_072, "length": 200}
    rows = [step | {"system": name} | timed(1.0, ms) for name, ms in (("hyena", 2.0), ("attention", 5.0))]
    line = "training step at L=200, graph: HyenaRec 2.00 ms, SASRec on flash attention 5.00 ms, 2.50x"
    assert line in targets.lines(rows)


def test_predictions_stand_beside_what_they_are_of(tmp_path: Path) -> None:
    row = next(plan.ours(200))
    assert predictions.read(tmp_path / "missing.json").of(row) == {}
    estimate = {"backend": "cuda", "length": 200, "dim": 64, "terms": 16, "packed": False}
    estimate |= {"forward": {"likely": 3.0, "at least": 2.5}, "forward and backward": {"likely": 9.0}}
    (tmp_path / "model.json").write_text(json.dumps({"estimates": [estimate]}))
    found = predictions.read(tmp_path / "model.json")
    elements = 5242 * 200 * 64
    assert found.of(row) == pytest.approx({"forward": 3e-9 * elements, "training": 9e-9 * elements})
    assert found.of(row | {"window": True}) == found.of(row | {"terms": 32}) == {}


def test_the_plan_begins_with_what_matters() -> None:
    rows = [*plan.essential(), *plan.steps(), *plan.rest()]
    assert [row["length"] for row in rows[:30:10]] == [200, 1024, 4096]
    names = [str(row) for row in rows]
    assert len(set(names)) == len(names)
    for row in plan.essential():
        assert row["what"] in ("ours", "rival") and row["dim"] == 64
    assert {row["backend"] for row in plan.essential() if row["what"] == "ours"} == {"cuda", "triton"}


def test_nothing_is_compiled_twice() -> None:
    first = plan.compiled_first(plan.essential())
    assert [(row["length"], row["packed"]) for row in first] == [
        (length, packed) for length in plan.ESSENTIAL_LENGTHS for packed in (False, True)
    ]
    later = plan.compiled_first([*plan.steps(), *plan.rest()], before=plan.essential())
    kernels = [plan.kernels_of(row) for row in (*first, *later)]
    assert len(set(kernels)) == len(kernels)
    assert any(row["what"] == "step" for row in later) and any(row["length"] == plan.LONGER for row in later)
    assert not any(row.get("backend") == "cuda" or row["what"] == "rival" for row in later)


def test_a_pretended_gpu_is_the_cpu() -> None:
    with pretence.OnCpu():
        devices = [torch.device("cuda"), torch.device("cuda", 0), torch.ones(1, device="cuda:0").device]
        devices += [torch.ones(1).cuda().device, torch.ones(1).to(torch.device("cuda")).device]
    assert {device.type for device in devices} == {"cpu"}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udc80")
    assert path.read_text() == "first"


def test_nobody_takes_the_references_time_for_anothers() -> None:
    x, h = torch.randn(1, 9, 2), torch.randn(2, 3)
    with only(None):
        long_conv(x, h)  # runs on the cpu backend if that is available
    with only("reference"), pytest.raises(NotImplementedError, match="does not take this call"):
        long_conv(x, h)
    assert backends.BACKENDS["reference"].load() is reference


# ---- processes -------------------------------------------------------------------------------------------------------


def behaves(how: str, **_: Any) -> Iterator[worker.Row]:
    yield {"figure": 1}
    if how == "dies":
        os._exit(3)
    if how == "hangs":
        time.sleep(60)
    if how == "raises":
        raise ValueError("first line\nsecond")
    yield {"figure": 2}


@pytest.mark.slow
def test_a_worker_survives_its_rows_and_keeps_their_figures() -> None:
    process = worker.Worker()
    try:
        limits = {"works": 60.0, "raises": 60.0, "dies": 60.0, "hangs": 10.0}
        rows = [process(behaves, {"how": how}, 0.0, limits[how]) for how in (*limits, "works")]
    finally:
        process.close()
    said = ["first line", "the process died (3)", "not done after 10 s"]
    assert [row.get("left_out") for row in rows] == [None, *said, None]
    assert [row["figure"] for row in rows] == [2, 1, 1, 1, 2]
    assert rows[0]["took"]["processors"] > 0 and "second" in rows[1]["traceback"]


def test_a_graph_that_cannot_be_captured_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_here(monkeypatch)

    def refused(run: clocks.Run) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(clocks, "captured", refused)
    with pretence.OnCpu():
        _, second = clocks.figures({"forward": lambda: torch.ones(3)}, clocks.Clock(), 0.0)
    assert second["forward"]["no_graph"] == "operation not permitted when stream is capturing"
    assert second["forward"]["wall"]["rounds"] == second["forward"]["device"]["rounds"] == clocks.ROUNDS


# ---- the whole program -----------------------------------------------------------------------------------------------


def pretend_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As :func:`benchmarks.gpu.pretence.pretend`, but for one test; the reference stands in for both backends."""
    for (where, name), value in pretence.pretended().items():
        monkeypatch.setattr(where, name, value)
    for name in ("triton", "cuda"):
        monkeypatch.setitem(backends.BACKENDS, name, backends.Backend(("cpu",), lambda: None, lambda: reference))
    monkeypatch.setattr(clocks, "FLUSHED", 1)
    monkeypatch.setattr(worker, "CLOCK", clocks.Clock())


class InThisProcess:
    """Stands in for the suite's worker, but measures in this process instead of in one that may die."""

    def __init__(self, prepare: Any) -> None: ...

    def __call__(self, measure: Any, name: worker.Row, seconds: float, limit: float) -> worker.Row:
        name = name | {"tokens": 2 * name["length"]} if "length" in name else name
        row = [*worker.measured(measure, name, seconds)][-1]
        return row | {"took": {"seconds": 0.5, "processors": 0.5}}

    def close(self) -> None: ...


SHORT = (
    *plan.ours(100),
    *plan.rivals(100),
    *plan.ours(100, packed=True, window=True),
    {"what": "step", "system": "hyena", "tokens": 0, "length": 50},
    {"what": "step", "system": "attention", "tokens": 0, "length": 50},
    {"what": "mixer", "mixer": "hyena", "tokens": 0, "length": 50, "dim": 64},
    {"what": "mixer", "mixer": "attention", "tokens": 0, "length": 50, "dim": 64},
    {"what": "explicit", "backend": "cuda", "dtype": "bfloat16", "tokens": 0, "length": 100, "dim": 64},
    {"what": "drawn", "backend": "cuda", "drawn": "ml-1m", "even": False, "tokens": 4554, "dim": 64, "terms": 4},
    {"what": "drawn", "backend": "cuda", "drawn": "ml-1m", "even": True, "tokens": 4554, "dim": 64, "terms": 4},
)


@pytest.fixture
def short_program(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_here(monkeypatch)
    monkeypatch.setattr(suite, "Worker", InThisProcess)
    monkeypatch.setattr(suite.plan, "essential", lambda: iter(SHORT[:10]))
    monkeypatch.setattr(suite.plan, "steps", lambda: iter(SHORT[10:]))
    monkeypatch.setattr(suite.plan, "rest", lambda: iter(()))
    monkeypatch.setattr(extension, "ready", lambda *_: None)


def run_main(monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["gpu", "--seconds", "0", *options])
    with pretence.OnCpu(), pytest.raises(SystemExit) as stopped:
        suite.main()
    return stopped.value.code


def test_every_row_is_measured_and_kept(
    short_program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = "0123abc"
    monkeypatch.setattr(suite.machine, "ROOT", tmp_path)  # a folder without git history
    assert run_main(monkeypatch, "--skip-tests", "--out", str(tmp_path / "gpu"), "--commit", commit) == 0
    result = read(tmp_path / "gpu" / "gpu.json")  # the file has the format of every suite
    assert set(ENVIRONMENT) <= set(result["environment"]) and result["environment"]["revision"] == commit
    assert "driver" in result["environment"]
    left_out = {row["rival"] for row in result["rows"] if "left_out" in row}
    assert left_out == {"FlashAttention, varlen", "FlashFFTConv"}
    assert len(result["rows"]) == len(SHORT)
    for row in result["rows"]:
        if "left_out" not in row:
            kinds = [row[kind] for kind in ("forward", "training") if kind in row]
            assert kinds and all({"wall", "device", "graph", "host"} <= figures.keys() for figures in kinds)
    assert len(result["cases"]) == 8 and all(case["check"]["error"] < 2e-2 for case in result["cases"])
    assert "copy" in result["cases"][0]["rivals"]
    out = capsys.readouterr().out
    assert sum(line.startswith(("ours", "copy", "torch.fft")) for line in out.splitlines()) == 7
    assert out.splitlines()[-1].endswith("gpu.json")


def test_time_that_is_over_leaves_rows_out(
    short_program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_main(monkeypatch, "--skip-tests", "--out", str(tmp_path), "--minutes", "0") == 0
    assert {row["left_out"] for row in read(tmp_path / "gpu.json")["rows"]} == {suite.NO_TIME}


def test_an_extension_that_does_not_work_fails_the_suite(
    short_program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extension, "ready", lambda *_: "the compiled extension has no CUDA kernels")
    assert run_main(monkeypatch, "--skip-tests", "--out", str(tmp_path), "--minutes", "0") == 1
    line = "FAILED extension: the compiled extension has no CUDA kernels; no figure here is the cuda backend's"
    assert capsys.readouterr().out.splitlines().count(line) == 2  # said at once, and again at the end
    assert read(tmp_path / "gpu.json")["faults"] == [line.removeprefix("FAILED ")]


def test_what_the_extension_lacks_is_said_here() -> None:
    reason = extension.missing()
    assert reason is not None and "\n" not in reason


@pytest.mark.parametrize("succeeds", [True, False])
def test_the_extension_is_compiled_for_one_gpu(
    succeeds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "setup.py").write_text("import os; print('for', os.environ['HYENAREC_CUDA_ARCHS'])")
    monkeypatch.setattr(extension.commands, "ROOT", tmp_path)
    found = iter(["it was not built", None if succeeds else "it has no CUDA kernels"])
    monkeypatch.setattr(extension, "missing", lambda: next(found))
    log = tmp_path / "build.txt"
    said = extension.ready("90", log, 60.0)
    assert said == (None if succeeds else f"it has no CUDA kernels; the compilers' output is in {log}")
    assert log.read_text() == "for 90\n" and "compiling it for sm_90" in capsys.readouterr().out


# ---- a bare machine --------------------------------------------------------------------------------------------------

BARE = """
import sys
from importlib.metadata import packages_distributions
BARE = {"torch", "triton", "numpy", "pytest", "torchgen", "functorch", "_pytest", "pluggy", "iniconfig", "packaging",
        "setuptools", "pkg_resources", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec",
        "typing_extensions", "pygments", "hyenarec_kernels", "hyenarec", "benchmarks"}  # torch's and pytest's own needs
REFUSED = set(packages_distributions()) - BARE | {"flashfftconv", "safetensors"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
assert {"tyro", "polars", "rich", "matplotlib", "pytest_benchmark", "xdist"} <= REFUSED
"""


def on_a_bare_machine(program: str) -> subprocess.CompletedProcess[str]:
    """Runs ``program`` with only torch, triton, numpy and pytest, from a checkout that is not installed."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", BARE + program], capture_output=True, text=True, cwd=ROOT, env=variables
    )


def test_the_command_runs_on_a_bare_machine() -> None:
    program = "import runpy; sys.argv = ['benchmarks', 'gpu']; runpy.run_module('benchmarks', run_name='__main__')"
    done = on_a_bare_machine(program)
    assert done.returncode == 2
    assert done.stderr == "error: no CUDA device; every figure of this suite needs one\n"


@pytest.mark.slow
def test_a_training_step_runs_on_a_bare_machine() -> None:
    """The recommender's own model trains a step, although the packages with which it prints and saves are missing."""
    program = """
from benchmarks.gpu import clocks, pretence, training_step
pretence.pretend()
from hyenarec_kernels import backends
backends.BACKENDS["triton"] = backends.BACKENDS["cuda"]
clocks.FLUSHED = 1
for system in ("hyena", "attention"):
    *_, row = training_step.step_row(system, tokens=100, length=50, clock=clocks.Clock(), seconds=0.0)
    print(system, row["training"]["wall"]["rounds"])
"""
    done = on_a_bare_machine(program)
    assert done.stdout == f"hyena {clocks.ROUNDS}\nattention {clocks.ROUNDS}\n", done.stderr


def test_a_step_is_the_trainers() -> None:
    """The suite's training step clips gradients at the trainer's norm, and its two systems are real mixers."""
    from hyenarec.config import TrainingConfig
    from hyenarec.mixers import MIXERS

    assert TrainingConfig().clip_norm == training_step.CLIP_NORM
    assert set(plan.SYSTEMS) <= set(MIXERS)


def test_results_say_what_they_were_measured_by(tmp_path: Path) -> None:
    results = Results(tmp_path, {"device": "a made-up GPU"}, {})
    results.save(faults=[])
    results.add({"what": "rival", "rival": "copy", "left_out": "broken"})
    assert '"a made-up GPU"' in results.path.read_text() and '"faults": []' in results.path.read_text()


# ---- the rehearsal ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rehearsal_compiles_for_a_gpu_and_counts_it(tmp_path: Path) -> None:
    """Processes, Triton's compiler and its launchers are real; most rows and all tests are left out."""
    program = """
from benchmarks.gpu import device_tests, plan, rehearsal
rows = [row for row in plan.essential() if row.get("backend") == "triton" or row.get("rival") == "copy"]
plan.essential = lambda: iter(rows[:2])
plan.steps = plan.rest = lambda: iter(())
device_tests.DeviceTests.start = lambda tests: None
rehearsal.main()
"""
    command = [sys.executable, "-c", program, "--skip-build", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "in all" in done.stdout and "a rehearsal, not a measurement" in done.stdout, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["compiling, processor seconds"][0] > 1.0
    ours, copy = result["rows"]
    assert "left_out" not in ours and "graph" in ours["training"] and "graph" in copy["forward"]
    assert "no GPU" in result["environment"]["device"]
