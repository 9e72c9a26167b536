"""What the GPU benchmark makes of results, on made-up ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hyenarec_benchmarks import gpu_suite


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
