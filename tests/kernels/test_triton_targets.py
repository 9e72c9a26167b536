"""What the Triton kernels compile to, without a GPU: for NVIDIA's and for AMD's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.interpreter import python

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[2]


def kernels(out: Path, *flags: str) -> list[dict[str, Any]]:
    """What they compile to, in a process without the interpreter. Nothing spills, and what a block shares fits."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = python("-m", "benchmarks.gpu.compiled", "--out", out, *flags, cwd=ROOT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(out.read_text())["kernels"]
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
    return rows


@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])  # 7 s each
def test_every_kernel_compiles_without_spills(target: str, tmp_path: Path) -> None:
    """In every shipped configuration; needs ptxas, which comes with triton, and no GPU."""
    rows = kernels(tmp_path / "aot.json", "--few", "--targets", target)
    assert {row["architecture"].rstrip("a") for row in rows} == {target}
    matrix = {f"legendre_{part}_kernel" for part in ("moments", "chunks", "across_gradient")}
    matrix |= {"long_conv_toeplitz_kernel", "long_conv_toeplitz_gradient_kernel"}
    others = {"legendre_up_kernel", "legendre_across_kernel", "long_conv_tap_gradient_kernel", "name_slots_kernel"}
    others |= {f"long_conv_{part}_kernel" for part in ("direct", "direct_backward", "last", "last_backward")}
    others |= {"long_conv_last_tap_gradient_kernel", "short_conv_kernel", "short_conv_backward_kernel"}
    others |= {"gated_short_conv_kernel", "gated_short_conv_backward_kernel", "conv_step_kernel", "borders_kernel"}
    assert {row["kernel"] for row in rows} == matrix | others
    for row in rows:
        assert (row["tensor_core"] > 0) == (row["kernel"] in matrix), row
        if row["kernel"] in ("legendre_moments_kernel", "legendre_chunks_kernel") and row["dtype"] != "float32":
            assert row["loads_128"] >= 2, row  # of x and a gate


@pytest.mark.parametrize(
    ("targets", "flags"),
    [
        # of each vendor the one whose blocks share least memory
        (("gfx942", "sm_120"), ("--kernels", "legendre_chunks_kernel", "gated_short_conv_kernel")),
        pytest.param(("sm_100", "sm_120", "sm_86", "sm_89"), (), marks=pytest.mark.slow),
        pytest.param(("gfx942", "gfx950"), (), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_other_gpus(targets: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path) -> None:
    rows = kernels(tmp_path / "aot.json", "--targets", *targets, *flags)
    assert {row["architecture"].rstrip("a") for row in rows} == set(targets)
