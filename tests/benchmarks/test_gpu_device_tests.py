"""How the GPU suite runs the tests that need a GPU: what it counts, and when it says that they prove too little."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import commands, device_tests
from benchmarks.gpu.device_tests import DeviceTests
from benchmarks.gpu.rehearsal import spread

SOME_TESTS = """
import pytest
def test_passes(): pass
def test_fails(): assert 1 == 2, "two"
@pytest.mark.skip(reason="no second device")
def test_skipped(): pass
def test_past_two_to_the_31(): pass
@pytest.fixture
def broken(): raise RuntimeError("broken fixture")
def test_error(broken): pass
"""
ALL_SKIPPED = (
    "# with_device\nimport pytest\npytestmark = pytest.mark.skip(reason='no CUDA device')\ndef test_one(): pass\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two test files that need a GPU and one that does not."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(commands.ROOT), os.environ.get("PYTHONPATH", "")]))
    for module in (commands, device_tests):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    tests = tmp_path / device_tests.FOLDER
    tests.mkdir(parents=True)
    (tests / "test_gpu.py").write_text(SOME_TESTS)
    (tests / "test_cuda.py").write_text(ALL_SKIPPED)
    (tests / "test_cuda_host.py").write_text("def test_host(): assert False")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def missing(name: str, names: tuple[str, ...]) -> Any:
    return None if name in names else find_spec(name)


@pytest.mark.parametrize("workers", [False, True])
def test_what_passed_and_what_was_skipped_is_counted(
    workers: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not workers:
        monkeypatch.setattr(device_tests, "find_spec", lambda name: missing(name, ("xdist",)))
    monkeypatch.setattr(device_tests, "WORKERS", 1)
    tests = DeviceTests(folder, {"device": "a made-up GPU"})
    tests.finish(tests.start(), 120.0)
    assert tests.large() == ["tests/kernels/test_gpu.py::test_past_two_to_the_31"]
    before = device_tests.counted(tests.outcomes())
    assert before == {
        "tests/kernels/test_gpu.py": {"passed": 1, "failed": 2, "skipped": 1},
        "tests/kernels/test_cuda.py": {"passed": 0, "failed": 0, "skipped": 1},
    }
    lines = device_tests.said(tests.outcomes())
    assert "tests: tests/kernels/test_gpu.py: 1 passed, 2 failed, 1 skipped" in lines
    assert any(line.startswith("tests: FAILED tests/kernels/test_gpu.py::test_fails: ") for line in lines)
    assert any(line.startswith("tests: 1 skipped: ") and "no second device" in line for line in lines)
    assert device_tests.faults(tests.outcomes()) == ["2 failed", "no test of tests/kernels/test_cuda.py passed"]
    for path in (tests.lines, tests.log):
        assert "a made-up GPU" in path.read_text().splitlines()[0]
    if not workers:
        assert tests.run_in_turn(tests.large(), 120.0) == []
        assert device_tests.counted(tests.outcomes())["tests/kernels/test_gpu.py"]["passed"] == 2


def test_without_pytest_nothing_is_proven(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_tests, "find_spec", lambda name: None)
    tests = DeviceTests(folder, {})
    tests.finish(tests.start(), 1.0)
    assert "tests: FAILED pytest: pytest is not installed" in device_tests.said(tests.outcomes())
    assert device_tests.faults(tests.outcomes())[0] == "1 failed"


def test_tests_that_hang_are_stopped_and_those_before_them_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = folder / "hanging"
    hangs = f"def test_hangs():\n  import time\n  open({str(marker)!r}, 'w')\n  time.sleep(90)\n"
    (folder / device_tests.FOLDER / "test_cuda.py").write_text("# with_device\ndef test_ok(): pass\n" + hangs)
    monkeypatch.setattr(device_tests, "find_spec", lambda name: missing(name, ("xdist",)))
    tests = DeviceTests(folder, {})
    process = tests.start()
    end = time.perf_counter() + 120
    while not marker.exists() and time.perf_counter() < end:
        time.sleep(0.1)
    tests.finish(process, 0.0)
    counted = device_tests.counted(tests.outcomes())
    assert counted["tests/kernels/test_cuda.py"]["passed"] == 1 and counted["tests"]["failed"] == 1


def test_tests_that_end_early_are_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / device_tests.FOLDER / "test_gpu.py").write_text("def test_dies():\n  import os; os._exit(5)\n")
    monkeypatch.setattr(device_tests, "find_spec", lambda name: missing(name, ("xdist",)))
    tests = DeviceTests(folder, {})
    tests.finish(tests.start(), 120.0)
    assert "tests: FAILED tests: pytest ended (5)" in device_tests.said(tests.outcomes())


def test_of_many_failures_some_are_printed() -> None:
    line = {"test": "a.py::test", "outcome": "failed", "why": "why", "seconds": 0}
    lines = device_tests.said([line] * (device_tests.PRINTED + 3))
    assert lines[0] == f"tests: a.py: 0 passed, {device_tests.PRINTED + 3} failed, 0 skipped"
    assert len(lines) == device_tests.PRINTED + 2 and lines[-1] == "tests: FAILED 3 more"


def test_large_tests_survive_one_that_ends_their_process(folder: Path) -> None:
    body = "# with_device\ndef test_one(): pass\ndef test_dies():\n  import os; os._exit(5)\ndef test_three(): pass\n"
    (folder / device_tests.FOLDER / "test_cuda.py").write_text(body)
    tests = DeviceTests(folder, {})
    one, dies, three = (f"{device_tests.FOLDER}/test_cuda.py::test_{name}" for name in ("one", "dies", "three"))
    assert tests.run_in_turn([one, dies, three], 120.0) == [three]
    assert tests.run_in_turn([three], 120.0) == []
    assert [(line["test"], line["outcome"], line["why"]) for line in tests.outcomes()] == [
        (one, "passed", ""),
        (dies, "failed", "the process ended (5)"),
        (three, "passed", ""),
    ]


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = commands.start(["sh", "-c", "sleep 60 & echo $!; wait"], log, {})
    end = time.perf_counter() + 60
    while not log.read_text() and time.perf_counter() < end:
        time.sleep(0.05)
    assert commands.finish(process, 0.0) is None
    state = Path(f"/proc/{log.read_text().strip()}/stat")
    while state.exists() and state.read_text().split()[2] != "Z" and time.perf_counter() < end:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert commands.finish(commands.start(["sh", "-c", "exit 3"], log, {}), 60.0) == 3


def test_the_files_are_those_that_need_a_gpu() -> None:
    assert {"tests/kernels/test_gpu.py", "tests/kernels/test_cuda.py"} <= set(device_tests.files())
    assert not any("host" in name or "plan" in name for name in device_tests.files())


def test_jobs_are_spread_over_workers() -> None:
    assert spread([4, 3, 3, 2], 2) == 6
    assert spread([5, 1, 1], 8) == 5
    assert spread([], 8) == 0
