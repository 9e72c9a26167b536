"""What the GPU benchmark makes of results, on made-up ones."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hyenarec_benchmarks import gpu_measuring, gpu_rows, gpu_suite
from hyenarec_benchmarks.recording import read
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyenarec_kernels import backends, reference


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
            "memory": {"training": 1.5},
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
        "drawn": [{"drawn": "ml-1m", "dim": 64, "relative": 0.875}],
        "mixer": [{"length": 200, "dim": 64, "times": timed(mixer=1.0, attention=2.5)}],
        "fourier": [fourier],
        "scratch": [
            {"run": 1 << 24, "dim": 64, "times": timed(**both), "host": {"ours, fwd+bwd": 2.0}, "memory": 1.25}
        ],
    }


def test_the_table_compares_with_the_fastest_rival(result: dict[str, Any]) -> None:
    lines = gpu_suite.table(result)
    cells = lines[1].split()
    assert cells[3:6] == ["1.000", "50%", "7.0x"] and cells[7:9] == ["3.000", "5.0x"] and cells[-1] == "1.50x"
    assert lines[-1] == "largest error against float64: 2.0e-03, x at L=512"
    assert lines[-2] == (
        "explicit filter L=256 D=64: fwd 0.250 ms, float32 0.500 ms, FFT, (B, D, L) takes 6.0x the time and 8.0x the "
        "memory; fwd+bwd 1.000 ms, float32 2.000 ms, FFT, (B, L, D), fwd+bwd takes 6.0x the time and 8.0x the memory; "
        "error 3.0e-07"
    )


def test_the_plot_is_written(result: dict[str, Any], tmp_path: Path) -> None:
    gpu_suite.plot(result, "title", tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_rows_that_were_left_out_cost_no_other(result: dict[str, Any]) -> None:
    result["rows"][0] = {"tokens": 131_072, "length": 200, "dim": 64, "left_out": "out of memory"}
    result["mixer"] = [{"length": 200, "dim": 64, "left_out": "broken"}]
    lines = gpu_suite.table(result)
    assert "left out: rows tokens 131072, length 200, dim 64: out of memory" in lines
    assert "left out: mixer length 200, dim 64: broken" in lines
    assert len(gpu_suite.table(result | {kind: [] for kind in gpu_suite.ROWS})) == 1


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
    for module in (gpu_rows, gpu_suite):
        for name, value in {"TOKENS": (2048, 4096), "DIMS": (64,), "LENGTHS": (200,)}.items():
            monkeypatch.setattr(module, name, value)
    few = {"DRAWN": ("ml-1m",), "MIXER_LENGTHS": (200,), "FOURIER_LENGTHS": (256,), "RUNS": (1 << 24,)}
    for name, value in few.items():
        monkeypatch.setattr(gpu_suite, name, value)
    monkeypatch.setattr(gpu_measuring, "FLUSHED", 1)
    monkeypatch.setitem(gpu_suite.ROWS, "scratch", lambda **_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["gpu", "--skip-tests", "--seconds", "0", "--out", str(tmp_path / "gpu")])
    with OnCpu(), pytest.raises(SystemExit) as stopped:
        gpu_suite.main()
    assert not stopped.value.code
    result = read(tmp_path / "gpu.json")
    left_out = [row["left_out"] for kind in gpu_suite.ROWS for row in result[kind] if "left_out" in row]
    assert left_out == ["division by zero"]
    assert [len(result[kind]) for kind in gpu_suite.ROWS] == [2, 1, 1, 1, 1]
    assert len(result["cases"]) == 4 and all(case["check"]["error"] < 2e-2 for case in result["cases"])
    assert (tmp_path / "gpu.png").exists()
