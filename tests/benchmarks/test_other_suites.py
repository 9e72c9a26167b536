"""The smaller suites on generated data: each writes a result in the common format, with green checks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hyenarec_kernels as hk
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import results as gpu_results
from benchmarks.gpu import suite as gpu_suite
from benchmarks.harness import convolutions
from benchmarks.harness.checks import refusal
from benchmarks.harness.recording import Result, read
from benchmarks.report import rankings
from benchmarks.suites import ablation, accuracy, cache, catalogue, features, loading, losses
from benchmarks.suites import operator as operator_cpu
from hyenarec.data import big_logs, read_log
from hyenarec.data.synthetic import write_synthetic_log
from hyenarec_kernels.backends import cpu


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a suite's main with options in an empty folder, and returns the one result that it leaves there."""
    monkeypatch.chdir(tmp_path)

    def call(suite: Any, *options: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["python -m benchmarks suite", *options])
        suite.main()
        (path,) = (tmp_path / "benchmarks/results").glob("*.json")
        result = read(path)
        assert all(refusal(case) is None for case in result.get("cases", []))
        return result

    return call


@pytest.mark.skipif(cpu.probe() is not None, reason="no compiled CPU backend")
def test_operator(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_cpu, "SHAPES", ((2, 50), (1, 130)))
    monkeypatch.setattr(operator_cpu, "keep_freed_memory", lambda: True)
    threads = torch.get_num_threads()
    result = run(operator_cpu, "--seconds", "0", "--threads", str(threads))
    assert len(result["cases"]) == 2 * 4 + 1
    assert all(0 < case["check"]["error"] < 1e-5 for case in result["cases"])
    assert result["cases"][0]["rivals"].keys() == {"best FFT", "attention", "copy"}
    assert (tmp_path / "benchmarks/results/operator-cpu.png").exists()


def test_error_against_the_reference_sees_a_wrong_gradient() -> None:
    leaves = tuple(torch.randn(*shape) for shape in ((2, 9, 4), (4, 3)))
    grad = torch.randn(2, 9, 4)

    def right(x: Tensor, c: Tensor) -> Tensor:
        return hk.legendre_conv(x, c, horizon=9)

    def wrong(x: Tensor, c: Tensor) -> Tensor:
        out = right(x, c)
        return out if out.dtype == torch.float64 else out.detach() + 1.01 * (out - out.detach())

    assert convolutions.against_reference(right, leaves, grad) < 1e-5
    assert convolutions.against_reference(wrong, leaves, grad) == pytest.approx(0.01, rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_suite_says_what_it_needs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(gpu_suite)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: no CUDA device; every figure of this suite needs one\n"


def test_gpu_rows_are_cases_with_their_error() -> None:
    row = next(gpu_plan.ours(50, tokens=800))
    rival = {"what": "rival", "tokens": 800, "length": 50, "dim": 64}
    times = {"forward": {"device": {"median": 1.0}}, "training": {"device": {"median": 3.0}}}
    rows = [row | times | {"error": {"out": 1e-3, "x": 4e-3}}, row | times | {"terms": 32}]
    rows += [rival | {"rival": "copy", "forward": times["forward"]}, rival | times | {"rival": "other", "length": 60}]
    cases = gpu_results.cases(rows)
    assert [case["shape"] for case in cases] == ["16 x 50 x 64, cuda, 16 terms, padded"] * 2
    assert [case["ms"]["median"] for case in cases] == [1.0, 3.0]
    assert {case["check"]["error"] for case in cases} == {4e-3}
    assert [set(case["rivals"]) for case in cases] == [{"copy"}, set()]


def test_losses(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"TOKENS": 40, "ITEMS": 30, "SAMPLED_TOKENS": 40, "SAMPLED_ITEMS": 30, "NEGATIVES": 7}
    for name, value in (small | {"DIM": 8, "ROUNDS": 2, "CHUNKS": [64]}).items():
        monkeypatch.setattr(losses, name, value)
    result = run(losses)
    assert {case["kind"] for case in result["cases"]} == {"full cross entropy", "sampled softmax"}
    assert {case["precision"] for case in result["cases"]} == {"float32", "bfloat16"}
    assert {"everything at once", "ours, 0K scores a chunk"} <= {case["loss"] for case in result["cases"]}


@pytest.mark.slow
def test_catalogue(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that hold shards of the item table take the same training steps as one process."""
    pytest.importorskip("faiss", reason="needs faiss: pip install 'hyenarec[ann]'")
    monkeypatch.setattr(catalogue, "CASES", (("sampled", 500, 1, False), ("sampled", 500, 2, True)))
    monkeypatch.setattr(catalogue, "in_fresh_process", lambda function, *arguments: function(*arguments))
    log = tmp_path / "log.csv"
    write_synthetic_log(log, users=1_000, mean_history=40)
    threads = torch.get_num_threads()
    result = run(catalogue, "--steps", "2", "--logs", str(log), "--index", "3000")
    torch.set_num_threads(threads)
    one, two = result["cases"]
    assert two["efficiency"] > 0 and two["check"]["error"] < 1e-5 and "efficiency" not in one
    (shared,), (index,) = result["sharing"], result["index"]
    assert 0 <= shared["by tokens"] < shared["by slices"]
    assert index["found of the best ten"] > 0.95


def test_loading(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(loading, "EVENTS_A_PART", 700)
    monkeypatch.setattr(big_logs, "BIG", 0)
    result = run(loading, "--events", "3000", "--prepare", "2000")
    assert len({(case["format"], case["ids"]) for case in result["cases"]}) == 5
    assert [case["events"] for case in result["cases"]] == [3000] * 4 + [2000]
    assert [case["check"]["error"] for case in result["cases"]] == [0] * 5


def test_loading_sees_a_lost_event(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n1,7,1\n1,8,2\n2,7,3\n2,8,4\n")
    store = loading.read_log(path)
    assert loading.wrong_share(path, store) == 0
    object.__setattr__(store, "items", np.zeros_like(store.items))
    assert loading.wrong_share(path, store) == 1


@pytest.fixture
def log(tmp_path: Path) -> str:
    write_synthetic_log(tmp_path / "small.csv", users=30, items=80, mean_history=12)
    return "small.csv"


def test_ablation(run: Any, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "VARIANTS", {"defaults": {}, "no window": {"window": False}})
    monkeypatch.setattr(ablation, "TRAINING", ablation.TrainingConfig(epochs=1, device="cpu"))
    result = run(ablation, log, "runs", "--seeds", "0")
    assert [(row["variant"], row["seed"]) for row in result["runs"]] == [("defaults", 0), ("no window", 0)]


def test_cache(run: Any, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STRETCH", 4)
    options = ("--length", "256", "--rooms", "3", "6", "--users", "2", "--seconds", "0.01", "--epochs", "1")
    result = run(cache, log, "runs", *options)
    cases = {(case["state"], case["room"]): case for case in result["cases"]}
    caches = {("full", 256), ("window", 3), ("citrus", 3), ("window", 6), ("citrus", 6)}
    assert cases.keys() == caches | {("exact", 256), ("compact", 256)}
    whole = result["settings"]["at once"]
    assert cases["full", 256]["test"] == pytest.approx(whole["attention"])
    assert cases["window", 3]["test"] != whole["attention"]
    assert cases["exact", 256]["test"] == pytest.approx(whole["hyena"])
    assert cases["compact", 256]["test"] == pytest.approx(whole["hyena"])
    assert 2 * cases["compact", 256]["bytes"] < cases["exact", 256]["bytes"]
    for case in cases.values():
        if case["mixer"] == "attention":  # keys and values of two blocks, for as many events as there is room for
            assert case["bytes"] >= 2 * 2 * case["room"] * 64 * 4
        assert case["us a step"] > 0 and refusal(case) is None
    page = "\n".join(rankings.cache(result))
    assert "history read at once" in page and f"{cases['full', 256]['bytes']:,}" in page


def test_features(run: Any, log: str, tmp_path: Path) -> None:
    ids = read_log(log).item_ids
    lines = [f"{item},{item[-1]}\n" for item in map(str, ids.decode(range(len(ids))))]
    (tmp_path / "items.csv").write_text("".join(["item_id,digit:token\n", *lines]))
    result = run(features, log, "items.csv", "--seeds", "0", "--epochs", "1", "--share", "0.2")
    plain, featured = result["runs"]
    assert (plain["variant"], featured["variant"]) == ("plain", "features")
    assert plain["hidden"].keys() == {"mean, among all", "mean, among hidden"}
    among = featured["hidden"]["features, among hidden"]
    assert among["median rank"] <= featured["hidden_items"] and among["targets"] > 0
    # all rows are equal, and a target that ties with other items is ranked last
    assert plain["hidden"]["mean, among hidden"]["MRR"] == pytest.approx(1 / plain["hidden_items"])
    page = "\n".join(rankings.features(result))
    assert "| random, among all |" in page and f"among {plain['hidden_items']} hidden items" in page
    again = run(features, log, "items.csv", "--seeds", "0", "--epochs", "1", "--share", "0.2")
    assert again["runs"] == result["runs"]  # the seconds are equal too, so nothing was trained again


def test_accuracy(run: Any, log: str, tmp_path: Path) -> None:
    result = run(accuracy, log, "runs", "--mixers", "hyena", "gru", "--seeds", "0")
    assert {(row["log"], row["mixer"], row["seed"]) for row in result["runs"]} == {
        ("small", "hyena", 0),
        ("small", "gru", 0),
    }
    assert {"popularity", "repeat-last", "item-to-item"} <= {row["name"] for row in result["baselines"]}
    rows = accuracy.table(result["runs"], result["baselines"])
    assert all({"new to the user", "coverage@10", "novelty@10"} <= row.keys() for row in rows)
    assert (tmp_path / "benchmarks/results/accuracy-small.png").exists()


def test_accuracy_after_a_moment(run: Any, log: str, tmp_path: Path) -> None:
    result = run(accuracy, log, "runs", "--mixers", "gru", "--seeds", "0", "--split", "temporal")
    assert {row["log"] for row in (*result["runs"], *result["baselines"])} == {"small-temporal"}
    assert "after a moment" in result["title"]
    assert (tmp_path / "benchmarks/results/accuracy-small-temporal.png").exists()


def test_results_of_before_the_breakdowns_are_shown(run: Any, log: str, tmp_path: Path) -> None:
    result = run(accuracy, log, "runs", "--mixers", "gru", "--seeds", "0")
    old = [{name: value for name, value in row.items() if "test_by" not in name} for row in result["runs"]]
    assert not {"seen before", "coverage@10"} & accuracy.table(old, [])[0].keys()
    accuracy.picture("old", old, result["baselines"], tmp_path / "old.png")
    assert (tmp_path / "old.png").exists()


def test_a_system_brings_its_blocks_and_its_loss() -> None:
    model, training = accuracy.DEFAULT.cell("esasrec", 200, 0, 32)
    assert (model.mixer, model.block, training.loss) == ("attention", "ligr", "sampled")
    model, training = accuracy.DEFAULT.cell("attention", 200, 0, 32)
    assert (model.mixer, model.block, training.loss) == ("attention", "plain", accuracy.DEFAULT.training.loss)
    assert accuracy.PROTOCOLS["beauty"].cell("attention", 50, 0, 32)[1].loss == "sampled"


def test_accuracy_joins_what_was_trained_alike(run: Any, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(folder: str, mixer: str, seed: str) -> list[tuple[str, int]]:
        result = run(accuracy, log, folder, "--mixers", mixer, "--seeds", seed)
        assert all({"revision", "device"} <= row["environment"].keys() for row in result["runs"])
        return [(row["mixer"], row["seed"]) for row in result["runs"]]

    default = accuracy.DEFAULT
    monkeypatch.setattr(accuracy, "DEFAULT", replace(default, training=replace(default.training, epochs=1)))
    assert trained("runs", "gru", "0") == [("gru", 0)]
    assert trained("elsewhere", "hydra", "0") == [("gru", 0), ("hydra", 0)]
    assert trained("there", "gru", "0") == [("gru", 0), ("hydra", 0)]
    monkeypatch.setattr(accuracy, "DEFAULT", replace(default, training=replace(default.training, epochs=2)))
    assert trained("again", "gru", "1") == [("gru", 1)]
    Path(log).unlink()
    write_synthetic_log(Path(log), users=30, items=80, mean_history=13)
    assert trained("changed", "gru", "0") == [("gru", 0)]
