"""What an import needs: each test runs a process that has torch but cannot find some other packages."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from tests.interpreter import python


def run_without(missing: list[str], program: str) -> CompletedProcess[str]:
    """Run ``program`` in an interpreter that cannot import the ``missing`` top-level packages."""
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
    return python("-c", blocker + program)


EXTRAS = ["polars", "tyro", "rich", "safetensors", "matplotlib", "triton", "scipy", "pandas"]


def test_the_kernels_need_torch_and_numpy_only() -> None:
    program = """
import torch
from hyenarec_kernels.nn import HyenaMixer
out = HyenaMixer(8, 16)(torch.randn(2, 5, 8))
assert out.shape == (2, 5, 8) and out.isfinite().all()
print("served by", __import__("hyenarec_kernels").backends.available("cpu"))
"""
    done = run_without(EXTRAS, program)
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout


def test_importing_the_kernels_imports_no_extra() -> None:
    program = f"import sys, hyenarec_kernels.nn; print([name for name in {EXTRAS!r} if name in sys.modules])"
    done = run_without([], program)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_environment_report_needs_no_extra() -> None:
    done = run_without(EXTRAS, "import runpy; runpy.run_module('hyenarec_kernels', run_name='__main__')")
    assert done.returncode == 0, done.stderr
    for word in ("torch", "triton", "nvcc", "GPU", "reference"):
        assert word in done.stdout


def test_a_missing_extra_is_named_with_its_cure() -> None:
    done = run_without(["safetensors"], "import hyenarec")
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == "ModuleNotFoundError: hyenarec needs safetensors: pip install 'hyenarec[rec]'"
    )


@pytest.mark.parametrize("module", ["hyenarec", "hyenarec.cli", "hyenarec.training"])
def test_everything_but_reading_a_log_works_without_polars(module: str) -> None:
    done = run_without(["polars"], f"import {module}")
    assert done.returncode == 0, done.stderr
