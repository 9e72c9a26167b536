"""What the GPU benchmark makes of results, on made-up ones."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.gpu import clocks as gpu_measuring
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu import table as gpu_table
from benchmarks.gpu import worker as gpu_worker
from benchmarks.harness.recording import read
from hyenarec_kernels import backends
from hyenarec_kernels.backends import reference


def timed(**milliseconds: float) -> dict[str, dict[str, float]]:
    return {name: {"median": value} for name, value in milliseconds.items()}


@pytest.fixture
def result() -> dict[str, Any]:
    both = {"ours, fwd+bwd": 3.0, "FFT, fwd+bwd": 15.0, "ours, packed, fwd+bwd": 3.6}
    rows = [
        {
            "tokens": tokens,
            "length": length,
            "dim": dim,
            "times": timed(ours=1.0, FFT=7.0, copy=0.5, **both),
            "host": {"ours, fwd+bwd": 0.75},
            "memory": {"ours": 1.25, "ours, fwd+bwd": 1.5},
            "error": {"out": 1e-3, "x": 2e-3 if length == 512 else 1e-3},
        }
        for tokens in gpu_suite.TOKENS
        for dim in gpu_suite.DIMS
        for length in (200, 512)
    ]
    ours = {"ours": 0.25, "ours, float32": 0.5, "ours, fwd+bwd": 1.0, "ours, float32, fwd+bwd": 2.0}
    channels_last = {"FFT, (B, L, D)": 4.0, "FFT, (B, L, D), fwd+bwd": 12.0}
    channels_first = {"FFT, (B, D, L)": 3.0, "FFT, (B, D, L), fwd+bwd": 20.0}
    fourier = {
        "length": 256,
        "dim": 64,
        "times": timed(**ours, **channels_last, **channels_first),
        "memory": {"ours, float32": 1.0, "ours, float32, fwd+bwd": 1.25, "FFT, (B, D, L)": 8.0}
        | {"FFT, (B, L, D), fwd+bwd": 10.0},
        "error": 3e-7,
    }
    return {
        "machine": {"gpu": "a made-up GPU"},
        "rows": rows,
        "drawn": [{"drawn": "ml-1m", "dim": 64, "relative": {"forward": 0.75, "training": 0.875}}],
        "mixer": [{"length": 200, "dim": 64, "times": timed(mixer=1.0, attention=2.5)}],
        "fourier": [fourier],
        "scratch": [
            {"run": 1 << 24, "channels": 64, "dim": 64, "times": timed(**both)}
            | {"host": {"ours, fwd+bwd": 2.0}, "memory": {"ours, fwd+bwd": 1.25}}
        ],
    }


def test_the_table_compares_with_the_fastest_rival(result: dict[str, Any]) -> None:
    lines = gpu_table.table(result)
    cells = lines[1].split()
    assert cells[3:6] == ["1.000", "50%", "7.0x"] and cells[7:10] == ["1.25x", "3.000", "5.0x"] and cells[-1] == "1.50x"
    assert (
        "explicit filter L=256 D=64: fwd 0.250 ms, float32 0.500 ms, FFT, (B, D, L) takes 6.0x the time and 8.0x the "
        "memory; fwd+bwd 1.000 ms, float32 2.000 ms, FFT, (B, L, D), fwd+bwd takes 6.0x the time and 8.0x the memory; "
        "error 3.0e-07"
    ) in lines


def test_the_targets_name_the_row_furthest_from_them(result: dict[str, Any]) -> None:
    result["rows"][1]["times"] |= timed(copy=0.25, **{"attention, fwd+bwd": 6.0})
    result["rows"][0]["times"] |= timed(**{"attention, fwd+bwd": 6.0})
    lines = gpu_table.targets(result)
    assert "MISSED  forward, of a copy from L=200 on, 50%: 25% (tokens 131072, length 512, dim 64)" in lines
    assert "reached attention's time for fwd+bwd at L=200 1.0x: 2.0x (tokens 131072, length 200, dim 64)" in lines
    assert "MISSED  packed forward, of dense, 85%: 75% (drawn ml-1m, dim 64)" in lines
    assert "MISSED  memory of ours, fwd+bwd, 1.15x: 1.50x (tokens 131072, length 200, dim 64)" in lines
    assert "reached error of x against float64 2.0e-02: 2.0e-03 (tokens 131072, length 512, dim 64)" in lines
    result["rows"][1]["error"]["x"] = float("nan")
    assert any(line.startswith("MISSED  error of x") and "nan" in line for line in gpu_table.targets(result))


def test_the_plot_is_written(result: dict[str, Any], tmp_path: Path) -> None:
    gpu_table.plot(result, "title", tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_rows_that_were_left_out_cost_no_other(result: dict[str, Any]) -> None:
    result["rows"][0] = {"tokens": 131_072, "length": 200, "dim": 64, "left_out": "out of memory"}
    result["mixer"] = [{"length": 200, "dim": 64, "left_out": "broken"}]
    lines = gpu_table.table(result)
    assert "left out: rows tokens 131072, length 200, dim 64: out of memory" in lines
    assert "left out: mixer length 200, dim 64: broken" in lines
    assert len(gpu_table.table(result | {kind: [] for kind in gpu_rows.ROWS})) == 1


class InThisProcess:
    """A worker that cannot lose its process."""

    def __call__(self, measure: Any, shape: dict[str, Any], seconds: float, limit: float) -> dict[str, Any]:
        return gpu_worker.measured(measure, shape, seconds)

    def close(self) -> None:
        pass


class OnCpu(TorchFunctionMode):
    """What is asked for on CUDA is made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is Tensor.cuda:
            return args[0]
        args = ["cpu" if isinstance(a, str) and a == "cuda" else a for a in args]
        kwargs = {name: "cpu" if name == "device" else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the suite asks of torch.cuda; the reference stands in for both backends."""
    said = {"is_available": True, "get_device_name": "a made-up GPU", "memory_allocated": 0, "max_memory_allocated": 9}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    for name in ("_sleep", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *options, **named: autocast("cpu", *options, **named))
    for name in ("triton", "cuda"):
        monkeypatch.setitem(backends.BACKENDS, name, backends.Backend(("cuda",), lambda: None, lambda: reference))


def test_every_row_is_measured(pretended_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole program on small shapes, one kind of row broken."""
    pytest.importorskip("triton", reason="triton is not installed")
    for module in (gpu_rows, gpu_suite, gpu_table):
        for name, value in {"TOKENS": (2048, 4096), "DIMS": (64,), "LENGTHS": (200,)}.items():
            monkeypatch.setattr(module, name, value, raising=False)
    few = {"DRAWN": ("ml-1m",), "MIXER_LENGTHS": (200,), "RUNS": ((1 << 24, 64),), "FOURIER_LENGTHS": (256,)}
    for name, value in (few | {"FOURIER_DIMS": (64,), "Worker": InThisProcess}).items():
        monkeypatch.setattr(gpu_suite, name, value)
    monkeypatch.setattr(gpu_measuring, "FLUSHED", 1)
    monkeypatch.setattr(gpu_worker, "CLOCK", gpu_measuring.Clock())
    monkeypatch.setitem(gpu_rows.ROWS, "scratch", lambda **_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["gpu", "--skip-tests", "--seconds", "0", "--out", str(tmp_path / "gpu")])
    with OnCpu(), pytest.raises(SystemExit) as stopped:
        gpu_suite.main()
    assert not stopped.value.code
    result = read(tmp_path / "gpu.json")
    left_out = [row["left_out"] for kind in gpu_rows.ROWS for row in result[kind] if "left_out" in row]
    assert left_out == ["division by zero"]
    assert [len(result[kind]) for kind in gpu_rows.ROWS] == [2, 1, 1, 1, 1]
    assert len(result["cases"]) == 4 and all(case["check"]["error"] < 2e-2 for case in result["cases"])
    assert (tmp_path / "gpu.png").exists()


def breaks(how: str, **_: Any) -> dict[str, Any]:
    if how == "dies":
        os._exit(3)
    if how == "hangs":
        time.sleep(60)
    return {"figure": 1 / (how != "raises")}


def test_a_worker_survives_its_rows() -> None:
    worker = gpu_worker.Worker()
    try:
        limits = {"works": 60.0, "raises": 60.0, "dies": 60.0, "hangs": 2.0}
        rows = [worker(breaks, {"how": how}, 0.0, limits[how]) for how in (*limits, "works")]
    finally:
        worker.close()
    said = ["division by zero", "the process died (3)", "not done after 2 s"]
    assert [row.get("left_out") for row in rows] == [None, *said, None]
    assert rows[0] == rows[-1] == {"how": "works", "figure": 1.0}


def test_figures_are_kept_where_the_recommender_is_missing(
    pretended_gpu: None, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.harness.recording", None)
    gpu_suite.save(result, "title", tmp_path / "new" / "gpu.json")
    assert json.loads((tmp_path / "new" / "gpu.json").read_text())["rows"] == result["rows"]
