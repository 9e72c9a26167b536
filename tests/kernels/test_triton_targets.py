"""The Triton kernels compiled for GPUs that nothing here runs on: newer NVIDIA ones, and AMD's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.interpreter import python

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("targets", "flags"),
    [
        (("gfx942", "gfx950", "sm_100", "sm_120"), ("--kernels", "legendre_chunks_kernel", "gated_short_conv_kernel")),
        pytest.param(("sm_100", "sm_120", "sm_86", "sm_89"), (), marks=pytest.mark.slow),
        pytest.param(("gfx942", "gfx950"), (), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_other_gpus(targets: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path) -> None:
    """Compiled, not run: nothing spills to memory, and what a block shares fits."""
    out = tmp_path / "aot.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    arguments = ("-m", "benchmarks.gpu.compiled", "--out", out, "--targets", *targets, *flags)
    done = python(*arguments, cwd=ROOT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["kernels"]
    assert {row["architecture"].rstrip("a") for row in rows} == set(targets)
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
