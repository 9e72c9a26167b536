"""The report: it makes a page from a folder of results, and shows no speed whose values were not checked."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.front_door import SUITES
from benchmarks.report import page as report
from benchmarks.report import tables, verdicts
from hyenarec.errors import UserError

ENVIRONMENT = {
    "hyenarec": "0.1.0",
    "revision": "0123456789abcdef",
    "torch": "2.13.0",
    "numpy": "2.3.5",
    "python": "3.11.7",
    "device": "A machine",
    "kind": "cpu",
    "threads": 2,
    "backend": "cpu",
}
GREEN = {"against": "float64 reference", "error": 1e-7, "tolerance": 1e-3}


def summary(milliseconds: float) -> dict[str, Any]:
    low, high = 0.99 * milliseconds, 1.01 * milliseconds
    return {"median": milliseconds, "q1": low, "q3": high, "p99": high, "min": low, "rounds": 5}


def head(suite: str, title: str) -> dict[str, Any]:
    return {"suite": suite, "title": title, "command": f"python -m benchmarks {suite}", "environment": ENVIRONMENT}


def scaling_case(mixer: str, length: int, milliseconds: float) -> dict[str, Any]:
    return {"mixer": mixer, "length": length, "peak_mib": 500.0, "ms": summary(milliseconds), "check": dict(GREEN)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results in which hyena is slower than attention at 50 events, as fast at 200, and 9 times as fast at 1,800."""
    times = {"hyena": (271, 300, 311), "attention": (123, 301, 2799)}
    cases = [
        scaling_case(mixer, length, ms)
        for mixer, of_lengths in times.items()
        for length, ms in zip((50, 200, 1800), of_lengths, strict=True)
    ]
    exponents = {"hyena": {"step": 0.02, "sequence": 1.02, "lengths": [200, 1800]}}
    scaling = head("scaling", "training steps") | {"settings": {}, "cases": cases, "exponents": exponents}
    runs = [
        {
            "log": "some-log",
            "mixer": mixer,
            "length": 200,
            "seed": seed,
            "validation": {"NDCG@10": value + 0.01},
            "test": {"NDCG@10": value + 0.002 * seed, "Recall@10": 0.2, "MRR": 0.1},
        }
        for mixer, value in (("hyena", 0.08), ("attention", 0.06), ("gru", 0.09))
        for seed in range(3)
    ]
    baseline = {"log": "some-log", "name": "popularity", "length": 200, "NDCG@10": 0.04, "Recall@10": 0.1, "MRR": 0.05}
    accuracy = head("accuracy", "test on some-log") | {"settings": {}, "runs": runs, "baselines": [baseline]}
    (tmp_path / "scaling-cpu.json").write_text(json.dumps(scaling))
    (tmp_path / "accuracy-some-log.json").write_text(json.dumps(accuracy))
    (tmp_path / "scaling-cpu.png").touch()
    return tmp_path


def page_of(folder: Path) -> str:
    report.Report(folder).run()
    return (folder / "report.md").read_text()


def doctor(folder: Path, change: Any) -> None:
    """Applies ``change`` to the case of hyena at 1,800 events in the saved result."""
    path = folder / "scaling-cpu.json"
    result = json.loads(path.read_text())
    change(next(case for case in result["cases"] if (case["mixer"], case["length"]) == ("hyena", 1800)))
    path.write_text(json.dumps(result))


def test_for_whom_a_longer_history_pays(folder: Path) -> None:
    path = folder / "accuracy-some-log.json"
    result = json.loads(path.read_text())
    for run in result["runs"]:
        run["test_by_history_length"] = [{"history": "1-10", "targets": 1200, "NDCG@10": run["test"]["NDCG@10"]}]
    longer = [run | {"length": 50} for run in result["runs"] if run["seed"] == 0]
    path.write_text(json.dumps(result | {"runs": [*result["runs"], *longer]}))
    page = page_of(folder)
    assert "| events in a history | users | 50 read | 200 read |" in page
    assert "| 1-10 | 1,200 | .0800 | .0820 ± .0020 |" in page


def test_page(folder: Path) -> None:
    page = page_of(folder)
    assert "A machine, threads: 2" in page and "0123456789" in page and "`python -m benchmarks scaling`" in page
    assert "| SASRec | `attention` | causal softmax attention" in page and "LinOSS" not in page
    assert "![training steps](scaling-cpu.png)" in page
    assert "| HyenaRec | 271 (0.45x) | 300 (1.00x) | 311 (9.00x) |" in page
    assert "HyenaRec 1.02" in page
    assert page.index("| GRU4Rec | 200 | .0920") < page.index("| HyenaRec | 200 | .0820 ± .0020")
    assert "| popularity | 200 | .0400 | .1000 | .0500 |  |" in page
    for title in ("Training steps against history length", "Training steps on a log", "Serving"):
        section = page.split(f"## {title}\n")[1].split("\n## ")[0]
        assert "### On a GPU\n\nNot measured." in section
    assert "Not reported" not in page


def test_verdicts_follow_from_the_figures(folder: Path) -> None:
    assert "- training step (ms): wins 1, level 1, loses 1 of 3" in page_of(folder)
    lines = {line.split(" | ")[0]: line for line in page_of(folder).splitlines() if line.startswith("| ")}
    assert lines["| training step (ms), 50 events, CPU, float32"].endswith("| 123, SASRec | loses |")
    assert lines["| training step (ms), 200 events, CPU, float32"].endswith("| 301, SASRec | level |")
    assert lines["| training step (ms), 1,800 events, CPU, float32"].endswith("| 2,799, SASRec | **wins** |")
    accuracy = lines["| NDCG@10, some-log, 200 events"]
    assert ".0620 ± .0020 (wins)" in accuracy and accuracy.endswith("| .0920 ± .0020, GRU4Rec | loses |")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda case: case.pop("check"), "no equivalence check"),
        (lambda case: case["check"].update(error=0.02), "equivalence check red: 2.0e-02 from float64 reference"),
        (lambda case: case["check"].update(error=math.nan), "equivalence check red: nan"),
    ],
    ids=["missing", "red", "not a number"],
)
def test_no_speed_without_a_green_check(change: Any, reason: str, folder: Path) -> None:
    doctor(folder, change)
    page = page_of(folder)
    assert "311" not in page and "9.00x" not in page
    assert "| HyenaRec | 271 (0.45x) | 300 (1.00x) | refused |" in page
    assert "training step (ms), 1,800 events" not in page  # there is no verdict either
    assert "## Not reported" in page and "scaling-cpu.json: mixer hyena, length 1800" in page and reason in page
    assert "2,799" in page  # attention's figure is still shown


def test_command_ends_with_code_1_on_a_red_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks report", str(folder)])
    report.main()
    assert not capsys.readouterr().err
    doctor(folder, lambda case: case["check"].update(error=1.0))
    with pytest.raises(SystemExit) as stopped:
        report.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("refused: scaling-cpu.json: mixer hyena")


def test_what_breaks_the_format_is_named(folder: Path) -> None:
    doctor(folder, lambda case: case["ms"].update(median="fast"))
    with pytest.raises(UserError, match=r"scaling-cpu.json: cases\[2\]: ms: median: float needed, 'fast' found"):
        page_of(folder)
    (folder / "scaling-cpu.json").write_text("{")
    with pytest.raises(UserError, match=r"scaling-cpu.json: no result"):
        page_of(folder)
    with pytest.raises(UserError, match="no such folder"):
        report.Report(folder / "none").run()


def test_other_json_is_listed_and_not_read(folder: Path) -> None:
    (folder / "notes.json").write_text("[1]")
    assert "- [notes.json](notes.json)" in page_of(folder)


def test_an_empty_folder_has_nothing_measured(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert page.count("Not measured.") >= len(report.SECTIONS)
    assert "Nothing that compares HyenaRec with another system was measured." in page


def test_every_suite_that_writes_results_has_a_section() -> None:
    assert report.SECTIONS.keys() == SUITES.keys() - {"report", "quick", "rehearsal", "host"}


@pytest.mark.parametrize(
    ("speed", "at"), [(2.0, 100), (4.0, 200), (8.0, 400), (1.0, 100), (16.0, None), (5.0, 200 * 2 ** math.log2(1.25))]
)
def test_where_a_speed_is_reached(speed: float, at: float | None) -> None:
    """The length is interpolated between measured ones; here speed-ups double with the length."""
    found = tables.reached([(100, 2.0), (200, 4.0), (400, 8.0)], speed)
    assert found == (None if at is None else pytest.approx(at))


def of_seeds(system: str, *values: float) -> verdicts.Figure:
    runs = [
        {"mixer": system, "seed": seed, "test": {"NDCG@10": value}, "validation": {"NDCG@10": value}}
        for seed, value in enumerate(values)
    ]
    return verdicts.of_runs(runs)[0]


def test_accuracies_are_paired_over_seeds() -> None:
    ours = of_seeds("hyena", 0.10, 0.20)  # the seeds differ by more than the systems do
    assert verdicts.judge(ours, of_seeds("gru", 0.09, 0.19), True) == "wins"
    assert verdicts.judge(ours, of_seeds("gru", 0.11, 0.22), True) == "loses"
    assert verdicts.judge(ours, of_seeds("gru", 0.09, 0.2), True) == "level"
    assert verdicts.judge(ours, of_seeds("gru", 0.01), True) == "one seed"
    assert verdicts.judge(ours, of_seeds("gru", 0.09, 0.19, 0.9), True) == "wins"  # the third seed has no pair


def test_a_system_of_one_seed_is_not_the_best(folder: Path) -> None:
    path = folder / "accuracy-some-log.json"
    result = json.loads(path.read_text())
    result["runs"] = [run for run in result["runs"] if run["mixer"] != "gru" or run["seed"] == 0]
    path.write_text(json.dumps(result))
    line = next(line for line in page_of(folder).splitlines() if line.startswith("| NDCG@10, some-log, 200 events"))
    assert line.endswith("| .0620 ± .0020, SASRec | **wins** |")


@pytest.mark.parametrize(
    ("validation", "seeds", "counted"),
    [(0.2, 3, ".0500 ± .0020, HyenaRec, no gates"), (0.01, 3, ".0820 ± .0020"), (0.2, 1, ".0820 ± .0020")],
)
def test_the_variant_best_in_validation_counts(folder: Path, validation: float, seeds: int, counted: str) -> None:
    """The variant with the best validation counts, whatever its test accuracy, but only if it has several seeds."""
    path = folder / "accuracy-some-log.json"
    result = json.loads(path.read_text())
    for run in result["runs"][:seeds]:
        test = run["test"] | {"NDCG@10": run["test"]["NDCG@10"] - 0.032}
        variant = {"mixer": "hyena_ungated", "validation": {"NDCG@10": validation}, "test": test}
        result["runs"].append(run | variant)
    path.write_text(json.dumps(result))
    line = next(line for line in page_of(folder).splitlines() if line.startswith("| NDCG@10, some-log, 200 events"))
    assert line.split(" | ")[1] == counted


def test_level_is_where_ranges_overlap() -> None:
    ours = verdicts.Figure("hyena", 10.0, 9.0, 11.0, "")
    assert verdicts.judge(ours, verdicts.Figure("gru", 12.0, 11.0, 13.0, ""), False) == "level"
    assert verdicts.judge(ours, verdicts.Figure("gru", 12.0, 11.1, 13.0, ""), False) == "wins"
    assert verdicts.judge(ours, verdicts.Figure("gru", 12.0, 11.1, 13.0, ""), True) == "loses"
