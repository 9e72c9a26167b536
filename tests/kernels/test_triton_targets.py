"""What the Triton kernels compile to for NVIDIA's and AMD's GPUs, without a GPU."""

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
    """Compiles kernels in a process without the interpreter. No register spills, and blocks' shared memory fits."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = python("-m", "benchmarks.gpu.compiled", "--out", out, *flags, cwd=ROOT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(out.read_text())["kernels"]
    for row in rows:
        assert row["spilled"] == row["stack"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
    return rows


# 10 s a case if nothing is cached. The second and third case, packed, use every kernel; the first, padded, is compiled
# below.
@pytest.mark.parametrize(
    ("target", "cases"),
    [
        ("sm_90", ("1", "2")),
        *(pytest.param(target, ("0", "1", "2"), marks=pytest.mark.slow) for target in ("sm_80", "sm_90")),
    ],
)
def test_every_kernel_compiles_without_spills(target: str, cases: tuple[str, ...], tmp_path: Path) -> None:
    """Every shipped configuration compiles without spills. This needs ptxas, which comes with triton, but no GPU."""
    rows = kernels(tmp_path / "aot.json", "--cases", *cases, "--targets", target)
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
            assert row["loads_128"] >= 2, row  # of x and of a gate


@pytest.mark.parametrize(
    ("targets", "flags"),
    [
        # for each vendor, the GPU whose blocks have least shared memory
        (("gfx942", "sm_120"), ("--cases", "0", "--kernels", "legendre_chunks_kernel", "gated_short_conv_kernel")),
        pytest.param(("sm_100", "sm_120", "sm_86", "sm_89"), (), marks=pytest.mark.slow),
        pytest.param(("gfx942", "gfx950"), (), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_other_gpus(targets: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path) -> None:
    rows = kernels(tmp_path / "aot.json", "--targets", *targets, *flags)
    assert {row["architecture"].rstrip("a") for row in rows} == set(targets)
